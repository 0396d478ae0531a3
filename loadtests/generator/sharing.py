"""Requests whose tensors lie in system shared memory: where they lie, encoded before the clock runs.

A process of the generator has one object, registered at the server as a region: the inputs of all its requests, and
behind them a place for the output of each. Whoever checks an output takes it away, so that an answer which wrote
nothing is not taken for the one before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2

from gateway.shared_memory import FOLDER
from loadtests.generator.shots import Shot, posted, rows

_ALIGNMENT = 64


@contextmanager
def shared_shots(
    scheme: str, host: str, path: str, model: str, seed: tuple[int, int], width: int, count: int
) -> Iterator[list[Shot]]:
    """*count* requests in a region that is registered at *host* within the context.

    Args:
        scheme: http or grpc.
        path: HTTP: where to post.
        width: numbers in a row.
        count: more than are ever under way at a time.
    """
    size = -(-4 * width // _ALIGNMENT) * _ALIGNMENT
    name = f"pointsman-load-{os.getpid()}-{seed[1]}"
    file = FOLDER / name
    octets = np.memmap(file, np.uint8, "w+", shape=(2 * count * size,))
    client: Any = (tritonclient.grpc if scheme == "grpc" else tritonclient.http).InferenceServerClient(host)
    try:
        client.register_system_shared_memory(name, f"/{name}", 2 * count * size)
        shots = []
        for i, x in enumerate(rows(seed, width, count)):
            at, out = i * size, (count + i) * size
            octets[at : at + 4 * width] = np.frombuffer(x.astype("<f4").tobytes(), np.uint8)
            ask = _grpc if scheme == "grpc" else _http
            sent = ask(host, path, model, width, (name, at), (name, out))
            shots.append(Shot(sent, (2 * x).astype("<f4").tobytes(), octets[out : out + 4 * width]))
        yield shots
    finally:
        client.unregister_system_shared_memory(name)
        client.close()
        file.unlink()


def _http(host: str, path: str, model: str, width: int, at: tuple[str, int], out: tuple[str, int]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, width], "parameters": _place(at, width)}
    body = {"inputs": [tensor], "outputs": [{"name": "y", "parameters": _place(out, width)}]}
    return posted(host, path, json.dumps(body, separators=(",", ":")).encode())


def _place(where: tuple[str, int], width: int) -> dict[str, str | int]:
    region, offset = where
    return {
        "shared_memory_region": region,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": 4 * width,
    }


def _grpc(host: str, path: str, model: str, width: int, at: tuple[str, int], out: tuple[str, int]) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    for stated, where in (
        (request.inputs.add(name="x", datatype="FP32", shape=[1, width]), at),
        (request.outputs.add(name="y"), out),
    ):
        for name, value in _place(where, width).items():
            if isinstance(value, str):
                stated.parameters[name].string_param = value
            else:
                stated.parameters[name].int64_param = value
    message: bytes = request.SerializeToString()
    return message
