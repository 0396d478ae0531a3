"""Clients of Triton, unchanged, against a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from backends.contract import Datatype, HostArray
from gateway.oip.metadata import EXTENSIONS
from tests.unit.gateway.http.conftest import Plane

SAMPLES: dict[str, HostArray] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-32768, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[1.5, -2.0]], np.float16),
    "FP32": np.array([[1.5, -2e38]], np.float32),
    "FP64": np.array([[1.5, -1e300]], np.float64),
    "BF16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"caf\xc3\xa9", b""]], object),
}


def an_input(client: Any, datatype: str, binary: bool) -> Any:
    array = SAMPLES[datatype]
    tensor = client.InferInput(datatype, array.shape, datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


@pytest.fixture
async def client(address: str) -> Any:
    async with aio_http.InferenceServerClient(address) as client:
        yield client


def test_there_is_a_sample_of_every_datatype() -> None:
    assert set(SAMPLES) == set(Datatype.__members__)
    assert all(np_to_triton_dtype(array.dtype) == name for name, array in SAMPLES.items())


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
async def test_every_datatype_goes_both_ways(client: Any, binary_in: bool, binary_out: bool | None) -> None:
    """None: no outputs are named; the client then asks for all of them raw."""
    for datatype, sent in SAMPLES.items():
        if datatype == "BF16" and not (binary_in and binary_out is not False):
            continue  # it has no JSON form
        wanted = None if binary_out is None else [aio_http.InferRequestedOutput(datatype, binary_data=binary_out)]

        result = await client.infer(
            "echo",
            [an_input(aio_http, datatype, binary_in)],
            outputs=wanted,
            request_id="r-7",
            parameters={"lang": "de"},
        )

        as_text = datatype == "BYTES" and binary_out is False
        expected = [[element.decode() for element in row] for row in sent] if as_text else sent.tolist()
        assert result.as_numpy(datatype).tolist() == expected, datatype
        answer = result.get_response()
        assert (answer["id"], answer["model_name"]) == ("r-7", "echo")
        assert answer["parameters"]["pointsman_status"] == "final"


async def test_the_synchronous_client_works_unchanged(plane: Plane, address: str) -> None:
    def use() -> tuple[Any, ...]:
        client = sync_http.InferenceServerClient(address, concurrency=2)
        try:
            pending = client.async_infer("echo", [an_input(sync_http, "INT64", True)])
            return (
                client.is_server_live(),
                client.is_server_ready(),
                client.is_model_ready("echo"),
                client.is_model_ready("echo", "1"),
                client.get_server_metadata(),
                client.get_model_metadata("tickets"),
                client.infer("echo", [an_input(sync_http, "FP32", True), an_input(sync_http, "BYTES", False)]),
                pending.get_result(),
            )
        finally:
            client.close()

    live, ready, model_ready, version_ready, server, model, result, later = await asyncio.to_thread(use)

    assert (live, ready, model_ready, version_ready) == (True, True, True, True)
    assert server["name"] == "pointsman"
    assert server["extensions"] == list(EXTENSIONS)
    assert model == {
        "name": "tickets",
        "versions": ["1"],
        "platform": "pointsman",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
    }
    assert result.as_numpy("FP32").tolist() == SAMPLES["FP32"].tolist()
    assert result.as_numpy("BYTES").tolist() == SAMPLES["BYTES"].tolist()
    assert later.as_numpy("INT64").tolist() == SAMPLES["INT64"].tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_requests_are_read(client: Any, algorithm: str) -> None:
    result = await client.infer("echo", [an_input(aio_http, "FP32", True)], request_compression_algorithm=algorithm)

    assert result.as_numpy("FP32").tolist() == SAMPLES["FP32"].tolist()


async def test_a_batch_says_every_rows_status(client: Any) -> None:
    tensor = aio_http.InferInput("FP32", [2, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[1], [2]], np.float32))

    result = await client.infer("echo", [tensor], parameters={"script": "defer-last"})

    told = result.get_response()["parameters"]
    rows = orjson.loads(told["pointsman_items"])
    assert result.as_numpy("FP32").tolist() == [[1], [2]]
    assert told["pointsman_status"] == "provisional"
    assert told["pointsman_confidence"] == pytest.approx(0.8)
    assert told["pointsman_reason"] == "no_confidence"
    assert [row["status"] for row in rows] == ["final", "provisional"]
    assert [row["label"] for row in rows] == ["label-0", "label-1"]


async def test_a_client_that_wants_no_provisional_answer_is_told_where_the_final_one_will_be(client: Any) -> None:
    with pytest.raises(InferenceServerException) as refused:
        await client.infer(
            "echo",
            [an_input(aio_http, "FP32", True)],
            parameters={"script": "defer", "pointsman_on_defer": "error"},
        )

    assert refused.value.status() == "503"
    assert "GET /v1/answers/" in refused.value.message()


async def test_an_error_reads_as_the_client_expects(client: Any) -> None:
    with pytest.raises(InferenceServerException) as refused:
        await client.infer("nowhere", [an_input(aio_http, "FP32", True)])

    assert refused.value.status() == "404"
    assert refused.value.message() == "there is no route 'nowhere'"


async def test_classification_gives_the_greatest_elements_with_their_labels(client: Any) -> None:
    sent = np.random.default_rng().normal(size=(5, 3)).astype(np.float32)
    tensor = aio_http.InferInput("FP32", sent.shape, "FP32")
    tensor.set_data_from_numpy(sent)

    for binary in (True, False):
        wanted = [aio_http.InferRequestedOutput("FP32", binary_data=binary, class_count=2)]
        result = await client.infer("echo", [tensor], outputs=wanted)

        assert result.get_output("FP32")["datatype"] == "BYTES"
        told = [[text if isinstance(text, str) else text.decode() for text in row] for row in result.as_numpy("FP32")]
        assert told == [
            [f"{row[i]:f}:{i}:{('cat', 'dog', 'fox')[i]}" for i in np.argsort(-row)[:2].tolist()] for row in sent
        ]


async def test_what_has_no_order_is_not_classified(client: Any, plane: Plane) -> None:
    wanted = [aio_http.InferRequestedOutput("BYTES", class_count=1)]

    with pytest.raises(InferenceServerException, match="classification takes numeric outputs only") as refused:
        await client.infer("echo", [an_input(aio_http, "BYTES", True)], outputs=wanted)

    assert refused.value.status() == "400"
    assert plane.service.requests == []


async def test_a_models_configuration_is_as_triton_writes_it(client: Any) -> None:
    config = await client.get_model_config("tickets", "1")

    assert (config["name"], config["platform"], config["backend"]) == ("tickets", "pointsman", "pointsman")
    assert config["max_batch_size"] == 16
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    (tensor,) = config["input"]
    assert (tensor["name"], tensor["data_type"], tensor["dims"]) == ("text", "TYPE_STRING", [1])
    whole = await client.get_model_config("echo")
    assert [tensor["data_type"] for tensor in whole["output"]][:4] == [
        "TYPE_BOOL",
        "TYPE_UINT8",
        "TYPE_UINT16",
        "TYPE_UINT32",
    ]
    assert "dynamic_batching" not in whole
    with pytest.raises(InferenceServerException, match="no route 'none'"):
        await client.get_model_config("none")


async def test_statistics_are_as_triton_writes_them(client: Any, plane: Plane) -> None:
    plane.service.counters["echo"].ended(3, 0.5)
    plane.service.counters["echo"].ended(0, 0.25)

    (found,) = (await client.get_inference_statistics("echo", "1"))["model_stats"]

    assert (found["name"], found["version"], found["inference_count"], found["execution_count"]) == ("echo", "1", 3, 3)
    assert found["last_inference"] > 1.7e12
    assert found["inference_stats"]["success"] == {"count": 1, "ns": 500_000_000}
    assert found["inference_stats"]["fail"] == {"count": 1, "ns": 250_000_000}
    assert found["inference_stats"]["queue"] == {"count": 9, "ns": 900}
    assert [(row["batch_size"], row["compute_infer"]) for row in found["batch_stats"]] == [
        (1, {"count": 2, "ns": 2000}),
        (4, {"count": 1, "ns": 1000}),
    ]
    everything = await client.get_inference_statistics()
    assert [row["name"] for row in everything["model_stats"]] == ["echo", "tickets"]
    with pytest.raises(InferenceServerException, match="no route 'none'"):
        await client.get_inference_statistics("none")


async def test_the_repository_can_be_listed_and_not_changed(client: Any, plane: Plane) -> None:
    listed = await client.get_model_repository_index()
    plane.service.ready = False
    unready = await client.get_model_repository_index()

    assert listed == [{"name": name, "version": "1", "state": "READY"} for name in ("echo", "tickets")]
    assert [row["state"] for row in unready] == ["UNAVAILABLE", "UNAVAILABLE"]
    assert all(row["reason"] for row in unready)
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="the configuration says which are served") as refused:
            await change("echo")
        assert refused.value.status() == "501"


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        (b"", 200, ["echo", "tickets"]),
        (b'{"ready": false}', 200, ["echo", "tickets"]),
        (b'{"ready": true}', 200, []),
        (b'{"ready": 1}', 400, None),
        (b"[]", 400, None),
        (b" " * 5000, 413, None),
    ],
)
async def test_an_index_can_have_ready_models_alone(
    plane: Plane, body: bytes, status: int, names: list[str] | None
) -> None:
    plane.service.ready = False

    response = await plane.send("POST", "/v2/repository/index", body)

    assert response.status == status
    assert names is None or [row["name"] for row in orjson.loads(response.body)] == names


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [500, 50_000])
async def test_compressed_responses_are_understood(
    client: Any, address: str, algorithm: str, binary: bool, count: int
) -> None:
    sent = np.random.default_rng().integers(0, 9, (1, count)).astype(np.int64)

    def use() -> tuple[Any, Any]:
        sync = sync_http.InferenceServerClient(address)
        try:
            result = sync.infer("echo", *asked(sync_http), response_compression_algorithm=algorithm)
            return result.as_numpy("INT64"), result.get_response()["model_name"]
        finally:
            sync.close()

    def asked(module: Any) -> tuple[list[Any], str, list[Any]]:
        tensor = module.InferInput("INT64", sent.shape, "INT64")
        tensor.set_data_from_numpy(sent)
        return [tensor], "", [module.InferRequestedOutput("INT64", binary_data=binary)]

    result = await client.infer("echo", *asked(aio_http), response_compression_algorithm=algorithm)
    array, name = await asyncio.to_thread(use)

    assert result.as_numpy("INT64").tolist() == sent.tolist()
    assert array.tolist() == sent.tolist()
    assert name == "echo"
