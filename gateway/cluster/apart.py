"""Models that are apart from the gateway: each version of one is an application of Serve by itself.

    pointsman                           the gateway, which knows by name what it asks
    pointsman-model-NAME-DIGEST         a model, of what the digest is of: options, files, labels
    pointsman-model-NAME-ANOTHER        its next version, while gateways change

**In an upgrade** the next versions come first, beside the ones that run (`deploy_apart`). Once they serve, gateways are
replaced one after the other; each asks the versions that its own configuration is about, from its start to its end.
When all gateways are new, those versions go that nobody asks any more (`left_over`), with the models that a
configuration does not name any more. An upgrade whose models cannot start leaves everything as it is.

What is deployed anew under the name that it has, as another number of replicas is, Serve changes in place.

Rejected: models as deployments of the gateway's application. Serve rolls these at the same time as gateways, and ends
those that are gone at once, while gateways that are about to leave still ask them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from backends.ray_serve.deployment import ModelReplica
from backends.ray_serve.kept import forget, short
from backends.ray_serve.options import DeploymentOptions, ScalingOptions
from gateway.certificates import stage_subject
from gateway.cluster.deployments import APP, GATEWAY, HEALTH, LOOK_S, ONE_LOOP, QUIET, STARTS, in_environment
from gateway.cluster.rollout import Patience, wait_serving
from gateway.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ApplicationStatusOverview

_PREFIX = f"{APP}-model-"
_LOOK_BACK_S = 12.0  # Serve wants more than the 10 s between its own questions


@dataclass(frozen=True, slots=True)
class Apart:
    """Where a version of a model is.

    Attributes:
        app: of Serve's.
        deployment: in it.
        digest: of what it is made of.
    """

    app: str
    deployment: str
    digest: str


@dataclass(frozen=True, slots=True)
class Models:
    """What a gateway knows of models that are apart.

    Attributes:
        places: where its own are, by their names.
        others: the applications of versions that were there before and are not its own, and since when they were.
    """

    places: Mapping[str, Apart] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)


def apart(settings: Settings) -> dict[str, Apart]:
    """Where the models are that are apart from the gateway, by their names.

    Raises:
        OSError: a file of a model cannot be read.
    """
    return {model.name: _place(model, _digest(model)) for model in _models(settings)}


def deployed(settings: Settings) -> list[DeploymentOptions]:
    """How the models are deployed that are apart from the gateway."""
    return [model.serve for model in settings.models.values() if model.serve is not None]


def cores(deployments: Iterable[DeploymentOptions]) -> float:
    """What all their replicas ask for, when there are as many as may be."""
    return sum(one.most_replicas * one.num_cpus for one in deployments)


def deploy_apart(settings: Settings, environment: Mapping[str, str], patience: Patience) -> Models:
    """Deploy what `apart` says, beside what runs, and return when it serves; that which has room, where all has not.

    Raises:
        ClusterFailed: it cannot; what runs goes on.
        OSError: a file of a model cannot be read.
    """
    from ray import serve

    places = apart(settings)
    known = serve.status().applications
    own = {place.app for place in places.values()}
    others = {name: app.last_deployed_time_s for name, app in known.items() if _is_model(name) and name not in own}
    failed = {name for name in own & set(known) if known[name].status == "DEPLOY_FAILED"}
    delete(failed)  # or Serve would not try again
    targets = [
        serve.RunTarget(
            model_application(model, places[model.name].digest, environment, _running(known, places[model.name])),
            name=places[model.name].app,
            route_prefix=None,
        )
        for model in _models(settings)
    ]
    try:
        if targets:
            serve.run_many(targets, wait_for_applications_running=False)
        wait_serving(sorted(own), patience, some_do=True)
    except BaseException:
        delete(own - set(known) | failed)
        raise
    return Models(places, others)


def delete(apps: Collection[str]) -> None:
    """Have Serve end *apps*, and wait for that for a while."""
    from ray import serve

    for app in apps:
        serve.delete(app, _blocking=False)
        forget(app.rsplit("-", 1)[1])
    for app in apps:
        with contextlib.suppress(TimeoutError):
            serve.delete(app)


def left_over(
    apps: Mapping[str, ApplicationStatusOverview], asked: Collection[str], others: Mapping[str, float]
) -> frozenset[str] | None:
    """Those of *apps* that no gateway asks any more; None: that cannot be said, as gateways change, or soon will.

    Args:
        asked: by gateways.
        others: see `Models`; what nobody asks and was not there before is a successor's, which is about to be.
    """
    if not all(is_whole(app) for app in apps.values() if GATEWAY in app.deployments):
        return None
    unasked = {name: app.last_deployed_time_s for name, app in apps.items() if _is_model(name) and name not in asked}
    return frozenset(unasked) if unasked.items() <= others.items() else None


def is_whole(app: ApplicationStatusOverview) -> bool:
    """Whether all gateways of *app* are of one version, and none is about to leave."""
    gateway = app.deployments[GATEWAY]
    return gateway.status == "HEALTHY" and {state for state, count in gateway.replica_states.items() if count} == {
        "RUNNING"
    }


def model_application(
    model: ModelSettings, digest: str, environment: Mapping[str, str] = ONE_LOOP, running: int = 0
) -> Application:
    """The replicas of *model*, by what `serve` of its entry says.

    Args:
        digest: tells it from its other versions.
        running: replicas that it has, or the version before it; where it is scaled, it begins with as many.
    """
    from ray import serve

    options = model.serve
    assert options is not None
    resources: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    if options.memory_bytes is not None:
        resources["memory"] = options.memory_bytes
    many: dict[str, Any] = (
        {"num_replicas": options.replicas}
        if options.scaling is None
        else {"autoscaling_config": _autoscaling(options.scaling, running)}
    )
    deployment = serve.deployment(
        name=_place(model, digest).deployment,
        # One more than the model overlaps: its tensors travel meanwhile.
        max_ongoing_requests=getattr(model.options, "max_in_flight", 1) + 1,
        max_surge_percent=100,
        max_constructor_retry_count=STARTS,
        graceful_shutdown_wait_loop_s=LOOK_S,
        logging_config=QUIET,
        ray_actor_options={**resources, **in_environment(environment)},
        **HEALTH,
        **many,
    )(ModelReplica)
    # Serve would start all replicas anew each time; a version it takes from its own code alone. Replicas that were not
    # scaled when they started never tell of their load.
    version = digest if options.scaling is None else f"{digest}-scaled"
    deployment = deployment.options(version=version, _internal=True)
    return deployment.bind(model.name, model.backend, model.options, digest)


def _is_model(app: str) -> bool:
    return app.startswith(_PREFIX)


def _models(settings: Settings) -> list[ModelSettings]:
    return [model for model in settings.models.values() if model.serve is not None]


def _place(model: ModelSettings, digest: str) -> Apart:
    return Apart(f"{_PREFIX}{model.name}-{short(digest)}", f"model-{model.name}", digest)


def _running(apps: Mapping[str, ApplicationStatusOverview], place: Apart) -> int:
    """The replicas that serve a version of the model at *place*."""
    found = [app.deployments[place.deployment] for app in apps.values() if place.deployment in app.deployments]
    return max((int(one.replica_states.get("RUNNING", 0)) for one in found), default=0)


def _autoscaling(scaling: ScalingOptions, running: int) -> dict[str, Any]:
    """As Serve has it."""
    return {
        "min_replicas": scaling.least,
        "max_replicas": scaling.most,
        "initial_replicas": min(scaling.most, max(scaling.least, running)),
        "upscale_delay_s": scaling.up_after_s,
        "downscale_delay_s": scaling.down_after_s,
        "look_back_period_s": _LOOK_BACK_S,
        "policy": {
            "policy_function": "backends.ray_serve.scaling:QueueDelay",
            "policy_kwargs": {"target_s": scaling.queue_delay_s},
        },
    }


def _digest(model: ModelSettings) -> str:
    """What tells *model* from its other versions: whatever decides its answers, files by their contents, and how."""
    subject = asdict(stage_subject(model, "", None))
    return hashlib.sha256(json.dumps([subject, repr(model.options)], sort_keys=True).encode()).hexdigest()
