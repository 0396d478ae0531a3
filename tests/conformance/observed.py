"""What a client can tell of a reply, as facets (a path and a value) that two servers' replies are compared by.

    {"status": 200, "id": "7", "outputs": ["y"], "outputs.y.datatype": "FP32", "outputs.y.shape": [1, 2], ...}

Of an error the words are each server's own: that there are some is what is compared. Elements are compared as Python
values, floats by their bits (`NaN` equals itself), whatever form they travelled in; the form is a facet too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from backends.contract import Datatype

Facets = Mapping[str, object]

ABSENT = "absent"
"""What a facet is in a reply that does not have it."""


def differing(triton: Facets, gateway: Facets) -> dict[str, tuple[object, object]]:
    """The facets in which two replies differ: what Triton says, and what the gateway says."""
    return {
        facet: (triton.get(facet, ABSENT), gateway.get(facet, ABSENT))
        for facet in sorted(triton.keys() | gateway.keys())
        if triton.get(facet, ABSENT) != gateway.get(facet, ABSENT)
    }


def exactly(value: object, path: str = "") -> dict[str, object]:
    """A JSON value as facets, one a leaf; elements of a list of objects that have names are told apart by these."""
    return dict(_leaves(value, path))


def kinds(value: object, path: str = "") -> dict[str, object]:
    """A JSON value as facets that tell what is there and of which type, and not how much it is."""
    return {place: type(leaf).__name__ for place, leaf in _leaves(value, path)}


def names(statistics: Any) -> dict[str, object]:
    """Of which models there are statistics (Any: JSON)."""
    return {found["name"]: True for found in statistics["model_stats"]}


def _leaves(value: object, path: str) -> list[tuple[str, object]]:
    match value:
        case dict():
            below = [(str(name), one) for name, one in value.items()]
        case list() if value and all(isinstance(one, dict) for one in value):
            below = [(str(one.get("name", "*")), one) for one in value]
        case list() if value and all(isinstance(one, str) for one in value):
            below = [(one, True) for one in value]  # a set of names
        case _:
            return [(path, value)]
    found = [leaf for name, one in below for leaf in _leaves(one, f"{path}.{name}" if path else name)]
    return found or [(path, value)]


def elements(array: NDArray[Any]) -> list[object]:
    """The elements of *array*, floats as their bits."""
    if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
        return list(np.ascontiguousarray(array).view(f"u{array.itemsize}").reshape(-1).tolist())
    return [one.encode() if isinstance(one, str) else one for one in array.reshape(-1).tolist()]


def decoded(datatype: str, data: bytes) -> NDArray[Any]:
    """Raw tensor data as an array of one axis."""
    if datatype != "BYTES":
        return np.frombuffer(data, Datatype(datatype).numpy.newbyteorder("<"))
    found: list[bytes] = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    array = np.empty(len(found), dtype=object)
    array[:] = found
    return array


def of_error(text: object) -> dict[str, object]:
    """The facets of an error that says *text*."""
    return {"error": isinstance(text, str) and len(text.strip()) > 0}


def of_http_inference(body: bytes, header_length: str | None) -> dict[str, object]:
    """The facets of the body of an inference response."""
    length = len(body) if header_length is None else int(header_length)
    head, tail = json.loads(body[:length]), body[length:]
    found: dict[str, object] = {"binary": header_length is not None}
    outputs: list[Mapping[str, Any]] = head.pop("outputs", [])
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], dtype=Datatype(output["datatype"]).numpy)
        else:
            array, tail = decoded(output["datatype"], tail[:size]), tail[size:]
        found |= _of_output(output["name"], output["datatype"], output["shape"], array)
        found[f"outputs.{output['name']}.binary"] = size is not None
    assert not tail, f"{len(tail)} bytes belong to no output"
    return {**found, **exactly(head), "outputs": sorted(output["name"] for output in outputs)}


def of_grpc_inference(reply: Any) -> dict[str, object]:
    """The facets of a ModelInferResponse (Any: tritonclient's messages are untyped)."""
    found: dict[str, object] = {
        "model_name": reply.model_name,
        "model_version": reply.model_version,
        "id": reply.id,
        "outputs": sorted(output.name for output in reply.outputs),
        "raw": len(reply.raw_output_contents),
    }
    for output, data in zip(reply.outputs, reply.raw_output_contents, strict=True):
        found |= _of_output(output.name, output.datatype, list(output.shape), decoded(output.datatype, data))
    for name, parameter in reply.parameters.items():
        found[f"parameters.{name}"] = getattr(parameter, parameter.WhichOneof("parameter_choice"))
    return found


def _of_output(name: str, datatype: str, shape: Sequence[int], array: NDArray[Any]) -> dict[str, object]:
    return {
        f"outputs.{name}.datatype": datatype,
        f"outputs.{name}.shape": list(shape),
        f"outputs.{name}.elements": elements(array),
    }


def of_message(message: Any) -> dict[str, Any]:
    """A protobuf message as JSON (hence Any), with every member that it has."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def of_rpc_error(error: Any) -> dict[str, object]:
    """The facets of a call that failed (Any: grpc's errors are calls too, which its types do not say)."""
    return {"status": error.code().name, **of_error(error.details())}
