"""Batches of tensors in shared memory: formed as all others are, and as many calls of the backend as entries."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import (
    NO_DEADLINE,
    URGENCY,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Memory,
    SharedMemoryWindow,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
)
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, PointsmanError, Unavailable
from batching.batcher import Batcher
from batching.options import BatchingOptions
from batching.report import Outcome
from tests.unit.batching.conftest import Reports, idle, played, run, within

BOTH = frozenset({Memory.HOST, Memory.SHARED})


class Server:
    """Answers each call, when the test says so, with where its input lies."""

    signature = Signature((TensorSpec("x", Datatype.FP32, (1,)),), (TensorSpec("y", Datatype.INT64, (1,)),))
    version = "1"
    state = State.READY

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits(8, 1, BOTH)
        self.calls: dict[int, asyncio.Future[None]] = {}
        self.urgencies: dict[int, int] = {}
        self.cancelled: list[int] = []

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        where = offset_of(batch)
        self.urgencies[where] = URGENCY.get()
        self.calls[where] = asyncio.get_running_loop().create_future()
        try:
            await self.calls[where]
        except asyncio.CancelledError:
            self.cancelled.append(where)
            raise
        return {"y": Tensor.of(np.full((batch.size, 1), where))}

    async def aclose(self) -> None:
        """There is nothing to free."""

    def answer(self, *wheres: int) -> None:
        for where in wheres:
            self.calls[where].set_result(None)


def offset_of(batch: Batch) -> int:
    data = batch.inputs["x"].data
    return data.offset if isinstance(data, SharedMemoryWindow) else -1


def lying(where: int, size: int = 1) -> Batch:
    return Batch.of({"x": Tensor(Datatype.FP32, (size, 1), SharedMemoryWindow("r", where, 4 * size))})


def held() -> Batch:
    return Batch.of({"x": Tensor.of(np.zeros((1, 1), np.float32))})


def submit(to: Batcher, batch: Batch, deadline: Deadline = NO_DEADLINE, priority: int = 0) -> asyncio.Task[Tensors]:
    return asyncio.create_task(to.submit(batch, deadline, priority))


def batcher(server: Server, options: BatchingOptions | None = None, **how: Any) -> Batcher:  # Any: Batcher's own
    return Batcher("m", server, options or BatchingOptions(), clock=asyncio.get_running_loop().time, **how)


@played
async def test_what_waits_together_goes_at_once_each_by_itself_and_is_answered_when_it_is_done() -> None:
    server, reports = Server(), Reports()
    async with batcher(server, observer=reports) as b:
        first = submit(b, lying(0))
        await idle()
        others = [submit(b, lying(where)) for where in (4, 8, 12)]
        await idle()
        assert set(server.calls) == {0}  # one slot
        server.answer(0)
        await first

        await idle()
        assert set(server.calls) == {0, 4, 8, 12}
        server.answer(12)
        assert (await others[2])["y"].numpy().item() == 12  # and the others still wait
        assert not others[0].done()
        server.answer(4, 8)

        answers = await asyncio.gather(*others)

    assert [answer["y"].numpy().item() for answer in answers] == [4, 8, 12]
    assert [report.size for report in reports.seen] == [1, 1, 1, 1]


class Slow(Server):
    """Takes 10 ms, whatever the size."""

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        await asyncio.sleep(0.01)
        return {"y": Tensor.of(np.zeros((batch.size, 1), np.int64))}


@played
async def test_what_goes_apart_takes_a_free_slot_where_others_wait_for_company() -> None:
    has_waited = {}
    for kind in ("lying", "held"):
        async with batcher(Slow(Limits(8, 2, BOTH))) as b:
            callers, looks = [], []
            for i in range(60):
                callers.append(submit(b, lying(4 * i) if kind == "lying" else held()))
                await asyncio.sleep(0.001)
                found = b.statistics()
                looks.append(found.in_flight < 2 and found.queued_items > 0)
            await asyncio.gather(*callers)
            has_waited[kind] = any(looks)

    assert has_waited == {"lying": False, "held": True}


@played
async def test_tensors_of_both_kinds_never_share_a_batch() -> None:
    server = Server()
    async with batcher(server) as b:
        blocker = submit(b, lying(0))
        await idle()
        callers = [submit(b, lying(4)), submit(b, held())]
        await idle()
        server.answer(0)
        await blocker
        await idle()

        assert len(server.calls) == 2  # the slot has one of them
        while not all(caller.done() for caller in callers):
            for where, call in tuple(server.calls.items()):
                if not call.done():
                    server.answer(where)
            await idle()


@played
async def test_one_that_fails_fails_alone_and_with_its_own_error() -> None:
    server, reports = Server(), Reports()
    async with batcher(server, observer=reports) as b:
        blocker = submit(b, lying(0))
        await idle()
        callers = [submit(b, lying(where)) for where in (4, 8)]
        await idle()
        server.answer(0)
        await blocker
        await idle()
        server.calls[4].set_exception(InvalidInput("no such text"))
        server.answer(8)

        with pytest.raises(InvalidInput, match="no such text"):
            await callers[0]
        assert (await callers[1])["y"].numpy().item() == 8

    assert sorted(report.outcome for report in reports.seen) == [Outcome.ANSWERED, Outcome.ANSWERED, Outcome.FAILED]


@played
async def test_a_wrong_answer_reaches_nobody() -> None:
    class Wrong(Server):
        async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
            return {"y": Tensor.of(np.zeros((batch.size + 1, 1), np.int64))}

    async with batcher(Wrong()) as b:
        with pytest.raises(BackendFailed, match="wrong answer"):
            await submit(b, lying(0))


@played
async def test_who_leaves_ends_its_own_call_and_no_other() -> None:
    server = Server()
    async with batcher(server) as b:
        blocker = submit(b, lying(0))
        await idle()
        leaving, late, staying = submit(b, lying(4)), submit(b, lying(8), within(0.5)), submit(b, lying(12))
        await idle()
        server.answer(0)
        await blocker
        await idle()

        leaving.cancel()
        with pytest.raises(DeadlineExceeded):
            await late
        await idle()
        assert sorted(server.cancelled) == [4, 8]
        server.answer(12)

        assert (await staying)["y"].numpy().item() == 12


@played
async def test_urgency_is_of_each_call() -> None:
    server = Server(Limits(8, 1, BOTH))
    async with batcher(server, BatchingOptions(priority_levels=3, default_priority=2)) as b:
        blocker = submit(b, lying(0), priority=3)
        await idle()
        callers = [submit(b, lying(4), priority=1), submit(b, lying(8), priority=3)]
        await idle()
        server.answer(0)
        await blocker
        await idle()
        server.answer(4, 8)
        await asyncio.gather(*callers)

    assert server.urgencies == {0: 3, 4: 1, 8: 3}


@played
async def test_closing_without_waiting_ends_every_call() -> None:
    server = Server()
    b = batcher(server)
    b.start()
    callers = [submit(b, lying(where)) for where in (0, 4)]
    await idle()

    await b.aclose(drain=False)

    for caller in callers:
        with pytest.raises(Unavailable):
            await caller


@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["answer", "fail", "leave"])), min_size=1, max_size=24),
    st.integers(1, 3),
)
def test_nothing_is_lost_swapped_or_run_beyond_the_slots(fates: list[tuple[int, str]], slots: int) -> None:
    async def scenario() -> None:
        server = Server(Limits(4, slots, BOTH))
        async with batcher(server) as b:
            callers = {100 * i: submit(b, lying(100 * i, size)) for i, (size, _) in enumerate(fates)}
            sizes = {100 * i: size for i, (size, _) in enumerate(fates)}
            while not all(caller.done() for caller in callers.values()):
                await idle()
                running = [where for where, call in server.calls.items() if not call.done()]
                assert sum(sizes[where] for where in running) <= 4 * slots
                for where in running:
                    match fates[where // 100][1]:
                        case "answer":
                            server.answer(where)
                        case "fail":
                            server.calls[where].set_exception(InvalidInput(f"{where}"))
                        case _:
                            callers[where].cancel()
                await idle()
            for where, caller in callers.items():
                match fates[where // 100][1]:
                    case "answer":
                        assert caller.result()["y"].numpy().tolist() == [[where]] * sizes[where]
                    case "fail":
                        assert isinstance(error := caller.exception(), PointsmanError)
                        assert str(error) == str(where)
                    case _:
                        assert caller.cancelled()

    run(scenario)
