"""Tensors as raw bytes: the binary tensor data extension of HTTP, and the raw contents of gRPC.

Elements are little-endian, row-major, without padding; a BYTES element is its length (4 bytes) and its bytes. Decoding
numbers is a view on what arrived, as decoding must not cost what sending saved. The one exception is data that begins
at an odd address, as it does in HTTP when the JSON before it has an odd length: models, ONNX Runtime among them, assume
aligned elements, so that is copied once.

BF16 stays its bit pattern (uint16), as `backends.contract` has it.
"""

from __future__ import annotations

import math
import struct
from typing import Self, TypeAlias

import numpy as np

from backends.contract import Datatype, HostArray, Tensor, record
from backends.errors import InvalidInput

Buffer: TypeAlias = bytes | memoryview

_LENGTH = struct.Struct("<I")
_LITTLE = {datatype: datatype.numpy.newbyteorder("<") for datatype in Datatype}


@record
class Claim:
    """A tensor's name, datatype and shape, as its sender states them.

    Attributes:
        count: elements; the product of *shape*.
        what: what error messages call it.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    count: int
    what: str = "input"

    @classmethod
    def of(cls, name: str, tensor: Tensor, what: str = "input") -> Self:
        """The claim that *tensor* is sent under."""
        return cls(name, tensor.datatype, tensor.shape, math.prod(tensor.shape), what)


def decode(claim: Claim, data: Buffer) -> Tensor:
    """The tensor that *data* is.

    Returns:
        Of `claim.shape`; a read-only view on *data* wherever its address allows.

    Raises:
        InvalidInput: the size of *data* is not what the claim needs, or an element is malformed.
    """
    check_size(claim, len(data))
    if claim.datatype is Datatype.BYTES:
        return Tensor(claim.datatype, claim.shape, _decode_bytes(claim, data))
    array = np.frombuffer(data, _LITTLE[claim.datatype])
    if claim.datatype is Datatype.BOOL and array.size and array.view(np.uint8).max() > 1:
        raise InvalidInput(f"{claim.what} {claim.name!r} has a BOOL byte that is neither 0 nor 1")
    if not (array.flags.aligned and array.dtype.isnative):
        array = array.astype(claim.datatype.numpy)
    return Tensor(claim.datatype, claim.shape, array.reshape(claim.shape))


def check_size(claim: Claim, size: int) -> None:
    """Refuse *size* bytes that cannot be the tensor, whatever they are.

    Raises:
        InvalidInput: names both sizes.
    """
    itemsize = claim.datatype.itemsize
    if itemsize is not None and size != claim.count * itemsize:
        raise InvalidInput(
            f"{claim.what} {claim.name!r} has {size} bytes; shape {list(claim.shape)} of {claim.datatype} "
            f"takes {claim.count * itemsize}"
        )
    if itemsize is None and claim.count * _LENGTH.size > size:
        raise InvalidInput(
            f"{claim.what} {claim.name!r} has {size} bytes; {claim.count} BYTES elements take at least "
            f"{claim.count * _LENGTH.size}"
        )


def _decode_bytes(claim: Claim, data: Buffer) -> HostArray:
    octets, size = bytes(data), len(data)  # slices of bytes are made in half the time of a view's
    found: list[bytes] = []
    end = 0
    for i in range(claim.count):
        start = end + _LENGTH.size
        if start > size:
            raise InvalidInput(f"{claim.what} {claim.name!r} ends before element {i} of {claim.count}")
        (length,) = _LENGTH.unpack_from(octets, end)
        end = start + length
        if end > size:
            raise InvalidInput(
                f"{claim.what} {claim.name!r}: element {i} claims {length} bytes where {size - start} are left"
            )
        found.append(octets[start:end])
    if end != size:
        raise InvalidInput(f"{claim.what} {claim.name!r} has {size - end} bytes after its last element")
    array = np.empty(claim.count, dtype=object)
    array[:] = found
    return array.reshape(claim.shape)


def encode(tensor: Tensor) -> Buffer:
    """*tensor* as raw bytes: a view on its elements where they lie in order, else one copy.

    Raises:
        InvalidInput: the elements are not one array in host memory.
    """
    array = tensor.numpy()
    if tensor.datatype is Datatype.BYTES:
        parts: list[bytes] = []
        for element in elements(array):
            parts += (_LENGTH.pack(len(element)), element)
        return b"".join(parts)
    little = np.ascontiguousarray(array, dtype=_LITTLE[tensor.datatype])
    return little.reshape(-1).view(np.uint8).data


def elements(array: HostArray) -> list[bytes]:
    """The elements of a BYTES array in row-major order; text becomes UTF-8."""
    return [element.encode() if isinstance(element, str) else bytes(element) for element in array.reshape(-1)]
