"""Tensors in shared memory: what parameters say, and what is read from there and written to it."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Datatype, SharedMemoryWindow, Tensor
from backends.errors import InvalidInput, NotFound, TooLarge, Unavailable, Unimplemented
from gateway.oip.windows import any_window, loaded, output_window, places, stored, window
from gateway.shared_memory import SharedMemory, SharedMemoryOptions

SIZE = 4 * 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with (tmp_path / "object").open("wb") as file:
        file.truncate(SIZE)
    return tmp_path


@pytest.fixture
def memory(folder: Path) -> SharedMemory:
    """With the whole object as region `r`."""
    memory = SharedMemory(SharedMemoryOptions(enabled=True, limit_bytes=8 * 1024 * 1024), 1024, folder)
    memory.register("t", "r", "/object", 0, SIZE)
    return memory


@pytest.fixture
async def worker() -> Callable[[], Awaitable[None]]:
    """Makes one thread of all that works beside the loop; calling it waits until that has let go of what it had."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    async def settled() -> None:
        await asyncio.to_thread(lambda: None)

    return settled


def put(folder: Path, data: bytes, offset: int = 0) -> None:
    with (folder / "object").open("r+b") as file:
        file.seek(offset)
        file.write(data)


def at(datatype: Datatype, shape: tuple[int, ...], offset: int, size: int, region: str = "r") -> Tensor:
    return Tensor(datatype, shape, SharedMemoryWindow(region, offset, size))


# --- what requests say ---


def stated(region: Any = "r", offset: Any = 16, size: Any = 8) -> dict[str, object]:
    found = {"shared_memory_region": region, "shared_memory_offset": offset, "shared_memory_byte_size": size}
    return {name: value for name, value in found.items() if value is not None}


def test_parameters_name_a_window_whose_offset_is_0_where_they_say_none() -> None:
    assert window(stated(), "x") == SharedMemoryWindow("r", 16, 8)
    assert window(stated(offset=None), "x") == SharedMemoryWindow("r", 0, 8)
    assert window({"binary_data_size": 8}, "x") is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (stated(region=None), "shared_memory_region None; beside shared_memory_byte_size it is the name"),
        (stated(region=""), "shared_memory_region ''"),
        (stated(region=7), "shared_memory_region 7"),
        (stated(size=None), "shared_memory_byte_size None; beside shared_memory_region it is a number of bytes"),
        (stated(size=-1), "shared_memory_byte_size -1"),
        (stated(size="8"), "shared_memory_byte_size '8'"),
        (stated(size=True), "shared_memory_byte_size True"),
        (stated(size=2**63), "shared_memory_byte_size 9223372036854775808"),
        (stated(offset=-1), "shared_memory_offset -1"),
        (stated(offset=1.0), "shared_memory_offset 1.0"),
    ],
)
def test_parameters_that_say_it_by_halves_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=f"input 'x' has {message}"):
        window(parameters, "x")


def test_an_output_goes_to_shared_memory_or_is_told_by_its_classes() -> None:
    assert output_window(stated(), "y", 0) == SharedMemoryWindow("r", 16, 8)
    assert output_window({}, "y", 3) is None
    with pytest.raises(InvalidInput, match="output 'y' cannot be told by its classes in shared memory"):
        output_window(stated(), "y", 3)


# --- inputs ---


@pytest.mark.parametrize("count", [2, 100_000, 900_000], ids=["heap", "buffer", "buffer in a thread"])
async def test_an_input_is_what_its_window_held_then(memory: SharedMemory, folder: Path, count: int) -> None:
    values = np.random.default_rng(7).standard_normal(count).astype(np.float32)
    put(folder, values.tobytes(), 64)

    found = await loaded(memory, "t", {"x": at(Datatype.FP32, (1, count), 64, values.nbytes)})
    put(folder, bytes(values.nbytes), 64)

    np.testing.assert_array_equal(found["x"].numpy(), values.reshape(1, count))
    assert not any_window(found)
    assert not found["x"].numpy().flags.writeable
    assert found["x"].numpy().flags.aligned


async def test_inputs_in_memory_and_in_the_request_stay_apart_and_in_order(memory: SharedMemory, folder: Path) -> None:
    put(folder, struct.pack("<2i", 5, 6))
    given = {"a": Tensor.of(np.ones((1, 2))), "b": at(Datatype.INT32, (1, 2), 0, 8), "c": Tensor.of(np.zeros((1, 1)))}

    found = await loaded(memory, "t", given)

    assert list(found) == ["a", "b", "c"]
    assert found["a"] is given["a"]
    assert found["b"].numpy().tolist() == [[5, 6]]


