"""Sequences: one step at a time, in order, each on the state before it, or a clear end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import numpy as np
import pytest

from backends.contract import SEQUENCE, URGENCY, Batch, SequenceCall, Tensor
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PointsmanError,
    ReplicaFailed,
    SequenceOver,
    SequenceUnknown,
    Unavailable,
)
from batching.options import BatchingOptions, SequenceOptions
from batching.report import Outcome
from batching.sequences import SequenceRunner, Step
from tests.unit.batching.conftest import FakeBackend, Reports, idle, nonces, now, run, within
from tests.unit.batching.stateful import IDLE_S, Stateful, runner, take


class Gate:
    """Holds up every call until it is opened, and then fails it where there is an *error*."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, index: int, call: SequenceCall) -> None:
        await self.open.wait()
        if self.error is not None:
            raise self.error


def failing(*errors: BaseException | None) -> Callable[[int, SequenceCall], Awaitable[None]]:
    """Fails the calls with these, in their order."""

    async def behave(index: int, call: SequenceCall) -> None:
        if index < len(errors) and (error := errors[index]) is not None:
            raise error

    return behave


def test_every_step_goes_on_from_the_one_before() -> None:
    async def scenario() -> None:
        backend = Stateful()
        to = runner(backend)

        assert await take(to, 1, starts=True) == [1]
        assert await take(to, 2) == [1, 2]
        assert await take(to, 3, ends=True) == [1, 2, 3]

        assert [(call.starts, call.ends) for call in backend.calls] == [(True, False), (False, False), (False, True)]
        assert len({call.id for call in backend.calls}) == len({call.home for call in backend.calls}) == 1
        assert to.sequences().live == 0
        await to.aclose()

    run(scenario)


def test_callers_are_told_apart_by_tenant_and_by_what_they_call_the_model_and_by_id() -> None:
    async def scenario() -> None:
        backend = Stateful()
        to = runner(backend)
        keys: list[tuple[str, str, int | str]] = [("a", "m", 7), ("b", "m", 7), ("a", "other", 7), ("a", "m", "7")]

        for nonce, (tenant, name, id_) in enumerate(keys):
            await take(to, nonce, id_, starts=True, tenant=tenant, name=name)
        for nonce, (tenant, name, id_) in enumerate(keys):
            assert await take(to, nonce + 10, id_, tenant=tenant, name=name) == [nonce, nonce + 10]

        assert len({call.id for call in backend.calls}) == 4
        await to.aclose()

    run(scenario)


def test_requests_of_one_sequence_wait_for_each_other_and_others_do_not() -> None:
    async def scenario() -> None:
        gate = Gate()
        backend = Stateful(gate)
        to = runner(backend)
        mine = [asyncio.create_task(take(to, nonce, starts=nonce == 0)) for nonce in range(3)]
        others = [asyncio.create_task(take(to, 10 + i, f"other {i}", starts=True)) for i in range(20)]
        await idle()

        assert len(backend.calls) == 21
        assert to.statistics().queued_items == 2
        assert to.statistics().in_flight == 21

        gate.open.set()
        assert await asyncio.gather(*mine) == [[0], [0, 1], [0, 1, 2]]
        await asyncio.gather(*others)
        assert to.statistics().queued_items == 0
        await to.aclose()

    run(scenario)


def test_what_was_not_begun_has_ended_or_was_idle_is_unknown_in_triton_s_words() -> None:
    async def scenario() -> None:
        to = runner(Stateful())
        words = "inference request for sequence 7 to model 'm' must specify the START flag on the first request of the"

        with pytest.raises(SequenceUnknown, match=words):
            await take(to, 1)
        await take(to, 2, starts=True, ends=True)
        with pytest.raises(SequenceUnknown, match=words):
            await take(to, 3)
        await take(to, 4, starts=True)
        await asyncio.sleep(IDLE_S - 0.1)
        assert await take(to, 5) == [4, 5]
        await asyncio.sleep(IDLE_S)
        assert to.sequences().live == 0
        with pytest.raises(SequenceUnknown, match=words):
            await take(to, 6)
        assert to.sequences().lost == 0
        await to.aclose()

    run(scenario)


