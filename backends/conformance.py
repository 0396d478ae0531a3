"""The contract of `backends.contract` as a test: an adapter's author calls `exercise_backend` from one of their own.

    async def test_my_backend_keeps_the_contract() -> None:
        await exercise_backend(open_mine, sample)

Each rule below is a function whose first line says what must hold; a broken one raises an `AssertionError` that
begins with that line. Payloads are random, so that a swapped or repeated row is seen. Rules look only at what a
caller can see. What they cannot see stays with the adapter's own tests: that a refused call did no work, and that
the event loop is never held up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from backends.contract import (
    NO_DEADLINE,
    Backend,
    Batch,
    Datatype,
    Deadline,
    HostArray,
    Memory,
    Ragged,
    State,
    Tensor,
    Tensors,
    check_outputs,
)
from backends.errors import DeadlineExceeded, InvalidInput, PointsmanError, Unavailable

Sample: TypeAlias = Callable[[int, np.random.Generator], Batch]

_ROWS_COMPARED = 8  # of the largest batch, one by one: enough to see any rotation, reversal or repetition


@dataclass(frozen=True, slots=True)
class _Exam:
    """The backend under test, and how to test it; see `exercise_backend`."""

    backend: Backend
    sample: Sample
    rng: np.random.Generator
    rtol: float
    atol: float
    patience_s: float

    def batch(self, size: int) -> Batch:
        """Fresh random items whose arrays refuse to be written to."""
        batch = self.sample(size, self.rng)
        for tensor in batch.inputs.values():
            for array in _arrays(tensor):
                array.flags.writeable = False
        return batch

    def sizes(self) -> tuple[int, ...]:
        """Batch sizes to try: the smallest, the largest, odd ones between."""
        most = self.backend.limits.max_batch
        return tuple(sorted({size for size in (1, 2, 3, most // 2, most) if 1 <= size <= most}))

    async def infer(self, batch: Batch, deadline: Deadline = NO_DEADLINE) -> Tensors:
        """The backend's answer, which must come within `patience_s`, and be one."""
        async with asyncio.timeout(self.patience_s):
            outputs = await self.backend.infer(batch, deadline)
        fault = check_outputs(self.backend.signature, outputs, batch.size)
        _require(fault is None, f"a batch of {batch.size} got outputs that the signature does not allow: {fault}")
        return outputs

    async def refused(self, batch: Batch, why: str) -> None:
        """*batch* must raise `InvalidInput`."""
        await self.raises(InvalidInput, batch, NO_DEADLINE, why)

    async def raises(self, expected: type[PointsmanError], batch: Batch, deadline: Deadline, why: str) -> None:
        """*batch* must raise *expected*."""
        try:
            async with asyncio.timeout(self.patience_s):
                await self.backend.infer(batch, deadline)
        except expected:
            return
        except Exception as error:
            raise AssertionError(f"{why} raised {error!r}, not {expected.__name__}") from error
        raise AssertionError(f"{why} was answered; {expected.__name__} is due")

    def same(self, got: Tensors, row: int, expected: Tensors) -> bool:
        """Whether row *row* of *got* is the one row of *expected*."""
        return all(
            _close(got[spec.name].numpy()[row], expected[spec.name].numpy()[0], self.rtol, self.atol)
            for spec in self.backend.signature.outputs
        )

    async def require_own_answer(self, batch: Batch, outputs: Tensors) -> None:
        """Row i of *outputs* must be the answer to item i asked alone, for some of the rows."""
        some = self.rng.permutation(batch.size)[:_ROWS_COMPARED]
        for row in map(int, some):
            alone = await self.infer(_item(batch, row))
            _require(self.same(outputs, row, alone), f"row {row} of {batch.size} is not the answer to item {row} alone")


