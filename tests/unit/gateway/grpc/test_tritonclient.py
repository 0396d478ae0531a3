"""Triton's gRPC clients, unchanged, against a real server."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.grpc.aio as aio_grpc
from tritonclient.utils import InferenceServerException

from backends.contract import Datatype, HostArray
from gateway.grpc_server import GrpcServer
from gateway.oip.metadata import EXTENSIONS
from tests.unit.gateway.grpc.conftest import KEY
from tests.unit.gateway.scripted import ScriptedService

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
    "BYTES": np.array([[b"caf\xc3\xa9", b"", b"\xff\x00"]], object),
}


def an_input(client: Any, datatype: str) -> Any:
    tensor = client.InferInput(datatype, SAMPLES[datatype].shape, datatype)
    tensor.set_data_from_numpy(SAMPLES[datatype])
    return tensor


@pytest.fixture
async def client(server: GrpcServer) -> Any:
    async with aio_grpc.InferenceServerClient(server.address) as client:
        yield client


async def test_every_datatype_goes_both_ways(client: Any) -> None:
    assert set(SAMPLES) == set(Datatype.__members__)
    for datatype, sent in SAMPLES.items():
        wanted = [aio_grpc.InferRequestedOutput(datatype)]

        result = await client.infer("echo", [an_input(aio_grpc, datatype)], outputs=wanted, request_id="r-7")

        assert result.as_numpy(datatype).tolist() == sent.tolist(), datatype
        assert (result.get_response().id, result.get_response().model_name) == ("r-7", "echo")
        assert result.get_response().parameters["pointsman_status"].string_param == "final"


async def test_the_synchronous_client_works_unchanged(server: GrpcServer) -> None:
    def use() -> tuple[Any, ...]:
        done: list[Any] = []
        with sync_grpc.InferenceServerClient(server.address) as client:
            ready = threading.Event()

            def finished(result: Any, error: Any) -> None:
                done.append(error or result)
                ready.set()

            client.async_infer("echo", [an_input(sync_grpc, "INT64")], finished)
            ready.wait(10)
            return (
                client.is_server_live(),
                client.is_server_ready(),
                client.is_model_ready("echo"),
                client.get_server_metadata(as_json=True),
                client.get_model_metadata("tickets", as_json=True),
                client.infer("echo", [an_input(sync_grpc, "FP32"), an_input(sync_grpc, "BYTES")]),
                done[0],
            )

    live, ready, model_ready, server_says, model, result, later = await asyncio.to_thread(use)

    assert (live, ready, model_ready) == (True, True, True)
    assert server_says["name"] == "pointsman"
    assert server_says["extensions"] == list(EXTENSIONS)
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1", "1"]}]
    assert result.as_numpy("FP32").tolist() == SAMPLES["FP32"].tolist()
    assert result.as_numpy("BYTES").tolist() == SAMPLES["BYTES"].tolist()
    assert later.as_numpy("INT64").tolist() == SAMPLES["INT64"].tolist()


async def test_a_batch_says_every_rows_status(client: Any) -> None:
    tensor = aio_grpc.InferInput("FP32", [2, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[1], [2]], np.float32))

    result = await client.infer("echo", [tensor], parameters={"script": "defer-last"})

    told = result.get_response().parameters
    assert result.as_numpy("FP32").tolist() == [[1], [2]]
    assert told["pointsman_status"].string_param == "provisional"
    assert told["pointsman_confidence"].double_param == pytest.approx(0.8)
    rows = orjson.loads(told["pointsman_items"].string_param)
    assert [row["status"] for row in rows] == ["final", "provisional"]


async def test_parameters_of_every_type_arrive(client: Any, service: ScriptedService) -> None:
    own = {"text": "a", "flag": True, "number": -3, "share": 0.5}

    await client.infer("echo", [an_input(aio_grpc, "FP32")], parameters=own, priority=2)

    assert service.requests[0].parameters == own
    assert service.requests[0].priority == 2


async def test_an_error_reads_as_the_client_expects(client: Any) -> None:
    with pytest.raises(InferenceServerException) as refused:
        await client.infer("nowhere", [an_input(aio_grpc, "FP32")])

    assert refused.value.status() == "StatusCode.NOT_FOUND"
    assert refused.value.message() == "there is no route 'nowhere'"


async def test_a_key_is_asked_for_everywhere_but_in_health(locked: GrpcServer) -> None:
    async with aio_grpc.InferenceServerClient(locked.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        with pytest.raises(InferenceServerException) as refused:
            await client.infer("echo", [an_input(aio_grpc, "FP32")])
        for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
            await client.infer("echo", [an_input(aio_grpc, "FP32")], headers=headers)

    assert refused.value.status() == "StatusCode.UNAUTHENTICATED"


async def test_the_clients_timeout_is_the_deadline(client: Any, service: ScriptedService) -> None:
    with pytest.raises(InferenceServerException) as refused:
        await client.infer("echo", [an_input(aio_grpc, "FP32")], parameters={"script": "hang"}, client_timeout=0.2)

    await asyncio.wait_for(service.cancelled.wait(), 2)
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"


async def test_classification_gives_the_greatest_elements_with_their_labels(client: Any) -> None:
    sent = np.random.default_rng().normal(size=(5, 3)).astype(np.float32)
    tensor = aio_grpc.InferInput("FP32", sent.shape, "FP32")
    tensor.set_data_from_numpy(sent)

    result = await client.infer("echo", [tensor], outputs=[aio_grpc.InferRequestedOutput("FP32", class_count=2)])

    assert result.get_output("FP32").datatype == "BYTES"
    assert result.as_numpy("FP32").tolist() == [
        [f"{row[i]:f}:{i}:{('cat', 'dog', 'fox')[i]}".encode() for i in np.argsort(-row)[:2].tolist()] for row in sent
    ]


async def test_what_has_no_order_is_not_classified(client: Any, service: ScriptedService) -> None:
    wanted = [aio_grpc.InferRequestedOutput("BYTES", class_count=1)]

    with pytest.raises(InferenceServerException, match="classification takes numeric outputs only") as refused:
        await client.infer("echo", [an_input(aio_grpc, "BYTES")], outputs=wanted)

    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert service.requests == []


async def test_a_models_configuration_is_as_triton_writes_it(client: Any) -> None:
    config = (await client.get_model_config("tickets", "1", as_json=True))["config"]

    assert (config["name"], config["platform"], config["backend"]) == ("tickets", "pointsman", "pointsman")
    assert config["max_batch_size"] == 16
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == "2000"
    assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": ["1"]}]
    whole = (await client.get_model_config("echo")).config
    assert len(whole.input) == len(whole.output) == len(Datatype)
    assert all(tensor.data_type for tensor in whole.output)
    with pytest.raises(InferenceServerException, match="no route 'none'"):
        await client.get_model_config("none")


async def test_statistics_are_as_triton_writes_them(client: Any, service: ScriptedService) -> None:
    service.counters["echo"].ended(3, 0.5)
    service.counters["echo"].ended(0, 0.25)

    (found,) = (await client.get_inference_statistics("echo", "1")).model_stats

    assert (found.name, found.version, found.inference_count, found.execution_count) == ("echo", "1", 3, 3)
    assert found.last_inference > 1.7e12
    assert (found.inference_stats.success.count, found.inference_stats.success.ns) == (1, 500_000_000)
    assert (found.inference_stats.fail.count, found.inference_stats.fail.ns) == (1, 250_000_000)
    assert (found.inference_stats.queue.count, found.inference_stats.queue.ns) == (9, 900)
    assert [(row.batch_size, row.compute_infer.ns) for row in found.batch_stats] == [(1, 2000), (4, 1000)]
    everything = await client.get_inference_statistics()
    assert [row.name for row in everything.model_stats] == ["echo", "tickets"]
    with pytest.raises(InferenceServerException, match="no route 'none'"):
        await client.get_inference_statistics("none")


async def test_the_repository_can_be_listed_and_not_changed(client: Any, service: ScriptedService) -> None:
    listed = (await client.get_model_repository_index()).models
    service.ready = False
    unready = (await client.get_model_repository_index()).models

    assert [(row.name, row.version, row.state) for row in listed] == [("echo", "1", "READY"), ("tickets", "1", "READY")]
    assert [row.state for row in unready] == ["UNAVAILABLE", "UNAVAILABLE"]
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="the configuration says which are served") as refused:
            await change("echo")
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
