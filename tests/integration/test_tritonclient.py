"""Clients of Triton talk to a running gateway unchanged: HTTP and gRPC, unary, asynchronous and batched."""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from backends.contract import Datatype
from gateway.grpc_edge.transport import Transport
from tests.integration.process import CONFIG, GatewayProcess, running
from tests.integration.test_v1 import UNSURE, call


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, grpc_transport: Transport) -> Iterator[GatewayProcess]:
    """A gateway on `process.CONFIG`, on each gRPC transport in turn."""
    config = f"{CONFIG}\nserver: {{grpc_transport: {grpc_transport}}}\n"
    with running(tmp_path_factory.mktemp("gateway"), config) as process:
        yield process


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


TEXT = {"content_type": "text/plain"}


async def test_a_hundred_retries_at_once_over_both_transports_are_one_inference_and_one_task(tmp_path: Path) -> None:
    """Retries of one request by its id, which the route takes for its key."""
    config = CONFIG.replace("on_defer: provisional\n", "on_defer: provisional\n    id_as_key: true\n", 1)
    text = texts(UNSURE)
    with running(tmp_path, config) as gateway:
        async with (
            triton_http_aio.InferenceServerClient(gateway.http.removeprefix("http://"), conn_limit=50) as by_http,
            triton_grpc_aio.InferenceServerClient(gateway.grpc) as by_grpc,
        ):
            results = await asyncio.gather(
                *(
                    by_http.infer("words", inputs(triton_http, "text", text, "BYTES"), request_id="t-1")
                    for _ in range(50)
                ),
                *(
                    by_grpc.infer("words", inputs(triton_grpc, "text", text, "BYTES"), request_id="t-1")
                    for _ in range(50)
                ),
            )
        metrics = call(f"{gateway.control}/metrics").body
        reviews = call(f"{gateway.control}/v1/reviews?queue=words").body["reviews"]

    (answer_id,) = {parameters(result)["pointsman_answer_id"] for result in results}
    assert [review["answer_id"] for review in reviews] == [answer_id]
    for model in ("fast", "strong"):
        assert f'pointsman_batch_size_sum{{model="{model}"}} 1.0' in metrics


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


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_classification_has_the_labels_of_the_route(gateway: GatewayProcess, module: Any) -> None:
    client = module.InferenceServerClient(gateway.grpc if module is triton_grpc else gateway.http[7:])
    try:
        wanted = [module.InferRequestedOutput("probabilities", class_count=1)]

        result = client.infer("words", inputs(module, "text", BATCH, "BYTES"), outputs=wanted)

        assert result.as_numpy("probabilities").tolist() == [[b"0.950000:1:b"], [b"0.990000:2:c"], [b"0.400000:0:a"]]
        found = client.infer(
            "double",
            inputs(module, "x", np.array([[3, 1, 2]], np.float32), "FP32"),
            outputs=[module.InferRequestedOutput("y", class_count=2)],
        )
        assert found.as_numpy("y").tolist() == [[b"6.000000:0", b"4.000000:2"]]
    finally:
        client.close()


