import asyncio
import gc
import math
import random
import weakref
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import numpy as np
import pytest

from backends.contract import NO_DEADLINE, URGENCY, Batch, Deadline, HostArray, Limits, Tensor, Tensors
from backends.errors import (
    BackendFailed,
    Code,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PointsmanError,
    TooLarge,
    Unavailable,
)
from batching.batcher import Batcher
from batching.latency import Latency
from batching.options import BatchingOptions
from batching.policy import Plan, W
from batching.report import BatchReport, Outcome, Refusal
from tests.unit.batching.conftest import (
    Call,
    FakeBackend,
    Reports,
    batcher,
    echo,
    idle,
    nonces,
    now,
    played,
    run,
    submit,
    values,
    within,
)


class Overheated(Unavailable):
    """An adapter's own error."""

    def __init__(self, celsius: int) -> None:
        super().__init__(f"{celsius} degrees", retry_after_s=60.0)
        self.celsius = celsius


async def busy(b: Batcher, backend: FakeBackend) -> None:
    """Let *b* learn that a batch takes 0.1 s whatever its size, while items come faster than single ones are served."""
    for size in (1, 8, 1, 8):
        for _ in range(4):
            callers = [submit(b, *range(size))]
            await asyncio.sleep(0.1)
            backend.calls[-1].answer()
            await asyncio.gather(*callers)
    callers = [submit(b, i) for i in range(32)]
    await asyncio.sleep(0.02)
    backend.calls[-1].answer()
    await asyncio.gather(*callers)


@played
async def test_what_arrives_together_is_answered_together_each_with_its_own() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        callers = [submit(b, 1), submit(b, 2, 3), submit(b, 4)]
        await idle()
        backend.calls[0].answer()
        answers = await asyncio.gather(*callers)

    assert [call.nonces for call in backend.calls] == [[1, 2, 3, 4]]
    assert [values(answer) for answer in answers] == [[1], [2, 3], [4]]


@played
async def test_the_next_batch_grows_while_the_backend_works() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        first = submit(b, 1)
        await idle()
        others = [submit(b, 2), submit(b, 3)]
        await idle()
        assert len(backend.calls) == 1
        backend.calls[0].answer()
        await idle()
        backend.calls[1].answer()
        await asyncio.gather(first, *others)

    assert [call.nonces for call in backend.calls] == [[1], [2, 3]]


@played
async def test_as_many_batches_run_as_the_backend_overlaps() -> None:
    backend = FakeBackend(Limits(max_batch=1, max_in_flight=2))
    async with batcher(backend) as b:
        callers = [submit(b, i) for i in range(3)]
        await idle()
        assert [call.nonces for call in backend.calls] == [[0], [1]]
        assert b.statistics().in_flight == 2

        backend.calls[1].answer()
        await idle()
        assert [call.nonces for call in backend.calls] == [[0], [1], [2]]

        backend.calls[0].answer()
        backend.calls[2].answer()
        assert [values(answer) for answer in await asyncio.gather(*callers)] == [[0], [1], [2]]


@played
async def test_the_next_batch_starts_before_callers_digest_their_answers() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    seen: list[int] = []

    async with batcher(backend) as b:

        async def caller(nonce: int) -> None:
            await b.submit(nonces(nonce), NO_DEADLINE)
            seen.append(len(backend.calls))

        callers = [asyncio.create_task(caller(nonce)) for nonce in range(2)]
        await idle()
        backend.calls[0].answer()
        await idle()
        backend.calls[1].answer()
        await asyncio.gather(*callers)

    assert seen[0] == 2


@played
async def test_with_several_slots_items_wait_for_company_as_long_as_the_delay() -> None:
    backend = FakeBackend(Limits(max_batch=64, max_in_flight=4))
    async with batcher(backend, BatchingOptions(max_delay_s=0.010)) as b:
        await busy(b, backend)
        start_s = now()
        callers = [submit(b, 1)]
        await asyncio.sleep(0.005)
        callers.append(submit(b, 2))
        await asyncio.sleep(0.020)
        backend.calls[-1].answer()
        await asyncio.gather(*callers)

    assert backend.calls[-1].nonces == [1, 2]
    assert backend.calls[-1].started_s - start_s == pytest.approx(0.010, abs=1e-4)


@played
async def test_with_one_slot_nobody_waits_for_company() -> None:
    backend = FakeBackend(Limits(max_batch=64))
    async with batcher(backend, BatchingOptions(max_delay_s=0.010)) as b:
        await busy(b, backend)
        start_s = now()
        caller = submit(b, 1)
        await idle()
        backend.calls[-1].answer()
        await caller

    assert backend.calls[-1].started_s == start_s


@played
async def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    backend = FakeBackend(Limits(max_batch=2))
    async with batcher(backend, BatchingOptions(max_delay_s=10)) as b:
        callers = [submit(b, 1), submit(b, 2)]
        await idle()
        backend.calls[0].answer()
        await asyncio.gather(*callers)


@played
async def test_rows_of_unequal_shape_travel_apart() -> None:
    backend = FakeBackend(Limits(max_batch=8, max_in_flight=2))
    async with batcher(backend) as b:
        callers = [submit(b, 1), submit(b, 2, width=3), submit(b, 3)]
        await idle()
        for call in backend.calls:
            call.answer()
        answers = await asyncio.gather(*callers)

    assert [call.nonces for call in backend.calls] == [[1, 3], [2]]
    assert [values(answer) for answer in answers] == [[1], [2], [3]]


@played
async def test_a_batch_beyond_the_limit_goes_in_parts_and_comes_back_whole() -> None:
    backend = FakeBackend(Limits(max_batch=2, max_in_flight=3))
    async with batcher(backend) as b:
        caller = submit(b, *range(5))
        await idle()
        for call in reversed(backend.calls):
            call.answer()
        answer = await caller

    assert [call.nonces for call in backend.calls] == [[0, 1], [2, 3], [4]]
    assert values(answer) == [0, 1, 2, 3, 4]


@played
async def test_when_one_part_fails_the_others_are_given_up() -> None:
    backend = FakeBackend(Limits(max_batch=2, max_in_flight=2))
    async with batcher(backend) as b:
        caller = submit(b, *range(6))
        await idle()
        backend.calls[1].fail(BackendFailed("out of memory"))
        with pytest.raises(BackendFailed, match="out of memory"):
            await caller
        await idle()

        assert backend.calls[0].was_cancelled
        assert (b.statistics().queued_items, b.statistics().in_flight, len(backend.calls)) == (0, 0, 3)
        assert backend.calls[2].was_cancelled


# Leaving.


