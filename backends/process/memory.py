"""Tensors in memory that the gateway and one worker process share.

The gateway makes the memory (`memfd_create`), seals it, and passes its descriptor on. Sealed against shrinking, it
cannot be taken from under the gateway, where a read would end in SIGBUS; against growing, since nothing has to; against
further seals, so that nobody can forbid the gateway to write. A region that is too small is replaced by another.

A region holds one call at a time: its inputs from the start, its outputs behind them, each at a multiple of 64 bytes.
Where a tensor lies is told by a window, as `[datatype, shape, offset, nbytes]`. BYTES lie there as the Open Inference
Protocol has them, each element behind its length (uint32, little-endian).

**Who may be wrong.** A worker runs somebody else's code, so `windows_of` takes nothing for granted, and `read` copies:
a view would change under its reader, after it was checked, as often as the worker likes. Lengths inside BYTES are read
once each. The worker maps inputs a second time for reading alone, so that its function cannot write to them, not even
through an array that has been told that it is writable.

Pages take memory only once they are written to, so a region is made larger than what it is made for.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.contract import Datatype, HostArray, SharedMemoryWindow, Tensor, Tensors

MOST_BYTES = 1 << 30
"""The most that the inputs, and the outputs, of a call may take: a function that asks for more is wrong, not large."""

_LEAST_BYTES = 1 << 20
_ALIGNMENT = 64
_MOST_AXES = 32
_LENGTH = struct.Struct("<I")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Malformed(Exception):
    """What a worker said is not what a worker may say."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where tensors lie, or are going to.

    Attributes:
        windows: the tensors by name, their data as windows.
        end: the first byte behind them that another may have.
    """

    windows: Tensors
    end: int


def place(tensors: Tensors, start: int = 0) -> Placed:
    """Line up host *tensors*, from *start* on."""
    windows = {}
    for name, tensor in tensors.items():
        nbytes = _nbytes(tensor)
        windows[name] = Tensor(tensor.datatype, tensor.shape, SharedMemoryWindow("", start, nbytes))
        start = aligned(start + nbytes)
    return Placed(windows, start)


def aligned(offset: int) -> int:
    """The next place for a tensor, from *offset* on."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _nbytes(tensor: Tensor) -> int:
    array = tensor.numpy()
    if tensor.datatype is Datatype.BYTES:
        return sum(map(len, array.flat)) + _LENGTH.size * array.size
    return array.nbytes


