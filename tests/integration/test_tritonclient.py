"""Clients of Triton talk to a running gateway unchanged: HTTP and gRPC, unary, asynchronous and batched."""

from __future__ import annotations

import json
import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.integration.process import GatewayProcess


def texts(*rows: str) -> NDArray[np.object_]:
    return np.array([[row.encode()] for row in rows], dtype=object)


def inputs(module: Any, name: str, array: NDArray[Any], datatype: str) -> list[Any]:
    tensor = module.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


def parameters(result: Any) -> dict[str, Any]:
    """The response's parameters as plain values, whichever transport brought them."""
    response = result.get_response()
    if isinstance(response, dict):
        return dict(response["parameters"])
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.parameters.items()}


def check_batch(result: Any) -> None:
    """Three rows: accepted by the first stage, by the second, and deferred."""
    # tritonclient gives BYTES that came as JSON back as text
    labels = [label if isinstance(label, str) else label.decode() for label in result.as_numpy("label").reshape(-1)]
    assert labels == ["b", "c", "a"]
    found = parameters(result)
    assert found["pointsman_status"] == "provisional"
    assert found["pointsman_confidence"] == pytest.approx(0.4, abs=1e-6)
    rows = json.loads(found["pointsman_items"])
    assert [row["status"] for row in rows] == ["final", "final", "provisional"]
    assert [row["stage"] for row in rows] == ["fast", "strong", "strong"]


BATCH = texts("fast=0.95:b", "fast=0.5 strong=0.99:c", "fast=0.5 strong=0.4:a")
BINARY = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


@BINARY
def test_http_batch(gateway: GatewayProcess, binary: bool) -> None:
    client = triton_http.InferenceServerClient(gateway.http.removeprefix("http://"))
    try:
        tensor = triton_http.InferInput("text", list(BATCH.shape), "BYTES")
        tensor.set_data_from_numpy(BATCH, binary_data=binary)
        outputs = [triton_http.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]

        result = client.infer("words", [tensor], outputs=outputs, request_id="7")

        check_batch(result)
        assert result.get_response()["id"] == "7"
        assert result.as_numpy("probabilities").shape == (3, 3)
    finally:
        client.close()


def test_http_metadata_and_health(gateway: GatewayProcess) -> None:
    client = triton_http.InferenceServerClient(gateway.http.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("words")
        metadata = client.get_model_metadata("words")
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
        assert {output["name"] for output in metadata["outputs"]} == {"label", "probabilities"}
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    finally:
        client.close()


def test_http_async_infer(gateway: GatewayProcess) -> None:
    client = triton_http.InferenceServerClient(gateway.http.removeprefix("http://"), concurrency=4)
    try:
        pending = [
            client.async_infer("double", inputs(triton_http, "x", np.full((2, 3), i, np.float32), "FP32"))
            for i in range(8)
        ]
        for i, request in enumerate(pending):
            np.testing.assert_array_equal(request.get_result().as_numpy("y"), np.full((2, 3), 2 * i, np.float32))
    finally:
        client.close()


async def test_http_aio(gateway: GatewayProcess) -> None:
    async with triton_http_aio.InferenceServerClient(gateway.http.removeprefix("http://")) as client:
        check_batch(await client.infer("words", inputs(triton_http_aio, "text", BATCH, "BYTES")))


def test_grpc_batch(gateway: GatewayProcess) -> None:
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        result = client.infer("words", inputs(triton_grpc, "text", BATCH, "BYTES"), request_id="7")

        check_batch(result)
        assert result.get_response().id == "7"


def test_grpc_metadata_and_health(gateway: GatewayProcess) -> None:
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("words")
        metadata = client.get_model_metadata("double", as_json=True)
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1"]}]


def test_grpc_async_infer(gateway: GatewayProcess) -> None:
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        tensors = inputs(triton_grpc, "x", np.ones((1, 4), np.float32), "FP32")
        client.async_infer("double", tensors, lambda result, error: results.put((result, error)))

        result, error = results.get(timeout=10)

    assert error is None
    np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 4), 2, np.float32))


async def test_grpc_aio(gateway: GatewayProcess) -> None:
    async with triton_grpc_aio.InferenceServerClient(gateway.grpc) as client:
        check_batch(await client.infer("words", inputs(triton_grpc_aio, "text", BATCH, "BYTES")))


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_on_defer_error_says_where_the_answer_will_be(gateway: GatewayProcess, module: Any) -> None:
    client = module.InferenceServerClient(gateway.grpc if module is triton_grpc else gateway.http[7:])
    try:
        with pytest.raises(InferenceServerException, match=r"/v1/answers/[0-9a-f]{32}") as caught:
            client.infer(
                "words",
                inputs(module, "text", texts("fast=0.1 strong=0.1"), "BYTES"),
                parameters={"pointsman_on_defer": "error"},
            )
        assert caught.value.status() in ("503", "StatusCode.UNAVAILABLE")
    finally:
        client.close()


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
@pytest.mark.parametrize(
    ("model", "name", "array", "datatype", "message"),
    [
        ("nowhere", "text", texts("x"), "BYTES", "no route 'nowhere'"),
        ("words", "txt", texts("x"), "BYTES", "'text' is missing"),
        ("words", "text", np.ones((1, 1), np.float32), "FP32", "expected BYTES"),
        ("words", "text", np.array([[b"a", b"b"]], dtype=object), "BYTES", r"\[-1, 1\]"),
        ("words", "text", np.array([[b"\xff\xfe"]], dtype=object), "BYTES", "UTF-8"),
    ],
)
def test_bad_tensors_are_refused_with_the_reason(
    gateway: GatewayProcess, module: Any, model: str, name: str, array: NDArray[Any], datatype: str, message: str
) -> None:
    client = module.InferenceServerClient(gateway.grpc if module is triton_grpc else gateway.http[7:])
    try:
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer(model, inputs(module, name, array, datatype))
        wanted = {"404", "StatusCode.NOT_FOUND"} if model == "nowhere" else {"400", "StatusCode.INVALID_ARGUMENT"}
        assert caught.value.status() in wanted
    finally:
        client.close()


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_auto_takes_tensors_by_the_content_type_that_their_sender_gives(gateway: GatewayProcess, module: Any) -> None:
    client = module.InferenceServerClient(gateway.grpc if module is triton_grpc else gateway.http[7:])
    try:
        tensors = inputs(module, "input", texts("fast=0.95:b"), "BYTES")

        result = client.infer("auto", tensors, parameters={"content_type": "text/plain"})

        assert parameters(result)["pointsman_stage"] == "fast"
        with pytest.raises(InferenceServerException, match="no rule of `classify` matches"):
            client.infer("auto", tensors)
    finally:
        client.close()