@played
async def test_a_cancelled_caller_is_not_in_the_batch_it_waited_for() -> None:
    backend = FakeBackend(Limits(max_batch=4))
    async with batcher(backend) as b:
        first = submit(b, 1)
        await idle()
        leaver, stayer = submit(b, 2), submit(b, 3)
        await idle()
        leaver.cancel()
        await idle()
        assert (b.statistics().queued_items, b.statistics().queued_bytes) == (1, 8)

        backend.calls[0].answer()
        await idle()
        backend.calls[1].answer()
        assert [values(await caller) for caller in (first, stayer)] == [[1], [3]]

    assert leaver.cancelled()
    assert [call.nonces for call in backend.calls] == [[1], [3]]


@played
async def test_a_caller_cancelled_just_as_its_batch_forms_is_skipped() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        leaver, stayer = submit(b, 1), submit(b, 2)
        await asyncio.sleep(0)  # both wait, and the batch forms in the next pass of the loop
        leaver.cancel()
        await idle()
        backend.calls[0].answer()
        assert values(await stayer) == [2]

    assert backend.calls[0].nonces == [2]


@pytest.mark.parametrize("passes", range(6))
def test_a_caller_may_leave_at_every_pass_of_the_loop(passes: int) -> None:
    """Before it waits, as its batch forms, before its flight's first step, while the backend works."""

    async def scenario() -> None:
        backend, reports = FakeBackend(), Reports()
        async with batcher(backend, observer=reports) as b:
            caller = submit(b, 1)
            for _ in range(passes):
                await asyncio.sleep(0)
            caller.cancel()
            await idle()

            assert [call.was_cancelled for call in backend.calls] == ([] if passes < 3 else [True])
            assert all(report.outcome is Outcome.ABANDONED for report in reports.seen)
            assert (b.statistics().in_flight, b.statistics().queued_items) == (0, 0)

    run(scenario)


@played
async def test_a_cancelled_caller_does_not_hold_up_its_batch() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        leaver, stayer = submit(b, 1), submit(b, 2)
        await idle()
        leaver.cancel()
        await idle()
        assert not backend.calls[0].was_cancelled
        backend.calls[0].answer()

        assert values(await stayer) == [2]


@played
async def test_when_all_callers_of_a_batch_left_its_call_is_cancelled_and_the_slot_is_free() -> None:
    backend, reports = FakeBackend(), Reports()
    async with batcher(backend, observer=reports) as b:
        leavers = [submit(b, 1), submit(b, 2)]
        await idle()
        for leaver in leavers:
            leaver.cancel()
        await idle()
        assert backend.calls[0].was_cancelled
        assert b.statistics().in_flight == 0

        stayer = submit(b, 3)
        await idle()
        backend.calls[1].answer()
        assert values(await stayer) == [3]

    assert [report.outcome for report in reports.seen] == [Outcome.ABANDONED, Outcome.ANSWERED]


# Deadlines.


@played
async def test_a_deadline_that_passed_before_makes_no_call() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        with pytest.raises(DeadlineExceeded, match="the deadline passed before the request reached model 'm'"):
            await b.submit(nonces(1), Deadline(now()))

    assert backend.calls == []


@played
async def test_a_deadline_that_passes_in_the_queue_makes_no_call_and_is_told_in_time() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        first = submit(b, 1)
        await idle()
        deadline = within(0.050)
        with pytest.raises(DeadlineExceeded, match="the deadline passed while waiting for model 'm'"):
            await b.submit(nonces(2), deadline)
        assert now() == pytest.approx(deadline, abs=0.001)

        backend.calls[0].answer()
        await first

    assert [call.nonces for call in backend.calls] == [[1]]


@played
async def test_a_deadline_that_passes_in_flight_is_told_in_time_and_leaves_others_alone() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        deadline = within(0.050)
        hasty, patient = submit(b, 1, deadline=deadline), submit(b, 2, deadline=within(9))
        with pytest.raises(DeadlineExceeded, match="the deadline passed while running on model 'm'"):
            await hasty
        assert now() == pytest.approx(deadline, abs=0.001)
        assert not backend.calls[0].was_cancelled

        backend.calls[0].answer()
        assert values(await patient) == [2]


@played
async def test_a_call_ends_when_the_last_deadline_of_its_batch_passes() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        callers = [submit(b, 1, deadline=within(0.010)), submit(b, 2, deadline=within(0.020))]
        results = await asyncio.gather(*callers, return_exceptions=True)
        await idle()

        assert [type(result) for result in results] == [DeadlineExceeded, DeadlineExceeded]
        assert backend.calls[0].was_cancelled
        assert b.statistics().in_flight == 0


@played
async def test_the_backend_is_told_the_latest_deadline_of_a_batch() -> None:
    backend = FakeBackend()
    latest = within(5)
    async with batcher(backend) as b:
        callers = [submit(b, 1, deadline=within(1)), submit(b, 2, deadline=latest)]
        await idle()
        backend.calls[0].answer()
        await asyncio.gather(*callers)

    assert backend.calls[0].deadline == latest


def test_an_answer_after_the_deadline_is_never_taken_for_one_in_time() -> None:
    """Even where the loop was too busy for the deadline's timer to fire first."""

    async def scenario() -> None:
        backend, clock_s = FakeBackend(), [0.0]
        async with Batcher("m", backend, BatchingOptions(), clock=lambda: clock_s[0]) as b:
            caller = submit(b, 1, deadline=Deadline(1.0))
            await idle()
            clock_s[0] = 2.0
            backend.calls[0].answer()
            with pytest.raises(DeadlineExceeded, match="model 'm' answered after the deadline"):
                await caller

    run(scenario)


def test_a_timer_that_fires_early_expires_nobody() -> None:
    async def scenario() -> None:
        backend, clock_s = FakeBackend(), [0.0]
        async with Batcher("m", backend, BatchingOptions(), clock=lambda: clock_s[0]) as b:
            caller = submit(b, 1, deadline=Deadline(1.0))
            await asyncio.sleep(10)  # of the loop, while the batcher's clock stands still
            assert not caller.done()

            clock_s[0] = 1.0
            with pytest.raises(DeadlineExceeded):
                await caller

    run(scenario)


# Errors.


@played
async def test_a_backend_error_reaches_every_caller_as_an_exception_of_its_own() -> None:
    backend = FakeBackend()
    cause = Unavailable("loading", retry_after_s=3.0)
    async with batcher(backend) as b:
        callers = [submit(b, 1), submit(b, 2)]
        await idle()
        backend.calls[0].fail(cause)
        first, second = await asyncio.gather(*callers, return_exceptions=True)

    assert first is not second
    for told in (first, second):
        assert isinstance(told, Unavailable)
        assert (told.code, str(told), told.retry_after_s) == (Code.UNAVAILABLE, "loading", 3.0)
        assert told.__cause__ is cause


@played
async def test_an_error_with_a_constructor_of_its_own_keeps_code_and_message() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        caller = submit(b, 1)
        await idle()
        backend.calls[0].fail(Overheated(99))
        with pytest.raises(Overheated, match="99 degrees") as told:
            await caller

    assert (told.value.celsius, told.value.retry_after_s) == (99, 60.0)