def test_a_sequence_is_begun_anew_at_its_place_with_nothing_of_before() -> None:
    async def scenario() -> None:
        backend = Stateful()
        to = runner(backend)
        await take(to, 1, starts=True)

        assert await take(to, 2, starts=True) == [2]

        assert backend.calls[0].home is backend.calls[1].home
        assert to.sequences().live == 1
        await to.aclose()

    run(scenario)


@pytest.mark.parametrize("error", [BackendFailed("no"), InvalidInput("no"), Overloaded("no")])
def test_an_answer_that_is_an_error_ends_nothing(error: PointsmanError) -> None:
    async def scenario() -> None:
        to = runner(Stateful(failing(None, error)))
        await take(to, 1, starts=True)

        with pytest.raises(type(error), match="no"):
            await take(to, 2)

        assert await take(to, 3) == [1, 3]
        await to.aclose()

    run(scenario)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ReplicaFailed("it hung up"), SequenceOver),
        (Unavailable("gone"), SequenceOver),
        (SequenceOver("the state is gone"), SequenceOver),
        (DeadlineExceeded("late"), DeadlineExceeded),
        (ZeroDivisionError(), BackendFailed),
    ],
)
def test_where_nobody_knows_what_became_of_a_step_the_sequence_is_over(
    error: BaseException, told: type[PointsmanError]
) -> None:
    async def scenario() -> None:
        backend = Stateful(failing(None, error))
        to = runner(backend)
        await take(to, 1, starts=True)

        with pytest.raises(told):
            await take(to, 2)
        for _ in range(2):
            with pytest.raises(SequenceOver, match=r"7 of model 'm' is over.*begin it anew, with sequence_start"):
                await take(to, 3)

        assert to.sequences().lost == 1
        assert await take(to, 4, starts=True) == [4]
        assert backend.calls[0].id != backend.calls[-1].id  # what may still come of the old state meets no new one
        assert await take(to, 5) == [4, 5]
        await to.aclose()

    run(scenario)


def test_a_first_step_that_fails_is_told_as_it_is() -> None:
    async def scenario() -> None:
        to = runner(Stateful(failing(ReplicaFailed("it hung up"))))

        with pytest.raises(ReplicaFailed, match="it hung up"):
            await take(to, 1, starts=True)

        with pytest.raises(SequenceOver):
            await take(to, 2)
        assert (to.sequences().live, to.sequences().lost) == (0, 0)  # there was no state to lose
        await to.aclose()

    run(scenario)


def test_a_first_step_that_never_reached_a_server_begins_nothing() -> None:
    async def scenario() -> None:
        to = runner(Stateful(failing(InvalidInput("no"), SequenceUnknown("not here"))))
        with suppress(InvalidInput):
            await take(to, 1, starts=True)

        with pytest.raises(SequenceUnknown, match="sequence 7 to model 'm' must specify the START flag"):
            await take(to, 2)

        assert (to.sequences().live, to.sequences().lost) == (0, 0)
        await to.aclose()

    run(scenario)


def test_a_last_step_that_fails_ends_the_sequence_as_in_triton() -> None:
    async def scenario() -> None:
        to = runner(Stateful(failing(None, BackendFailed("no"))))
        await take(to, 1, starts=True)
        with suppress(BackendFailed):
            await take(to, 2, ends=True)

        with pytest.raises(SequenceUnknown):
            await take(to, 3)
        await to.aclose()

    run(scenario)


def test_a_caller_that_leaves_a_step_under_way_ends_the_sequence() -> None:
    async def scenario() -> None:
        gate = Gate()
        to = runner(Stateful(gate))
        gate.open.set()
        await take(to, 1, starts=True)
        gate.open.clear()
        leaving, behind = asyncio.create_task(take(to, 2)), asyncio.create_task(take(to, 3))
        await idle()

        leaving.cancel()

        with pytest.raises(asyncio.CancelledError):
            await leaving
        with pytest.raises(SequenceOver):
            await behind
        await to.aclose()

    run(scenario)


def test_a_deadline_that_passes_at_work_is_kept_though_the_backend_is_not_done() -> None:
    async def scenario() -> None:
        to = runner(Stateful(Gate()))

        with pytest.raises(DeadlineExceeded, match="begin a new sequence"):
            await take(to, 1, starts=True, deadline=within(1.0))

        assert now() < 1001.1
        await to.aclose()

    run(scenario)


