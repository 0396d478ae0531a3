"""What adapters that compute inside this process share: worker threads for their calls, and arrays in host memory.

**Threads.** A backend owns as many threads as it overlaps calls (`max_in_flight`), so that one model's load never
takes another's threads, and a stack dump names the model. Advice for `max_in_flight`: code that holds the GIL gains
nothing above 1; code that releases it (ONNX Runtime, NumPy on large arrays) gains up to cores / threads per call;
code that mostly waits for something else gains most. More only queues here, where the batcher cannot see it.

Measured, a call of nothing at all: 31 us of CPU with these threads; 50 with `ThreadPoolExecutor` awaited as a future,
and 61 with a deadline beside it, which made it a third of what a small request takes in all.

**Beginning at once.** A thread that wakes up waits for the GIL until the event loop rests, or for the interpreter's
switch interval, 5 ms: under load the accelerator idles while the loop answers those of the batch before. So the
interval is short from the moment that a thread is handed a call until it has begun. Measured at twice the capacity of
a model whose batches take 100 ms: it began 5.5 ms after it was asked (median), now 0.4 ms. Rejected: a short interval
for good, which took a tenth of the throughput of small requests, since every other thread then interrupts the loop.

**Ending early.** Arrays belong to the caller once `infer` has returned or raised, so a call that is cancelled or late
ends only when its thread has let go of them. Work that can be told to stop is told at once (`stop`); work that
cannot, such as a Python function, is waited for. Rejected: returning at once and leaving the thread to finish, which
reads arrays their owner may by then have overwritten, and counts a slot as free that is not.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import numpy as np

from backends.contract import Datatype, Deadline, HostArray, State, Tensor
from backends.errors import DeadlineExceeded, InvalidInput, Unavailable

T = TypeVar("T")

_USUAL_S = sys.getswitchinterval()
_PROMPT_S = 1e-4  # until a thread that is free has begun


class _Job:
    """One piece of work on its way through a thread. Its methods are the event loop's to call, `run` apart."""

    __slots__ = ("_leaving", "_loop", "_stop", "_tickets", "_work", "answer", "is_late", "is_over")

    def __init__(self, work: Callable[[], Any], stop: Callable[[], object] | None) -> None:  # Any: whatever it returns
        self._loop = asyncio.get_running_loop()
        self._work: Callable[[], Any] | None = work
        self._stop = stop
        self._tickets = [None]  # taken by the thread that runs it, or by whoever calls it off: list.pop is atomic
        self.answer: asyncio.Future[Any] = self._loop.create_future()
        self._leaving: asyncio.Event | None = None  # there where somebody waits for its end
        self.is_late = False
        self.is_over = False

    def run(self) -> None:
        """Work, on a thread, unless it was called off."""
        try:
            self._tickets.pop()
        except IndexError:
            return
        assert self._work is not None
        result, error = None, None
        try:
            result = self._work()
        except BaseException as raised:  # handed to whoever waits, as it is
            error = raised
        with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            self._loop.call_soon_threadsafe(self._settle, result, error)
        del result, error  # this frame is in the error's traceback

    def call_off(self) -> bool:
        """Run it no more, if it has no thread yet; else tell it to stop. Whether it is over."""
        if self.is_over:
            return True
        try:
            self._tickets.pop()
        except IndexError:
            if self._stop is not None:
                self._stop()
            return False
        self._end()
        return True

    def expire(self) -> None:
        """The deadline has passed."""
        self.is_late = True
        if self.call_off() and not self.answer.done():
            self.answer.set_result(None)

    async def ended(self) -> None:
        """Wait until its thread has let go of it, through cancellations, which are raised afterwards."""
        cancelled: asyncio.CancelledError | None = None
        while not self.is_over:
            self._leaving = self._leaving or asyncio.Event()
            try:
                await self._leaving.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _settle(self, result: Any, error: BaseException | None) -> None:
        self._end()
        if self.answer.done():  # its caller was cancelled
            return
        if error is None or self.is_late:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(_settable(error))

    def _end(self) -> None:
        self.is_over = True
        self._work = self._stop = None
        if self._leaving is not None:
            self._leaving.set()


def _settable(error: BaseException) -> BaseException:
    """*error*, or what stands for one that a future refuses to carry, or that would end whoever waits (SystemExit,
    the panics of libraries in Rust).
    """
    if isinstance(error, Exception | asyncio.CancelledError) and not isinstance(error, StopIteration):
        return error
    told = RuntimeError(f"the work raised {type(error).__name__}")
    told.__cause__ = error
    return told


