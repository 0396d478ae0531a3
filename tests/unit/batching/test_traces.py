"""Which trace a batch belongs to, and what its callers and its backend are told of it."""

from __future__ import annotations

import asyncio
import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from backends.contract import NO_DEADLINE, SERVER_CALLS, TRACE, Batch, Deadline, Limits, ServerCall, Tensors
from backends.errors import BackendFailed
from backends.trace_context import TraceContext, foremost
from batching.batcher import Batcher
from batching.report import BatchReport
from tests.unit.batching.conftest import FakeBackend, Reports, batcher, idle, nonces, run, values


class Seeing(FakeBackend):
    """Answers soon, but for what is poisoned, and keeps whose items each call had, and which span it was."""

    def __init__(self, poison: int | None = None, limits: Limits | None = None) -> None:
        super().__init__(limits)
        self.spans: list[TraceContext | None] = []
        self.shared: list[list[int]] = []
        self.poison = poison

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        self.spans.append(TRACE.get())
        self.shared.append(values(batch.inputs))
        if (calls := SERVER_CALLS.get()) is not None and (span := TRACE.get()) is not None:
            calls.append(ServerCall(span.child(), "a", 1, time.monotonic(), time.monotonic()))
        await asyncio.sleep(0.01)
        found = batch.inputs["nonce"].numpy()
        if self.poison in found:
            raise BackendFailed("poisoned")
        return {"nonce": batch.inputs["nonce"]}


def submit(to: Batcher, value: int, trace: TraceContext | None) -> asyncio.Task[Tensors]:
    return asyncio.create_task(to.submit(nonces(value), NO_DEADLINE, 0, "", trace))


def play(*rounds: list[TraceContext | None], poison: int | None = None) -> tuple[Seeing, list[BatchReport]]:
    """So many rounds of callers, those of each at once; their numbers go on from round to round."""
    reports = Reports()
    backend = Seeing(poison)

    async def scenario() -> None:
        async with batcher(backend, observer=reports) as served:
            number = itertools.count()
            for traces in rounds:
                asked = [submit(served, next(number), trace) for trace in traces]
                await asyncio.gather(*asked, return_exceptions=True)
                await idle()

    run(scenario)
    return backend, reports.seen


recorded = st.builds(TraceContext.begin, sampled=st.booleans())
callers = st.lists(st.none() | recorded, min_size=1, max_size=8)


@given(st.lists(callers, min_size=1, max_size=4))
def test_a_batch_is_a_span_within_its_foremost_callers_and_names_all(rounds: list[list[TraceContext | None]]) -> None:
    backend, reports = play(*rounds)

    traces = [trace for callers_of_round in rounds for trace in callers_of_round]
    assert sorted(number for shared in backend.shared for number in shared) == list(range(len(traces)))
    for shared, span, report in zip(backend.shared, backend.spans, reports, strict=True):
        traced = [trace for number in shared if (trace := traces[number]) is not None]
        if not traced:
            assert (span, report.trace) == (None, None)
            continue
        leading = foremost(traced)
        assert span is not None
        assert (span.trace_id, span.is_sampled) == (leading.trace_id, leading.is_sampled)
        assert span.span_id not in {trace.span_id for trace in traced}
        if not leading.is_recorded:
            assert report.trace is None
            continue
        assert report.trace is not None
        assert report.trace.span == span
        assert [caller.trace for caller in report.trace.callers] == traced
        assert all(caller.queued_s is not None for caller in report.trace.callers)
        assert [call.address for call in report.trace.server_calls] == ["a"]


def test_what_nobody_here_records_is_passed_on_and_not_told() -> None:
    caller = TraceContext.read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1")
    assert caller is not None

    backend, (report,) = play([caller])

    (span,) = backend.spans
    assert span is not None
    assert (span.trace_id, span.is_sampled, span.tracestate) == (caller.trace_id, True, "a=1")
    assert span.span_id != caller.span_id
    assert report.trace is None


def test_halves_that_run_again_are_spans_of_their_own_in_their_callers_traces() -> None:
    traces: list[TraceContext | None] = [TraceContext.begin(sampled=True) for _ in range(4)]

    backend, reports = play(traces, poison=2)

    told = [report.trace for report in reports]
    assert all(trace is not None for trace in told)
    assert len({trace.span.span_id for trace in told if trace}) == len(told) == len(backend.spans) > 3
    for trace in told:
        assert trace is not None
        assert trace.span.trace_id == trace.callers[0].trace.trace_id
    assert all(caller.queued_s is not None for caller in told[0].callers)  # type: ignore[union-attr]
    assert all(caller.queued_s is None for trace in told[1:] if trace for caller in trace.callers)


def test_a_flight_that_another_one_starts_does_not_inherit_its_trace() -> None:
    traced = TraceContext.begin(sampled=True)
    backend = Seeing(limits=Limits(max_batch=1))

    async def scenario() -> None:
        async with batcher(backend) as served:
            await asyncio.gather(submit(served, 0, traced), submit(served, 1, None))

    run(scenario)

    first, second = backend.spans
    assert first is not None
    assert second is None
