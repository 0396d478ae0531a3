from dataclasses import replace
from typing import Any

from backends.replicas import ReplicaState, ReplicaStatistics
from batching.report import BatchingStatistics, CurvePoint, Refusal
from gateway.control.overview import ModelRow, Overview, RouteRow, together


def part(latency_s: float, refused: int, *curve: CurvePoint) -> Overview:
    """What a worker says of its one model."""
    batching = BatchingStatistics(1, 10, 1, 2, 3, latency_s, 0.0, curve, {Refusal.EXPIRED: refused})
    return Overview(True, 1, (), (ModelRow("fast", "ready", "7", batching),))


def test_of_several_workers_a_curve_is_the_slowest_at_each_size_and_refusals_add_up() -> None:
    one = part(0.1, 3, CurvePoint(1, 0.1, 0.4), CurvePoint(8, 0.2, 0.3))
    other = part(0.2, 4, CurvePoint(1, 0.2, 0.3), CurvePoint(8, 0.1, 0.5))
    knows_nothing = part(0.0, 0)

    (model,) = together([one, other, knows_nothing], []).models

    assert model.batching.curve == (CurvePoint(1, 0.2, 0.4), CurvePoint(8, 0.2, 0.5))
    assert model.batching.refusals[Refusal.EXPIRED] == 7
    assert (model.batching.queued_items, model.batching.latency_s) == (3, 0.2)


def test_of_several_workers_waits_are_the_longest_arrivals_add_up_and_buckets_are_those_that_any_knows() -> None:
    one, other = part(0.1, 0), part(0.1, 0)
    points = (CurvePoint(1, 0.1, 0.4),), (CurvePoint(1, 0.2, 0.3),)
    one = with_batching(one, oldest_wait_s=0.3, arrivals_per_s=10.0, bucket_curves={"64": points[0], "+Inf": points[0]})
    other = with_batching(other, oldest_wait_s=0.2, arrivals_per_s=5.0, bucket_curves={"8": points[1], "64": points[1]})

    told = together([one, other], []).models[0].batching

    assert (told.oldest_wait_s, told.arrivals_per_s) == (0.3, 15.0)
    assert list(told.bucket_curves) == ["8", "64", "+Inf"]
    assert told.bucket_curves["64"] == (CurvePoint(1, 0.2, 0.4),)


def with_batching(of: Overview, **changes: Any) -> Overview:  # Any: fields of the statistics
    (model,) = of.models
    return replace(of, models=(replace(model, batching=replace(model.batching, **changes)),))


def test_what_workers_say_differently_of_a_route_or_model_is_all_shown() -> None:
    def saying(accepts: str, version: str) -> Overview:
        base = part(0.1, 0)
        routes = RouteRow("tickets", ("fast",), accepts, None), RouteRow("other", ("fast",), "anything", None)
        return replace(base, routes=routes, models=(replace(base.models[0], version=version),))

    told = together([saying("over 0.9", "1"), saying("nothing", "2"), saying("over 0.9", "1")], [])

    assert [route.accepts for route in told.routes] == ["workers differ: over 0.9 / nothing", "anything"]
    assert told.models[0].version == "workers differ: 1 / 2"


def test_of_several_workers_a_server_is_as_the_worst_off_finds_it_and_what_it_did_adds_up() -> None:
    def seeing(state: ReplicaState, reason: str | None, latency_s: float | None) -> Overview:
        servers = (
            ReplicaStatistics("grpc://one", state, reason, 2, latency_s, 10, 3, 1),
            ReplicaStatistics("grpc://two", ReplicaState.HEALTHY, None, 1, 0.2, 5, 0, 0),
        )
        base = part(0.1, 0)
        return replace(base, models=(replace(base.models[0], replicas=servers),))

    well = seeing(ReplicaState.HEALTHY, None, 0.1)
    ejects = seeing(ReplicaState.EJECTED, "failures in a row", None)

    (model,) = together([well, ejects, part(0.1, 0)], []).models  # the third has not opened it yet

    assert model.replicas == (
        ReplicaStatistics("grpc://one", ReplicaState.EJECTED, "failures in a row", 4, 0.1, 20, 6, 2),
        ReplicaStatistics("grpc://two", ReplicaState.HEALTHY, None, 2, 0.2, 10, 0, 0),
    )
