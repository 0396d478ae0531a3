"""A payload meets a route: whatever a caller sent becomes a batch of the route's inputs, or a clear refusal.

Typing happens here and not at the edges, because only the route says what `{"text": "..."}` is, and with `auto` the
route is known only after routing.

JSON of `/v1`, for an input of shape s: a value of shape s is one item, rows of shape (b, *s) are b items, and a plain
scalar stands for one item where s holds one element. `["a", "b"]` for shape [1] is none of these and is refused,
rather than guessed to be two items. BYTES are written as text, or as `{"b64": "..."}` for anything else.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from backends.contract import Batch, Datatype, HostArray, Limits, Ragged, Signature, Tensor, TensorSpec, check_batch
from backends.errors import InvalidInput
from backends.oip import json_data
from backends.quoting import shorten
from gateway.request import MAX_ITEMS, JsonInputs, Payload, RawBody, TensorInputs


def bind(signature: Signature, payload: Payload) -> Batch:
    """The batch that *payload* is, for a route with *signature*.

    Raises:
        InvalidInput: names the input that is missing, unknown, or of the wrong type or shape.
    """
    match payload:
        case RawBody(data=data):
            batch = _bind_body(signature, data)
        case JsonInputs(values=values):
            batch = _bind_json(signature, values)
        case TensorInputs(tensors=tensors):
            batch = Batch.of(tensors)
    check_batch(signature, batch, Limits(max_batch=MAX_ITEMS))
    return batch


def rename_only_input(signature: Signature, payload: Payload) -> Payload:
    """For `auto`, whose callers cannot know the input's name: a single value takes the name of a single input."""
    if len(signature.inputs) != 1:
        return payload
    name = signature.inputs[0].name
    match payload:
        case TensorInputs(tensors=tensors) if len(tensors) == 1:
            return replace(payload, tensors={name: next(iter(tensors.values()))})
        case JsonInputs(values=values) if len(values) == 1:
            return replace(payload, values={name: next(iter(values.values()))})
        case _:
            return payload


def _bind_body(signature: Signature, data: bytes) -> Batch:
    if len(signature.inputs) != 1 or signature.inputs[0].datatype is not Datatype.BYTES:
        names = [f"{spec.name} ({spec.datatype})" for spec in signature.inputs]
        raise InvalidInput(f'this route takes {names}, not a plain body; send JSON: {{"inputs": {{...}}}}')
    spec = signature.inputs[0]
    array = np.empty((1, *(1 for _ in spec.shape)), dtype=object)
    array.reshape(-1)[0] = data
    return Batch({spec.name: Tensor.of(array)}, 1)


def _bind_json(signature: Signature, values: Any) -> Batch:  # Any: JSON
    expected = {spec.name for spec in signature.inputs}
    for name in values:
        if name not in expected:
            raise InvalidInput(f"input {shorten(name)} is unknown; expected {sorted(expected)}")
    tensors: dict[str, Tensor] = {}
    for spec in signature.inputs:
        if spec.name not in values:
            raise InvalidInput(f"input {spec.name!r} is missing; expected {sorted(expected)}")
        tensors[spec.name] = Tensor.of(_json_array(spec, values[spec.name]), spec.datatype)
    return Batch.of(tensors)


def _json_array(spec: TensorSpec, value: Any) -> HostArray:
    flat, shape = _flatten(spec, value)
    if spec.datatype is Datatype.BYTES:
        array = np.empty(len(flat), dtype=object)
        array[:] = [_bytes(spec, element) for element in flat]
    else:
        array = json_data.typed(spec.name, spec.datatype, flat)
    if len(shape) == len(spec.shape) + 1:
        return array.reshape(shape)
    if len(shape) == len(spec.shape) or (not shape and math.prod(abs(n) for n in spec.shape) == 1):
        return array.reshape((1, *(shape or (1,) * len(spec.shape))))
    raise InvalidInput(
        f"input {spec.name!r} has shape {list(shape)}; send one item of shape {list(spec.shape)}, "
        f"or a list of such items",
    )


def _flatten(spec: TensorSpec, value: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Row-major elements and the shape of a nested list; at most one axis more than the spec has."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        lengths = set(map(len, level)) if set(map(type, level)) == {list} else set()
        if len(lengths) != 1:
            raise InvalidInput(f"input {spec.name!r} is ragged at depth {len(shape)}; rows need one length")
        if len(shape) > len(spec.shape):
            raise InvalidInput(f"input {spec.name!r} is nested deeper than {len(spec.shape) + 1} levels")
        shape.append(lengths.pop())
        level = list(chain.from_iterable(level))
    return level, tuple(shape)


def _bytes(spec: TensorSpec, value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"input {spec.name!r} holds a lone surrogate, which is no text") from error
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(f"input {spec.name!r} holds invalid base64") from error
    raise InvalidInput(f'input {spec.name!r} holds {shorten(value)}; write text, or {{"b64": "..."}}')


def rows_of(batch: Batch, indices: Sequence[int]) -> Batch:
    """The items *indices* (ascending) of *batch*; views where they are contiguous, copies otherwise."""
    if len(indices) == batch.size:
        return batch
    first, last = indices[0], indices[-1]
    if last - first + 1 == len(indices):
        return Batch({name: tensor.rows(first, last + 1) for name, tensor in batch.inputs.items()}, len(indices))
    return Batch({name: _take(tensor, indices) for name, tensor in batch.inputs.items()}, len(indices))


def _take(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    if isinstance(tensor.data, Ragged):
        return Tensor.ragged(tensor.datatype, tuple(tensor.data.rows[i] for i in indices))
    return Tensor.of(tensor.numpy()[list(indices)], tensor.datatype)
