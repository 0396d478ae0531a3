"""The kit passes an adapter that keeps the contract, and names the rule that any other breaks."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from backends.conformance import exercise_backend
from backends.contract import (
    Backend,
    Batch,
    Datatype,
    Deadline,
    HostArray,
    Limits,
    Ragged,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
)
from backends.errors import DeadlineExceeded, InvalidInput, Unavailable


class Obedient:
    """Doubles `x`, and keeps the contract; each class below breaks one rule of it."""

    def __init__(self) -> None:
        self.signature = Signature((TensorSpec("x", Datatype.FP32, (3,)),), (TensorSpec("y", Datatype.FP32, (3,)),))
        self.version = "1"
        self.limits = Limits(max_batch=4, max_in_flight=2)
        self.state = State.READY
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def check(self, batch: Batch) -> None:
        check_batch(self.signature, batch, self.limits)

    def answer(self, x: HostArray) -> HostArray:
        return np.asarray(x * 2)

    async def work(self, x: HostArray) -> HostArray:
        await asyncio.sleep(0)
        return self.answer(x)

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        if self.state is not State.READY:
            raise Unavailable("closed; send the request elsewhere")
        self.check(batch)
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("too late; allow more time")
        self.in_flight += 1
        self.idle.clear()
        try:
            return {"y": Tensor.of(await self.work(batch.inputs["x"].numpy()))}
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    async def aclose(self) -> None:
        self.state = State.CLOSED
        await self.idle.wait()


class SwapsRows(Obedient):
    def answer(self, x: HostArray) -> HostArray:
        return np.asarray(x[::-1] * 2)


class RepeatsTheFirstRow(Obedient):
    def answer(self, x: HostArray) -> HostArray:
        return np.repeat(x[:1] * 2, len(x), axis=0)


class AnswersEveryoneAlike(Obedient):
    def answer(self, x: HostArray) -> HostArray:
        return np.ones_like(x)


class ForgetsTheLastRow(Obedient):
    def answer(self, x: HostArray) -> HostArray:
        return np.asarray(x[:-1] * 2)


class ChangesItsInput(Obedient):
    def answer(self, x: HostArray) -> HostArray:
        x *= 2
        return x.copy()


class AnswersWithItsInput(Obedient):
    def answer(self, x: HostArray) -> HostArray:
        return x


class ReusesItsOutput(Obedient):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = np.zeros((4, 3), np.float32)

    def answer(self, x: HostArray) -> HostArray:
        np.multiply(x, 2, out=self.buffer[: len(x)])
        return self.buffer[: len(x)]


class KeepsItsOutput(Obedient):
    def __init__(self) -> None:
        super().__init__()
        self.known: dict[bytes, HostArray] = {}

    def answer(self, x: HostArray) -> HostArray:
        return self.known.setdefault(x.tobytes(), x * 2)


class TakesAnySize(Obedient):
    def check(self, batch: Batch) -> None:
        check_batch(self.signature, batch, Limits(max_batch=1000))


class TakesUnknownNames(Obedient):
    def check(self, batch: Batch) -> None:
        known = {name: tensor for name, tensor in batch.inputs.items() if name == "x"}
        check_batch(self.signature, Batch(known, batch.size), self.limits)


class StumblesOverMissingNames(Obedient):
    def check(self, batch: Batch) -> None:
        if batch.inputs["x"]:
            super().check(batch)


class TakesAnyDatatype(Obedient):
    def check(self, batch: Batch) -> None:
        as_float = {name: Tensor(Datatype.FP32, tensor.shape, tensor.data) for name, tensor in batch.inputs.items()}
        super().check(Batch(as_float, batch.size))


class TakesAnyShape(Obedient):
    def check(self, batch: Batch) -> None:
        cut = {n: Tensor(t.datatype, (*t.shape[:1], 3), t.data) for n, t in batch.inputs.items()}
        super().check(Batch(cut, batch.size))

    def answer(self, x: HostArray) -> HostArray:
        return np.asarray(x.reshape(len(x), -1)[:, :3] * 2)


class TakesAnyStorage(Obedient):
    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        moved = {
            name: Tensor.of(np.stack(tensor.data.rows)) if isinstance(tensor.data, Ragged) else tensor
            for name, tensor in batch.inputs.items()
        }
        return await super().infer(Batch(moved, batch.size), deadline)


class IgnoresTheDeadline(Obedient):
    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        return await super().infer(batch, Deadline(float("inf")))


class MixesCallsUp(Obedient):
    latest: HostArray

    async def work(self, x: HostArray) -> HostArray:
        self.latest = x
        await asyncio.sleep(0)
        return self.answer(np.resize(self.latest, x.shape))


class HangsWhenCrowded(Obedient):
    async def work(self, x: HostArray) -> HostArray:
        if self.in_flight > self.limits.max_in_flight:
            await asyncio.Event().wait()
        return await super().work(x)


class LosesASlotToCancellation(Obedient):
    def __init__(self) -> None:
        super().__init__()
        self.slots = asyncio.Semaphore(self.limits.max_in_flight)

    async def work(self, x: HostArray) -> HostArray:
        await self.slots.acquire()
        answer = await super().work(x)
        self.slots.release()
        return answer


class FailsItsNeighboursOnCancellation(Obedient):
    broken = False

    async def work(self, x: HostArray) -> HostArray:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.broken = True
            raise
        if self.broken:
            raise RuntimeError("a neighbour was cancelled")
        return self.answer(x)


class AnswersAfterClosing(Obedient):
    async def aclose(self) -> None:
        await super().aclose()
        self.state = State.READY


class ClosesUnderItsCalls(Obedient):
    async def work(self, x: HostArray) -> HostArray:
        for _ in range(3):
            await asyncio.sleep(0)
        if self.state is State.CLOSED:
            raise Unavailable("closed")
        return self.answer(x)


class ClosesOnlyOnce(Obedient):
    async def aclose(self) -> None:
        if self.state is State.CLOSED:
            raise RuntimeError("closed already")
        await super().aclose()


class IsNotReady(Obedient):
    def __init__(self) -> None:
        super().__init__()
        self.state = State.LOADING


BROKEN_RULES = [
    (SwapsRows, "Row i of every output is the answer to item i"),
    (RepeatsTheFirstRow, "Row i of every output is the answer to item i"),
    (AnswersEveryoneAlike, "Row i of every output is the answer to item i"),
    (ForgetsTheLastRow, "got outputs that the signature does not allow"),
    (ChangesItsInput, "Inputs are as they were"),
    (AnswersWithItsInput, "shares memory with an input"),
    (ReusesItsOutput, "Outputs are the caller's"),
    (KeepsItsOutput, "Outputs are the caller's"),
    (TakesAnySize, "A batch beyond max_batch"),
    (TakesUnknownNames, "A missing or unknown input raises InvalidInput"),
    (StumblesOverMissingNames, "A missing or unknown input raises InvalidInput"),
    (TakesAnyDatatype, "An input of another datatype raises InvalidInput"),
    (TakesAnyShape, "An input of another rank"),
    (TakesAnyStorage, "Storage that limits.memory does not name"),
    (IgnoresTheDeadline, "A call whose deadline has passed"),
    (MixesCallsUp, "each get their own answer"),
    (HangsWhenCrowded, "each get their own answer"),
    (LosesASlotToCancellation, "A cancelled call ends"),
    (FailsItsNeighboursOnCancellation, "A cancelled call ends"),
    (AnswersAfterClosing, "Closing waits"),
    (ClosesUnderItsCalls, "Closing waits"),
    (ClosesOnlyOnce, "Closing waits"),
    (IsNotReady, "An opened backend is ready"),
]


def sample(size: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.normal(size=(size, 3)).astype(np.float32))})


async def test_an_adapter_that_keeps_the_contract_passes() -> None:
    async def open_backend() -> Backend:
        return Obedient()

    await exercise_backend(open_backend, sample)


@pytest.mark.parametrize(("broken", "rule"), BROKEN_RULES, ids=[broken.__name__ for broken, _ in BROKEN_RULES])
async def test_an_adapter_that_breaks_a_rule_is_caught_by_name(broken: type[Obedient], rule: str) -> None:
    async def open_backend() -> Backend:
        return broken()

    with pytest.raises(AssertionError, match=rule):
        await exercise_backend(open_backend, sample, patience_s=0.2)


async def test_a_sample_whose_items_are_all_alike_is_refused() -> None:
    async def open_backend() -> Backend:
        return Obedient()

    def blind(size: int, rng: np.random.Generator) -> Batch:
        return Batch.of({"x": Tensor.of(np.ones((size, 3), np.float32))})

    with pytest.raises(AssertionError, match="let `sample` vary its items more"):
        await exercise_backend(open_backend, blind)


async def test_an_answer_that_is_an_error_of_another_kind_names_the_rule_and_the_error() -> None:
    class Untranslated(Obedient):
        def check(self, batch: Batch) -> None:
            try:
                super().check(batch)
            except InvalidInput as error:
                raise ValueError("as the library said it") from error

    async def open_backend() -> Backend:
        return Untranslated()

    with pytest.raises(AssertionError, match=r"A batch beyond max_batch.*ValueError.*not InvalidInput"):
        await exercise_backend(open_backend, sample)
