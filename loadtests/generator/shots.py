"""What is sent, encoded before the clock runs, and how a reply is checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from tritonclient.grpc import service_pb2

WIDTH = 16
COUNT = 4096
"""Different requests of a process; more than are ever under way at a time."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, and the reply that is right.

    Attributes:
        sent: the whole HTTP request, or the whole gRPC message.
        y: float32 little-endian, or (JSON) the numbers; exact in both.
    """

    sent: bytes
    y: Any  # bytes or list[float]


def _rows(seed: tuple[int, int]) -> list[Any]:  # Any: arrays
    """Different rows, of numbers that are exact in float32 and short in JSON."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-(2**17), 2**17, (COUNT, WIDTH)).astype(np.float32) / 8
    rows[:, 0] = np.arange(COUNT)
    return list(rows)


def http_shots(host: str, model: str, binary: bool, seed: tuple[int, int]) -> list[Shot]:
    """Requests to `/v2/models/{model}/infer`, in JSON or with binary tensors both ways."""
    return [_http_shot(host, model, binary, x) for x in _rows(seed)]


def _http_shot(host: str, model: str, binary: bool, x: Any) -> Shot:
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH]}
    body: dict[str, Any] = {"inputs": [tensor]}
    if binary:
        tensor["parameters"] = {"binary_data_size": 4 * WIDTH}
        body["outputs"] = [{"name": "y", "parameters": {"binary_data": True}}]
    else:
        tensor["data"] = x.tolist()
    text = json.dumps(body, separators=(",", ":")).encode()
    content = b"Content-Type: application/json\r\n"
    payload = text
    if binary:
        content = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % len(text)
        payload += x.astype("<f4").tobytes()
    head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n" % (
        model.encode(), host.encode(), content, len(payload),
    )  # fmt: skip
    return Shot(head + payload, (2 * x).astype("<f4").tobytes() if binary else (2 * x).tolist())


def grpc_shots(model: str, seed: tuple[int, int]) -> list[Shot]:
    """`ModelInferRequest` with raw contents, serialised."""
    return [_grpc_shot(model, x) for x in _rows(seed)]


def _grpc_shot(model: str, x: Any) -> Shot:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, WIDTH])
    raw = x.astype("<f4").tobytes()
    request = service_pb2.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[raw])
    return Shot(request.SerializeToString(), (2 * x).astype("<f4").tobytes())


def is_right_http(shot: Shot, head: bytes, body: bytes) -> bool:
    """The reply with *head* and *body*, status 200, is twice the input of *shot*."""
    if isinstance(shot.y, bytes):
        return b"inference-header-content-length:" in head.lower() and body.endswith(shot.y)
    try:
        return bool(orjson.loads(body)["outputs"][0]["data"] == shot.y)
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return False


def is_right_grpc(shot: Shot, reply: Any) -> bool:  # Any: a protobuf message
    """The same of a `ModelInferResponse`."""
    if reply.raw_output_contents:
        return bool(reply.raw_output_contents[0] == shot.y)
    return len(reply.outputs) == 1 and np.asarray(reply.outputs[0].contents.fp32_contents, "<f4").tobytes() == shot.y