def test_a_raw_body_is_one_item(gateway: GatewayProcess) -> None:
    sent = np.random.default_rng().normal(size=5).astype(np.float32)
    connection = http.client.HTTPConnection(gateway.http.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", "/v2/models/double/infer", sent.tobytes(), {"Inference-Header-Content-Length": "0"})
        response = connection.getresponse()
        length = int(response.headers["Inference-Header-Content-Length"])
        result = triton_http.InferResult.from_response_body(response.read(), header_length=length)
    finally:
        connection.close()

    np.testing.assert_array_equal(result.as_numpy("y"), sent[np.newaxis] * 2)


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_the_configuration_has_what_load_generators_read(gateway: GatewayProcess, module: Any) -> None:
    client = module.InferenceServerClient(gateway.grpc if module is triton_grpc else gateway.http[7:])
    try:
        as_json = {"as_json": True} if module is triton_grpc else {}
        found = client.get_model_config("double", **as_json)
    finally:
        client.close()

    config = found.get("config", found)
    assert config["max_batch_size"] == 16
    assert "dynamic_batching" in config
    (tensor,) = config["input"]
    assert (tensor["name"], tensor["data_type"], [int(n) for n in tensor["dims"]]) == ("x", "TYPE_FP32", [-1])


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_statistics_grow_by_what_was_answered(gateway: GatewayProcess, module: Any) -> None:
    client = module.InferenceServerClient(gateway.grpc if module is triton_grpc else gateway.http[7:])

    def asked(name: str) -> dict[str, Any]:
        as_json = {"as_json": True} if module is triton_grpc else {}
        (row,) = client.get_inference_statistics(name, **as_json)["model_stats"]
        return dict(row)

    def count(row: dict[str, Any], *path: str) -> int:
        found: Any = row
        for name in path:
            found = found.get(name, {})
        return int(found or 0)  # protobuf's JSON has 64-bit numbers as text, and none that are 0

    try:
        before = asked("double")
        client.infer("double", inputs(module, "x", np.ones((3, 4), np.float32), "FP32"))
        with pytest.raises(InferenceServerException):
            client.infer("double", inputs(module, "z", np.ones((3, 4), np.float32), "FP32"))
        after = asked("double")
        auto = count(asked("auto"), "inference_count")
        client.infer("auto", inputs(module, "input", texts("fast=0.95:b"), "BYTES"), parameters=TEXT)
        assert count(asked("auto"), "inference_count") == auto + 1
        assert count(asked("words"), "inference_count") >= auto + 1
    finally:
        client.close()

    def grown(*path: str) -> int:
        return count(after, *path) - count(before, *path)

    assert (grown("inference_count"), grown("execution_count")) == (3, 1)
    assert (grown("inference_stats", "success", "count"), grown("inference_stats", "fail", "count")) == (1, 1)
    assert grown("inference_stats", "compute_infer", "count") == 1
    assert grown("inference_stats", "compute_infer", "ns") > 0
    assert (
        0
        <= grown("inference_stats", "queue", "ns") + grown("inference_stats", "compute_infer", "ns")
        <= grown("inference_stats", "success", "ns")
    )
    assert any(int(row["batch_size"]) == 3 for row in after["batch_stats"])
    assert count(after, "last_inference") >= count(before, "last_inference")


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_the_repository_lists_every_route(gateway: GatewayProcess, module: Any) -> None:
    client = module.InferenceServerClient(gateway.grpc if module is triton_grpc else gateway.http[7:])
    try:
        listed = client.get_model_repository_index()
        rows = [(r["name"], r["state"]) for r in listed] if isinstance(listed, list) else []
        rows = rows or [(row.name, row.state) for row in listed.models]

        assert sorted(rows) == [("alone", "READY"), ("double", "READY"), ("words", "READY")]
        with pytest.raises(InferenceServerException, match="the configuration says which are served"):
            client.load_model("words")
    finally:
        client.close()


def test_a_stream_outlives_a_bad_request(gateway: GatewayProcess) -> None:
    sent = {str(i): np.random.default_rng().normal(size=(1, 4)).astype(np.float32) for i in range(30)}
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        client.start_stream(lambda result, error: replies.put((result, error)))
        client.async_stream_infer("double", inputs(triton_grpc, "z", sent["0"], "FP32"))
        for name, array in sent.items():
            client.async_stream_infer("double", inputs(triton_grpc, "x", array, "FP32"), request_id=name)
        found = [replies.get(timeout=10) for _ in range(31)]
        client.stop_stream()

    assert [str(error) for _, error in found if error is not None] == ["input 'x' is missing; expected ['x']"]
    answered = {result.get_response().id: result.as_numpy("y") for result, error in found if error is None}
    assert answered.keys() == sent.keys()
    for name, array in sent.items():
        np.testing.assert_array_equal(answered[name], array * 2)


ECHOES = "models:\n" + "".join(
    f"  echo-{datatype}: {{backend: echo, datatype: {datatype}, shape: [-1], expose: true}}\n" for datatype in Datatype
)


@pytest.fixture(scope="module")
def echoes(tmp_path_factory: pytest.TempPathFactory, grpc_transport: Transport) -> Iterator[GatewayProcess]:
    """A gateway with an echo of every datatype, on each gRPC transport in turn."""
    config = f"{ECHOES}store: {{path: store.db, retention: 1d}}\nserver: {{grpc_transport: {grpc_transport}}}\n"
    with running(tmp_path_factory.mktemp("echoes"), config) as process:
        yield process


def a_payload(rng: np.random.Generator, datatype: Datatype) -> NDArray[Any]:
    """1 to 4 items of 5 random elements: any bits at all, but for NaN, which equals nothing."""
    shape = (int(rng.integers(1, 5)), 5)
    match datatype:
        case Datatype.BYTES:
            found = np.empty(shape, dtype=object)
            found.reshape(-1)[:] = [rng.bytes(int(rng.integers(0, 40))) for _ in range(found.size)]
            return found
        case Datatype.BOOL:
            return rng.random(shape) < 0.5
        case Datatype.BF16:
            return rng.normal(size=shape).astype(ml_dtypes.bfloat16)
        case Datatype.FP16 | Datatype.FP32 | Datatype.FP64:
            return rng.normal(size=shape).astype(datatype.numpy)
        case _:
            return np.frombuffer(rng.bytes(shape[0] * 5 * (datatype.itemsize or 0)), datatype.numpy).reshape(shape)


async def echoed(client: Any, module: Any, datatype: Datatype, sent: NDArray[Any], request_id: str) -> None:
    """*sent* comes back under its id, and nobody else's."""
    result = await client.infer(f"echo-{datatype}", inputs(module, "input", sent, str(datatype)), request_id=request_id)

    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == request_id
    np.testing.assert_array_equal(result.as_numpy("output"), sent)


async def test_random_payloads_of_every_datatype_come_back_to_their_senders(echoes: GatewayProcess) -> None:
    rng = np.random.default_rng()
    http_client = triton_http_aio.InferenceServerClient(echoes.http.removeprefix("http://"))
    async with http_client, triton_grpc_aio.InferenceServerClient(echoes.grpc) as grpc_client:
        await asyncio.gather(
            *(
                echoed(client, module, datatype, a_payload(rng, datatype), f"{module.__name__} {datatype} {i}")
                for i in range(16)
                for datatype in Datatype
                for client, module in ((http_client, triton_http), (grpc_client, triton_grpc))
            )
        )


async def test_random_payloads_come_back_in_json(echoes: GatewayProcess) -> None:
    rng = np.random.default_rng()
    sent = {datatype: a_payload(rng, datatype) for datatype in set(Datatype) - {Datatype.BF16}}  # it has no JSON form
    sent[Datatype.BYTES] = np.array([[f"{n:c}" for n in rng.integers(32, 0xD800, 5)]], dtype=object)  # text in JSON

    async with triton_http_aio.InferenceServerClient(echoes.http.removeprefix("http://")) as client:
        for datatype, array in sent.items():
            tensor = triton_http_aio.InferInput("input", list(array.shape), str(datatype))
            tensor.set_data_from_numpy(array, binary_data=False)
            wanted = [triton_http_aio.InferRequestedOutput("output", binary_data=False)]

            result = await client.infer(f"echo-{datatype}", [tensor], outputs=wanted)

            np.testing.assert_array_equal(result.as_numpy("output"), array, str(datatype))


async def test_random_payloads_of_every_datatype_come_back_in_one_stream(echoes: GatewayProcess) -> None:
    rng = np.random.default_rng()
    sent = {f"{datatype} {i}": (datatype, a_payload(rng, datatype)) for i in range(8) for datatype in Datatype}

    async def requests() -> Any:
        for name, (datatype, array) in sent.items():
            tensors = inputs(triton_grpc, "input", array, str(datatype))
            yield {"model_name": f"echo-{datatype}", "inputs": tensors, "request_id": name}

    seen = set()
    async with triton_grpc_aio.InferenceServerClient(echoes.grpc) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            name = result.get_response().id
            seen.add(name)
            np.testing.assert_array_equal(result.as_numpy("output"), sent[name][1])

    assert seen == sent.keys()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(echoes: GatewayProcess, algorithm: str) -> None:
    sent = np.random.default_rng().integers(0, 9, (1, 20_000)).astype(np.int64)
    client = triton_http.InferenceServerClient(echoes.http.removeprefix("http://"))
    try:
        result = client.infer(
            "echo-INT64",
            inputs(triton_http, "input", sent, "INT64"),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    finally:
        client.close()

    np.testing.assert_array_equal(result.as_numpy("output"), sent)