@played
async def test_a_foreign_exception_is_a_failed_backend_and_its_text_stays_inside() -> None:
    backend, reports = FakeBackend(), Reports()
    crash = RuntimeError("secret path /srv/models")
    async with batcher(backend, observer=reports) as b:
        caller = submit(b, 1)
        await idle()
        backend.calls[0].fail(crash)
        with pytest.raises(BackendFailed) as told:
            await caller

    assert str(told.value) == "model 'm' failed on the batch that the request was in"
    assert (reports.seen[0].outcome, reports.seen[0].error) == (Outcome.FAILED, crash)


@played
async def test_a_backend_that_cancels_itself_does_not_leave_its_callers_hanging() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        caller = submit(b, 1)
        await idle()
        backend.calls[0].gate.cancel()
        with pytest.raises(Unavailable, match="model 'm' was stopped while it worked on the request; try again later"):
            await caller


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "model 'm' gave a wrong answer: output 'nonce' is missing; expected ['nonce']"),
        (
            {"nonce": Tensor.of(np.ones((1, 1), np.int64))},
            "model 'm' gave a wrong answer: output 'nonce' has shape [1, 1] for a batch of 2",
        ),
        (
            {"nonce": Tensor.of(np.ones((2, 1), np.float32))},
            "model 'm' gave a wrong answer: output 'nonce' has datatype FP32; expected INT64",
        ),
        (
            {"nonce": Tensor(Tensor.of(np.ones(1, np.int64)).datatype, (2, 1), np.ones((1, 1), np.int64))},
            "model 'm' gave an answer that cannot be split",
        ),
        ([], "model 'm' gave an answer that cannot be split"),
    ],
)
def test_a_wrong_answer_fails_the_batch_and_is_never_split(outputs: Any, message: str) -> None:  # Any: wrong on purpose
    async def scenario() -> None:
        backend, reports = FakeBackend(), Reports()
        async with batcher(backend, observer=reports) as b:
            callers = [submit(b, 1), submit(b, 2)]
            await idle()
            backend.calls[0].answer(outputs)
            results = await asyncio.gather(*callers, return_exceptions=True)

        assert [(type(result), str(result)) for result in results] == [(BackendFailed, message)] * 2
        assert len(backend.calls) == 1
        assert isinstance(reports.seen[0].error, BackendFailed)

    run(scenario)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch({}, 1), "input 'nonce' is missing; expected ['nonce']"),
        (
            Batch({"nonce": Tensor.of(np.ones((0, 1), np.int64))}, 0),
            "a batch of 0 items has no answer; send at least 1",
        ),
        (
            Batch.of({"nonce": Tensor.of(np.ones((1, 1), np.float32))}),
            "input 'nonce' has datatype FP32; expected INT64",
        ),
        (Batch({"nonce": Tensor.of(np.ones((2, 1), np.int64))}, 1), "input 'nonce' has shape [2, 1] in a batch of 1"),
    ],
)
def test_a_request_the_model_does_not_take_is_refused_alone(batch: Batch, message: str) -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with batcher(backend) as b:
            good = submit(b, 1)
            with pytest.raises(InvalidInput) as refused:
                await b.submit(batch, NO_DEADLINE)
            await idle()
            backend.calls[0].answer()
            assert values(await good) == [1]

        assert str(refused.value) == message

    run(scenario)


# Poison.


def poisoned_by(*poison: int) -> FakeBackend:
    """A backend that fails on some nonces, saying at which row."""

    async def behave(_: int, call: Call) -> Tensors:
        await asyncio.sleep(1.0)
        for row, nonce in enumerate(call.nonces):
            if nonce in poison:
                raise InvalidInput(f"item {row}: {nonce} is poison")
        return call.batch.inputs

    return FakeBackend(behave=behave)


@played
async def test_only_the_caller_of_a_poisonous_item_sees_its_error() -> None:
    backend = poisoned_by(5)
    async with batcher(backend) as b:
        callers = [submit(b, i) for i in range(8)]
        *others, poison, six, seven = await asyncio.gather(*callers[:5], *callers[5:], return_exceptions=True)

    assert [values(answer) for answer in (*others, six, seven) if isinstance(answer, dict)] == [
        [0],
        [1],
        [2],
        [3],
        [4],
        [6],
        [7],
    ]
    assert isinstance(poison, InvalidInput)
    assert str(poison) == "item 0: 5 is poison"
    assert [call.nonces for call in backend.calls] == [
        [*range(8)],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [4, 5],
        [6, 7],
        [4],
        [5],
    ]


@played
async def test_a_request_of_several_items_fails_as_a_whole() -> None:
    backend = poisoned_by(2)
    async with batcher(backend) as b:
        good, bad = await asyncio.gather(submit(b, 0), submit(b, 1, 2, 3), return_exceptions=True)

    assert isinstance(good, dict)
    assert str(bad) == "item 1: 2 is poison"
    assert [call.nonces for call in backend.calls] == [[0, 1, 2, 3], [0], [1, 2, 3]]


@played
async def test_a_failure_that_has_passed_fails_nobody() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        callers = [submit(b, 1), submit(b, 2)]
        await idle()
        backend.calls[0].fail(MemoryError())
        await idle()
        backend.calls[1].answer()
        await idle()
        backend.calls[2].answer()

        assert [values(answer) for answer in await asyncio.gather(*callers)] == [[1], [2]]


@played
async def test_a_model_that_always_fails_is_called_a_bounded_number_of_times() -> None:
    """And those that failed in company to the end do not read of each other's items."""
    backend = poisoned_by(*range(8))
    async with batcher(backend) as b:
        results = await asyncio.gather(*(submit(b, i) for i in range(8)), return_exceptions=True)

    assert len(backend.calls) == 1 + 2 * 3 + 2
    assert [str(result) for result in results] == [
        "item 0: 0 is poison",
        "item 0: 1 is poison",
        *["model 'm' failed on the batch that the request was in"] * 6,
    ]
    assert [type(result) for result in results] == [InvalidInput] * 2 + [BackendFailed] * 6


@pytest.mark.parametrize(
    "error", [Unavailable("loading"), DeadlineExceeded("too slow"), asyncio.CancelledError(), Overheated(99)]
)
def test_what_is_no_items_fault_is_not_run_again(error: BaseException) -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        async with batcher(backend) as b:
            callers = [submit(b, 1), submit(b, 2)]
            await idle()
            backend.calls[0].fail(error)
            results = await asyncio.gather(*callers, return_exceptions=True)

        assert all(isinstance(result, Unavailable | DeadlineExceeded) for result in results)
        assert len(backend.calls) == 1

    run(scenario)


