"""The example keeps the contract."""

from __future__ import annotations

import time

import numpy as np
import pytest

from backends.conformance import exercise_backend
from backends.contract import Backend, Batch, Datatype, Deadline, Tensor
from backends.echo import ECHO, EchoOptions, open_echo
from backends.errors import DeadlineExceeded, InvalidInput

OPTIONS = [
    EchoOptions(shape=(4,)),
    EchoOptions(Datatype.BYTES, (2,), max_batch=3),
    EchoOptions(Datatype.BF16, (2, -1), max_batch=1),
    EchoOptions(Datatype.UINT8, ()),
]


def batch_of(options: EchoOptions, size: int, rng: np.random.Generator) -> Batch:
    shape = (size, *(5 if axis == -1 else axis for axis in options.shape))
    values = rng.integers(0, 100, shape)
    if options.datatype is Datatype.BYTES:
        array = np.frompyfunc(lambda value: b"\xff\x00 %d" % value, 1, 1)(values)
    else:
        array = np.asarray(values, options.datatype.numpy)
    return Batch.of({"input": Tensor.of(array, options.datatype)})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_echo_keeps_the_contract(options: EchoOptions) -> None:
    async def open_backend() -> Backend:
        return await ECHO.open("echo", options)

    await exercise_backend(open_backend, lambda size, rng: batch_of(options, size, rng))


async def test_echo_answers_exactly_what_it_was_given() -> None:
    backend = await open_echo("echo", EchoOptions(Datatype.BF16, (2,)))
    bits = np.array([[1, 2], [3, 4]], np.uint16)

    outputs = await backend.infer(Batch.of({"input": Tensor.of(bits, Datatype.BF16)}), Deadline(time.monotonic() + 60))

    assert outputs["output"].datatype is Datatype.BF16
    np.testing.assert_array_equal(outputs["output"].numpy(), bits)


async def test_a_deadline_in_the_past_is_refused_with_a_remedy() -> None:
    backend = await open_echo("echo", EchoOptions(shape=(1,)))

    with pytest.raises(DeadlineExceeded, match="allow more time"):
        await backend.infer(Batch.of({"input": Tensor.of(np.zeros((1, 1), np.float32))}), Deadline(0.0))


async def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="max_batch is 0"):
        await open_echo("echo", EchoOptions(max_batch=0))