async def test_texts_are_read_behind_their_lengths(memory: SharedMemory, folder: Path) -> None:
    data = struct.pack("<I", 2) + b"hi" + struct.pack("<I", 0)
    put(folder, data, 3)

    found = await loaded(memory, "t", {"x": at(Datatype.BYTES, (2, 1), 3, len(data))})

    assert found["x"].numpy().tolist() == [[b"hi"], [b""]]


async def test_a_large_input_is_not_on_the_heap(memory: SharedMemory, worker: Callable[[], Awaitable[None]]) -> None:
    tensor = {"x": at(Datatype.FP32, (1, SIZE // 4), 0, SIZE)}
    await loaded(memory, "t", tensor)  # what is made once
    tracemalloc.start()
    try:
        for _ in range(20):
            await worker()
            await loaded(memory, "t", tensor)
        assert tracemalloc.get_traced_memory()[1] < SIZE // 20
    finally:
        tracemalloc.stop()


async def test_a_large_input_leaves_its_buffer_with_the_last_view(
    memory: SharedMemory, worker: Callable[[], Awaitable[None]]
) -> None:
    found = await loaded(memory, "t", {"x": at(Datatype.UINT8, (2, SIZE // 2), 0, SIZE)})
    row = found["x"].rows(1, 2)
    del found
    await worker()

    assert memory.buffers.lent_bytes == SIZE
    del row
    assert memory.buffers.lent_bytes == 0


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (at(Datatype.FP32, (1, 2), 0, 8, "s"), NotFound, "no shared memory region 's'"),
        (at(Datatype.FP32, (1, 2), SIZE - 4, 8), InvalidInput, "8 bytes at offset 4194300 are beyond region 'r'"),
        (at(Datatype.FP32, (1, 2), 2**63 - 1, 8), InvalidInput, "are beyond region 'r'"),
        (at(Datatype.FP32, (1, 2), 0, 12), InvalidInput, "has 12 bytes; .* takes 8"),
        (at(Datatype.FP32, (1, 2), 0, 4), InvalidInput, "has 4 bytes; .* takes 8"),
        (at(Datatype.BYTES, (1, 2), 0, 4), InvalidInput, "2 BYTES elements take at least 8"),
        (at(Datatype.BYTES, (1, 2), 0, 12), InvalidInput, "has 4 bytes after its last element"),
        (at(Datatype.BYTES, (1, 1), 0, 2048), TooLarge, "2048 bytes of BYTES in shared memory; at most 1024"),
        (at(Datatype.BOOL, (1, 4), 16, 4), InvalidInput, "BOOL byte that is neither 0 nor 1"),
    ],
)
async def test_an_input_that_is_not_there_is_refused_before_anything_is_lent(
    memory: SharedMemory, folder: Path, tensor: Tensor, error: type[Exception], message: str
) -> None:
    put(folder, b"\2" * 4, 16)

    with pytest.raises(error, match=message):
        await loaded(memory, "t", {"x": tensor})
    assert memory.buffers.lent_bytes == 0


async def test_copies_of_all_requests_together_have_a_limit(
    memory: SharedMemory, worker: Callable[[], Awaitable[None]]
) -> None:
    whole = at(Datatype.UINT8, (1, SIZE), 0, SIZE)
    held = [await loaded(memory, "t", {"x": whole}) for _ in range(2)]

    with pytest.raises(Unavailable, match="do not fit beside"):
        await loaded(memory, "t", {"x": whole})
    held.clear()
    await worker()
    assert memory.buffers.lent_bytes == 0
    with pytest.raises(Unavailable, match="do not fit beside"):
        await loaded(memory, "t", {str(i): whole for i in range(3)})
    assert memory.buffers.lent_bytes == 0


async def test_a_cancelled_read_ends_on_a_region_and_a_buffer_that_are_still_its_own(
    memory: SharedMemory, folder: Path, worker: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, b"\7" * SIZE)
    started, go_on = asyncio.Event(), threading.Event()
    loop, preadv, moved = asyncio.get_running_loop(), os.preadv, []

    def held_up(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        loop.call_soon_threadsafe(started.set)
        go_on.wait(60)
        moved.append(preadv(descriptor, buffers, offset))
        return moved[-1]

    monkeypatch.setattr(os, "preadv", held_up)
    reading = asyncio.create_task(loaded(memory, "t", {"x": at(Datatype.UINT8, (1, SIZE), 0, SIZE)}))
    await started.wait()

    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    memory.unregister("t", "r")
    beside = memory.buffers.lend(SIZE)
    beside[:] = 9
    go_on.set()
    await worker()

    assert moved == [SIZE]
    assert (beside == 9).all()
    del reading, beside
    assert memory.buffers.lent_bytes == 0


# --- outputs ---


async def test_an_output_is_written_where_it_was_wanted_and_its_place_is_told(
    memory: SharedMemory, folder: Path
) -> None:
    outputs = {
        "y": Tensor.of(np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::-1]),
        "label": Tensor.of(np.array([[b"cat"], [b"x"]], dtype=object)),
        "z": Tensor.of(np.ones((2, 1))),
    }
    found = places(memory, "t", {"y": SharedMemoryWindow("r", 100, 12), "label": SharedMemoryWindow("r", 200, 50)})

    told = await stored(found, outputs)

    data = (folder / "object").read_bytes()
    assert np.frombuffer(data[100:112], np.int16).tolist() == [2, 1, 0, 5, 4, 3]
    assert data[200:212] == struct.pack("<I", 3) + b"cat" + struct.pack("<I", 1) + b"x"
    assert (told["y"].shape, told["y"].datatype, told["y"].data) == ((2, 3), "INT16", SharedMemoryWindow("r", 100, 12))
    assert told["label"].data == SharedMemoryWindow("r", 200, 12)
    assert told["z"] is outputs["z"]


async def test_an_output_that_is_too_long_names_both_sizes_and_none_is_written(
    memory: SharedMemory, folder: Path
) -> None:
    found = places(memory, "t", {"a": SharedMemoryWindow("r", 0, 8), "b": SharedMemoryWindow("r", 8, 7)})
    ones = Tensor.of(np.ones((1, 1)))

    with pytest.raises(InvalidInput, match="output 'b' takes 8 bytes, and its place in shared memory has 7"):
        await stored(found, {"a": ones, "b": ones})
    assert (folder / "object").read_bytes()[:16] == bytes(16)


async def test_places_are_checked_before_there_is_anything_to_write(memory: SharedMemory) -> None:
    with pytest.raises(InvalidInput, match="beyond region"):
        places(memory, "t", {"y": SharedMemoryWindow("r", SIZE, 1)})
    with pytest.raises(NotFound):
        places(memory, "other", {"y": SharedMemoryWindow("r", 0, 8)})
    with pytest.raises(Unimplemented):
        places(SharedMemory(), "t", {"y": SharedMemoryWindow("r", 0, 8)})


async def test_texts_of_one_request_together_are_limited_as_a_body_is(memory: SharedMemory) -> None:
    texts = {name: at(Datatype.BYTES, (1, 1), 0, 700) for name in ("a", "b")}

    with pytest.raises(TooLarge, match="have 1400 bytes of BYTES in shared memory; at most 1024 are read"):
        await loaded(memory, "t", texts)


def test_places_that_overlap_are_refused(memory: SharedMemory) -> None:
    apart = {"a": SharedMemoryWindow("r", 8, 8), "b": SharedMemoryWindow("r", 0, 8)}
    assert places(memory, "t", apart).keys() == {"a", "b"}

    with pytest.raises(InvalidInput, match="'a' and 'b' go to places in shared memory that overlap; move one"):
        places(memory, "t", {"b": SharedMemoryWindow("r", 4, 8), "a": SharedMemoryWindow("r", 0, 8)})


async def test_an_output_goes_to_a_region_that_was_unregistered_meanwhile(memory: SharedMemory, folder: Path) -> None:
    found = places(memory, "t", {"y": SharedMemoryWindow("r", 0, 8)})
    memory.unregister("t")

    await stored(found, {"y": Tensor.of(np.array([[1.5]]))})

    assert struct.unpack("<d", (folder / "object").read_bytes()[:8]) == (1.5,)


async def test_outputs_that_no_row_has_are_written_nowhere(memory: SharedMemory) -> None:
    assert await stored(places(memory, "t", {"y": SharedMemoryWindow("r", 0, 8)}), {}) == {}


@given(st.binary(max_size=64), st.integers(0, 8), st.lists(st.integers(0, 5), max_size=2))
def test_texts_of_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, offset: int, shape: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shm")
    (folder / "object").write_bytes(bytes(offset) + data + b"\0")
    memory = SharedMemory(SharedMemoryOptions(enabled=True), folder=folder)
    memory.register("t", "r", "/object", 0, offset + len(data) + 1)
    tensor = at(Datatype.BYTES, (1, *shape), offset, len(data))

    try:
        found = asyncio.run(loaded(memory, "t", {"x": tensor}))["x"].numpy()
    except InvalidInput:
        return
    assert found.shape == (1, *shape)
    assert b"".join(struct.pack("<I", len(one)) + one for one in found.flat) == data