@played
async def test_what_is_run_again_keeps_the_slot_of_its_batch() -> None:
    backend = FakeBackend(Limits(max_batch=2))
    async with batcher(backend) as b:
        for i in range(2):
            answered = submit(b, 0)
            await asyncio.sleep(2.0)
            backend.calls[i].answer()
            await answered
        callers = [submit(b, 1), submit(b, 2)]
        await idle()
        callers.append(submit(b, 3))
        await idle()
        assert b.statistics().predicted_wait_s == pytest.approx(4.0, abs=1e-3)

        backend.calls[2].fail(ZeroDivisionError())
        await idle()
        told = b.statistics()
        assert (told.in_flight, told.queued_items, told.batches, told.items) == (1, 1, 3, 4)
        assert told.predicted_wait_s == pytest.approx(4.0, abs=1e-3), "the other half is run first"

        for i in (3, 4, 5):
            backend.calls[i].answer()
            await idle()
        await asyncio.gather(*callers)

    assert [call.nonces for call in backend.calls] == [[0], [0], [1, 2], [1], [2], [3]]
    assert (b.statistics().batches, b.statistics().items) == (6, 7)


@played
async def test_who_leaves_while_a_batch_is_taken_apart_is_not_run_again() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        callers = [submit(b, i) for i in range(4)]
        await idle()
        callers[1].cancel()
        await asyncio.sleep(0)  # its future is cancelled, and nobody knows yet
        backend.calls[0].fail(ZeroDivisionError())
        await idle()
        callers[3].cancel()
        await idle()
        for i in (1, 2):
            backend.calls[i].answer()
            await idle()

        assert [values(await callers[i]) for i in (0, 2)] == [[0], [2]]
    assert [call.nonces for call in backend.calls] == [[0, 1, 2, 3], [0], [2]]


@played
async def test_a_half_that_everybody_left_is_cancelled_and_the_other_goes_on() -> None:
    backend, reports = FakeBackend(), Reports()
    async with batcher(backend, observer=reports) as b:
        callers = [submit(b, 1), submit(b, 2)]
        await idle()
        backend.calls[0].fail(ZeroDivisionError())
        await idle()
        callers[0].cancel()
        await idle()
        assert backend.calls[1].was_cancelled

        backend.calls[2].answer()
        assert values(await callers[1]) == [2]
    assert [report.outcome for report in reports.seen] == [Outcome.FAILED, Outcome.ABANDONED, Outcome.ANSWERED]


@played
async def test_a_deadline_that_passes_before_its_half_is_run_is_told_in_time() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        deadline = within(0.050)
        hasty, patient = submit(b, 2, deadline=deadline), submit(b, 1, deadline=deadline)
        await idle()
        backend.calls[0].fail(ZeroDivisionError())
        with pytest.raises(DeadlineExceeded, match="the deadline passed while waiting for model 'm'"):
            await patient
        assert now() == pytest.approx(deadline, abs=0.001)
        with pytest.raises(DeadlineExceeded, match="the deadline passed while running on model 'm'"):
            await hasty
    assert [call.nonces for call in backend.calls] == [[2, 1], [2]]


def test_no_half_is_run_after_its_deadline() -> None:
    """Even where the loop was too busy for the deadline's timer to fire first."""

    async def scenario() -> None:
        backend, clock_s = FakeBackend(), [0.0]
        async with Batcher("m", backend, BatchingOptions(), clock=lambda: clock_s[0]) as b:
            callers = [submit(b, 1, deadline=Deadline(1.0)), submit(b, 2)]
            await idle()
            clock_s[0] = 2.0
            backend.calls[0].fail(ZeroDivisionError())
            await idle()
            backend.calls[1].answer()
            hasty, patient = await asyncio.gather(*callers, return_exceptions=True)

        assert isinstance(hasty, DeadlineExceeded)
        assert isinstance(patient, dict)
        assert [call.nonces for call in backend.calls] == [[1, 2], [2]]

    run(scenario)


@played
async def test_draining_waits_until_a_batch_is_taken_apart() -> None:
    backend = poisoned_by(1)
    b = batcher(backend)
    b.start()
    callers = [submit(b, i) for i in range(4)]
    await asyncio.sleep(1.5)  # in the first half
    await b.aclose()
    results = await asyncio.gather(*callers, return_exceptions=True)

    assert [type(result) for result in results] == [dict, InvalidInput, dict, dict]


@pytest.mark.parametrize("passes", range(6))
def test_closing_while_a_batch_is_taken_apart_leaves_nobody_hanging(passes: int) -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        b = batcher(backend)
        b.start()
        callers = [submit(b, i) for i in range(4)]
        await idle()
        backend.calls[0].fail(ZeroDivisionError())
        for _ in range(passes):
            await asyncio.sleep(0)
        await b.aclose(drain=False)
        results = await asyncio.gather(*callers, return_exceptions=True)

        assert [str(result) for result in results] == ["model 'm' stopped taking requests; try again later"] * 4
        assert all(call.was_cancelled for call in backend.calls[1:])
        assert (b.statistics().in_flight, len(backend.calls)) in {(0, 1), (0, 2)}

    run(scenario)


@played
async def test_the_estimate_learns_nothing_from_a_call_that_failed() -> None:
    backend = FakeBackend()
    async with batcher(backend) as b:
        callers = [submit(b, 1), submit(b, 2)]
        await asyncio.sleep(5.0)
        backend.calls[0].fail(ZeroDivisionError())
        await asyncio.sleep(0.25)
        assert b.statistics().latency_s == 0.0

        backend.calls[1].answer()
        await asyncio.sleep(0.25)
        backend.calls[2].answer()
        await asyncio.gather(*callers)

        assert b.statistics().latency_s == pytest.approx(0.25, abs=1e-3)


# Bounds.


@played
async def test_a_full_queue_refuses_with_the_numbers_and_a_time_to_come_back() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    async with batcher(backend, BatchingOptions(max_queue=3)) as b:
        callers = [submit(b, i) for i in range(2)]
        await idle()
        callers.append(submit(b, 2))
        await idle()
        with pytest.raises(Unavailable) as refused:
            await b.submit(nonces(3, 4), NO_DEADLINE)

        assert b.statistics().queued_items == 2
        for i in range(3):
            backend.calls[i].answer()
            await idle()
        await asyncio.gather(*callers)

    assert str(refused.value) == ("model 'm' is overloaded: 2 of 3 items wait, 2 more do not fit; try again later")
    assert refused.value.retry_after_s == 0.1


@played
async def test_the_queue_is_bounded_by_bytes_too() -> None:
    backend = FakeBackend()
    async with batcher(backend, BatchingOptions(max_queue_bytes=16)) as b:
        callers = [submit(b, 0)]
        await idle()
        callers += [submit(b, 1), submit(b, 2)]
        await idle()
        with pytest.raises(Unavailable, match="model 'm' is overloaded: 16 of 16 bytes wait, 8 more do not fit"):
            await b.submit(nonces(3), NO_DEADLINE)

        for i in range(2):
            backend.calls[i].answer()
            await idle()
        await asyncio.gather(*callers)


