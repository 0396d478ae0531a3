"""Tensors in the typed fields of `inference.InferTensorContents`, and parameters in `inference.InferParameter`.

Narrow integer types share a 32-bit field, so what it holds is checked against the type. FP16 and BF16 have no typed
field.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.contract import Datatype, HostArray, ParameterValue, Tensor
from backends.errors import InvalidInput
from backends.oip.raw import Claim

_FIELDS = {
    Datatype.BOOL: "bool_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}

_PIECE = 65_536

# Any, throughout: tritonclient's messages are untyped.


def typed(stated: Claim, contents: Any) -> Tensor:
    """The tensor whose elements are *contents*, an InferTensorContents.

    Raises:
        InvalidInput: they stand in another field than the datatype's, are more or fewer than the shape needs, or are
            none that the datatype can hold.
    """
    wanted = _FIELDS.get(stated.datatype)
    if wanted is None:
        raise InvalidInput(
            f"{stated.what} {stated.name!r} is {stated.datatype}, which travels in raw_input_contents only"
        )
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise InvalidInput(
                f"{stated.what} {stated.name!r} is {stated.datatype}, but has {field.name}; use {wanted}"
            )
    elements = getattr(contents, wanted)
    if len(elements) != stated.count:
        raise InvalidInput(
            f"{_named(stated)} has {len(elements)} elements where shape {list(stated.shape)} needs {stated.count}"
        )
    return Tensor(stated.datatype, stated.shape, _array(stated, elements).reshape(stated.shape))


def _named(stated: Claim) -> str:
    return f"{stated.what} {stated.name!r}"


def _array(stated: Claim, elements: Any) -> HostArray:
    dtype = stated.datatype.numpy
    if dtype.kind == "O":
        array = np.empty(stated.count, dtype=object)
        array[:] = list(elements)
        return array
    if dtype.kind in "ui" and dtype.itemsize < 4:
        wide = _numbers(elements, np.dtype(np.int64))
        limits = np.iinfo(dtype)
        outside = (wide < limits.min) | (wide > limits.max)
        if outside.any():
            raise InvalidInput(f"{_named(stated)} has element {wide[outside][0]}, which {stated.datatype} cannot hold")
        return wide.astype(dtype)
    return _numbers(elements, dtype)


def _numbers(elements: Any, dtype: np.dtype[Any]) -> HostArray:
    """*elements* as an array; in pieces, as NumPy lets no other thread run while it converts one."""
    array = np.empty(len(elements), dtype=dtype)
    for start in range(0, len(array), _PIECE):
        array[start : start + _PIECE] = elements[start : start + _PIECE]
    return array


def set_parameter(parameter: Any, value: ParameterValue) -> None:
    """Write *value* into an InferParameter, in the field of its type."""
    match value:
        case str():
            parameter.string_param = value
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
