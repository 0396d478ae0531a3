"""An answer of the model `dbl` apart from the protocol that carries it, and the ways in which it can be a lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
from tritonclient.grpc import service_pb2


@dataclass(frozen=True, slots=True)
class Answer:
    """The one output of an answer; *data* as it lies in memory."""

    id: str
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


def half_as_wide(answer: Answer) -> Answer:
    """Another shape, and bytes that fit it."""
    return replace(answer, shape=(*answer.shape[:-1], answer.shape[-1] // 2), data=answer.data[: len(answer.data) // 2])


def reshaped(answer: Answer) -> Answer:
    """As many elements in another shape: two items for each, half as wide."""
    return replace(answer, shape=(answer.shape[0] * 2, answer.shape[1] // 2))


def of_another_type(answer: Answer) -> Answer:
    """As many bytes, which mean something else."""
    return replace(answer, datatype="INT32")


def misnamed(answer: Answer) -> Answer:
    """Another output than the model has."""
    return replace(answer, name="z")


def with_a_row_more(answer: Answer) -> Answer:
    """One item more than was asked for, the first one twice."""
    row = len(answer.data) // answer.shape[0]
    return replace(answer, shape=(answer.shape[0] + 1, *answer.shape[1:]), data=answer.data[:row] + answer.data)


def cut_short(answer: Answer) -> Answer:
    """Fewer bytes than the shape needs."""
    return replace(answer, data=answer.data[:-5])


def absurdly_large(answer: Answer) -> Answer:
    """A shape whose product is beyond any memory."""
    return replace(answer, shape=(2**40, 2**40))


def negative(answer: Answer) -> Answer:
    """A shape that is none."""
    return replace(answer, shape=(-1, *answer.shape[1:]))


LIES: tuple[Callable[[Answer], Answer], ...] = (
    half_as_wide,
    reshaped,
    of_another_type,
    misnamed,
    with_a_row_more,
    cut_short,
    absurdly_large,
    negative,
)


def from_http(headers: Mapping[str, str], body: bytes) -> Answer:
    """Read a reply in the binary form."""
    end = int(headers["inference-header-content-length"])
    stated: dict[str, Any] = orjson.loads(body[:end])
    (output,) = stated["outputs"]
    return Answer(stated.get("id", ""), output["name"], output["datatype"], tuple(output["shape"]), body[end:])


def to_http(answer: Answer) -> bytes:
    """A whole reply."""
    output = {
        "name": answer.name,
        "datatype": answer.datatype,
        "shape": answer.shape,
        "parameters": {"binary_data_size": len(answer.data)},
    }
    header = orjson.dumps({"id": answer.id, "model_name": "dbl", "model_version": "1", "outputs": [output]})
    size = len(header) + len(answer.data)
    lines = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {size}\r\n\r\n"
    )
    return lines.encode() + header + answer.data


def from_grpc(message: bytes) -> Answer:
    """Read a `ModelInferResponse`."""
    reply = service_pb2.ModelInferResponse.FromString(message)
    (output,), (data,) = reply.outputs, reply.raw_output_contents
    return Answer(reply.id, output.name, output.datatype, tuple(output.shape), data)


def to_grpc(answer: Answer) -> bytes:
    """A `ModelInferResponse`."""
    output = service_pb2.ModelInferResponse.InferOutputTensor(
        name=answer.name, datatype=answer.datatype, shape=answer.shape
    )
    reply = service_pb2.ModelInferResponse(
        model_name="dbl", model_version="1", id=answer.id, outputs=[output], raw_output_contents=[answer.data]
    )
    return bytes(reply.SerializeToString())