@played
async def test_what_could_never_fit_the_queue_is_too_large() -> None:
    async with batcher(FakeBackend(), BatchingOptions(max_queue=3, max_queue_bytes=32)) as b:
        with pytest.raises(TooLarge, match=r"batch of 4 items exceeds the whole queue of model 'm' \(3 items\)"):
            await b.submit(nonces(1, 2, 3, 4), NO_DEADLINE)
        with pytest.raises(TooLarge, match=r"batch of 40 bytes exceeds the whole queue of model 'm' \(32 bytes\)"):
            await b.submit(nonces(1, width=5), NO_DEADLINE)


@played
async def test_leavers_give_back_their_room_at_once() -> None:
    """While a backend hangs, callers that come and go must not fill anything."""
    backend = FakeBackend()
    async with batcher(backend, BatchingOptions(max_queue=10)) as b:
        holder = submit(b, 0)
        await idle()
        for round_ in range(100):
            callers = [submit(b, i, deadline=within(60)) for i in range(10)]
            await idle()
            assert b.statistics().queued_items == 10, round_
            for caller in callers:
                caller.cancel()
            await idle()
            assert (b.statistics().queued_items, b.statistics().queued_bytes) == (0, 0)

        assert len(b._deadlines) <= 2 * 64
        holder.cancel()


# Closing.


@played
async def test_what_was_answered_is_not_held_until_its_deadline() -> None:
    held: list[weakref.ref[HostArray]] = []

    async def answer(_: int, call: Call) -> Tensors:
        return echo(call.batch)

    async with batcher(FakeBackend(behave=answer)) as b:
        for parts in (1, 20):
            answered = await b.submit(nonces(*range(parts)), within(3600.0))
            held.append(weakref.ref(answered["nonce"].numpy()))
            del answered
            await idle()
            gc.collect()

        assert [reference() for reference in held] == [None, None]


@played
async def test_draining_answers_what_was_accepted_and_refuses_what_is_new() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    b = batcher(backend)
    b.start()
    callers = [submit(b, 1), submit(b, 2)]
    await idle()
    closing = asyncio.create_task(b.aclose())
    await idle()
    with pytest.raises(Unavailable, match="model 'm' is not taking requests; try again later"):
        await b.submit(nonces(3), NO_DEADLINE)
    for i in range(2):
        assert not closing.done()
        backend.calls[i].answer()
        await idle()

    assert closing.done()
    assert [values(await caller) for caller in callers] == [[1], [2]]


@played
async def test_closing_without_draining_refuses_what_waits_and_cancels_what_runs() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    b = batcher(backend)
    b.start()
    callers = [submit(b, 1), submit(b, 2)]
    await idle()
    await b.aclose(drain=False)
    results = await asyncio.gather(*callers, return_exceptions=True)

    assert [str(result) for result in results] == ["model 'm' stopped taking requests; try again later"] * 2
    assert all(isinstance(result, Unavailable) for result in results)
    assert [call.was_cancelled for call in backend.calls] == [True]


@played
async def test_a_drain_that_takes_too_long_can_be_cut_short() -> None:
    backend = FakeBackend()
    b = batcher(backend)
    b.start()
    caller = submit(b, 1)
    await idle()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(b.aclose(), 5)
    await b.aclose(drain=False)

    with pytest.raises(Unavailable):
        await caller


@played
async def test_a_drain_ends_when_the_last_that_wait_leave() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    b = batcher(backend)
    b.start()
    running, waiting = submit(b, 1), submit(b, 2)
    await idle()
    start_s = now()
    closing = asyncio.create_task(b.aclose())
    await idle()
    waiting.cancel()
    await idle()
    backend.calls[0].answer()
    await closing

    assert values(await running) == [1]
    assert len(backend.calls) == 1
    assert now() - start_s < 1


@played
async def test_closing_what_was_never_started_or_is_closed_already_is_harmless() -> None:
    b = batcher(FakeBackend())
    await b.aclose()
    b.start()
    await b.aclose()
    await b.aclose(drain=False)

    assert repr(b) == "<Batcher 'm' closed, 0 items wait, 0 in flight>"


@played
async def test_before_the_start_and_after_the_end_nothing_is_taken() -> None:
    b = batcher(FakeBackend())
    for _ in range(2):
        with pytest.raises(Unavailable):
            await b.submit(nonces(1), NO_DEADLINE)
        await b.aclose()


@played
async def test_starting_twice_is_refused() -> None:
    async with batcher(FakeBackend()) as b:
        with pytest.raises(RuntimeError, match="the batcher of model 'm' was started twice"):
            b.start()


@pytest.mark.parametrize("passes", range(6))
def test_a_batcher_whose_own_task_is_cancelled_leaves_no_caller_without_an_answer(passes: int) -> None:
    """As `asyncio.run` does at its end."""

    async def scenario() -> None:
        b = batcher(FakeBackend(Limits(max_batch=1)))
        b.start()
        callers = [submit(b, 1), submit(b, 2)]
        for _ in range(passes):
            await asyncio.sleep(0)
        supervisor = next(task for task in asyncio.all_tasks() if task.get_name() == "batcher of m")
        supervisor.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        await b.aclose()

        assert [type(result) for result in results] == [Unavailable, Unavailable]
        assert b.statistics().in_flight == 0

    run(scenario)


@pytest.mark.parametrize("passes", range(6))
def test_closing_at_every_pass_of_the_loop_makes_no_call_that_goes_on(passes: int) -> None:
    async def scenario() -> None:
        backend = FakeBackend()
        b = batcher(backend)
        b.start()
        caller = submit(b, 1)
        for _ in range(passes):
            await asyncio.sleep(0)
        await b.aclose(drain=False)
        with pytest.raises(Unavailable):
            await caller

        assert [call.was_cancelled for call in backend.calls] == ([] if passes < 3 else [True])

    run(scenario)


# Faults of others.


class BrokenPolicy:
    """Plans what it was given, or raises it."""

    def __init__(self, planned: Any) -> None:  # Any: wrong on purpose
        self.planned = planned

    def plan(self, lanes: Iterable[Iterable[W]], free_slots: int, latency: Latency, now: float) -> Plan[W]:
        if isinstance(self.planned, Exception):
            raise self.planned
        entries = [entry for lane in lanes for entry in lane]
        plan: Plan[W] = self.planned(entries)
        return plan


BROKEN: list[Any] = [  # Any: wrong on purpose
    ZeroDivisionError(),
    lambda entries: Plan(),
    lambda entries: Plan(wake_at_s=0.0),
    lambda entries: Plan(wake_at_s=math.nan),
    lambda entries: Plan(batches=((),)),
    lambda entries: Plan(batches=((entries[0], entries[0]),)),
    lambda entries: Plan(batches=(tuple(entries),)),
    lambda entries: None,
]


