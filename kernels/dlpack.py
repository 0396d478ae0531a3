"""Arrays on devices, as DLPack hands them over: borrowed by address, or copied here.

A capsule is read with ctypes, in the protocol's first form, which every producer gives who is not asked for another.
Rejected: `cupy.from_dlpack` alone, which cannot look into memory of the host, so that nothing of this could be tried
without a device; ONNX Runtime's and tritonclient's own readers, of which one has no stream and the other is private.

Source: dlpack.h of dmlc/dlpack, `DLManagedTensor`; the Python array API standard, 2024.12, `__dlpack__`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from kernels.arrays import Array, DeviceArray

HOST, CUDA = 1, 2
"""`DLDeviceType`, as far as it is read here."""

_NOT_WAITING = -1
"""In the place of a stream: nothing is to be waited for."""

NEEDS_CUPY = "CUDA devices need CuPy; install pointsman[gpu-cu13] or pointsman[gpu-cu12]"


@dataclass(frozen=True, slots=True)
class Place:
    """Which memory.

    Attributes:
        kind: `HOST`, `CUDA` or another of DLPack's.
        number: of the device, as its maker counts.
    """

    kind: int
    number: int


@dataclass(frozen=True, slots=True, eq=False)
class Borrowed:
    """Memory of an array, whole and row-major, for as long as the context lasts that gave it.

    Attributes:
        dtype: of the elements; bfloat16 is its bit patterns, as uint16.
    """

    address: int
    place: Place
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.dtype.itemsize * math.prod(self.shape)


def place_of(array: DeviceArray) -> Place:
    """Where *array* is."""
    kind, number = array.__dlpack_device__()
    return Place(int(kind), int(number))


@contextmanager
def borrowed(array: DeviceArray) -> Iterator[Borrowed]:
    """The memory of *array*; its producer's work on it is over, so that any stream may read it at once.

    Whoever starts work on it waits for that work within the context.

    Raises:
        ValueError: it has gaps, elements that NumPy has no dtype for, or is on a device that this cannot wait for.
    """
    place = place_of(array)
    capsule = array.__dlpack__() if place.kind == HOST else _whole(array, place)
    yield _read(capsule, place)
    del capsule  # whose end gives the memory back


def to_host(array: DeviceArray) -> Array:
    """*array* in memory of the host: itself if it is there, else a copy.

    Raises:
        ValueError: it is on a device that this cannot copy from.
    """
    if isinstance(array, np.ndarray):
        return array
    place = place_of(array)
    if place.kind == HOST:
        return np.from_dlpack(array)
    cupy = _cupy(place)
    with cupy.cuda.Device(place.number):
        copied: Array = cupy.asnumpy(cupy.from_dlpack(array))
    return copied


def spec_of(array: DeviceArray) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The dtype and the shape of *array*, whose elements nobody waits for.

    Raises:
        ValueError: as `borrowed`.
    """
    if isinstance(array, np.ndarray):
        return array.dtype, array.shape
    place = place_of(array)
    _check_kind(place)
    found = _read(array.__dlpack__() if place.kind == HOST else array.__dlpack__(stream=_NOT_WAITING), place)
    return found.dtype, found.shape


def _whole(array: DeviceArray, place: Place) -> Any:
    """The capsule of *array*, after its producer's work."""
    cupy = _cupy(place)
    with cupy.cuda.Device(place.number):
        stream = _waiting_stream(place.number)
        capsule = array.__dlpack__(stream=stream.ptr)
        stream.synchronize()
    return capsule


def _check_kind(place: Place) -> None:
    if place.kind not in (HOST, CUDA):
        raise ValueError(f"an array on a device of DLPack's kind {place.kind}; CUDA's is {CUDA}")


def _cupy(place: Place) -> Any:
    _check_kind(place)
    if find_spec("cupy") is None:
        raise ValueError(NEEDS_CUPY)
    return import_module("cupy")


@lru_cache
def _waiting_stream(number: int) -> Any:
    """A stream of device *number*, the current one, on which nothing but waiting is done."""
    return import_module("cupy").cuda.Stream(non_blocking=True)


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """`DLTensor`, with which a `DLManagedTensor` begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}
_BFLOAT = 4
_address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _read(capsule: Any, place: Place) -> Borrowed:
    tensor = _Tensor.from_address(_address_in(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides and math.prod(shape):
        _check_strides(shape, tuple(tensor.strides[axis] for axis in range(tensor.ndim)))
    return Borrowed((tensor.data or 0) + tensor.byte_offset, place, _dtype(tensor.dtype), shape)


def _check_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    wanted = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != wanted:
            raise ValueError(f"an array of shape {list(shape)} has strides {list(strides)}; make it contiguous first")
        wanted *= length


def _dtype(given: _DataType) -> np.dtype[Any]:
    if given.lanes == 1 and given.code == _BFLOAT and given.bits == 16:
        return np.dtype(np.uint16)
    try:
        if given.lanes == 1 and given.bits % 8 == 0:
            return np.dtype(f"{_KINDS[given.code]}{given.bits // 8}")
    except (KeyError, TypeError):  # no such kind, or not of that size
        pass
    raise ValueError(f"elements of DLPack's type {given.code} with {given.bits} bits; convert them first")
