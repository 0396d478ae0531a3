"""Memory that is lent: it comes back by itself, and never while anything can still see it."""

from __future__ import annotations

import gc
import mmap
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import TooLarge, Unavailable
from gateway.buffers import Buffers

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [1, mmap.PAGESIZE, MIB, 10 * MIB + 1])
def test_a_buffer_is_as_long_as_it_was_asked_for_and_begins_at_a_page(size: int) -> None:
    lent = Buffers(64 * MIB).lend(size)

    assert (lent.shape, str(lent.dtype), lent.flags.writeable) == ((size,), "uint8", True)
    assert lent.ctypes.data % mmap.PAGESIZE == 0


def test_a_buffer_is_lent_again_once_nobody_has_it() -> None:
    buffers = Buffers(64 * MIB)
    first = buffers.lend(MIB)
    address = first.ctypes.data
    beside = buffers.lend(MIB)

    del first

    assert buffers.lend(MIB).ctypes.data == address != beside.ctypes.data


VIEWS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda lent: lent[1:2],
    "slice of a slice": lambda lent: lent[1:][1:][1:2],
    "other type": lambda lent: lent.view(np.float32).reshape(2, -1)[1],
    "frombuffer": lambda lent: np.frombuffer(lent, np.float32),
    "asarray of a view": lambda lent: np.asarray(lent.view(np.float32)[::2]),
    "memoryview": memoryview,
    "part of a memoryview": lambda lent: memoryview(lent)[4:8].toreadonly(),
    "array of a memoryview": lambda lent: np.frombuffer(lent.data[4:].toreadonly(), np.uint8),
    "dlpack": lambda lent: np.from_dlpack(lent),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_any_view_keeps_a_buffer_lent(kind: str) -> None:
    buffers = Buffers(64 * MIB)
    lent = buffers.lend(MIB)
    lent[:] = 7
    view = VIEWS[kind](lent)

    del lent
    gc.collect()
    other = buffers.lend(MIB)
    other[:] = 9

    assert buffers.lent_bytes == 2 * MIB
    assert set(bytes(view)) == {7}
    del view
    assert buffers.lent_bytes == MIB


def test_more_than_there_may_be_is_too_large_for_ever_and_what_is_in_use_only_for_now() -> None:
    buffers = Buffers(4 * MIB)
    held = buffers.lend(3 * MIB)

    with pytest.raises(TooLarge, match="exceed the 4194304"):
        buffers.lend(5 * MIB)
    with pytest.raises(Unavailable, match="do not fit beside the 3145728 of 4194304") as refused:
        buffers.lend(2 * MIB)
    assert refused.value.retry_after_s is not None

    del held
    assert buffers.lend(2 * MIB).size == 2 * MIB


def test_no_more_is_kept_than_may_be_kept() -> None:
    buffers = Buffers(64 * MIB, kept_bytes=2 * MIB)
    lent = [buffers.lend(MIB) for _ in range(8)]

    del lent

    assert buffers.lent_bytes == 0
    assert repr(buffers) == "Buffers(0 bytes lent, 2097152 kept)"


def test_buffers_may_come_back_on_other_threads() -> None:
    buffers = Buffers(64 * MIB)
    for _ in range(50):
        lent = [buffers.lend(MIB) for _ in range(4)]
        dropping = [threading.Thread(target=lambda one: None, args=(lent.pop(),)) for _ in range(4)]
        for thread in dropping:
            thread.start()
        for thread in dropping:
            thread.join()
        del dropping, thread
        assert buffers.lent_bytes == 0


def test_a_buffer_is_not_on_the_heap() -> None:
    buffers = Buffers(64 * MIB)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        lent = [buffers.lend(10 * MIB) for _ in range(4)]
        for one in lent:
            one[:] = 1
        assert tracemalloc.get_traced_memory()[1] - before < 64 * 1024
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(1, 3 * MIB) | st.none(), max_size=30))
def test_what_is_lent_is_within_the_limit_and_nobody_shares_it(steps: list[int | None]) -> None:
    """A number lends that many bytes, None gives the oldest back."""
    buffers = Buffers(8 * MIB, kept_bytes=4 * MIB)
    held: list[tuple[int, Any]] = []
    for number, size in enumerate(steps):
        if size is None:
            del held[:1]
            continue
        try:
            lent = buffers.lend(size)
        except Unavailable:
            continue
        lent[:] = number
        held.append((number, lent))
        del lent

    assert buffers.lent_bytes <= 8 * MIB
    assert sum(one.size for _, one in held) <= buffers.lent_bytes <= 1.26 * sum(one.size + 4096 for _, one in held)
    assert all((one == number).all() for number, one in held)
