"""What the exposition says of batching."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

from backends.contract import NO_DEADLINE, Batch, Datatype, Limits, Tensor, TensorSpec
from backends.errors import BackendFailed
from backends.oip.remote import ServerSaid
from backends.preprocessed import preprocessed
from backends.python import Python, PythonOptions
from batching.batcher import Batcher
from batching.options import BatchingOptions
from gateway.catalog import Catalog, Model
from gateway.store.contract import StoreStatistics
from gateway.telemetry import Telemetry, _JsonLines
from router.table import RouteTable
from tests.unit.batching.conftest import FakeBackend, batcher, idle, run, submit, within
from tests.unit.batching.test_padding import OPTIONS, Encoder, tokens

STORE = StoreStatistics(pending_writes=0, commits=0, rows=0, size_bytes=1, limit_bytes=2, full=False)


TAKEN, GIVEN = (TensorSpec(name, Datatype.FP32, (3, 2, 2)) for name in "xy")


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


def test_what_another_server_said_reaches_the_log_and_what_a_model_here_quotes_does_not() -> None:
    told = BackendFailed("model 'mine' failed on this batch; the log of its server has the cause")
    told.__cause__ = ServerSaid("HTTP 500: CUDA error: out of memory")
    quoting = ValueError("invalid literal: 'card 4711'")

    lines = [
        _JsonLines().format(logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (type(error), error, None)))
        for error in (told, quoting)
    ]

    assert "CUDA error: out of memory" in lines[0]
    assert "4711" not in lines[1]


def test_fused_kernels_are_told_by_what_they_did_and_why_they_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails, and one that works: the metrics of both, and answers from both."""

    async def scenario() -> None:
        picture = TensorSpec("image", Datatype.UINT8, (-1, -1, 3))
        steps = [{"resize": [2, 2]}, {"scale": 1.0}, "chw"]
        model = Python("m", lambda inputs: {"y": inputs["x"]}, PythonOptions("given:directly", (TAKEN,), (GIVEN,)))
        backend = await preprocessed(model, (picture,), steps, (), labels=None, base=Path())
        async with Batcher("m", backend, BatchingOptions()) as b:
            telemetry = telemetry_of(Model("m", backend, b))
            batch = Batch.of({"image": Tensor.of(np.full((3, 40, 50, 3), 7, np.uint8))})
            first = await backend.infer(batch, NO_DEADLINE)
            monkeypatch.setattr("kernels.fused._spread", out_of_memory)
            second = await backend.infer(batch, NO_DEADLINE)

            assert (first["y"].numpy() == 7).all()
            assert (second["y"].numpy() == 7).all()
            assert values(telemetry, "pointsman_kernel_items_total") == {("m", "fused"): 3, ("m", "plain"): 3}
            assert values(telemetry, "pointsman_kernel_checks_total").keys() == {("m",)}
            assert values(telemetry, "pointsman_kernel_demotions_total") == {
                ("mismatch", "m"): 0,
                ("out_of_memory", "m"): 1,
                ("failed", "m"): 0,
            }

    asyncio.run(scenario())


def out_of_memory(*_: object) -> None:
    raise MemoryError
