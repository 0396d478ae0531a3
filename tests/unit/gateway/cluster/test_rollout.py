"""When a deployment counts as done, and what is said where it cannot be; Serve's statuses are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cluster.apart import left_over
from gateway.cluster.rollout import ClusterFailed, Patience, serves

PATIENCE = Patience(room_s=60.0, start_s=600.0)
NO_ROOM = (
    "Deployment 'model-m' in application 'a' has 1 replicas that have taken more than 30s to be scheduled. This may be "
    "due to waiting for the cluster to auto-scale or for a runtime environment to be installed. Resources required for "
    'each replica: {"CPU": 1.0, "GPU": 1.0}, total resources available: {"CPU": 2.0}. Use `ray status` for more.'
)
FAILED = "Replica failed:\nTraceback (most recent call last):\n  ...\nbackends.errors.NotFound: there is no file m.onnx"


def app(status: str, of_it: str = "HEALTHY", message: str = "", since: float = 0.0, **states: int) -> Any:
    deployment = SimpleNamespace(status=of_it, message=message, replica_states=states)
    return SimpleNamespace(status=status, deployments={"model-m": deployment}, last_deployed_time_s=since)


def gateway(status: str = "HEALTHY", **states: int) -> Any:
    deployment = SimpleNamespace(status=status, message="", replica_states=states)
    return SimpleNamespace(status="RUNNING", deployments={"gateway": deployment}, last_deployed_time_s=0.0)


def test_a_deployment_is_done_when_all_of_it_runs() -> None:
    both = {"a": app("RUNNING"), "b": app("DEPLOYING", "UPDATING")}

    assert not serves(both, 599.0, PATIENCE, some_do=True)
    assert serves({**both, "b": app("RUNNING", "UPSCALING")}, 0.0, PATIENCE, some_do=False)


def test_what_could_not_start_is_told_by_its_last_words() -> None:
    with pytest.raises(ClusterFailed, match=r"there is no file m\.onnx$"):
        serves({"a": app("DEPLOY_FAILED", "DEPLOY_FAILED", FAILED)}, 0.0, PATIENCE, some_do=True)


def test_what_has_no_room_is_told_with_what_it_asks_for_and_does_not_wait_for_ever() -> None:
    full = {"a": app("DEPLOYING", "UPDATING", NO_ROOM)}

    assert not serves(full, 59.0, PATIENCE, some_do=True)
    with pytest.raises(ClusterFailed, match=r'no room for a replica of \'model-m\'.*"GPU": 1.0.*where {"CPU": 2.0} is'):
        serves(full, 60.0, PATIENCE, some_do=True)


def test_one_replica_is_enough_for_a_while_where_there_is_no_room_for_more() -> None:
    full = {"a": app("DEPLOYING", "UPDATING", NO_ROOM, RUNNING=1, STARTING=3)}

    assert not serves(full, 59.0, PATIENCE, some_do=True)
    assert serves(full, 60.0, PATIENCE, some_do=True)
    with pytest.raises(ClusterFailed, match="no room"):
        serves(full, 60.0, PATIENCE, some_do=False)


def test_what_only_takes_long_is_waited_for_longer_and_not_for_ever() -> None:
    slow = {"a": app("DEPLOYING", "UPDATING", "2 replicas that have taken more than 30s to initialize.")}

    assert not serves(slow, 599.0, PATIENCE, some_do=True)
    with pytest.raises(ClusterFailed, match="within 600 s: model-m"):
        serves(slow, 600.0, PATIENCE, some_do=True)


OLD, NEW, NEXT = (f"pointsman-model-m-{name}" for name in ("old", "new", "next"))


def test_a_model_that_nobody_asks_any_more_is_left_over_once_all_gateways_are_new() -> None:
    models = {OLD: app("RUNNING", since=1.0), NEW: app("RUNNING", since=2.0), "another's": app("RUNNING")}
    others = {OLD: 1.0}

    def found(replicas: Any) -> frozenset[str] | None:
        return left_over({"pointsman": replicas, **models}, {NEW}, others)

    assert found(gateway(RUNNING=2)) == frozenset({OLD})
    assert found(gateway(RUNNING=2, STARTING=0)) == frozenset({OLD})
    assert found(gateway(RUNNING=2, STOPPING=1)) is None
    assert found(gateway("UPDATING", RUNNING=2)) is None


def test_what_another_gateway_asks_is_not_left_over() -> None:
    models = {OLD: app("RUNNING", since=1.0), NEW: app("RUNNING", since=2.0)}

    assert left_over({"pointsman": gateway(RUNNING=1), **models}, {OLD, NEW}, {OLD: 1.0}) == frozenset()


@pytest.mark.parametrize("since", [{NEXT: 3.0}, {OLD: 3.0}], ids=["the next version", "the last one, brought back"])
def test_a_successor_that_is_about_to_be_keeps_its_models(since: dict[str, float]) -> None:
    fresh = {name: app("RUNNING", since=when) for name, when in since.items()}

    assert left_over({"pointsman": gateway(RUNNING=1), NEW: app("RUNNING"), **fresh}, {NEW}, {OLD: 1.0}) is None
