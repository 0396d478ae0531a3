"""What the tests of batching share: virtual time, and a backend that answers when it is told to."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from selectors import SelectorKey
from typing import Any, TypeVar

import numpy as np

from backends.contract import (
    NO_DEADLINE,
    Batch,
    Datatype,
    Deadline,
    Limits,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
)
from batching.batcher import Batcher
from batching.options import BatchingOptions
from batching.report import BatchReport

T = TypeVar("T")

SIGNATURE = Signature(
    inputs=(TensorSpec("nonce", Datatype.INT64, (-1,)),),
    outputs=(TensorSpec("nonce", Datatype.INT64, (-1,)),),
)


class _JumpingSelector(selectors.SelectSelector):
    """Where everything waits, time jumps to the next timer; where there is none, somebody hangs."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everything waits and no timer is set: somebody hangs"
            self.now_s += max(timeout, 0.0)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when there is nothing left to do."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Play *scenario* in virtual time, and see that it leaves no task behind."""

    async def play() -> T:
        result = await scenario()
        await idle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(play())


async def idle() -> None:
    """Until nothing is left to do before the next timer (virtual time only moves then)."""
    await asyncio.sleep(1e-6)


def now() -> float:
    return asyncio.get_running_loop().time()


def within(seconds: float) -> Deadline:
    return Deadline(now() + seconds)


def nonces(*values: int, width: int = 1) -> Batch:
    """One item for each of *values*, that value *width* times."""
    rows = np.repeat(np.array(values, np.int64)[:, np.newaxis], width, axis=1)
    return Batch.of({"nonce": Tensor.of(rows)})


def echo(batch: Batch) -> Tensors:
    return {"nonce": Tensor.of(batch.inputs["nonce"].numpy().copy())}


def values(tensors: Tensors) -> list[int]:
    """The nonces of a batch or an answer, one an item."""
    return [int(row[0]) for row in tensors["nonce"].numpy()]


class Call:
    """One call of `FakeBackend.infer`."""

    def __init__(self, batch: Batch, deadline: Deadline) -> None:
        self.batch = batch
        self.deadline = deadline
        self.nonces = values(batch.inputs)
        self.started_s = now()
        self.ended_s: float | None = None
        self.was_cancelled = False
        self.gate: asyncio.Future[Tensors] = asyncio.get_running_loop().create_future()

    def answer(self, outputs: Tensors | None = None) -> None:
        """Return *outputs*, by default the echo."""
        self.gate.set_result(echo(self.batch) if outputs is None else outputs)

    def fail(self, error: BaseException) -> None:
        self.gate.set_exception(error)


class FakeBackend:
    """Echoes nonces, each call when the test opens its gate, or as *behave* does."""

    def __init__(
        self, limits: Limits | None = None, behave: Callable[[int, Call], Awaitable[Tensors]] | None = None
    ) -> None:
        self._limits = limits or Limits(max_batch=8)
        self._behave = behave
        self.calls: list[Call] = []
        self.in_flight = 0

    @property
    def signature(self) -> Signature:
        return SIGNATURE

    @property
    def version(self) -> str:
        return "1"

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def state(self) -> State:
        return State.READY

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        call = Call(batch, deadline)
        self.calls.append(call)
        self.in_flight += 1
        assert self.in_flight <= self._limits.max_in_flight
        assert batch.size <= self._limits.max_batch
        try:
            return await (self._behave(len(self.calls) - 1, call) if self._behave else call.gate)
        except asyncio.CancelledError:
            call.was_cancelled = True
            raise
        finally:
            self.in_flight -= 1
            call.ended_s = now()

    async def aclose(self) -> None:
        """There is nothing to free."""


class Reports:
    """Keeps every report."""

    def __init__(self) -> None:
        self.seen: list[BatchReport] = []

    def on_batch(self, report: BatchReport) -> None:
        self.seen.append(report)


def batcher(
    backend: FakeBackend, options: BatchingOptions | None = None, **keywords: Any
) -> Batcher:  # Any: Batcher's own keywords
    """A batcher in virtual time."""
    return Batcher("m", backend, options or BatchingOptions(), clock=asyncio.get_running_loop().time, **keywords)


def submit(
    to: Batcher,
    *nonce_values: int,
    deadline: Deadline = NO_DEADLINE,
    width: int = 1,
    priority: int = 0,
    tenant: str = "",
) -> asyncio.Task[Tensors]:
    """A caller, in a task of its own."""
    return asyncio.create_task(to.submit(nonces(*nonce_values, width=width), deadline, priority, tenant))


def tensors(**arrays: Any) -> Mapping[str, Tensor]:  # Any: nested lists, as NumPy takes them
    return {name: Tensor.of(np.array(array)) for name, array in arrays.items()}


Scenario = Callable[[], Coroutine[Any, Any, None]]  # Any: what asyncio sends


def played(scenario: Scenario) -> Callable[[], None]:
    """A test that plays *scenario* in virtual time."""

    def test() -> None:
        run(scenario)

    test.__name__ = scenario.__name__
    return test