@pytest.mark.parametrize("planned", BROKEN)
def test_a_fault_in_the_policy_fails_what_waits_and_hangs_nobody(planned: Any) -> None:  # Any: wrong on purpose
    async def scenario() -> None:
        reported: list[dict[str, Any]] = []  # Any: as asyncio has it
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        backend = FakeBackend(Limits(max_batch=2))
        async with batcher(backend, policy=BrokenPolicy(planned)) as b:
            callers = [submit(b, 1), submit(b, 2, 3), submit(b, 4, width=2)]
            results = await asyncio.gather(*callers, return_exceptions=True)

        assert [type(result) for result in results] == [PointsmanError] * 3
        assert str(results[0]) == "requests for model 'm' could not be batched. This is a bug."
        assert [context["message"] for context in reported] == ["the batching policy failed (model 'm')"]
        assert backend.calls == []

    run(scenario)


def test_a_fault_in_the_observer_is_reported_and_changes_no_answer() -> None:
    class Broken:
        def on_batch(self, report: BatchReport) -> None:
            raise ZeroDivisionError

    async def scenario() -> None:
        reported: list[dict[str, Any]] = []  # Any: as asyncio has it
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        backend = FakeBackend()
        async with batcher(backend, observer=Broken()) as b:
            caller = submit(b, 1)
            await idle()
            backend.calls[0].answer()
            assert values(await caller) == [1]

        assert [context["message"] for context in reported] == ["a batch observer failed (model 'm')"]

    run(scenario)


# What it tells.


@played
async def test_every_batch_is_reported() -> None:
    backend, reports = FakeBackend(), Reports()
    async with batcher(backend, observer=reports) as b:
        callers = [submit(b, 0)]
        await idle()
        callers += [submit(b, 1), submit(b, 2, 3)]
        for call in (0, 1):
            await asyncio.sleep(0.010)
            backend.calls[call].answer()
            await idle()
        await asyncio.gather(*callers)

    report = reports.seen[1]
    assert (report.model, report.size, report.entries, report.outcome) == ("m", 3, 2, Outcome.ANSWERED)
    assert report.queued_s == pytest.approx(0.010, abs=1e-4)
    assert report.infer_s == pytest.approx(0.010, abs=1e-4)
    assert report.error is None


@played
async def test_statistics_tell_what_waits_runs_and_was_done() -> None:
    backend = FakeBackend(Limits(max_batch=2))
    async with batcher(backend) as b:
        for i in range(2):
            first = submit(b, 1)
            await asyncio.sleep(0.5)
            backend.calls[i].answer()
            await first
        callers = [submit(b, 2), submit(b, 3)]
        await idle()
        callers.append(submit(b, 4))
        await idle()
        told = b.statistics()
        for i in (2, 3):
            backend.calls[i].answer()
            await idle()
        await asyncio.gather(*callers)

        assert (told.queued_items, told.queued_bytes, told.in_flight) == (1, 8, 1)
        assert (told.batches, told.items) == (2, 2)
        assert told.latency_s == pytest.approx(0.5, abs=1e-4)
        assert told.predicted_wait_s == pytest.approx(1.0, abs=1e-3), "two items take twice as long, for all it knows"
        assert (b.statistics().batches, b.statistics().items) == (4, 5)


@played
async def test_a_model_that_was_slow_once_is_asked_again_though_no_request_could_wait_that_long() -> None:
    """Two slow batches, then requests that are sent, as the router does, only where the estimate leaves them time."""

    async def behave(index: int, call: Call) -> Tensors:
        await asyncio.sleep(5.0 if index < 2 else 0.010)
        return call.batch.inputs

    backend, patience_s, waited_s = FakeBackend(behave=behave), 1.0, 0.0
    async with batcher(backend) as b:

        def may_make_it() -> bool:
            told = b.statistics()
            return told.predicted_wait_s + told.latency_s <= patience_s

        for i in range(2):
            await b.submit(nonces(i), NO_DEADLINE)
        assert not may_make_it()
        while not may_make_it():
            await asyncio.sleep(0.5)
            waited_s += 0.5
            assert waited_s <= 11.0, "nobody asks it again"
        for i in (1, 2):
            await b.submit(nonces(i), within(patience_s))
            assert may_make_it()

        assert b.statistics().latency_s == pytest.approx(0.010, abs=1e-3)


@played
async def test_one_slow_batch_among_quick_ones_keeps_nobody_away() -> None:
    async def behave(index: int, call: Call) -> Tensors:
        await asyncio.sleep(5.0 if index == 2 else 0.010)
        return call.batch.inputs

    async with batcher(FakeBackend(behave=behave)) as b:
        for i in range(3):
            await b.submit(nonces(i), NO_DEADLINE)

        assert b.statistics().latency_s == pytest.approx(0.010, abs=1e-3)


def test_a_limit_above_the_backends_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="max_batch 9 of model 'm' exceeds its backend's limit 8"):
        Batcher("m", FakeBackend(), BatchingOptions(max_batch=9))


async def test_large_batches_are_merged_off_the_loop() -> None:
    """On the ordinary event loop, since a thread takes real time."""
    wide = 200_000
    backend = FakeBackend(Limits(max_batch=8), behave=lambda _, call: asyncio.sleep(0, call.batch.inputs))
    async with Batcher("m", backend, BatchingOptions()) as b:
        answers = await asyncio.gather(*(b.submit(nonces(i, width=wide), NO_DEADLINE) for i in range(3)))
        whole = await b.submit(nonces(*range(9), width=wide), NO_DEADLINE)

    assert [values(answer) for answer in answers] == [[0], [1], [2]]
    assert values(whole) == list(range(9))


def ranked(to: Batcher, nonce: int, priority: int) -> asyncio.Task[Tensors]:
    return asyncio.create_task(to.submit(nonces(nonce), NO_DEADLINE, priority))


@played
async def test_what_has_a_higher_priority_goes_first_when_there_is_not_room_for_all() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    async with batcher(backend, BatchingOptions(priority_levels=3)) as one:
        callers = [ranked(one, 0, 1)]
        await idle()
        callers += [ranked(one, nonce, priority) for nonce, priority in ((1, 3), (2, 0), (3, 1), (4, 99), (5, 2))]
        for done in range(6):
            await idle()
            backend.calls[done].answer()
        await asyncio.gather(*callers)

    assert [values(call.batch.inputs)[0] for call in backend.calls] == [0, 3, 2, 4, 5, 1]


