"""Tensors in `inference.ModelInferRequest`: raw, or in the typed fields of `InferTensorContents`.

A request is all raw or all typed, but for inputs in shared memory, which are neither. Raw inputs stand in
`raw_input_contents`, one an input and in their order.
"""

from __future__ import annotations

from typing import Any

from backends.contract import ParameterValue, SharedMemoryWindow, Tensor
from backends.errors import InvalidInput
from backends.oip import raw
from backends.oip.contents import typed
from backends.quoting import shorten
from gateway.grpc_edge.calls import INLINE_BYTES
from gateway.oip.parameters import MAX_PARAMETERS
from gateway.oip.shapes import claim, unique
from gateway.oip.windows import window

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
            stated.name: typed(stated, tensor.contents) for stated, tensor in zip(claims, inputs, strict=True)
        }
    if len(contents) != len(claims):
        raise InvalidInput(f"raw_input_contents has {len(contents)} entries for {len(claims)} inputs; one each")
    for tensor in inputs:
        if tensor.HasField("contents"):
            raise InvalidInput(f"input {tensor.name!r} has contents beside raw_input_contents; send one of the two")
    sent = {stated.name: raw.decode(stated, data) for stated, data in zip(claims, contents, strict=True)}
    return placed | sent if placed else sent


def _windows(request: Any) -> dict[str, SharedMemoryWindow]:
    """Where inputs lie that are in shared memory, by name."""
    found: dict[str, SharedMemoryWindow] = {}
    for tensor in request.inputs:
        if not tensor.parameters:
            continue
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


def parameters(found: Any) -> dict[str, ParameterValue]:
    """A map of InferParameter as plain values.

    Raises:
        InvalidInput: one has no value, or there are more than `MAX_PARAMETERS`.
    """
    if not found:
        return {}
    if len(found) > MAX_PARAMETERS:
        raise InvalidInput(f"there are {len(found)} parameters; at most {MAX_PARAMETERS} are allowed")
    return {name: _value(name, parameter) for name, parameter in found.items()}


def _value(name: str, parameter: Any) -> ParameterValue:
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidInput(f"parameter {shorten(name)} has no value")
    value: ParameterValue = getattr(parameter, choice)
    return value
