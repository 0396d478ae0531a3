"""Waiting until applications of Ray Serve serve, and telling why they do not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.errors import Code, PointsmanError

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

_LOOK_S = 0.1
_HAS_NO_ROOM = re.compile(r"to be scheduled\..*?required for each replica: (.*?), total resources available: (.*?)\. ")
"""What Serve says, after half a minute, of replicas that no node has room for."""

_ERROR = re.compile(r"[\w.]*(Error|Exception|Failed|Unavailable|InvalidInput|NotFound)\b.*: ")


class ClusterFailed(PointsmanError):
    """Ray or Serve could not do what was asked for; the message says why."""

    code = Code.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a deployment may take.

    Attributes:
        room_s: until nodes have room for its replicas: where they are added, they come in minutes.
        start_s: in all, with what replicas take to start.
    """

    room_s: float = 600.0
    start_s: float = 1800.0


def wait_serving(apps: Sequence[str], patience: Patience, *, some_do: bool = False) -> None:
    """Return when all replicas of *apps* serve.

    Args:
        some_do: where nodes lack the room for all, one of each deployment is enough.

    Raises:
        ClusterFailed: they cannot start, have no room, or are not there in time.
    """
    from ray import serve

    began = time.monotonic()
    while True:
        known = serve.status().applications
        found = {name: known[name] for name in apps if name in known}
        if len(found) == len(set(apps)) and serves(found, time.monotonic() - began, patience, some_do=some_do):
            return
        time.sleep(_LOOK_S)


def serves(
    apps: Mapping[str, ApplicationStatusOverview], waited_s: float, patience: Patience, *, some_do: bool
) -> bool:
    """Whether *apps* serve; see `wait_serving`.

    1. Some could not start: it has failed.
    2. All replicas are there.
    3. Room is missing, and has been for long enough: whether some are enough, or it has failed.
    4. It takes too long: it has failed.

    Raises:
        ClusterFailed: as `wait_serving`.
    """
    if any(app.status == "DEPLOY_FAILED" for app in apps.values()):
        raise ClusterFailed(f"it could not be deployed: {why(apps.values())}")
    lacking = [
        (name, one)
        for app in apps.values()
        for name, one in app.deployments.items()
        if one.status not in {"HEALTHY", "UPSCALING", "DOWNSCALING"}
    ]
    if not lacking and all(app.status == "RUNNING" for app in apps.values()):
        return True
    homeless = [found for name, one in lacking if (found := _homeless(name, one)) is not None]
    if waited_s >= patience.room_s and homeless and len(homeless) == len(lacking):
        if some_do and all(one.replica_states.get("RUNNING") for _, one in lacking):
            return True
        raise ClusterFailed(
            f"there is no room for {'; nor for '.join(homeless)}. In an upgrade next replicas start beside those that "
            "they replace: add nodes, lower what `serve` or `cluster` ask for, or end the cluster and start it anew"
        )
    if waited_s >= patience.start_s:
        late = ", ".join(name for name, _ in lacking) or ", ".join(apps)
        raise ClusterFailed(f"it did not start within {patience.start_s:g} s: {late}; the replicas' logs say more")
    return False


def _homeless(name: str, deployment: DeploymentStatusOverview) -> str | None:
    """What replicas of *deployment* ask for, and what there is, where they wait for room."""
    found = _HAS_NO_ROOM.search(deployment.message)
    return f"a replica of {name!r}, which asks for {found[1]}, where {found[2]} is free" if found else None


def why(apps: Iterable[ApplicationStatusOverview]) -> str:
    """What the deployments that failed say: the last lines of their tracebacks, which are what happened."""
    said = []
    for app in apps:
        for deployment in app.deployments.values():
            if deployment.status != "HEALTHY":
                said += [line.strip() for line in deployment.message.splitlines() if _ERROR.match(line.strip())][-1:]
    return "; ".join(said) or "Serve does not say why; the replicas' logs do"
