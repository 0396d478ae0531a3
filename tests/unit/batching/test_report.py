"""What a batcher tells of its queue, of what it knows, and of whom it refused."""

from __future__ import annotations

import asyncio

import pytest

from backends.contract import NO_DEADLINE, Limits
from backends.errors import PointsmanError
from batching.batcher import Batcher
from batching.options import BatchingOptions
from batching.report import CurvePoint, Refusal, slowest
from tests.unit.batching.conftest import FakeBackend, batcher, idle, run, submit, within
from tests.unit.batching.test_padding import OPTIONS, Encoder, tokens


async def learn(b: Batcher, backend: FakeBackend, takes_s: float) -> None:
    """Let *b* know that a batch of one takes *takes_s*."""
    for _ in range(4):
        caller = submit(b, 0)
        await asyncio.sleep(takes_s)
        backend.calls[-1].answer()
        await caller


def counted(b: Batcher) -> dict[Refusal, int]:
    return {reason: count for reason, count in b.statistics().refusals.items() if count}


def test_every_refusal_is_counted_once_under_its_reason() -> None:
    async def scenario() -> None:
        backend = FakeBackend(Limits(max_batch=1))
        async with batcher(backend, BatchingOptions(max_queue=2)) as b:
            await learn(b, backend, 0.1)
            hopeless = submit(b, 1, deadline=within(0.01))
            past = submit(b, 2, deadline=within(-1.0))
            await idle()
            assert counted(b) == {Refusal.HOPELESS: 1, Refusal.EXPIRED: 1}

            running = submit(b, 3)
            await idle()
            overloaded = submit(b, 4, deadline=within(0.15))
            await idle()
            assert counted(b)[Refusal.OVERLOADED] == 1

            flood = [submit(b, value, tenant="greedy") for value in (5, 6)]
            await idle()
            full = submit(b, 7, tenant="greedy")
            await idle()
            assert counted(b)[Refusal.QUEUE_FULL] == 1

            modest = submit(b, 8, tenant="modest")
            await idle()
            assert counted(b)[Refusal.EVICTED] == 1

            for _ in range(3):
                backend.calls[-1].answer()
                await idle()
            told = await asyncio.gather(
                hopeless, past, running, overloaded, *flood, full, modest, return_exceptions=True
            )

            assert sum(isinstance(reply, PointsmanError) for reply in told) == sum(counted(b).values()) == 5

    run(scenario)


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "waiting"])
def test_a_deadline_that_passes_is_counted_wherever_it_does(is_running: bool) -> None:
    async def scenario() -> None:
        backend = FakeBackend(Limits(max_batch=1))
        async with batcher(backend) as b:
            before = [] if is_running else [submit(b, 1)]
            await idle()
            late = submit(b, 2, deadline=within(0.5))
            await asyncio.sleep(1.0)
            assert counted(b) == {Refusal.EXPIRED: 1}
            if before:
                backend.calls[0].answer()
            await asyncio.gather(late, *before, return_exceptions=True)
            assert counted(b) == {Refusal.EXPIRED: 1}

    run(scenario)


def test_callers_that_leave_by_themselves_are_no_refusals() -> None:
    async def scenario() -> None:
        backend = FakeBackend(Limits(max_batch=1))
        async with batcher(backend) as b:
            callers = [submit(b, value, deadline=within(0.5)) for value in (1, 2)]
            await idle()
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            await asyncio.sleep(1.0)

            assert counted(b) == {}

    run(scenario)


def test_the_oldest_wait_and_the_rate_of_arrivals_are_those_of_the_queue() -> None:
    async def scenario() -> None:
        backend = FakeBackend(Limits(max_batch=1))
        async with batcher(backend) as b:
            empty = b.statistics()
            callers = []
            for value in range(5):
                callers.append(submit(b, value))
                await asyncio.sleep(0.1)
            told = b.statistics()
            for index in range(5):
                backend.calls[index].answer()
                await idle()
            await asyncio.gather(*callers)

            assert (empty.oldest_wait_s, empty.arrivals_per_s) == (0.0, 0.0)
            assert told.oldest_wait_s == pytest.approx(0.4, abs=1e-3), "the first one runs already"
            assert told.arrivals_per_s == pytest.approx(4 / 0.5, rel=0.01)
            assert b.statistics().oldest_wait_s == 0.0

    run(scenario)


def test_only_length_buckets_that_have_run_have_a_curve_however_many_shapes_callers_choose() -> None:
    async def scenario() -> None:
        options = BatchingOptions(length_buckets=OPTIONS.length_buckets)  # not padded: every shape has a lane
        async with Batcher("m", Encoder(), options, clock=asyncio.get_running_loop().time) as b:
            before = b.statistics().bucket_curves
            for length in (1, 2, 3, 4, 9, 30) * 3:
                await b.submit(tokens([1] * length), NO_DEADLINE)
            told = b.statistics()

        assert before == {}
        assert list(told.bucket_curves) == ["4", "+Inf"]
        assert [point.size for point in told.bucket_curves["4"]] == [point.size for point in told.curve] == [1, 2, 4, 8]

    run(scenario)


def test_a_model_without_length_buckets_has_no_curve_but_its_own() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with batcher(backend) as b:
            assert b.statistics().curve == ()
            await learn(b, backend, 0.1)
            told = b.statistics()

            assert told.bucket_curves == {}
            assert told.curve[0].typical_s == pytest.approx(0.1, abs=1e-3)

    run(scenario)


def test_of_several_curves_the_slowest_counts_at_each_size() -> None:
    one = [CurvePoint(1, 0.1, 0.4), CurvePoint(2, 0.2, 0.5)]
    other = [CurvePoint(1, 0.2, 0.3), CurvePoint(2, 0.1, 0.6)]

    assert slowest([one, other]) == (CurvePoint(1, 0.2, 0.4), CurvePoint(2, 0.2, 0.6))
    assert slowest([]) == ()
