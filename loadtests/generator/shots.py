"""What is sent, encoded before the clock runs, and how a reply is checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

WIDTH = 16
COUNT = 4096
"""Different requests of a process; more than are ever under way at a time."""

_TAKEN_BYTES = 64
_MOST_BYTES = 64 * 1024 * 1024  # of all tensors of a process; of wide ones there are fewer, and fewer under way


class Form(StrEnum):
    """How HTTP carries the tensors."""

    JSON = "json"
    BINARY = "binary"
    ROWS = "rows"
    """`{"x": [[...]]}`, for servers that know no Open Inference Protocol."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, and the reply that is right.

    Attributes:
        sent: the whole HTTP request, or the whole gRPC message.
        y: float32 little-endian, or (JSON) the numbers, or (rows) a list of them; exact in all.
        place: where in shared memory its bytes are to appear; None: in the reply.
    """

    sent: bytes
    y: Any  # bytes, list[float] or list[list[float]]
    place: NDArray[np.uint8] | None = None

    def is_in_place(self) -> bool:
        """Whether `y` lies in its place, from which it is taken away."""
        assert self.place is not None
        is_right = np.array_equal(self.place, np.frombuffer(self.y, np.uint8))
        self.place[:_TAKEN_BYTES] = 0xFF
        return is_right


def rows(seed: tuple[int, int], width: int, count: int = COUNT) -> list[Any]:  # Any: arrays
    """Different rows, of numbers that are exact in float32 and short in JSON; *count* at most."""
    rng = np.random.default_rng(seed)
    count = max(1, min(count, _MOST_BYTES // (4 * width)))
    rows = rng.integers(-(2**17), 2**17, (count, width)).astype(np.float32) / 8
    rows[:, 0] = np.arange(count)
    return list(rows)


def http_shots(
    host: str, path: str, form: Form, seed: tuple[int, int], timeout_s: float | None = None, width: int = WIDTH
) -> list[Shot]:
    """Requests to *path*, in JSON, with binary tensors both ways, or as rows; they wait *timeout_s* at most.

    Args:
        width: numbers in a row.
    """
    return [_http_shot(host, path, form, x, timeout_s) for x in rows(seed, width)]


def _http_shot(host: str, path: str, form: Form, x: Any, timeout_s: float | None) -> Shot:
    if form is Form.ROWS:
        return Shot(
            posted(host, path, json.dumps({"x": [x.tolist()]}, separators=(",", ":")).encode()), [(2 * x).tolist()]
        )
    binary = form is Form.BINARY
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, len(x)]}
    body: dict[str, Any] = {"inputs": [tensor]}
    if timeout_s is not None:
        body["parameters"] = {"timeout": round(timeout_s * 1e6)}
    if binary:
        tensor["parameters"] = {"binary_data_size": 4 * len(x)}
        body["outputs"] = [{"name": "y", "parameters": {"binary_data": True}}]
    else:
        tensor["data"] = x.tolist()
    text = json.dumps(body, separators=(",", ":")).encode()
    if not binary:
        return Shot(posted(host, path, text), (2 * x).tolist())
    content = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % len(text)
    return Shot(posted(host, path, text + x.astype("<f4").tobytes(), content), (2 * x).astype("<f4").tobytes())


def posted(host: str, path: str, payload: bytes, content: bytes = b"Content-Type: application/json\r\n") -> bytes:
    """The HTTP request that posts *payload*."""
    return b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path.encode(), host.encode(), content, len(payload), payload,
    )  # fmt: skip


def grpc_shots(model: str, seed: tuple[int, int], width: int = WIDTH) -> list[Shot]:
    """`ModelInferRequest` with raw contents, serialised."""
    return [_grpc_shot(model, x) for x in rows(seed, width)]


def _grpc_shot(model: str, x: Any) -> Shot:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, len(x)])
    raw = x.astype("<f4").tobytes()
    request = service_pb2.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[raw])
    return Shot(request.SerializeToString(), (2 * x).astype("<f4").tobytes())


def is_right_http(shot: Shot, head: bytes, body: bytes) -> bool:
    """The reply with *head* and *body*, status 200, is twice the input of *shot*."""
    if shot.place is not None:
        return shot.is_in_place()
    if isinstance(shot.y, bytes):
        return b"inference-header-content-length:" in head.lower() and body.endswith(shot.y)
    try:
        reply = orjson.loads(body)
        if isinstance(shot.y[0], list):
            return bool((reply["y"] if isinstance(reply, dict) else reply) == shot.y)
        return bool(reply["outputs"][0]["data"] == shot.y)
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return False


def is_right_grpc(shot: Shot, reply: Any) -> bool:  # Any: a protobuf message
    """The same of a `ModelInferResponse`."""
    if shot.place is not None:
        return shot.is_in_place()
    if reply.raw_output_contents:
        return bool(reply.raw_output_contents[0] == shot.y)
    return len(reply.outputs) == 1 and np.asarray(reply.outputs[0].contents.fp32_contents, "<f4").tobytes() == shot.y
