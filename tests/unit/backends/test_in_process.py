"""Worker threads end calls on time, and let go of what they were given before a call is over."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from backends import in_process
from backends.contract import NO_DEADLINE, Datatype, Deadline, State, Tensor
from backends.errors import DeadlineExceeded, InvalidInput, Unavailable
from backends.in_process import Workers, host_array


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    one = Workers("m", 1)
    yield one
    await one.aclose()


class Gate:
    """Work that runs until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.open = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.started.set()
        assert self.open.wait(30)
        self.ended = True
        return "done"


async def started(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.started.wait, 30)


async def test_work_runs_on_a_thread_that_names_its_model(workers: Workers) -> None:
    name = await workers.run(lambda: threading.current_thread().name, NO_DEADLINE)

    assert name.startswith("m-worker")


async def test_the_work_s_own_errors_pass_through(workers: Workers) -> None:
    def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await workers.run(fail, NO_DEADLINE)


class Noting(SimpleQueue[Any]):
    """Notes how long a thread that wants the GIL would have to wait, whenever something is put."""

    def __init__(self) -> None:
        self.intervals_s: list[float] = []

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.intervals_s.append(sys.getswitchinterval())
        super().put(item, block, timeout)


async def test_a_free_thread_need_not_wait_until_the_loop_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is hurried: not while it works, and not where no thread is free."""
    monkeypatch.setattr(in_process, "SimpleQueue", Noting)
    workers, gate, usual_s = Workers("m", 1), Gate(), sys.getswitchinterval()

    running = asyncio.create_task(workers.run(gate, NO_DEADLINE))
    await started(gate)
    while_it_runs_s = sys.getswitchinterval()
    queued = asyncio.create_task(workers.run(sys.getswitchinterval, NO_DEADLINE))
    await asyncio.sleep(0)
    gate.open.set()

    assert (await running, await queued) == ("done", usual_s)
    queue = workers._queue
    assert isinstance(queue, Noting)
    assert while_it_runs_s == queue.intervals_s[1] == usual_s > 10 * queue.intervals_s[0]
    await workers.aclose()


async def test_an_expired_deadline_starts_no_work(workers: Workers) -> None:
    gate = Gate()

    with pytest.raises(DeadlineExceeded, match="before model 'm' started"):
        await workers.run(gate, Deadline(time.monotonic()))
    assert not gate.started.is_set()


async def test_a_deadline_that_passes_stops_running_work_and_waits_for_its_end(workers: Workers) -> None:
    gate = Gate()

    with pytest.raises(DeadlineExceeded, match="while model 'm' was at work"):
        await workers.run(gate, Deadline(time.monotonic() + 0.02), stop=gate.open.set)
    assert gate.ended or not gate.started.is_set()


async def test_a_cancelled_call_stops_running_work_and_waits_for_its_end(workers: Workers) -> None:
    gate = Gate()
    call = asyncio.create_task(workers.run(gate, NO_DEADLINE, stop=gate.open.set))
    await started(gate)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert gate.ended


async def test_a_call_that_fails_holds_nothing_of_what_it_was_given(workers: Workers) -> None:
    class Given:
        pass

    async def fail() -> weakref.ref[Given]:
        given = Given()

        def work() -> None:
            raise ValueError(str(given))

        with suppress(ValueError):
            await workers.run(work, NO_DEADLINE)
        return weakref.ref(given)

    gc.disable()
    try:
        held = await fail()
        await asyncio.to_thread(int)  # the thread has gone on
        assert held() is None
    finally:
        gc.enable()


async def test_a_panic_is_an_error_of_the_call_alone(workers: Workers) -> None:
    class Panic(BaseException):
        """As libraries in Rust have."""

    def fail() -> None:
        raise Panic

    with pytest.raises(RuntimeError, match="the work raised Panic"):
        await workers.run(fail, NO_DEADLINE)
    assert await workers.run(lambda: 1, NO_DEADLINE) == 1


async def test_how_stopped_work_fails_is_nobodys_business(workers: Workers) -> None:
    logged: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
    gate = Gate()

    def fail_once_stopped() -> None:
        gate()
        raise RuntimeError("stopped")

    with pytest.raises(DeadlineExceeded):
        await workers.run(fail_once_stopped, Deadline(time.monotonic() + 0.02), stop=gate.open.set)
    gc.collect()

    assert logged == []


async def test_work_that_cannot_be_stopped_is_waited_for_however_often_it_is_cancelled(workers: Workers) -> None:
    gate = Gate()
    call = asyncio.create_task(workers.run(gate, NO_DEADLINE))
    await started(gate)

    for _ in range(3):
        call.cancel()
        await asyncio.sleep(0)
    assert not call.done()
    gate.open.set()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert gate.ended


async def test_a_late_call_that_is_cancelled_while_it_winds_up_is_cancelled(workers: Workers) -> None:
    gate = Gate()
    stopping = asyncio.Event()
    call = asyncio.create_task(workers.run(gate, Deadline(time.monotonic() + 0.02), stop=stopping.set))
    await stopping.wait()

    call.cancel()
    await asyncio.sleep(0)
    gate.open.set()

    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_queued_call_that_is_cancelled_never_runs(workers: Workers) -> None:
    first, second = Gate(), Gate()
    running = asyncio.create_task(workers.run(first, NO_DEADLINE))
    await started(first)
    queued = asyncio.create_task(workers.run(second, NO_DEADLINE))
    await asyncio.sleep(0)

    queued.cancel()

    with pytest.raises(asyncio.CancelledError):
        await queued
    first.open.set()
    assert await running == "done"
    assert not second.started.is_set()


async def test_a_queued_call_ends_at_its_deadline_though_no_thread_is_free(workers: Workers) -> None:
    first, second = Gate(), Gate()
    running = asyncio.create_task(workers.run(first, NO_DEADLINE))
    await started(first)

    with pytest.raises(DeadlineExceeded):
        await workers.run(second, Deadline(time.monotonic() + 0.02))

    first.open.set()
    assert await running == "done"
    assert not second.started.is_set()


async def test_closing_waits_for_running_and_queued_work_and_frees_afterwards() -> None:
    workers = Workers("m", 1)
    gate = Gate()
    order: list[str] = []
    calls = [asyncio.create_task(workers.run(gate, NO_DEADLINE)) for _ in range(2)]
    await started(gate)

    closing = asyncio.create_task(workers.aclose(lambda: order.append(f"freed after {gate.ended}")))
    await asyncio.sleep(0)
    assert not closing.done()
    gate.open.set()
    await closing

    assert await asyncio.gather(*calls) == ["done", "done"]
    assert order == ["freed after True"]
    assert repr(workers) == "<Workers of 'm': closed, 0 calls>"


async def test_a_closed_pool_refuses_work_and_may_be_closed_again() -> None:
    workers = Workers("m", 1)
    await workers.aclose()
    await workers.aclose()

    assert workers.state is State.CLOSED
    with pytest.raises(Unavailable, match="model 'm' is closed; send the request elsewhere"):
        await workers.run(lambda: None, NO_DEADLINE)


def test_an_array_that_native_code_can_read_passes_without_a_copy() -> None:
    array = np.ones((2, 3), np.float32)
    array.flags.writeable = False

    assert host_array("x", Tensor.of(array)) is array


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array[::2],
        np.asfortranarray,
        lambda array: array.astype(">f4"),
        lambda array: np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(np.float32).reshape(array.shape),
    ],
    ids=["strided", "fortran", "big-endian", "unaligned"],
)
def test_an_array_that_native_code_would_misread_is_put_right(
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    array = change(np.arange(12, dtype=np.float32).reshape(4, 3))

    found = host_array("x", Tensor.of(array))

    np.testing.assert_array_equal(found, array)
    assert found.flags.c_contiguous
    assert found.flags.aligned
    assert found.dtype == np.float32
    assert found.dtype.isnative


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(Datatype.FP32, (1, 2), np.zeros((1, 3), np.float32)), r"states shape \[1, 2\] and holds \[1, 3\]"),
        (Tensor(Datatype.FP32, (1, 2), np.zeros((1, 2))), "states datatype FP32 and holds float64"),
        (Tensor.of(np.array([["a"]])), "holds <U1; BYTES are object arrays of bytes"),
        (Tensor.of(np.array([["a"]], object)), "holds a str; encode it to bytes"),
        (Tensor.ragged(Datatype.FP32, (np.zeros(1), np.zeros(2))), "is Ragged, not a host array"),
    ],
)
def test_a_tensor_that_is_not_what_it_states_is_refused(tensor: Tensor, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        host_array("x", tensor)
