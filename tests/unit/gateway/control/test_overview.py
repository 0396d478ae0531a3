from batching.report import BatchingStatistics, CurvePoint, Refusal
from gateway.control.overview import ModelRow, Overview, together


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