def test_nobody_steps_over_the_gap_that_one_leaves_who_left_the_line() -> None:
    async def scenario() -> None:
        gate = Gate()
        to = runner(Stateful(gate))
        first = asyncio.create_task(take(to, 1, starts=True))
        late = asyncio.create_task(take(to, 2, deadline=within(1.0)))
        behind = asyncio.create_task(take(to, 3))
        anew = asyncio.create_task(take(to, 4, starts=True))
        with pytest.raises(DeadlineExceeded, match="earlier requests of this sequence"):
            await late
        gate.open.set()

        assert await first == [1]
        with pytest.raises(SequenceOver):
            await behind
        assert await anew == [4]
        await to.aclose()

    run(scenario)


@pytest.mark.parametrize("passes", range(8))
def test_one_who_leaves_as_its_turn_comes_holds_up_nobody(passes: int) -> None:
    """Whichever pass of the loop it leaves in: before it has its turn, when it has and does not know, or at work."""

    async def scenario() -> None:
        gate = Gate()
        to = runner(Stateful(gate))
        asked = [asyncio.create_task(take(to, nonce, starts=nonce == 0)) for nonce in range(3)]
        anew = asyncio.create_task(take(to, 9, starts=True))
        await idle()
        gate.open.set()
        for _ in range(passes):
            await asyncio.sleep(0)
        asked[1].cancel()

        first, left, behind = await asyncio.gather(*asked, return_exceptions=True)

        assert first == [0]
        if isinstance(left, asyncio.CancelledError):
            assert isinstance(behind, SequenceOver)
        else:  # it had been answered
            assert (left, behind) == ([0, 1], [0, 1, 2])
        assert await anew == [9]
        await to.aclose()

    run(scenario)


def test_one_who_left_the_line_with_nobody_behind_costs_the_sequence_nothing() -> None:
    async def scenario() -> None:
        gate = Gate()
        to = runner(Stateful(gate))
        first = asyncio.create_task(take(to, 1, starts=True))
        late = asyncio.create_task(take(to, 2, deadline=within(1.0)))
        with suppress(DeadlineExceeded):
            await late
        gate.open.set()
        await first

        assert await take(to, 2) == [1, 2]
        await to.aclose()

    run(scenario)


def test_an_answer_that_could_not_be_kept_ends_the_sequence() -> None:
    async def scenario() -> None:
        to = runner(Stateful())
        await take(to, 1, starts=True)

        to.give_up(("", "m", 7))
        to.give_up(("", "m", 8))

        with pytest.raises(SequenceOver):
            await take(to, 2)
        assert to.sequences().lost == 1
        await to.aclose()

    run(scenario)


def test_so_many_may_wait_in_a_line_in_all_and_in_bytes() -> None:
    async def scenario(limits: SequenceOptions, options: BatchingOptions, told: str) -> None:
        gate = Gate()
        to = runner(Stateful(gate), limits, options)
        waiting = [asyncio.create_task(take(to, nonce, starts=True)) for nonce in range(4)]
        await idle()

        with pytest.raises(Overloaded, match=told):
            await take(to, 9)

        gate.open.set()
        await asyncio.gather(*waiting)
        await to.aclose()

    for limits, options, told in (
        (SequenceOptions(max_waiting=3), BatchingOptions(), "3 of 3 requests of this sequence wait"),
        (SequenceOptions(), BatchingOptions(max_queue=3), "3 of 3 requests wait"),
        (SequenceOptions(), BatchingOptions(max_queue_bytes=24), "24 of 24 bytes wait"),
    ):
        run(lambda limits=limits, options=options, told=told: scenario(limits, options, told))  # type: ignore[misc]


def test_so_many_sequences_live_and_a_further_one_is_told_when_to_come_again() -> None:
    async def scenario() -> None:
        to = runner(Stateful(), SequenceOptions(max_live=3))
        for id_ in range(1, 4):
            await take(to, 0, id_, starts=True)
        await asyncio.sleep(1.0)

        with pytest.raises(Overloaded, match="3 of 3 sequences live") as refused:
            await take(to, 0, 4, starts=True)

        assert refused.value.retry_after_s == pytest.approx(IDLE_S - 1.0, abs=0.01)
        await take(to, 0, 2, ends=True)
        assert await take(to, 5, 4, starts=True) == [5]
        await to.aclose()

    run(scenario)