class Region:
    """Shared memory as the gateway has it; it is given back when nobody looks into it any more."""

    def __init__(self, needed: int) -> None:
        """Args:
        needed: bytes that it must hold.

        Raises:
            OSError: the system gives no memory, or no descriptor.
        """
        self.capacity = max(_LEAST_BYTES, 1 << max(needed - 1, 0).bit_length())
        self.descriptor = os.memfd_create("pointsman-call", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        """To be passed on, and closed with `passed_on`."""
        try:
            os.ftruncate(self.descriptor, self.capacity)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self.bytes = mmap.mmap(self.descriptor, self.capacity)
        except BaseException:
            os.close(self.descriptor)
            raise

    def passed_on(self) -> None:
        """The worker has the descriptor; the mapping needs it no more."""
        os.close(self.descriptor)


class WorkerRegion:
    """Shared memory as a worker has it: inputs that cannot be written to, and outputs."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        """Args:
        descriptor: of the memory; closed here.
        capacity: its bytes.
        """
        try:
            self.inputs = mmap.mmap(descriptor, capacity, access=mmap.ACCESS_READ)
            self.outputs = mmap.mmap(descriptor, capacity)
        finally:
            os.close(descriptor)


def write(memory: mmap.mmap, windows: Tensors, arrays: Mapping[str, HostArray]) -> None:
    """Copy *arrays* to where *windows* say."""
    for name, tensor in windows.items():
        offset, nbytes = _window(tensor)
        if tensor.datatype is Datatype.BYTES:
            _write_bytes(memory, offset, arrays[name])
        elif nbytes:
            np.ndarray(tensor.shape, tensor.datatype.numpy, memory, offset)[...] = arrays[name]


def _write_bytes(memory: mmap.mmap, at: int, array: HostArray) -> None:
    for element in array.flat:
        _LENGTH.pack_into(memory, at, len(element))
        at += _LENGTH.size
        memory[at : at + len(element)] = element
        at += len(element)


def read(memory: mmap.mmap, tensor: Tensor) -> HostArray:
    """A copy of what lies in the window of *tensor*, one that `windows_of` let pass.

    Raises:
        Malformed: the lengths of BYTES do not add up.
    """
    offset, nbytes = _window(tensor)
    if tensor.datatype is Datatype.BYTES:
        return _read_bytes(memory, offset, offset + nbytes, tensor.shape)
    if not nbytes:
        return np.empty(tensor.shape, tensor.datatype.numpy)
    if tensor.datatype is Datatype.BOOL:  # a byte that is neither 0 nor 1 must not become a bool
        return np.asarray(np.ndarray(tensor.shape, np.uint8, memory, offset) != 0)
    return np.ndarray(tensor.shape, tensor.datatype.numpy, memory, offset).copy()


def view(memory: mmap.mmap, tensor: Tensor) -> HostArray:
    """What lies in the window of *tensor*, in place where its elements allow that, and not to be written to."""
    offset, nbytes = _window(tensor)
    if tensor.datatype is Datatype.BYTES or not nbytes:
        array = read(memory, tensor)
    else:
        array = np.ndarray(tensor.shape, tensor.datatype.numpy, memory, offset)
    array.flags.writeable = False
    return array


def _read_bytes(memory: mmap.mmap, at: int, end: int, shape: tuple[int, ...]) -> HostArray:
    elements = np.empty(math.prod(shape), object)
    for i in range(len(elements)):
        start = at + _LENGTH.size
        if start > end:
            raise Malformed("BYTES end before their last element")
        at = start + _LENGTH.unpack_from(memory, at)[0]
        if at > end:
            raise Malformed("an element of BYTES reaches beyond its tensor")
        elements[i] = memory[start:at]
    if at != end:
        raise Malformed("BYTES are followed by something else")
    return elements.reshape(shape)


def _window(tensor: Tensor) -> tuple[int, int]:
    assert isinstance(tensor.data, SharedMemoryWindow)
    return tensor.data.offset, tensor.data.byte_size


def nbytes_of(tensor: Tensor) -> int:
    """The bytes of the window of *tensor*."""
    return _window(tensor)[1]


def told(windows: Tensors) -> dict[str, list[Any]]:  # Any: JSON
    """*windows* as a message has them."""
    return {name: [tensor.datatype, tensor.shape, *_window(tensor)] for name, tensor in windows.items()}


def windows_of(said: Mapping[Any, Any], capacity: int) -> dict[str, Tensor]:  # Any: JSON that nobody has looked at
    """The windows that a message tells of, each of them inside a region of *capacity* bytes.

    Raises:
        Malformed: one is not, or its size does not go with its type and shape.
    """
    return {name: _checked(entry, capacity) for name, entry in said.items()}


def _checked(entry: Any, capacity: int) -> Tensor:  # Any: JSON that nobody has looked at
    match entry:
        case [str() as datatype, [*shape], offset, nbytes]:
            numbers = [*shape, offset, nbytes]
        case _:
            raise Malformed("a tensor is not [datatype, shape, offset, nbytes]")
    if datatype not in Datatype.__members__:
        raise Malformed("a tensor is of no datatype of the protocol")
    if len(shape) > _MOST_AXES or any(type(number) is not int or number < 0 for number in numbers):
        raise Malformed("a tensor's shape, offset and size are not all integers from 0 on, of 32 axes at most")
    if offset + nbytes > capacity:
        raise Malformed("a tensor reaches beyond the region")
    itemsize, elements = Datatype(datatype).itemsize, math.prod(shape)
    if nbytes < _LENGTH.size * elements if itemsize is None else nbytes != itemsize * elements:
        raise Malformed("a tensor's size does not go with its shape")
    return Tensor(Datatype(datatype), tuple(shape), SharedMemoryWindow("", offset, nbytes))