async def exercise_backend(
    open_backend: Callable[[], Awaitable[Backend]],
    sample: Sample,
    *,
    seed: int = 0,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    patience_s: float = 30.0,
) -> None:
    """Hold a backend to every rule of the contract that a caller can see.

    Args:
        open_backend: builds the backend, ready to serve; called twice, the second time after the first was closed.
        sample: a batch of so many random valid items in fresh host arrays, unequal in their outputs.
        seed: of the generator that *sample* is given.
        rtol: relative difference allowed between an item's float outputs in a batch and alone.
        atol: absolute difference allowed there.
        patience_s: seconds after which a call counts as hanging.

    Raises:
        AssertionError: a rule is broken; the message begins with the rule.
    """
    for rules in (_WHILE_OPEN, (_a_second_backend_opens_after_the_first_was_closed,)):
        exam = _Exam(await open_backend(), sample, np.random.default_rng(seed), rtol, atol, patience_s)
        try:
            for rule in rules:
                await _hold(rule, exam)
            await _hold(_closing_waits_and_lasts, exam)
        except BaseException:
            # A broken backend may fail here too; what it broke first is what matters.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(patience_s):
                    await exam.backend.aclose()
            raise


Rule: TypeAlias = Callable[[_Exam], Awaitable[None]]


async def _hold(rule: Rule, exam: _Exam) -> None:
    name = (rule.__doc__ or "").splitlines()[0]
    try:
        await rule(exam)
    except AssertionError as error:
        raise AssertionError(f"{name} {error}") from error
    except Exception as error:
        raise AssertionError(f"{name} Instead: {error!r}") from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


async def _it_describes_itself(exam: _Exam) -> None:
    """An opened backend is ready, and its signature, version and limits are usable."""
    backend = exam.backend
    _require(backend.state is State.READY, f"state is {backend.state}")
    _require(bool(backend.version), "version is empty")
    for specs in (backend.signature.inputs, backend.signature.outputs):
        names = [spec.name for spec in specs]
        _require(bool(names) and len(set(names)) == len(names), f"names are {names}; one at least, all different")
    _require(bool(backend.limits.memory), "limits.memory is empty: it would take nothing at all")


async def _rows_keep_their_place(exam: _Exam) -> None:
    """Row i of every output is the answer to item i, at every batch size."""
    for size in exam.sizes():
        batch = exam.batch(size)
        outputs = await exam.infer(batch)
        await exam.require_own_answer(batch, outputs)
        if size == exam.sizes()[-1] > 2:
            alike = all(exam.same(outputs, row, _rows(outputs, 0)) for row in range(1, size))
            _require(not alike, f"all {size} outputs are alike, so nothing is shown: let `sample` vary its items more")


async def _limits_are_kept(exam: _Exam) -> None:
    """A batch beyond max_batch, or of nothing, raises InvalidInput."""
    most = exam.backend.limits.max_batch
    await exam.refused(exam.batch(most + 1), f"a batch of {most + 1}, where max_batch is {most},")
    nothing = {
        name: Tensor.of(np.empty((0, *_concrete(tensor)[1:]), tensor.datatype.numpy), tensor.datatype)
        for name, tensor in exam.batch(1).inputs.items()
    }
    await exam.refused(Batch(nothing, 0), "a batch of 0")


async def _names_are_checked(exam: _Exam) -> None:
    """A missing or unknown input raises InvalidInput."""
    batch = exam.batch(1)
    name, tensor = next(iter(batch.inputs.items()))
    await exam.refused(Batch({n: t for n, t in batch.inputs.items() if n != name}, 1), f"a batch without {name!r}")
    await exam.refused(Batch({**batch.inputs, f"{name}-unknown": tensor}, 1), "an unknown input")


async def _datatypes_are_checked(exam: _Exam) -> None:
    """An input of another datatype raises InvalidInput."""
    batch = exam.batch(1)
    for name, tensor in batch.inputs.items():
        other = Datatype.INT8 if tensor.datatype is not Datatype.INT8 else Datatype.FP32
        wrong = Tensor.of(np.zeros(_concrete(tensor), other.numpy))
        await exam.refused(_with(batch, name, wrong), f"{other} for {name!r}")


