"""Tensors in `inference.ModelInferRequest`: raw, or in the typed fields of `InferTensorContents`.

A request is all raw or all typed, but for inputs in shared memory, which are neither. Raw inputs stand in
`raw_input_contents`, one an input and in their order. Narrow integer types share a 32-bit field, so what it holds is
checked against the type. FP16 and BF16 have no typed field.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.contract import Datatype, HostArray, ParameterValue, SharedMemoryWindow, Tensor
from backends.errors import InvalidInput
from gateway.grpc_edge.calls import INLINE_BYTES
from gateway.oip import raw
from gateway.oip.parameters import MAX_PARAMETERS
from gateway.oip.shapes import Claim, claim, shorten, unique
from gateway.oip.windows import window

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


def tensors(request: Any) -> dict[str, Tensor]:
    """The inputs of a ModelInferRequest, by name; those in shared memory as windows of it.

    Raises:
        InvalidInput: says which input is missing, malformed, or there in two forms.
    """
    if not request.inputs:
        raise InvalidInput("the request has no inputs; an inference request needs at least one")
    claims = [claim(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]
    unique([stated.name for stated in claims], "input")
    inputs, contents = request.inputs, request.raw_input_contents
    windows = _windows(request)
    placed = {}
    if windows:
        placed = {
            stated.name: Tensor(stated.datatype, stated.shape, windows[stated.name])
            for stated in claims
            if stated.name in windows
        }
        claims = [stated for stated in claims if stated.name not in windows]
        inputs = [tensor for tensor in inputs if tensor.name not in windows]
    if not contents:
        return placed | {
            stated.name: _typed(stated, tensor.contents) for stated, tensor in zip(claims, inputs, strict=True)
        }
    if len(contents) != len(claims):
        raise InvalidInput(f"raw_input_contents has {len(contents)} entries for {len(claims)} inputs; one each")
    for tensor in inputs:
        if tensor.HasField("contents"):
            raise InvalidInput(f"input {tensor.name!r} has contents beside raw_input_contents; send one of the two")
    return placed | {stated.name: raw.decode(stated, data) for stated, data in zip(claims, contents, strict=True)}


def _windows(request: Any) -> dict[str, SharedMemoryWindow]:
    """Where inputs lie that are in shared memory, by name."""
    found: dict[str, SharedMemoryWindow] = {}
    for tensor in request.inputs:
        place = window(parameters(tensor.parameters), tensor.name)
        if place is None:
            continue
        if tensor.HasField("contents"):
            raise InvalidInput(f"input {tensor.name!r} has contents, and a place in shared memory; send one of the two")
        found[tensor.name] = place
    return found


def is_quick(request: Any, size_bytes: int) -> bool:
    """Whether `tensors` takes some milliseconds at most, for *request*, a message of *size_bytes*; else use a thread.

    Short requests do, and so do long ones of raw numbers, as these are not looked at one by one.
    """
    return size_bytes <= INLINE_BYTES or not any(
        tensor.datatype == "BYTES" or tensor.HasField("contents") for tensor in request.inputs
    )


def _typed(stated: Claim, contents: Any) -> Tensor:
    wanted = _FIELDS.get(stated.datatype)
    if wanted is None:
        raise InvalidInput(f"input {stated.name!r} is {stated.datatype}, which travels in raw_input_contents only")
    for field, _ in contents.ListFields():
        if field.name != wanted:
            raise InvalidInput(f"input {stated.name!r} is {stated.datatype}, but has {field.name}; use {wanted}")
    elements = getattr(contents, wanted)
    if len(elements) != stated.count:
        raise InvalidInput(
            f"input {stated.name!r} has {len(elements)} elements where shape {list(stated.shape)} needs {stated.count}"
        )
    return Tensor(stated.datatype, stated.shape, _array(stated, elements).reshape(stated.shape))


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
            raise InvalidInput(
                f"input {stated.name!r} has element {wide[outside][0]}, which {stated.datatype} cannot hold"
            )
        return wide.astype(dtype)
    return _numbers(elements, dtype)


def _numbers(elements: Any, dtype: np.dtype[Any]) -> HostArray:
    """*elements* as an array; in pieces, as NumPy lets no other thread run while it converts one."""
    array = np.empty(len(elements), dtype=dtype)
    for start in range(0, len(array), _PIECE):
        array[start : start + _PIECE] = elements[start : start + _PIECE]
    return array


def parameters(found: Any) -> dict[str, ParameterValue]:
    """A map of InferParameter as plain values.

    Raises:
        InvalidInput: one has no value, or there are more than `MAX_PARAMETERS`.
    """
    if len(found) > MAX_PARAMETERS:
        raise InvalidInput(f"there are {len(found)} parameters; at most {MAX_PARAMETERS} are allowed")
    return {name: _value(name, parameter) for name, parameter in found.items()}


def _value(name: str, parameter: Any) -> ParameterValue:
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidInput(f"parameter {shorten(name)} has no value")
    value: ParameterValue = getattr(parameter, choice)
    return value


def set_parameter(parameter: Any, value: ParameterValue) -> None:
    """Write *value* into an InferParameter, in the field of its type."""
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value