class Workers:
    """One backend's threads, and its state: ready from the start, closed by `aclose`.

    Belongs to one event loop.
    """

    def __init__(self, model_name: str, threads: int) -> None:
        """Args:
        model_name: names the threads, and the model in errors.
        threads: calls that run at once; further ones queue. 0: none, for calls that need no thread.
        """
        self._model_name = model_name
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._jobs: set[_Job] = set()
        self._state = State.READY
        # Daemons: what hangs in a model must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work_off, name=f"{model_name}-worker_{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"<Workers of {self._model_name!r}: {self._state}, {len(self._jobs)} calls>"

    @property
    def state(self) -> State:
        """Ready or closed."""
        return self._state

    async def run(self, work: Callable[[], T], deadline: Deadline, stop: Callable[[], object] | None = None) -> T:
        """Run *work* on a thread and return its result; its exceptions pass through.

        Args:
            work: called on a worker thread, at most once; not at all if the call ends before a thread is free.
            deadline: of the whole call, queueing included.
            stop: makes a running *work* end soon; called from the event loop on cancellation or at the deadline.

        Raises:
            Unavailable: closed.
            DeadlineExceeded: *deadline* passed first. By the time of this, or of a cancellation, *work* has ended.
        """
        left_s = self.admit(deadline)
        job = _Job(work, stop)
        self._jobs.add(job)
        if len(self._jobs) <= len(self._threads):  # one is free
            sys.setswitchinterval(_PROMPT_S)
        self._queue.put(job)
        timer = None if math.isinf(left_s) else asyncio.get_running_loop().call_later(left_s, job.expire)
        try:
            result = await job.answer
        except asyncio.CancelledError:
            if not job.call_off():
                await job.ended()
            raise
        finally:
            self._jobs.discard(job)
            if timer is not None:
                timer.cancel()
            del job.answer  # its error's traceback leads here: a cycle would keep the tensors until a collection
        if job.is_late:
            raise DeadlineExceeded(f"the deadline passed while model {self._model_name!r} was at work; allow more time")
        return cast(T, result)

    def admit(self, deadline: Deadline) -> float:
        """Refuse a call that cannot be answered any more; seconds that are left for it.

        Raises:
            Unavailable: closed.
            DeadlineExceeded: *deadline* has passed.
        """
        if self._state is not State.READY:
            raise Unavailable(f"model {self._model_name!r} is {self._state}; send the request elsewhere")
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline passed before model {self._model_name!r} started; allow more time")
        return left_s

    async def aclose(self, free: Callable[[], object] | None = None) -> None:
        """Take no more calls, wait for those in flight, then call *free* off the event loop."""
        if self._state is State.READY:
            self._state = State.CLOSED
            for _ in self._threads:
                self._queue.put(None)  # behind what is queued, which still runs
        for job in tuple(self._jobs):
            await job.ended()
        if free is not None:
            await asyncio.to_thread(free)

    def _work_off(self) -> None:
        while (job := self._queue.get()) is not None:
            sys.setswitchinterval(_USUAL_S)
            job.run()
            del job  # or it would keep what it was given until the next comes


def host_array(name: str, tensor: Tensor) -> HostArray:
    """The elements of tensor *name* as native code can read them: contiguous, aligned, in native byte order.

    An array that is all this already passes through without a copy. BYTES keep their object array.

    Raises:
        InvalidInput: not in host memory, not of the shape or dtype that the tensor states, or a BYTES element that
            is not bytes.
    """
    array = tensor.numpy()
    if array.shape != tensor.shape:
        raise InvalidInput(f"tensor {name!r} states shape {list(tensor.shape)} and holds {list(array.shape)}")
    if tensor.datatype is Datatype.BYTES:
        _require_bytes(name, array)
        return array
    native = tensor.datatype.numpy
    if array.dtype.newbyteorder("=") != native:
        raise InvalidInput(f"tensor {name!r} states datatype {tensor.datatype} and holds {array.dtype}")
    return np.require(array, native, ["C_CONTIGUOUS", "ALIGNED"])


def _require_bytes(name: str, array: HostArray) -> None:
    if array.dtype != object:
        raise InvalidInput(f"tensor {name!r} is BYTES and holds {array.dtype}; BYTES are object arrays of bytes")
    for element in array.flat:
        if not isinstance(element, bytes):
            raise InvalidInput(f"tensor {name!r} is BYTES and holds a {type(element).__name__}; encode it to bytes")
