"""Tensors as JSON: the `data` member of an input or output, nested or flat, row-major.

JSON has one kind of number and Python's reader several, so the elements' types are looked at before NumPy sees them: an
integer type takes integers alone (an integer beyond 64 bits arrives from the reader as a float, and is refused by the
same rule), a float type takes any finite number, BOOL takes true and false. NumPy would convert all of these silently.

BF16 has no JSON form; it travels raw.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import orjson

from backends.contract import Datatype, HostArray, Tensor
from backends.errors import InvalidInput
from backends.oip.raw import Claim, elements
from backends.quoting import shorten

_KINDS: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
_OVERFLOWS = {Datatype.FP16: 65_520.0, Datatype.FP32: 2.0**128 - 2.0**103, Datatype.FP64: math.inf}
"""The least number that rounds to infinity: the greatest finite one, and half of what its last bit is worth."""

_FEW = 256  # elements of which Python finds the extremes before NumPy has made an array of them
_PIECE = 65_536  # elements that are read or written in one go, which takes some milliseconds
_WORDS = {"b": "true and false", "u": "integers", "i": "integers", "f": "numbers", "O": "texts"}


def decode(claim: Claim, data: Any) -> Tensor:
    """The tensor that *data* (Any: JSON) is.

    Raises:
        InvalidInput: *data* is ragged, of another length than the shape's, has elements of another type, or elements
            that the datatype cannot hold.
    """
    return Tensor(
        claim.datatype,
        claim.shape,
        typed(claim.name, claim.datatype, _flatten(claim, data), claim.what).reshape(claim.shape),
    )


def typed(name: str, datatype: Datatype, flat: list[Any], what: str = "input") -> HostArray:
    """The elements *flat* (Any: JSON) of *name* as an array of *datatype*, (len(flat),).

    Many are read in pieces, as NumPy lets no other thread run while it converts a list.

    Raises:
        InvalidInput: an element is of another type, or *datatype* cannot hold it; calls *name* what *what* says.
    """
    named = f"{what} {name!r}"
    if len(flat) <= _PIECE:
        return _typed(named, datatype, flat)
    pieces = [_typed(named, datatype, flat[start : start + _PIECE]) for start in range(0, len(flat), _PIECE)]
    return np.concatenate(pieces)


def _typed(named: str, datatype: Datatype, flat: list[Any]) -> HostArray:
    if datatype is Datatype.BF16:
        raise InvalidInput(f"{named} is BF16, which JSON cannot carry; send it as binary tensor data")
    dtype = datatype.numpy
    if strange := set(map(type, flat)) - _KINDS[dtype.kind]:
        wrong = next(element for element in flat if type(element) in strange)
        raise InvalidInput(f"{named} has element {shorten(wrong)}; {datatype} takes {_WORDS[dtype.kind]}")
    if dtype.kind == "O":
        texts = np.empty(len(flat), dtype=object)
        texts[:] = [text.encode() for text in flat]
        return texts
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        for extreme in (min(flat, default=0), max(flat, default=0)):
            if not limits.min <= extreme <= limits.max:
                raise InvalidInput(f"{named} has element {extreme}, which {datatype} cannot hold")
    if dtype.kind == "f" and flat:
        return _floats(named, datatype, flat)
    return np.array(flat, dtype=dtype)


def _floats(named: str, datatype: Datatype, flat: list[Any]) -> HostArray:
    # NumPy's own test of the result would need its warnings held back, which takes longer than all the rest.
    limit = _OVERFLOWS[datatype]
    wide = None if len(flat) <= _FEW else np.array(flat, dtype=np.float64)
    low, high = (min(flat), max(flat)) if wide is None else (wide.min(), wide.max())
    if not (-limit < low and high < limit):
        wrong = next(element for element in flat if not -limit < element < limit)
        raise InvalidInput(f"{named} has element {wrong}, which {datatype} cannot hold")
    return np.asarray(flat if wide is None else wide, dtype=datatype.numpy)


def _flatten(claim: Claim, data: Any) -> list[Any]:
    """The elements of *data*, of which there are `claim.count`; never builds more than *data* already holds."""
    if not isinstance(data, list):
        raise InvalidInput(f"{claim.what} {claim.name!r} has data {shorten(data)}; a list is needed")
    if not data or not isinstance(data[0], list):
        _expect(claim, len(data), claim.count)
        return data
    _expect(claim, len(data), claim.shape[0] if claim.shape else 1)
    level = data
    for length in claim.shape[1:]:
        if set(map(type, level)) != {list}:
            raise InvalidInput(f"{claim.what} {claim.name!r} mixes lists and elements; shape is {list(claim.shape)}")
        for found in set(map(len, level)) - {length}:
            _expect(claim, found, length)
        level = list(chain.from_iterable(level))
        if not level:
            break
    return level


def _expect(claim: Claim, found: int, expected: int) -> None:
    if found != expected:
        raise InvalidInput(
            f"{claim.what} {claim.name!r} has {found} elements where shape {list(claim.shape)} needs {expected}"
        )


def encode(name: str, tensor: Tensor) -> HostArray | list[str] | orjson.Fragment:
    """The elements of an output, flat, for orjson to write; a number that is not finite becomes null.

    Raises:
        InvalidInput: JSON cannot carry them.
    """
    array = tensor.numpy()
    if tensor.datatype is Datatype.BF16:
        raise InvalidInput(f"output {name!r} is BF16, which JSON cannot carry; ask for it with binary_data")
    if tensor.datatype is not Datatype.BYTES:
        return in_pieces(np.ascontiguousarray(array, dtype=tensor.datatype.numpy).reshape(-1))
    try:
        return [element.decode() for element in elements(array)]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"output {name!r} is not UTF-8 text; ask for it with binary_data") from error


def in_pieces(array: HostArray) -> HostArray | orjson.Fragment:
    """Numbers, C-contiguous and of one axis at least, for orjson to write as nested lists.

    Many are written here already, in pieces: orjson lets no other thread run until it has written all.
    """
    return orjson.Fragment(_written(array)) if array.size > _PIECE else array


def _written(array: HostArray) -> bytes:
    if array.size <= _PIECE:
        return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    if array.ndim > 1:
        parts = [_written(row) for row in array]
    else:
        parts = [_written(array[start : start + _PIECE])[1:-1] for start in range(0, len(array), _PIECE)]
    return b"[" + b",".join(parts) + b"]"
