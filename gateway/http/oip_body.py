"""Bodies of inference requests and responses: JSON, then raw tensors in the order in which the JSON names them.

    {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}
    <8 bytes>

`Inference-Header-Content-Length` is the length of the JSON; without it the whole body is JSON and tensors are `data`
members. Members that the protocol does not know are ignored, as other servers of it do.

The reader works on two counts: every byte behind the JSON belongs to exactly one input, and every input has exactly one
of the two forms, or lies in shared memory (`gateway.oip.windows`).

A length of 0 means a raw body: it is the elements of one item of the route's one input, and nothing else. An axis of
varying length is as long as makes the bytes come out; a BYTES input is one element, without its length before it. All
outputs go raw.

Source: Open Inference Protocol v2 and Triton's binary tensor data extension, raw binary requests included.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from backends.contract import Datatype, ParameterValue, SharedMemoryWindow, Tensor, TensorSpec, record
from backends.errors import InvalidInput, TooLarge
from backends.oip import json_data, raw
from backends.quoting import shorten
from gateway.http.messages import Body
from gateway.http.strict_json import loads
from gateway.http.strict_json import parameters as json_parameters
from gateway.oip.classification import class_count
from gateway.oip.parameters import NONE, Parameters, sort
from gateway.oip.shapes import MAX_TENSORS, claim, tensor_name, unique
from gateway.oip.windows import output_window, window

HEADER_LENGTH = "inference-header-content-length"

_QUICK_BYTES = 64 * 1024
_QUICK_COPY_BYTES = 4 * 1024 * 1024

_CONTAINERS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEAST_PACKED_BYTES = 1400
_QUICK_PACKED_BYTES = 32 * 1024
_SAMPLE_BYTES = 16 * 1024

MAX_ID = 4096
"""Longest request id, in characters."""


@record
class WantedOutput:
    """An output that the request asks for.

    Attributes:
        binary: whether it goes raw.
        classes: how many of its greatest elements it is to be told as; 0: as it is.
        window: where in shared memory it goes; None: into the response.
    """

    name: str
    binary: bool
    classes: int = 0
    window: SharedMemoryWindow | None = None


@record(eq=False)
class InferBody:
    """An inference request, as its body states it.

    Attributes:
        id: for the caller to tell replies apart; "" where it gave none.
        tensors: the inputs.
        wanted: outputs asked for, in order; empty for all.
    """

    id: str
    tensors: Mapping[str, Tensor]
    wanted: tuple[WantedOutput, ...]
    parameters: Parameters

    def is_binary(self, output: str) -> bool:
        """Whether *output* goes raw."""
        for want in self.wanted:
            if want.name == output:
                return want.binary
        return self.parameters.binary_output


def header_length(value: str | None, body_bytes: int) -> int | None:
    """The length of the JSON that the header *value* states; None where there is no header.

    Raises:
        InvalidInput: it is not a whole number, or beyond the body.
    """
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise InvalidInput(f"Inference-Header-Content-Length is {shorten(value)}; it is a number of bytes")
    length = int(value)
    if length > body_bytes:
        raise InvalidInput(f"Inference-Header-Content-Length is {length}, but the body has {body_bytes} bytes")
    return length


def is_quick(body: Body, json_bytes: int | None) -> bool:
    """Whether `parse` takes some milliseconds at most: what takes longer belongs in a thread.

    Short bodies do, and so do long ones that have numbers alone behind short JSON, as these are not looked at one by
    one, only copied at times. An escape could hide the name of the datatype that is.
    """
    if len(body) <= _QUICK_BYTES:
        return True
    if len(body) > _QUICK_COPY_BYTES:
        return False
    if json_bytes is None or json_bytes > _QUICK_BYTES:
        return False
    text = bytes(body[:json_bytes])
    return b"BYTES" not in text and b"\\" not in text


def parse(body: Body, json_bytes: int | None, json_limit_bytes: int) -> InferBody:
    """Read a request.

    Args:
        json_bytes: length of the JSON in *body*, not 0; None: it is all JSON.
        json_limit_bytes: most JSON that is read.

    Raises:
        InvalidInput: says what is missing, malformed or too much.
        TooLarge: the JSON is longer than *json_limit_bytes*.
        Unimplemented: an extension that is not served.
    """
    length = len(body) if json_bytes is None else json_bytes
    if length > json_limit_bytes:
        raise TooLarge(
            f"the JSON has {length} bytes; at most {json_limit_bytes} are read: send tensors as binary tensor data"
        )
    message = loads(bytes(body[:length]))
    if not isinstance(message, dict):
        raise InvalidInput(f"the body must be a JSON object with 'inputs', not {shorten(message)}")
    parameters = sort(json_parameters(message["parameters"])) if "parameters" in message else NONE
    tail = None if json_bytes is None else memoryview(body)[json_bytes:]
    tensors = _inputs(_objects(message, "inputs"), tail)
    wanted: tuple[WantedOutput, ...] = ()
    if "outputs" in message:
        wanted = tuple([_wanted(output, parameters.binary_output) for output in _objects(message, "outputs")])
        unique([want.name for want in wanted], "output")
    return InferBody(_id(message.get("id", "")), tensors, wanted, parameters)


def parse_raw(body: Body, inputs: Sequence[TensorSpec]) -> InferBody:
    """Read a request that is one item of the one input of a route; takes no time worth a thread.

    Args:
        inputs: what the route takes.

    Raises:
        InvalidInput: it takes several inputs, or *body* does not tell the shape of its one.
    """
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise InvalidInput(f"a raw body is one input, but this model takes {len(inputs)} ({names}); send a JSON header")
    spec = inputs[0]
    if spec.datatype is Datatype.BYTES:
        if not set(spec.shape) <= {1, -1}:
            raise InvalidInput(
                f"a raw body is one BYTES element, but input {spec.name!r} has shape {[-1, *spec.shape]}; "
                "send a JSON header"
            )
        element = np.empty((1, *(1 for _ in spec.shape)), dtype=object)
        element.reshape(-1)[0] = bytes(body)
        tensor = Tensor.of(element, Datatype.BYTES)
    else:
        shape = (1, *_inferred(spec, len(body)))
        tensor = raw.decode(claim(spec.name, spec.datatype.value, shape), body)
    return InferBody("", {spec.name: tensor}, (), Parameters(binary_output=True))


def _inferred(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape of the item of *spec* that takes *size* bytes."""
    if spec.shape.count(-1) > 1:
        raise InvalidInput(
            f"the length of a raw body does not tell the shape of input {spec.name!r}, {[-1, *spec.shape]}; "
            "send a JSON header"
        )
    step = math.prod(length for length in spec.shape if length != -1) * (spec.datatype.itemsize or 1)
    if -1 in spec.shape and (step == 0 or size % step):
        raise InvalidInput(
            f"the raw body has {size} bytes; input {spec.name!r}, {spec.datatype} of shape {[-1, *spec.shape]}, "
            f"takes a multiple of {step}"
        )
    return tuple(size // step if length == -1 else length for length in spec.shape)


def _id(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_ID:
        raise InvalidInput(f"id is {shorten(value)}; it is a text of at most {MAX_ID} characters")
    return value


def _objects(message: Mapping[str, Any], member: str) -> Sequence[Mapping[str, Any]]:
    found = message.get(member, [])
    if type(found) is not list or set(map(type, found)) - {dict}:
        raise InvalidInput(f"{member!r} must be a list of JSON objects")
    if member == "inputs" and not found:
        raise InvalidInput("'inputs' is missing or empty; an inference request needs at least one")
    if len(found) > MAX_TENSORS:
        raise InvalidInput(f"the request has {len(found)} {member}; at most {MAX_TENSORS} are served")
    return found


def _inputs(objects: Sequence[Mapping[str, Any]], tail: memoryview | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    offset = 0
    for found in objects:
        stated = claim(found.get("name"), found.get("datatype"), found.get("shape"))
        where = _where(found.get("parameters"), stated.name)
        if stated.name in tensors:
            unique([*tensors, stated.name], "input")
        if (where is None) == ("data" not in found):
            raise InvalidInput(
                f"input {stated.name!r} needs either data or the parameter binary_data_size, or else "
                "shared_memory_region"
            )
        if where is None:
            tensors[stated.name] = json_data.decode(stated, found["data"])
            continue
        if isinstance(where, SharedMemoryWindow):
            tensors[stated.name] = Tensor(stated.datatype, stated.shape, where)
            continue
        size = where
        if tail is None:
            raise InvalidInput(
                f"input {stated.name!r} has binary_data_size, but the request has no Inference-Header-Content-Length"
            )
        if size > len(tail) - offset:
            raise InvalidInput(
                f"input {stated.name!r} has binary_data_size {size}, but {len(tail) - offset} bytes are left"
            )
        tensors[stated.name] = raw.decode(stated, tail[offset : offset + size])
        offset += size
    if tail is not None and offset != len(tail):
        raise InvalidInput(f"the body has {len(tail) - offset} bytes that no input's binary_data_size claims")
    return tensors


def _where(parameters: Any, name: str) -> int | SharedMemoryWindow | None:
    """Where an input's elements are: in so many bytes behind the JSON, in shared memory, or (None) in its `data`."""
    if parameters is None:
        return None
    found = json_parameters(parameters, f"parameters of input {name!r}")
    size = found.get("binary_data_size")
    place = window(found, name)
    if size is None:
        return place
    if place is not None:
        raise InvalidInput(f"input {name!r} has binary_data_size, and a place in shared memory; send one of the two")
    if type(size) is not int or size < 0:
        raise InvalidInput(f"input {name!r} has binary_data_size {shorten(size)}; it is a number of bytes")
    return size


def _wanted(found: Mapping[str, Any], default: bool) -> WantedOutput:
    name = tensor_name(found.get("name"), "output")
    parameters = json_parameters(found.get("parameters", {}), f"parameters of output {name!r}")
    binary = parameters.get("binary_data", default)
    if not isinstance(binary, bool):
        raise InvalidInput(f"output {name!r} has binary_data {shorten(binary)}; it can be true or false")
    classes = class_count(parameters.get("classification"), name)
    place = output_window(parameters, name, classes)
    if place is not None and parameters.get("binary_data"):  # tritonclient says false there
        raise InvalidInput(f"output {name!r} has binary_data, and a place in shared memory; ask for one of the two")
    return WantedOutput(name, binary, classes, place)


def write(
    model_name: str,
    model_version: str,
    request: InferBody,
    outputs: Mapping[str, Tensor],
    parameters: Mapping[str, ParameterValue],
) -> tuple[bytes, int | None]:
    """A response's body, and the length of its JSON where raw outputs follow it.

    Raises:
        InvalidInput: JSON cannot carry an output that was asked for in JSON.
    """
    message: dict[str, Any] = {"model_name": model_name}
    if model_version:
        message["model_version"] = model_version
    if request.id:
        message["id"] = request.id
    message["parameters"] = parameters
    message["outputs"] = found = []
    tail: list[raw.Buffer] = []
    for name, tensor in outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if isinstance(tensor.data, SharedMemoryWindow):
            pass  # it is where its caller looks for it
        elif request.is_binary(name):
            tail.append(raw.encode(tensor))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = json_data.encode(name, tensor)
        found.append(output)
    text = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *tail]), len(text)) if tail else (text, None)