async def _shapes_are_checked(exam: _Exam) -> None:
    """An input of another rank, or another length on a fixed axis, raises InvalidInput."""
    batch = exam.batch(1)
    for spec in exam.backend.signature.inputs:
        shape = _concrete(batch.inputs[spec.name])
        longer = [(*shape[:axis], n + 1, *shape[axis + 1 :]) for axis, n in _fixed(spec.shape)]
        for other in [(*shape, 1), *longer]:
            filled = np.full(other, b"" if spec.datatype is Datatype.BYTES else 0, spec.datatype.numpy)
            await exam.refused(_with(batch, spec.name, Tensor.of(filled, spec.datatype)), f"shape {list(other)}")


async def _storage_is_checked(exam: _Exam) -> None:
    """Storage that limits.memory does not name raises InvalidInput."""
    if Memory.RAGGED in exam.backend.limits.memory:
        return
    batch = exam.batch(1)
    for name, tensor in batch.inputs.items():
        ragged = Tensor.ragged(tensor.datatype, tuple(np.asarray(row, tensor.datatype.numpy) for row in tensor.numpy()))
        await exam.refused(_with(batch, name, ragged), f"ragged rows for {name!r}")


async def _a_deadline_that_passed_is_no_work(exam: _Exam) -> None:
    """A call whose deadline has passed raises DeadlineExceeded, and the next call is answered."""
    expired = Deadline(time.monotonic() - 1.0)
    await exam.raises(DeadlineExceeded, exam.batch(1), expired, "a call after its deadline")
    await exam.infer(exam.batch(1))


async def _inputs_stay_the_callers(exam: _Exam) -> None:
    """Inputs are as they were when the call returns, and writing to them then changes no output."""
    for size in exam.sizes():
        batch = exam.sample(size, exam.rng)
        before = {name: _copies(tensor) for name, tensor in batch.inputs.items()}
        outputs = await exam.infer(batch)
        for name, tensor in batch.inputs.items():
            _require(_unchanged(tensor, before[name]), f"input {name!r} was changed")
        kept = {name: _copies(tensor) for name, tensor in outputs.items()}
        for tensor in batch.inputs.values():
            _scribble(tensor)
        for name, tensor in outputs.items():
            _require(_unchanged(tensor, kept[name]), f"output {name!r} shares memory with an input")


async def _outputs_become_the_callers(exam: _Exam) -> None:
    """Outputs are the caller's: no later call changes them, and writing to them changes no later answer."""
    batch = exam.batch(1)
    first = await exam.infer(batch)
    kept = {name: _copies(tensor) for name, tensor in first.items()}
    await exam.infer(exam.batch(1))
    for name, tensor in first.items():
        _require(_unchanged(tensor, kept[name]), f"output {name!r} of an earlier call was changed")
        _scribble(tensor)
    again = await exam.infer(batch)
    for name in first:
        _require(_close(again[name].numpy(), kept[name][0], exam.rtol, exam.atol), f"output {name!r} is kept inside")


async def _calls_side_by_side_get_their_own_answers(exam: _Exam) -> None:
    """As many calls as max_in_flight allows, and more, each get their own answer."""
    largest = exam.sizes()[-1]
    sizes = [1 + i % largest for i in range(2 * exam.backend.limits.max_in_flight + 1)]
    batches = [exam.batch(min(size, _ROWS_COMPARED)) for size in sizes]
    answers = await asyncio.gather(*(exam.infer(batch) for batch in batches))
    for batch, outputs in zip(batches, answers, strict=True):
        await exam.require_own_answer(batch, outputs)


async def _cancellation_leaves_it_usable(exam: _Exam) -> None:
    """A cancelled call ends, and the calls beside and after it are answered."""
    calls = exam.backend.limits.max_in_flight + 1  # one of them may have to queue
    for turns in range(4):  # of the event loop: cancelled before it started, while queued, while running
        beside = exam.batch(1)
        cancelled = [asyncio.create_task(exam.infer(exam.batch(1))) for _ in range(calls)]
        survivor = asyncio.create_task(exam.infer(beside))
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in cancelled:
            task.cancel()
        _, hanging = await asyncio.wait(cancelled, timeout=exam.patience_s)
        _require(not hanging, f"a cancelled call did not end within {exam.patience_s} s")
        for task in cancelled:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise AssertionError(f"a cancelled call raised {error!r}") from error
        await exam.require_own_answer(beside, await survivor)


