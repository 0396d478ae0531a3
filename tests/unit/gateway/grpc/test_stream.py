"""ModelStreamInfer: one stream, many requests, each with a fate of its own."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.grpc.aio as aio_grpc
from grpc import aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from gateway.grpc_edge.calls import INLINE_BYTES, MAX_TALKING
from gateway.grpc_server import GrpcServer
from tests.unit.gateway.grpc.conftest import KEY, Exchanges
from tests.unit.gateway.scripted import ROUTES, ScriptedService

STREAM = "inference.GRPCInferenceService/ModelStreamInfer"


def an_input(client: Any, array: Any) -> Any:
    tensor = client.InferInput("FP32", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def a_request(request_id: str, script: str = "accept", **fields: Any) -> Any:
    parameters = {"script": {"string_param": script}, **fields.pop("parameters", {})}
    tensor = {"name": "FP32", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [float(request_id)]}}
    return service_pb2.ModelInferRequest(
        **{"model_name": "echo", "id": request_id, "inputs": [tensor], "parameters": parameters, **fields}
    )


@pytest.fixture
def stub(channel: Any) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def test_the_synchronous_client_talks_in_one_stream(server: GrpcServer) -> None:
    sent = {f"r-{i}": np.random.default_rng().normal(size=(2, 3)).astype(np.float32) for i in range(50)}

    def use() -> dict[str, Any]:
        replies: queue.Queue[Any] = queue.Queue()
        with sync_grpc.InferenceServerClient(server.address) as client:
            client.start_stream(lambda result, error: replies.put(error or result))
            for name, array in sent.items():
                client.async_stream_infer(
                    "echo", [an_input(sync_grpc, array)], request_id=name, enable_empty_final_response=True
                )
            client.async_stream_infer("none", [an_input(sync_grpc, array)])
            found = [replies.get(timeout=10) for _ in range(51)]
            client.async_stream_infer("echo", [an_input(sync_grpc, array)], request_id="after an error")
            found.append(replies.get(timeout=10))
            client.stop_stream()
        return {"error" if isinstance(one, InferenceServerException) else one.get_response().id: one for one in found}

    found = await asyncio.to_thread(use)

    assert found.keys() == {*sent, "error", "after an error"}
    assert "no route 'none'" in found["error"].message()
    for name, array in sent.items():
        assert found[name].as_numpy("FP32").tolist() == array.tolist()
        assert found[name].get_response().parameters["triton_final_response"].bool_param


async def test_the_asynchronous_client_talks_in_one_stream(server: GrpcServer, service: ScriptedService) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for i in range(3):
            array = np.full((1, 2), i, np.float32)
            yield {
                "model_name": "echo" if i != 1 else "none",
                "inputs": [an_input(aio_grpc, array)],
                "request_id": str(i),
                "enable_empty_final_response": True,
            }

    async with aio_grpc.InferenceServerClient(server.address) as client:
        found = [pair async for pair in client.stream_infer(requests())]

    assert sorted(result.get_response().id for result, error in found if error is None) == ["0", "2"]
    assert [str(error) for _, error in found if error is not None] == ["there is no route 'none' of version ''"]
    assert all(request.parameters == {} for request in service.requests)


async def test_replies_come_in_the_order_of_completion(stub: Any, service: ScriptedService) -> None:
    stream = stub.ModelStreamInfer()
    await stream.write(a_request("1", "hang"))
    await asyncio.wait_for(service.hanging.wait(), 2)
    await stream.write(a_request("2"))

    first = await asyncio.wait_for(stream.read(), 2)
    service.release.set()
    second = await asyncio.wait_for(stream.read(), 2)
    await stream.done_writing()

    assert (first.infer_response.id, second.infer_response.id) == ("2", "1")
    assert second.infer_response.raw_output_contents[0] == np.float32(1).tobytes()
    assert await stream.read() is aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


def a_step(request_id: str, sequence: int | str, script: str = "accept", **fields: Any) -> Any:
    kind = "int64_param" if isinstance(sequence, int) else "string_param"
    return a_request(request_id, script, parameters={"sequence_id": {kind: sequence}}, **fields)


async def test_steps_of_a_sequence_are_answered_in_their_order_and_hold_up_no_other(
    stub: Any, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than a stream has answered at once: they wait for the first, which waits for the other sequence."""
    monkeypatch.setitem(ROUTES, "echo", replace(ROUTES["echo"], sequence_idle_s=1.0))
    stream = stub.ModelStreamInfer()
    steps = [str(step) for step in range(2, 2 * MAX_TALKING)]
    await stream.write(a_step("1", 5, "hang"))
    for step in steps:
        await stream.write(a_step(step, 5))
    await stream.write(a_step("1000", 6))

    other = await asyncio.wait_for(stream.read(), 5)
    assert other.infer_response.id == "1000"
    service.release.set()
    found = [(await asyncio.wait_for(stream.read(), 5)).infer_response.id for _ in range(len(steps) + 1)]
    await stream.done_writing()

    assert found == ["1", *steps]
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_long_step_is_not_overtaken_by_a_short_one(
    stub: Any, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long messages are read in a thread, short ones where they arrive."""
    monkeypatch.setitem(ROUTES, "echo", replace(ROUTES["echo"], sequence_idle_s=1.0))
    stream = stub.ModelStreamInfer()
    count = INLINE_BYTES  # of elements
    long = {"name": "FP32", "datatype": "FP32", "shape": [1, count], "contents": {"fp32_contents": [0.0] * count}}
    for step in range(0, 20, 2):
        await stream.write(a_step(str(step), "a", inputs=[long]))
        await stream.write(a_step(str(step + 1), "a"))

    found = [(await asyncio.wait_for(stream.read(), 10)).infer_response.id for _ in range(20)]
    await stream.done_writing()

    assert found == [str(step) for step in range(20)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (a_request("7", "busy"), "the queue is full"),
        (a_request("7", inputs=[]), "has no inputs"),
        (a_request("7", parameters={"sequence_id": {"int64_param": -1}}), "sequence_id is -1"),
        (
            a_request("7", parameters={"triton_enable_empty_final_response": {"int64_param": 1}}),
            "can be true or false",
        ),
        (a_request("7", "bug"), "quote error id"),
    ],
)
async def test_a_bad_request_leaves_the_stream_open(stub: Any, bad: Any, message: str) -> None:
    stream = stub.ModelStreamInfer()
    await stream.write(bad)
    refused = await stream.read()
    await stream.write(a_request("8"))
    answered = await stream.read()
    await stream.done_writing()

    assert message in refused.error_message
    assert "shadow" not in refused.error_message
    assert refused.infer_response.id == "7"
    assert (answered.error_message, answered.infer_response.id) == ("", "8")
    assert await stream.code() is grpc.StatusCode.OK


async def test_what_is_no_message_leaves_the_stream_open(channel: Any) -> None:
    stream = channel.stream_stream(f"/{STREAM}")()
    await stream.write(b"\xff\xff")
    refused = service_pb2.ModelStreamInferResponse.FromString(await stream.read())
    await stream.write(a_request("8").SerializeToString())
    answered = service_pb2.ModelStreamInferResponse.FromString(await stream.read())
    await stream.done_writing()

    assert "the message is not a inference.ModelInferRequest" in refused.error_message
    assert answered.infer_response.id == "8"


async def test_no_more_requests_are_answered_at_a_time_than_is_allowed(stub: Any, service: ScriptedService) -> None:
    stream = stub.ModelStreamInfer()
    for i in range(MAX_TALKING + 10):
        await stream.write(a_request(str(i), "hang"))
    await stream.done_writing()
    async with asyncio.timeout(5):
        for _ in range(MAX_TALKING):
            await service.arrivals.get()
    service.release.set()

    found = {reply.infer_response.id async for reply in stream}

    assert service.most_at_once == MAX_TALKING
    assert found == {str(i) for i in range(MAX_TALKING + 10)}


async def test_a_cancelled_stream_cancels_its_requests(
    stub: Any, service: ScriptedService, exchanges: Exchanges
) -> None:
    stream = stub.ModelStreamInfer()
    await stream.write(a_request("1", "hang"))
    await asyncio.wait_for(service.hanging.wait(), 2)

    stream.cancel()
    await asyncio.wait_for(service.cancelled.wait(), 2)

    await asyncio.wait_for(exchanges.told.wait(), 2)
    assert (exchanges.seen[-1].method, exchanges.seen[-1].code) == (STREAM, grpc.StatusCode.CANCELLED)


async def test_the_streams_deadline_is_that_of_its_requests(stub: Any, service: ScriptedService) -> None:
    stream = stub.ModelStreamInfer(timeout=0.3)
    await stream.write(a_request("1", "hang"))

    with pytest.raises(aio.AioRpcError) as error:
        await stream.read()

    await asyncio.wait_for(service.cancelled.wait(), 2)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_draining_answers_what_was_read_and_ends_the_stream(
    server: GrpcServer, stub: Any, service: ScriptedService
) -> None:
    idle, busy = stub.ModelStreamInfer(), stub.ModelStreamInfer()
    await idle.write(a_request("0"))
    assert (await idle.read()).infer_response.id == "0"
    await busy.write(a_request("1", "hang"))
    await asyncio.wait_for(service.hanging.wait(), 2)

    draining = asyncio.create_task(server.drain(5.0))
    assert await asyncio.wait_for(idle.code(), 2) is grpc.StatusCode.UNAVAILABLE
    service.release.set()
    reply = await asyncio.wait_for(busy.read(), 2)
    code = await asyncio.wait_for(busy.code(), 2)

    await asyncio.wait_for(draining, 2)
    assert reply.infer_response.id == "1"
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_had_ended_when_draining_began_ends_well(
    server: GrpcServer, stub: Any, service: ScriptedService
) -> None:
    stream = stub.ModelStreamInfer()
    await stream.write(a_request("1", "hang"))
    await stream.done_writing()
    await asyncio.wait_for(service.hanging.wait(), 2)
    await stub.ServerLive(service_pb2.ServerLiveRequest())  # behind the stream's end, on the same connection

    draining = asyncio.create_task(server.drain(5.0))
    service.release.set()
    reply = await asyncio.wait_for(stream.read(), 2)

    assert reply.infer_response.id == "1"
    assert await asyncio.wait_for(stream.code(), 2) is grpc.StatusCode.OK
    await asyncio.wait_for(draining, 2)


async def test_a_stream_needs_a_key_where_every_call_does(locked: GrpcServer) -> None:
    async with aio.insecure_channel(locked.address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        without = stub.ModelStreamInfer()
        assert await without.code() is grpc.StatusCode.UNAUTHENTICATED
        stream = stub.ModelStreamInfer(metadata=(("x-api-key", KEY),))
        await stream.write(a_request("1"))
        assert (await stream.read()).infer_response.id == "1"
        stream.cancel()


async def test_an_idempotency_key_belongs_to_one_request(stub: Any) -> None:
    stream = stub.ModelStreamInfer(metadata=(("idempotency-key", "k"),))
    await stream.write(a_request("1"))

    assert "names one request, and a stream has many" in (await stream.read()).error_message
    stream.cancel()