class Noting(FakeBackend):
    """Keeps what it is told of priorities."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.told: list[int] = []

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        self.told.append(URGENCY.get())
        return await super().infer(batch, deadline)


@played
async def test_a_backend_is_told_the_highest_priority_in_its_batch() -> None:
    backend = Noting(Limits(max_batch=4))
    async with batcher(backend, BatchingOptions(priority_levels=3)) as one:
        callers = [ranked(one, 0, 3)]
        await idle()
        callers += [ranked(one, nonce, priority) for nonce, priority in ((1, 3), (2, 0), (3, 3))]
        for done in range(2):
            await idle()
            backend.calls[done].answer()
        await asyncio.gather(*callers)

    assert backend.told == [3, 2]


@played
async def test_without_levels_a_priority_is_taken_and_does_not_count() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    async with batcher(backend) as one:
        callers = [ranked(one, nonce, priority) for nonce, priority in ((0, 9), (1, 1))]
        for done in range(2):
            await idle()
            backend.calls[done].answer()
        await asyncio.gather(*callers)

    assert [values(call.batch.inputs)[0] for call in backend.calls] == [0, 1]


# Overload.


def takes(seconds: float) -> Callable[[int, Call], Coroutine[Any, Any, Tensors]]:
    """A backend's behaviour: each call takes *seconds*, whatever its size."""

    async def behave(_: int, call: Call) -> Tensors:
        await asyncio.sleep(seconds)
        return echo(call.batch)

    return behave


async def taught(b: Batcher) -> None:
    """Let *b* see batches of one and of eight."""
    for size in (1, 8, 1, 8):
        await b.submit(nonces(*range(size)), NO_DEADLINE)


@played
async def test_what_the_model_cannot_answer_in_time_even_alone_is_refused_at_once() -> None:
    backend = FakeBackend(behave=takes(0.100))
    async with batcher(backend) as b:
        await taught(b)
        came_s = now()
        with pytest.raises(DeadlineExceeded, match=r"model 'm' takes [\d.]+ ms and 50\.0 ms are left; allow more time"):
            await b.submit(nonces(1), within(0.050))

    assert now() == came_s
    assert len(backend.calls) == 4


@played
async def test_what_cannot_make_it_behind_what_runs_is_refused_at_once_and_told_when_to_return() -> None:
    backend = FakeBackend(behave=takes(0.100))
    async with batcher(backend) as b:
        await taught(b)
        running = submit(b, 1)
        await idle()
        came_s = now()
        with pytest.raises(Overloaded, match=r"a new request waits [\d.]+ ms, too long for its deadline") as refused:
            await b.submit(nonces(2), within(0.150))

        assert refused.value.retry_after_s == pytest.approx(0.100, rel=0.05)
        assert now() == came_s
        await running


@played
async def test_a_tenant_below_its_share_gets_room_in_a_full_queue() -> None:
    backend = FakeBackend(Limits(max_batch=1))
    async with batcher(backend, BatchingOptions(max_queue=4)) as b:
        flood = [submit(b, 0, tenant="greedy")]
        await idle()
        flood += [submit(b, i, tenant="greedy") for i in range(1, 5)]
        await idle()
        with pytest.raises(Overloaded, match="4 of 4 items wait, 1 more do not fit"):
            await b.submit(nonces(5), NO_DEADLINE, tenant="greedy")
        modest = submit(b, 6, tenant="modest")
        await idle()

        with pytest.raises(Overloaded, match="other tenants have less than their share of the queue"):
            await flood[-1]
        for i in range(5):
            backend.calls[i].answer()
            await idle()
        assert [values(await caller) for caller in (*flood[:-1], modest)] == [[0], [1], [2], [3], [6]]


@played
async def test_nobody_makes_room_for_what_does_not_fit_even_then() -> None:
    """Two of the flood could leave; the third would bring it below the share of who asks."""
    backend = FakeBackend(Limits(max_batch=8))
    async with batcher(backend, BatchingOptions(max_queue=4)) as b:
        flood = [submit(b, 0, tenant="greedy")]
        await idle()
        flood += [submit(b, i, tenant="greedy") for i in range(1, 5)]
        await idle()
        with pytest.raises(Overloaded, match="4 of 4 items wait, 3 more do not fit"):
            await b.submit(nonces(5, 6, 7), NO_DEADLINE, tenant="modest")

        assert b.statistics().queued_items == 4
        assert b.statistics().refusals[Refusal.EVICTED] == 0
        for call in range(2):
            backend.calls[call].answer()
            await idle()
        assert [values(await caller) for caller in flood] == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("slots", [1, 2])
def test_one_cold_first_batch_refuses_nobody_and_keeps_no_batch_small(size: int, slots: int) -> None:
    async def behave(index: int, call: Call) -> Tensors:
        await asyncio.sleep(0.010 if index else 5.0)
        return echo(call.batch)

    async def scenario() -> None:
        backend = FakeBackend(Limits(max_batch=64, max_in_flight=slots), behave)
        async with batcher(backend) as b:
            for _ in range(2):
                await b.submit(nonces(*range(size)), NO_DEADLINE)
            callers = [submit(b, *range(size), deadline=within(0.5)) for _ in range(40)]
            for caller in callers:
                assert values(await caller) == list(range(size))

        assert len(backend.calls) <= 2 + 8
        assert max(call.batch.size for call in backend.calls) >= 32

    run(scenario)


async def offered(rates: dict[str, int], seconds: int) -> tuple[dict[str, int], list[tuple[PointsmanError, float]]]:
    """Let tenants send so many items a second where 80 can be answered: items answered of each, and refusals with the
    seconds that they took."""
    rng = random.Random(1)

    async def behave(_: int, call: Call) -> Tensors:
        await asyncio.sleep(0.100 * rng.uniform(0.95, 1.05))
        return echo(call.batch)

    answered = dict.fromkeys(rates, 0)
    refused: list[tuple[PointsmanError, float]] = []

    async def call(b: Batcher, tenant: str) -> None:
        came_s = now()
        try:
            await b.submit(nonces(1), within(0.350), tenant=tenant)
        except PointsmanError as error:
            refused.append((error, now() - came_s))
        else:
            answered[tenant] += 1

    async with batcher(FakeBackend(Limits(max_batch=8), behave)) as b, asyncio.TaskGroup() as callers:
        await taught(b)
        came = sorted((i / rate, tenant) for tenant, rate in rates.items() for i in range(rate * seconds))
        start_s = now()
        for at_s, tenant in came:
            await asyncio.sleep(max(0.0, start_s + at_s - now()))
            callers.create_task(call(b, tenant))
    return answered, refused


@played
async def test_at_twice_the_capacity_a_tenant_below_its_share_is_served_and_the_other_has_the_rest() -> None:
    answered, _ = await offered({"greedy": 150, "modest": 15}, seconds=10)

    assert answered["modest"] >= 0.9 * 150
    assert sum(answered.values()) >= 0.95 * 800


@played
async def test_tenants_above_their_shares_get_the_same_however_much_more_one_sends() -> None:
    answered, _ = await offered({"greedy": 600, "modest": 60}, seconds=10)

    assert sum(answered.values()) >= 0.95 * 800
    assert answered["modest"] >= 0.9 * 400