def coding_wanted(accept: str | None) -> str:
    """The coding of a response's body that a request's Accept-Encoding asks for: `gzip`, `deflate`, or "" for none.

    A coding has to be named: `*` asks for nothing in particular. What is malformed in the header is passed over.

    Source:
        RFC 9110, 12.5.3.
    """
    if not accept:
        return ""
    weights = {coding: weight for coding, weight in map(_weighed, accept.lower().split(",")) if coding in _CONTAINERS}
    best = max(weights, key=lambda coding: (weights[coding], coding == "gzip"), default="")
    return best if weights.get(best, 0.0) > 0.0 else ""


def _weighed(part: str) -> tuple[str, float]:
    coding, _, parameter = part.partition(";")
    weight = parameter.replace(" ", "").removeprefix("q=")
    return coding.strip(), float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 1.0


def pays(body: bytes) -> bool:
    """Whether *body* is long enough that compressing it can save a packet."""
    return len(body) >= _LEAST_PACKED_BYTES


def is_packed_quickly(body: bytes) -> bool:
    """Whether `packed` takes a millisecond at most; else use a thread."""
    return len(body) <= _QUICK_PACKED_BYTES


def packed(body: bytes, coding: str) -> bytes | None:
    """*body* in *coding* (see `coding_wanted`), or None where it would hardly be shorter.

    Many clients accept codings whatever they ask for, and floating-point numbers shrink by a tenth at 40 MB/s: a long
    body is judged by its end, where tensors are, before all of it is compressed.
    """
    if len(body) > _QUICK_PACKED_BYTES and not _shrinks(_deflated(body[-_SAMPLE_BYTES:], coding), _SAMPLE_BYTES):
        return None
    found = _deflated(body, coding)
    return found if _shrinks(found, len(body)) else None


def _deflated(data: bytes, coding: str) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _CONTAINERS[coding])
    return packer.compress(data) + packer.flush()


def _shrinks(found: bytes, size: int) -> bool:
    return len(found) <= 0.8 * size
