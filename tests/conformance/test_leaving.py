"""Callers that leave: both servers let them go, and go on serving the others."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.conformance.conftest import Server, Servers


def _waiting(seconds: float) -> Any:  # Any: tritonclient's messages are untyped
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "contents": {"fp32_contents": [seconds]}}
    return service_pb2.ModelInferRequest(model_name="waits", inputs=[tensor])


@pytest.fixture(params=["triton", "gateway"])
def server(servers: Servers, request: pytest.FixtureRequest) -> Server:
    """Each in turn: what is expected is said of both."""
    found = getattr(servers, request.param)
    assert isinstance(found, Server)
    return found


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_a_cancelled_call_ends_as_cancelled_and_the_next_is_answered(server: Server, method: str) -> None:
    ended = threading.Event()
    with grpc.insecure_channel(server.grpc) as channel:
        path = f"/inference.GRPCInferenceService/{method}"
        data = _waiting(0.5).SerializeToString()
        if method == "ModelInfer":
            call: Any = channel.unary_unary(path).future(data)
        else:
            call = channel.stream_stream(path)(iter([data]))
        call.add_done_callback(lambda _: ended.set())

        call.cancel()

        assert ended.wait(timeout=10)
        assert call.code() is grpc.StatusCode.CANCELLED
        infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert infer(_waiting(0).SerializeToString(), timeout=20)


def test_a_caller_that_hangs_up_holds_up_nobody(server: Server) -> None:
    def body(seconds: float) -> bytes:
        tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [seconds]}
        return json.dumps({"inputs": [tensor]}).encode()

    gone = http.client.HTTPConnection(server.http, timeout=20)
    gone.request("POST", "/v2/models/waits/infer", body(0.5))
    gone.close()

    stays = http.client.HTTPConnection(server.http, timeout=20)
    stays.request("POST", "/v2/models/waits/infer", body(0))
    response = stays.getresponse()
    found = json.loads(response.read())
    stays.close()

    assert (response.status, found["outputs"][0]["data"]) == (200, [0.0])
