"""Counters of requests and batches."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from backends.contract import NO_DEADLINE, Batch, Tensor, Tensors
from backends.errors import Unavailable
from batching.batcher import Batcher
from batching.options import BatchingOptions
from batching.report import BatchingCounters, BatchingTotals, SizeTotals, together
from gateway.oip.statistics import RequestCounters, model_stats
from tests.unit.batching.conftest import Call, FakeBackend, echo


def items(count: int) -> Batch:
    return Batch.of({"nonce": Tensor.of(np.ones((count, 1), np.int64))})


def test_every_caller_of_a_batch_has_spent_its_whole_time() -> None:
    counters = BatchingCounters()

    counters.answered(5, [1.0, 1.5], (2.0, 2.25, 3.0, 3.125))
    counters.answered(1, [4.0], (4.0, 4.0, 4.5, 4.5))

    assert counters.totals() == BatchingTotals(
        entries=3,
        queue_ns=1_500_000_000,
        input_ns=500_000_000,
        infer_ns=2_000_000_000,
        output_ns=250_000_000,
        by_size=(SizeTotals(1, 1, 0, 500_000_000, 0), SizeTotals(5, 1, 250_000_000, 750_000_000, 125_000_000)),
    )
    assert counters.totals().batches == 2


def test_a_timer_that_rang_early_counts_as_no_time() -> None:
    counters = BatchingCounters()

    counters.answered(1, [2.0], (1.0, 0.5, 0.25, 0.125))

    found = counters.totals()
    assert (found.queue_ns, found.input_ns, found.infer_ns, found.output_ns) == (0, 0, 0, 0)


def test_totals_of_several_models_add_up_by_size() -> None:
    one = BatchingTotals(1, 2, 3, 4, 5, (SizeTotals(1, 1, 3, 4, 5),))
    two = BatchingTotals(2, 3, 4, 5, 6, (SizeTotals(1, 1, 1, 2, 3), SizeTotals(2, 1, 3, 3, 3)))

    assert together([one, two]) == BatchingTotals(
        3, 5, 7, 9, 11, (SizeTotals(1, 2, 4, 6, 8), SizeTotals(2, 1, 3, 3, 3))
    )
    assert together([]) == BatchingTotals(0, 0, 0, 0, 0, ())


async def test_a_batcher_counts_what_it_answered_and_nothing_else() -> None:
    async def answer(_: int, call: Call) -> Tensors:
        if call.batch.size == 2:
            raise Unavailable("not now")
        return echo(call.batch)

    async with Batcher("m", FakeBackend(behave=answer), BatchingOptions(max_batch=4)) as batcher:
        with pytest.raises(Unavailable):
            await batcher.submit(items(2), NO_DEADLINE)
        await asyncio.gather(*(batcher.submit(items(1), NO_DEADLINE) for _ in range(3)))
        await batcher.submit(items(7), NO_DEADLINE)

        found = batcher.totals()

    assert found.entries == 5  # the batch of 7 went in two parts
    assert sum(row.size * row.batches for row in found.by_size) == 10
    assert min(found.queue_ns, found.input_ns, found.output_ns) >= 0


def test_requests_count_as_answered_or_failed() -> None:
    counters = RequestCounters()

    counters.ended(4, 0.25)
    counters.ended(0, -1.0)
    found = counters.statistics("tickets", "1", ())

    assert (found.items, found.successes, found.success_ns) == (4, 1, 250_000_000)
    assert (found.failures, found.failure_ns) == (1, 0)
    assert found.last_ms > 0
    assert model_stats([found])["model_stats"][0]["batch_stats"] == []