@pytest.mark.parametrize(
    ("rates", "at_once"),
    [
        pytest.param({"only": 160}, 0.9, id="one-tenant"),
        pytest.param({"greedy": 150, "modest": 15}, 0.75, id="a-modest-tenant-goes-before-who-was-let-in"),
    ],
)
def test_refusals_of_an_overload_come_at_once_but_for_few_and_never_after_the_deadline(
    rates: dict[str, int], at_once: float
) -> None:
    _, refused = run(lambda: offered(rates, seconds=10))

    overloaded = [error for error, _ in refused if isinstance(error, Overloaded)]
    assert len(overloaded) >= 0.99 * len(refused)
    assert all(error.retry_after_s is not None and error.retry_after_s > 0.0 for error in overloaded)
    assert sum(took_s < 1e-6 for _, took_s in refused) >= at_once * len(refused)
    assert max(took_s for _, took_s in refused) < 0.352


@played
async def test_at_twice_the_capacity_the_batches_stay_full_and_a_modest_tenant_is_served() -> None:
    """80 items a second can be answered; one tenant sends 152, the other 8."""
    rng = random.Random(1)

    async def behave(_: int, call: Call) -> Tensors:
        await asyncio.sleep(0.100 * rng.uniform(0.95, 1.05))
        return echo(call.batch)

    backend = FakeBackend(Limits(max_batch=8), behave)
    async with batcher(backend) as b:
        await taught(b)
        callers: dict[str, list[asyncio.Task[Tensors]]] = {"greedy": [], "modest": []}
        for i in range(800):
            tenant = "modest" if i % 20 == 0 else "greedy"
            callers[tenant].append(submit(b, i, deadline=within(0.350), tenant=tenant))
            await asyncio.sleep(1 / 160)
        results = {of: await asyncio.gather(*tasks, return_exceptions=True) for of, tasks in callers.items()}

    answered = {of: sum(isinstance(result, dict) for result in each) for of, each in results.items()}
    assert answered["modest"] >= 0.9 * 40
    assert answered["greedy"] + answered["modest"] >= 0.95 * 80 * 5
    refusals = [result for each in results.values() for result in each if not isinstance(result, dict)]
    assert {type(refusal) for refusal in refusals} <= {Overloaded, DeadlineExceeded}


@played
async def test_a_batch_goes_before_those_who_are_refused_for_it_hear_of_it() -> None:
    """To answer them takes the event loop longer than to send the batch, and the backend would idle meanwhile."""
    happened: list[tuple[str, float]] = []

    async def behave(_: int, call: Call) -> Tensors:
        happened.append(("sent", now()))
        await asyncio.sleep(0.050 + 0.010 * len(call.nonces))
        return echo(call.batch)

    async def ask(b: Batcher, number: int) -> None:
        try:
            await b.submit(nonces(number), within(0.200))
        except (Overloaded, DeadlineExceeded) as refused:
            if "cannot be met any more" in str(refused):
                happened.append(("refused", now()))

    async with batcher(FakeBackend(behave=behave)) as b:
        await taught(b)
        callers = []
        for number in range(400):
            callers.append(asyncio.create_task(ask(b, number)))
            await asyncio.sleep(1 / 160)
        await asyncio.gather(*callers)

    sent_at = {at_s: index for index, (what, at_s) in enumerate(happened) if what == "sent"}
    after = [
        index - sent_at[at_s] for index, (what, at_s) in enumerate(happened) if what == "refused" and at_s in sent_at
    ]
    assert len(after) > 50
    assert min(after) > 0


@played
async def test_a_model_is_warmed_up_before_the_first_request() -> None:
    backend = FakeBackend(behave=takes(0.100))
    b = batcher(backend, BatchingOptions(warm_up=(1, 8)))
    await b.warm_up()

    assert [call.batch.size for call in backend.calls] == [1, 1, 8, 8]
    async with b:
        with pytest.raises(DeadlineExceeded, match=r"takes [\d.]+ ms and 50\.0 ms are left"):
            await b.submit(nonces(1), within(0.050))


@played
async def test_a_warm_up_that_the_model_cannot_take_says_so() -> None:
    async def behave(_: int, call: Call) -> Tensors:
        raise InvalidInput("zeros are forbidden")

    with pytest.raises(ValueError, match=r"cannot be warmed up with zeros .zeros are forbidden.; leave warm_up out"):
        await batcher(FakeBackend(behave=behave), BatchingOptions(warm_up=(1,))).warm_up()
    with pytest.raises(ValueError, match="warm_up has a batch of 9, model 'm' takes 8 at most"):
        await batcher(FakeBackend(), BatchingOptions(warm_up=(9,))).warm_up()


@played
async def test_with_adaptive_concurrency_fewer_batches_run_once_the_backend_refuses() -> None:
    async def behave(index: int, call: Call) -> Tensors:
        await asyncio.sleep(0.010)
        if index < 40:
            raise Unavailable("too many")
        return echo(call.batch)

    backend = FakeBackend(Limits(max_batch=1, max_in_flight=8), behave)
    async with batcher(backend, BatchingOptions(adaptive_concurrency=True)) as b:
        callers = [submit(b, i) for i in range(200)]
        await asyncio.gather(*callers, return_exceptions=True)

    together = [
        sum(call.started_s <= other.started_s < (call.ended_s or 0) for other in backend.calls)
        for call in backend.calls
    ]
    assert max(together[:8]) == 8
    assert max(together[60:]) == 1


@played
async def test_of_slots_that_adaptive_concurrency_has_taken_away_none_makes_the_batcher_idle() -> None:
    async def behave(index: int, call: Call) -> Tensors:
        await asyncio.sleep(0.010)
        if index < 40:
            raise Unavailable("too many")
        return echo(call.batch)

    backend = FakeBackend(Limits(max_batch=1, max_in_flight=8), behave)
    async with batcher(backend, BatchingOptions(adaptive_concurrency=True)) as b:
        seen = [b.is_idle]
        await asyncio.gather(*[submit(b, i) for i in range(40)], return_exceptions=True)
        caller = submit(b, 40)
        await asyncio.sleep(0.005)
        assert len(backend.calls) == 41
        seen.append(b.is_idle)
        await caller
        seen.append(b.is_idle)

    assert seen == [True, False, True]


@played
async def test_of_batches_that_all_callers_left_at_their_deadlines_it_is_learnt_that_they_are_too_large() -> None:
    """65 come every 50 ms; a batch of all would take 89 ms, and they wait 78."""

    async def behave(_: int, call: Call) -> Tensors:
        await asyncio.sleep(0.025 + 0.001 * call.batch.size)
        return echo(call.batch)

    backend = FakeBackend(Limits(max_batch=64), behave)
    async with batcher(backend) as b:
        callers = []
        for i in range(40):
            callers += [submit(b, 100 * i + k, deadline=within(0.078)) for k in range(65)]
            await asyncio.sleep(0.050)
        results = await asyncio.gather(*callers, return_exceptions=True)

    answered = sum(isinstance(result, dict) for result in results)
    assert answered >= 0.25 * len(results)
