"""What adapters that compute inside this process share: worker threads for their calls, and arrays in host memory.

**Threads.** A backend owns as many threads as it overlaps calls (`max_in_flight`), so that one model's load never
takes another's threads, and a stack dump names the model. Advice for `max_in_flight`: code that holds the GIL gains
nothing above 1; code that releases it (ONNX Runtime, NumPy on large arrays) gains up to cores / threads per call;
code that mostly waits for something else gains most. More only queues here, where the batcher cannot see it.

**Ending early.** Arrays belong to the caller once `infer` has returned or raised, so a call that is cancelled or late
ends only when its thread has let go of them. Work that can be told to stop is told at once (`stop`); work that
cannot, such as a Python function, is waited for. Rejected: returning at once and leaving the thread to finish, which
reads arrays their owner may by then have overwritten, and counts a slot as free that is not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from backends.contract import Datatype, Deadline, HostArray, State, Tensor
from backends.errors import DeadlineExceeded, InvalidInput, Unavailable

T = TypeVar("T")


class Workers:
    """One backend's threads, and its state: ready from the start, closed by `aclose`.

    Belongs to one event loop.
    """

    def __init__(self, model_name: str, threads: int) -> None:
        """Args:
        model_name: names the threads, and the model in errors.
        threads: calls that run at once; further ones queue.
        """
        self._model_name = model_name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"{model_name}-worker")
        # Any: calls return what their work returns; aclose only waits for them.
        self._calls: set[asyncio.Future[Any]] = set()
        self._state = State.READY

    def __repr__(self) -> str:
        return f"<Workers of {self._model_name!r}: {self._state}, {len(self._calls)} calls>"

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
        if self._state is not State.READY:
            raise Unavailable(f"model {self._model_name!r} is {self._state}; send the request elsewhere")
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline passed before model {self._model_name!r} started; allow more time")
        job = self._pool.submit(work)
        call = asyncio.wrap_future(job)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s) as limit:
                await asyncio.wait([call])  # which, unlike awaiting it, neither cancels it nor raises what it raised
        except (TimeoutError, asyncio.CancelledError):
            if not job.cancel():  # it has a thread already
                if stop is not None:
                    stop()
                await _ended(call)
            if limit.expired():
                raise DeadlineExceeded(
                    f"the deadline passed while model {self._model_name!r} was at work; allow more time"
                ) from None
            raise
        return call.result()

    async def aclose(self, free: Callable[[], object] | None = None) -> None:
        """Take no more calls, wait for those in flight, then call *free* off the event loop."""
        self._state = State.CLOSED
        self._pool.shutdown(wait=False)  # what is queued still runs
        if self._calls:
            await asyncio.wait(set(self._calls))
        if free is not None:
            await asyncio.to_thread(free)


async def _ended(call: asyncio.Future[Any]) -> None:
    """Wait until *call* is done, through cancellations, which are raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not call.done():
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError as error:
            cancelled = error
    call.exception()  # looked at, or asyncio would log it: how stopped work fails interests nobody
    if cancelled is not None:
        raise cancelled


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
