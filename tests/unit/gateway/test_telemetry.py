"""What the exposition says of batching."""

from __future__ import annotations

import asyncio

from backends.contract import NO_DEADLINE, Limits
from batching.batcher import Batcher
from gateway.catalog import Catalog, Model
from gateway.store.contract import StoreStatistics
from gateway.telemetry import Telemetry
from router.table import RouteTable
from tests.unit.batching.conftest import FakeBackend, batcher, idle, run, submit, within
from tests.unit.batching.test_padding import OPTIONS, Encoder, tokens

STORE = StoreStatistics(pending_writes=0, commits=0, rows=0, size_bytes=1, limit_bytes=2, full=False)


def telemetry_of(model: Model) -> Telemetry:
    telemetry = Telemetry()
    telemetry.serve(lambda: Catalog(1, RouteTable(frozenset()), {}, {model.name: model}), lambda: STORE)
    return telemetry


def values(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], float]:
    """The samples of *name* by the values of their labels, in the order of the labels' names."""
    samples = (sample for family in telemetry.families() for sample in family.samples)
    return {tuple(text for _, text in sample.labels): sample.value for sample in samples if sample.name == name}


def test_a_queue_is_told_by_items_bytes_age_and_arrivals() -> None:
    async def scenario() -> None:
        backend = FakeBackend(Limits(max_batch=1))
        async with batcher(backend) as b:
            telemetry = telemetry_of(Model("m", backend, b))
            callers = []
            for value in range(3):
                callers.append(submit(b, value))
                await asyncio.sleep(0.5)
            told = {
                name: values(telemetry, f"pointsman_queue_{name}")[("m",)]
                for name in ("depth", "bytes", "oldest_seconds", "arrivals_per_second")
            }
            for index in range(3):
                backend.calls[index].answer()
                await idle()
            await asyncio.gather(*callers)

            rounded = {name: round(value, 2) for name, value in told.items()}
            assert rounded == {"depth": 2, "bytes": 16, "oldest_seconds": 1.0, "arrivals_per_second": 1.33}

    run(scenario)


def test_a_latency_curve_is_told_by_size_and_estimate_once_it_is_known() -> None:
    async def scenario() -> None:
        backend = FakeBackend(Limits(max_batch=6))
        async with batcher(backend) as b:
            telemetry = telemetry_of(Model("m", backend, b))
            unknown = values(telemetry, "pointsman_batch_latency_seconds")
            for index in range(4):
                caller = submit(b, 1)
                await asyncio.sleep(0.25)
                backend.calls[index].answer()
                await caller
            known = values(telemetry, "pointsman_batch_latency_seconds")

            assert unknown == {}
            assert {labels[1:] for labels in known} == {("m", size) for size in ("1", "2", "4", "6")}
            assert round(known["typical", "m", "1"], 3) == round(known["cautious", "m", "1"], 3) == 0.25

    run(scenario)


def test_length_buckets_are_told_by_their_bounds() -> None:
    async def scenario() -> None:
        backend = Encoder()
        async with Batcher("m", backend, OPTIONS, clock=asyncio.get_running_loop().time) as b:
            telemetry = telemetry_of(Model("m", backend, b))
            for length in (1, 2, 3, 20) * 2:
                await b.submit(tokens([1] * length), NO_DEADLINE)

            told = values(telemetry, "pointsman_bucket_latency_seconds")

            assert {bucket for bucket, *_ in told} == {"4", "+Inf"}

    run(scenario)


def test_refusals_are_told_by_reason_those_that_never_happened_included() -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with batcher(backend) as b:
            telemetry = telemetry_of(Model("m", backend, b))
            late = submit(b, 1, deadline=within(0.5))
            await asyncio.sleep(1.0)
            await asyncio.gather(late, return_exceptions=True)

            assert values(telemetry, "pointsman_batch_refusals_total") == {
                ("m", reason): float(reason == "expired")
                for reason in ("expired", "hopeless", "overloaded", "queue_full", "evicted")
            }

    run(scenario)