async def _closing_waits_and_lasts(exam: _Exam) -> None:
    """Closing waits for calls in flight, may be done twice, and leaves a backend that raises Unavailable."""
    backend = exam.backend
    batches = [exam.batch(1) for _ in range(backend.limits.max_in_flight + 1)]
    expected = [await exam.infer(batch) for batch in batches]
    calls = [asyncio.create_task(exam.infer(batch)) for batch in batches]
    await asyncio.sleep(0)  # each has started now
    async with asyncio.timeout(exam.patience_s):
        await asyncio.gather(backend.aclose(), backend.aclose())
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer, alone in zip(answers, expected, strict=True):
        if isinstance(answer, BaseException):
            raise AssertionError(f"a call in flight ended in {answer!r}") from answer
        _require(exam.same(answer, 0, alone), "a call in flight got another answer than before")
    _require(backend.state is State.CLOSED, f"state is {backend.state} after aclose")
    await backend.aclose()
    await exam.raises(Unavailable, exam.batch(1), NO_DEADLINE, "a call after aclose")


async def _a_second_backend_opens_after_the_first_was_closed(exam: _Exam) -> None:
    """A backend opened after another was closed is ready and answers."""
    _require(exam.backend.state is State.READY, f"state is {exam.backend.state}")
    await exam.infer(exam.batch(1))


_WHILE_OPEN: tuple[Rule, ...] = (
    _it_describes_itself,
    _inputs_stay_the_callers,  # before the others, whose inputs refuse to be written to
    _rows_keep_their_place,
    _limits_are_kept,
    _names_are_checked,
    _datatypes_are_checked,
    _shapes_are_checked,
    _storage_is_checked,
    _a_deadline_that_passed_is_no_work,
    _outputs_become_the_callers,
    _calls_side_by_side_get_their_own_answers,
    _cancellation_leaves_it_usable,
)


def _rows(tensors: Mapping[str, Tensor], row: int) -> Tensors:
    return {name: tensor.rows(row, row + 1) for name, tensor in tensors.items()}


def _item(batch: Batch, row: int) -> Batch:
    return Batch(_rows(batch.inputs, row), 1)


def _with(batch: Batch, name: str, tensor: Tensor) -> Batch:
    return Batch({**batch.inputs, name: tensor}, batch.size)


def _concrete(tensor: Tensor) -> tuple[int, ...]:
    """The shape of one item in a batch of one, ragged rows included."""
    return tensor.rows(0, 1).shape


def _fixed(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The axes, counted with the batch axis, whose length a signature fixes."""
    return [(axis, length) for axis, length in enumerate(shape, start=1) if length != -1]


def _arrays(tensor: Tensor) -> tuple[HostArray, ...]:
    if isinstance(tensor.data, Ragged):
        return tensor.data.rows
    return (tensor.numpy(),)


def _copies(tensor: Tensor) -> tuple[HostArray, ...]:
    return tuple(array.copy() for array in _arrays(tensor))


def _unchanged(tensor: Tensor, copies: tuple[HostArray, ...]) -> bool:
    return all(_close(array, copy, 0.0, 0.0) for array, copy in zip(_arrays(tensor), copies, strict=True))


def _close(got: HostArray, expected: HostArray, rtol: float, atol: float) -> bool:
    if got.shape != expected.shape:
        return False
    if got.dtype.kind == "f":
        return np.allclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    return np.array_equal(got, expected)


def _scribble(tensor: Tensor) -> None:
    """Change every element that can be written to."""
    for array in _arrays(tensor):
        if array.flags.writeable:
            array[...] = b"scribbled over" if tensor.datatype is Datatype.BYTES else array == 0
