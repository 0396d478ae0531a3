"""Tensors in shared memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backends.contract import Datatype, Tensor
from backends.process.memory import Malformed, Region, WorkerRegion, place, read, told, view, windows_of, write
from backends.process.messages import Answered, NeedsRoom, parse

CAPACITY = 1 << 20


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    made = Region(1000)
    yield made
    made.passed_on()


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    """Some tensors, of any types and shapes."""
    found = {}
    for name in draw(st.sets(st.text(max_size=3), min_size=1, max_size=4)):
        datatype = draw(st.sampled_from(Datatype))
        shape = draw(hnp.array_shapes(max_dims=3, min_side=0, max_side=4))
        if datatype is Datatype.BYTES:
            array = np.empty(shape, object)
            for index in np.ndindex(shape):
                array[index] = draw(st.binary(max_size=5))
        else:
            array = draw(hnp.arrays(datatype.numpy, shape))
        found[name] = Tensor.of(array, datatype)
    return found


@given(given_tensors=tensors())
@settings(deadline=None)
def test_what_is_written_is_read(region: Region, given_tensors: dict[str, Tensor]) -> None:
    placed = place(given_tensors, start=64)
    arrays = {name: tensor.numpy() for name, tensor in given_tensors.items()}

    write(region.bytes, placed.windows, arrays)
    windows = windows_of(told(placed.windows), region.capacity)

    for name, tensor in given_tensors.items():
        assert (windows[name].datatype, windows[name].shape) == (tensor.datatype, tensor.shape)
        for found in (read(region.bytes, windows[name]), view(region.bytes, windows[name])):
            assert found.dtype == arrays[name].dtype
            np.testing.assert_array_equal(found, arrays[name])


def test_what_is_read_is_a_copy_and_what_is_viewed_cannot_be_written_to(region: Region) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    placed = place({"x": Tensor.of(array)})
    write(region.bytes, placed.windows, {"x": array})
    copy, seen = read(region.bytes, placed.windows["x"]), view(region.bytes, placed.windows["x"])

    write(region.bytes, placed.windows, {"x": array + 1})

    np.testing.assert_array_equal(copy, array)
    np.testing.assert_array_equal(seen, array + 1)
    assert not seen.flags.writeable


def test_a_worker_can_neither_shrink_nor_grow_nor_seal_a_region_nor_write_to_inputs() -> None:
    region = Region(100)
    theirs = os.dup(region.descriptor)
    region.passed_on()

    for size in (0, 2 * region.capacity):
        with pytest.raises(PermissionError):
            os.ftruncate(theirs, size)
    mapped = WorkerRegion(theirs, region.capacity)
    with pytest.raises(TypeError):
        mapped.inputs[0] = 1
    mapped.outputs[0] = 1
    assert region.bytes[0] == mapped.inputs[0] == 1


def test_a_byte_that_is_no_bool_becomes_one(region: Region) -> None:
    region.bytes[0:2] = b"\x02\x00"

    found = read(region.bytes, windows_of({"y": ["BOOL", [2], 0, 2]}, region.capacity)["y"])

    assert found.view(np.uint8).tolist() == [1, 0]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        ["FP32", [1], 0],
        ["FP32", 1, 0, 4],
        ["FP33", [1], 0, 4],
        [1, [1], 0, 4],
        ["FP32", [True], 0, 4],
        ["FP32", [1.0], 0, 4],
        ["FP32", ["1"], 0, 4],
        ["FP32", [-1], 0, 4],
        ["FP32", [1], -4, 4],
        ["FP32", [1], 0, -4],
        ["FP32", [1], 0, 8],
        ["FP32", [2], 0, 4],
        ["FP32", [1], CAPACITY - 3, 4],
        ["FP32", [1], 1 << 62, 4],
        ["FP32", [1 << 32, 1 << 32], 0, 0],
        ["FP32", [1] * 33, 0, 4],
        ["BYTES", [2], 0, 7],
        ["BYTES", [1 << 60], 0, 64],
    ],
)
def test_a_window_that_is_none_is_malformed(entry: Any) -> None:
    with pytest.raises(Malformed):
        windows_of({"y": entry}, CAPACITY)


@pytest.mark.parametrize(
    "lies", [b"\x05\x00\x00\x00abcd", b"\xff\xff\xff\xffabcd", b"\x01\x00\x00\x00abcd", b"\x02\x00\x00\x00ab\x00\x00"]
)
def test_lengths_of_bytes_that_do_not_add_up_are_malformed(lies: bytes) -> None:
    with mmap.mmap(-1, 4096) as memory:
        memory[: len(lies)] = lies

        with pytest.raises(Malformed):
            read(memory, windows_of({"y": ["BYTES", [1], 0, 8]}, 4096)["y"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
FIELDS = st.sampled_from(["call", "outputs", "room", "raised", "frames", "said", "broke", "ready", "refused", "why"])


@given(packet=st.binary(max_size=50) | st.dictionaries(FIELDS, JSON, max_size=5).map(orjson.dumps))
@settings(deadline=None, max_examples=500)
def test_whatever_arrives_is_a_reply_or_malformed(packet: bytes) -> None:
    try:
        reply = parse(packet, CAPACITY)
    except Malformed:
        return
    if isinstance(reply, Answered):
        for window in reply.outputs.values():
            assert window.datatype in Datatype
    if isinstance(reply, NeedsRoom):
        assert reply.nbytes > 0
