"""Memory is borrowed by address, and only where it is what the address alone says."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.dlpack import CUDA, HOST, Place, borrowed, place_of, spec_of, to_host
from tests.elsewhere import Elsewhere

DTYPES = ["bool", *(f"{kind}{8 * size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)), "float16", "float32"]


@pytest.mark.parametrize("dtype", [*DTYPES, "float64"])
def test_the_elements_are_at_the_address(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)

    with borrowed(Elsewhere(array)) as found:
        copied = np.frombuffer(ctypes.string_at(found.address, found.nbytes), found.dtype).reshape(found.shape)

    assert found.place == Place(HOST, 0)
    assert (found.dtype, found.shape) == (array.dtype, (2, 3, 4))
    assert np.array_equal(copied, array)


@given(st.lists(st.integers(0, 4), max_size=4))
def test_any_shape_that_is_row_major_is_read(shape: list[int]) -> None:
    array = np.zeros(shape, np.float32)

    assert spec_of(Elsewhere(array)) == (np.dtype(np.float32), tuple(shape))


@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1], np.s_[:, 1:]])
def test_gaps_are_refused_with_the_remedy(view: Any) -> None:
    class WithGaps(Elsewhere):
        def __init__(self, array: Any) -> None:
            self.array = array

    with pytest.raises(ValueError, match="make it contiguous first"), borrowed(WithGaps(np.zeros((4, 6))[view])):
        pass


def test_elements_that_numpy_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="DLPack's type 5 with 64 bits"), borrowed(Elsewhere(np.zeros(2, "complex64"))):
        pass


def test_memory_is_held_as_long_as_it_is_borrowed_and_no_longer() -> None:
    array = np.zeros(1000)
    before = sys.getrefcount(array)

    with borrowed(Elsewhere(array)):
        gc.collect()
        assert sys.getrefcount(array) > before
    gc.collect()

    assert sys.getrefcount(array) == before


def test_what_is_of_the_host_is_not_copied_and_the_rest_is_brought_there() -> None:
    array = np.arange(6.0)

    assert to_host(array) is array
    assert np.array_equal(to_host(Elsewhere(array)), array)


def test_what_an_array_is_like_is_told_before_its_producer_is_done() -> None:
    streams = []

    class OnCuda(Elsewhere):
        def __dlpack__(self, *, stream: int | None = None) -> Any:
            streams.append(stream)
            return super().__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return CUDA, 0

    assert spec_of(OnCuda(np.zeros((2, 3), np.float32))) == (np.dtype(np.float32), (2, 3))
    assert streams == [-1]  # by the array API standard: the producer is to wait for nothing


def test_a_device_that_is_not_cudas_is_refused() -> None:
    class OnVulkan(Elsewhere):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 7, 0

    assert place_of(OnVulkan(np.zeros(1))) == Place(7, 0)
    for use in (to_host, spec_of):
        with pytest.raises(ValueError, match="kind 7; CUDA's is 2"):
            use(OnVulkan(np.zeros(1)))