def test_a_tenant_with_many_sequences_leaves_room_for_those_with_few() -> None:
    async def scenario() -> None:
        to = runner(Stateful(), SequenceOptions(max_live=20))
        for id_ in range(1, 21):
            await take(to, 0, id_, starts=True, tenant="greedy")  # alone, it may have all
        with pytest.raises(Overloaded):
            await take(to, 0, 1, starts=True, tenant="modest")

        for id_ in range(1, 4):
            await take(to, 0, id_, ends=True, tenant="greedy")
        await take(to, 0, 21, starts=True, tenant="greedy")
        with pytest.raises(Overloaded, match="for tenants that have fewer"):
            await take(to, 0, 22, starts=True, tenant="greedy")
        await take(to, 0, 1, starts=True, tenant="modest")
        await take(to, 0, 2, starts=True, tenant="modest")
        await to.aclose()

    run(scenario)


async def refused(to: SequenceRunner, batch: Batch, step: Step | None) -> PointsmanError:
    with pytest.raises(PointsmanError) as error:
        await to.submit(batch, within(1.0), step)
    return error.value


def test_what_no_model_could_answer_is_refused_before_it_counts() -> None:
    async def scenario() -> None:
        to = runner(Stateful())
        start = Step("", "m", 7, starts=True)

        assert "non-zero or non-empty correlation ID" in str(await refused(to, nonces(1), None))
        assert "must specify batch-size 1" in str(await refused(to, nonces(1, 2), start))
        wrong = Batch.of({"nonce": Tensor.of(np.zeros((1, 1), np.float32))})
        assert isinstance(await refused(to, wrong, start), InvalidInput)
        with pytest.raises(DeadlineExceeded):
            await take(to, 1, starts=True, deadline=within(-1.0))
        assert to.sequences().started == 0

        await to.aclose()
        assert isinstance(await refused(to, nonces(1), start), Unavailable)

    run(scenario)


def test_closing_waits_for_what_was_accepted() -> None:
    async def scenario() -> None:
        gate = Gate()
        to = runner(Stateful(gate))
        accepted = [asyncio.create_task(take(to, nonce, starts=nonce == 0)) for nonce in range(3)]
        await idle()
        closing = asyncio.create_task(to.aclose())
        await idle()
        assert not closing.done()

        gate.open.set()

        assert await asyncio.gather(*accepted) == [[0], [0, 1], [0, 1, 2]]
        await closing
        await to.aclose()

    run(scenario)


def test_closing_at_once_refuses_what_waits_and_runs() -> None:
    async def scenario() -> None:
        to = runner(Stateful(Gate()))
        accepted = [asyncio.create_task(take(to, nonce, starts=nonce == 0)) for nonce in range(3)]
        await idle()

        await to.aclose(drain=False)

        for error in await asyncio.gather(*accepted, return_exceptions=True):
            assert type(error) is Unavailable

    run(scenario)


def test_the_backend_is_told_of_the_sequence_and_of_priorities_beside_its_call() -> None:
    async def scenario() -> None:
        told: list[int] = []

        async def behave(index: int, call: SequenceCall) -> None:
            told.append(URGENCY.get())

        to = runner(Stateful(behave), options=BatchingOptions(priority_levels=3))
        await to.submit(nonces(1), within(1.0), Step("", "m", 7, starts=True), 1)

        assert told == [1]
        assert (SEQUENCE.get(), URGENCY.get()) == (None, 0)
        await to.aclose()

    run(scenario)


def test_every_step_is_reported_and_counted() -> None:
    async def scenario() -> None:
        reports = Reports()
        to = runner(Stateful(failing(None, None, BackendFailed("no"))), observer=reports)
        await take(to, 1, starts=True)
        await take(to, 2)
        with suppress(BackendFailed):
            await take(to, 3)

        assert [report.outcome for report in reports.seen] == [Outcome.ANSWERED, Outcome.ANSWERED, Outcome.FAILED]
        assert (to.totals().batches, to.totals().entries, to.statistics().batches) == (2, 2, 3)
        await to.aclose()

    run(scenario)


def test_a_model_without_state_has_no_sequences() -> None:
    with pytest.raises(ValueError, match="keeps no state"):
        SequenceRunner("m", FakeBackend(), BatchingOptions(), SequenceOptions())


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_live is 0; .*max_waiting is -1"):
        SequenceOptions(max_live=0, max_waiting=-1)
