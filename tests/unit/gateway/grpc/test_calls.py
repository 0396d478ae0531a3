"""gRPC calls: bad input gets its exact status, and a refusal says what a client can act on."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backends.contract import NO_DEADLINE
from gateway.grpc_edge.calls import ANSWER_ID, DETAILS, Call
from gateway.grpc_edge.health import Health
from gateway.grpc_server import GrpcServer
from gateway.request import Caller
from gateway.security import Authenticator, SecurityOptions
from pointsman_pb import health_list_pb2, rich_error_pb2
from tests.unit.gateway.grpc.conftest import LIMITS, Exchanges
from tests.unit.gateway.scripted import ROUTES, ScriptedService

INFER = "/inference.GRPCInferenceService/ModelInfer"

RETRYING = (
    (
        "grpc.service_config",
        '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s",'
        ' "maxBackoff": "0.01s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}',
    ),
)
"""A channel that repeats what is UNAVAILABLE."""


def a_request(*inputs: dict[str, Any], **fields: Any) -> Any:
    found = inputs or ({"name": "FP32", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [1.5]}},)
    return service_pb2.ModelInferRequest(model_name=fields.pop("model_name", "echo"), inputs=found, **fields)


def scripted(script: str, **parameters: str) -> dict[str, Any]:
    return {name: {"string_param": value} for name, value in {"script": script, **parameters}.items()}


@pytest.fixture
def stub(channel: Any) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def refused(call: Any) -> aio.AioRpcError:
    """The error that *call* ends in."""
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return error.value


async def test_typed_contents_of_every_type_come_back_raw(stub: Any) -> None:
    cases: list[tuple[str, dict[str, Any], bytes]] = [
        ("BOOL", {"bool_contents": [True, False]}, b"\1\0"),
        ("INT8", {"int_contents": [-1, 2]}, b"\xff\x02"),
        ("INT16", {"int_contents": [-1, 2]}, struct.pack("<2h", -1, 2)),
        ("INT32", {"int_contents": [-1, 2]}, struct.pack("<2i", -1, 2)),
        ("INT64", {"int64_contents": [-1, 2**62]}, struct.pack("<2q", -1, 2**62)),
        ("UINT8", {"uint_contents": [255, 2]}, b"\xff\x02"),
        ("UINT16", {"uint_contents": [65535, 2]}, struct.pack("<2H", 65535, 2)),
        ("UINT32", {"uint_contents": [2**32 - 1, 2]}, struct.pack("<2I", 2**32 - 1, 2)),
        ("UINT64", {"uint64_contents": [2**64 - 1, 2]}, struct.pack("<2Q", 2**64 - 1, 2)),
        ("FP32", {"fp32_contents": [1.5, 2]}, struct.pack("<2f", 1.5, 2)),
        ("FP64", {"fp64_contents": [1.5, 2]}, struct.pack("<2d", 1.5, 2)),
        ("BYTES", {"bytes_contents": [b"a", b"\xff"]}, b"\1\0\0\0a\1\0\0\0\xff"),
    ]
    for datatype, contents, raw in cases:
        tensor = {"name": "x", "datatype": datatype, "shape": [1, 2], "contents": contents}

        reply = await stub.ModelInfer(a_request(tensor, id="7"))

        assert (reply.id, list(reply.raw_output_contents)) == ("7", [raw]), datatype
        assert not reply.outputs[0].HasField("contents")


def typed(datatype: str, shape: list[int], **contents: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "contents": contents}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (service_pb2.ModelInferRequest(model_name="echo"), "has no inputs"),
        (a_request(typed("FP32", [1], fp32_contents=[1]), typed("FP32", [1], fp32_contents=[1])), "'x' is there twice"),
        (a_request(typed("FP32", [2], fp32_contents=[1])), "has 1 elements where shape [2] needs 2"),
        (a_request(typed("FP32", [1], int_contents=[1])), "is FP32, but has int_contents; use fp32_contents"),
        (a_request(typed("FP32", [1], fp32_contents=[1], int_contents=[1])), "but has int_contents"),
        (a_request(typed("UINT8", [1], uint_contents=[300])), "element 300, which UINT8 cannot hold"),
        (a_request(typed("INT8", [1], int_contents=[-129])), "element -129, which INT8 cannot hold"),
        (a_request(typed("FP16", [1], fp32_contents=[1])), "FP16, which travels in raw_input_contents only"),
        (a_request(typed("BF16", [1], fp32_contents=[1])), "BF16, which travels in raw_input_contents only"),
        (a_request(typed("FP32", [-1], fp32_contents=[1])), "-1 in its shape"),
        (a_request(typed("FP32", [2**62, 2**62], fp32_contents=[1])), "more elements than any request can hold"),
        (a_request(typed("FP32", [1, 2**40], fp32_contents=[1])), "has 1 elements where shape"),
        (a_request(typed("FP32", [1] * 33, fp32_contents=[1])), "33 dimensions; at most 32"),
        (a_request(typed("FLOAT", [1], fp32_contents=[1])), "known datatypes"),
        (a_request({"name": "", "datatype": "FP32", "shape": [1]}), "a non-empty text is needed"),
        (a_request(typed("FP32", [1], fp32_contents=[1]), raw_input_contents=[b"\0" * 4]), "contents beside raw"),
        (
            a_request({"name": "x", "datatype": "FP32", "shape": [1]}, raw_input_contents=[b"\0" * 4, b""]),
            "raw_input_contents has 2 entries for 1 inputs",
        ),
        (
            a_request({"name": "x", "datatype": "FP32", "shape": [1]}, raw_input_contents=[b"\0" * 5]),
            "has 5 bytes; shape [1] of FP32 takes 4",
        ),
        (
            a_request({"name": "x", "datatype": "BYTES", "shape": [1]}, raw_input_contents=[b"\xff\xff\xff\xff"]),
            "claims 4294967295 bytes where 0 are left",
        ),
        (
            a_request({"name": "x", "datatype": "BOOL", "shape": [1]}, raw_input_contents=[b"\2"]),
            "neither 0 nor 1",
        ),
        (a_request(outputs=[{"name": "nothing"}]), "output 'nothing' is unknown"),
        (a_request(outputs=[{"name": "FP32"}, {"name": "FP32"}]), "output 'FP32' is there twice"),
        (
            a_request(outputs=[{"name": "FP32", "parameters": {"classification": {"string_param": "2"}}}]),
            "classification",
        ),
        (a_request(parameters={"a": {}}), "parameter 'a' has no value"),
        (
            a_request(parameters={str(i): {"bool_param": True} for i in range(257)}),
            "there are 257 parameters; at most 256",
        ),
        (a_request(parameters=scripted("x", **{"pointsman_" + "a" * 9000: ""})), "aaa… is unknown"),
        (a_request(outputs=[{"name": "a" * 9000}]), "name of 9000 characters; at most 255"),
        (a_request(*[typed("FP32", [1], fp32_contents=[1]) | {"name": "a" * 9000}] * 2), "name of 9000 characters"),
        (a_request(outputs=[{}] * 32_000), "an output has name ''"),
        (a_request(outputs=[{}] * 40_000), "more than 10000 fields; send tensors raw"),
        (a_request(parameters=scripted("x", pointsman_on_defer="maybe")), "'provisional' or 'error'"),
        (a_request(model_name=""), "names no model"),
        (a_request(model_name="../etc"), "names no model"),
        (a_request(model_name="a/../b"), "names no model"),
        (a_request(model_name="a" * 256), "names no model"),
        (a_request(model_name="a\tb"), "names no model"),
    ],
)
async def test_a_request_that_cannot_be_is_an_invalid_argument(
    stub: Any, service: ScriptedService, request_: Any, message: str
) -> None:
    error = await refused(stub.ModelInfer(request_))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (error.details() or "")
    assert service.requests == []


@pytest.mark.parametrize("datatype", ["INT8", "FP32"])
async def test_many_typed_numbers_come_back_as_few_do(stub: Any, datatype: str) -> None:
    numbers = np.arange(100_001) % 100
    field = "int_contents" if datatype == "INT8" else "fp32_contents"

    reply = await stub.ModelInfer(a_request(typed(datatype, [1, len(numbers)], **{field: numbers.tolist()})))

    dtype = np.int8 if datatype == "INT8" else np.float32
    np.testing.assert_array_equal(np.frombuffer(reply.raw_output_contents[0], dtype), numbers.astype(dtype))


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0b" * 5000, b"\x0a\xff\xff\xff\xff\x0f", b"\x80\x04]\x94."])
async def test_bytes_that_are_no_message_are_an_invalid_argument(channel: Any, data: bytes) -> None:
    error = await refused(channel.unary_unary(INFER)(data))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "the message is not a inference.ModelInferRequest"


async def test_a_message_beyond_the_limit_is_resource_exhausted(channel: Any, stub: Any) -> None:
    error = await refused(channel.unary_unary(INFER)(b"\0" * (LIMITS.message_bytes + 1)))

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.ModelInfer(a_request())).model_name == "echo"


@pytest.mark.parametrize("path", ["/nothing.Here/Call", "/inference.GRPCInferenceService/Nothing"])
async def test_a_method_that_does_not_exist_is_unimplemented(channel: Any, path: str) -> None:
    assert (await refused(channel.unary_unary(path)(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_that_is_not_served_says_which_are(stub: Any) -> None:
    unary = await refused(stub.TraceSetting(service_pb2.TraceSettingRequest()))

    assert unary.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "TraceSetting is not served here; ServerMetadata lists" in (unary.details() or "")


async def test_extensions_that_are_not_served_are_unimplemented(stub: Any) -> None:
    window = {"shared_memory_region": {"string_param": "r"}, "shared_memory_byte_size": {"int64_param": 4}}
    shared = {"name": "FP32", "datatype": "FP32", "shape": [1], "parameters": window}

    assert (await refused(stub.ModelInfer(a_request(shared)))).code() is grpc.StatusCode.UNIMPLEMENTED


def details(error: aio.AioRpcError) -> tuple[rich_error_pb2.RichError, dict[str, any_pb2.Any]]:
    """google.rpc.Status in the trailers, and its details by type."""
    metadata = error.trailing_metadata()
    assert metadata is not None
    status = rich_error_pb2.RichError.FromString(bytes(dict(metadata)[DETAILS]))
    return status, {detail.type_url.rpartition(".")[2]: detail for detail in status.details}


async def test_a_refusal_carries_its_reason_and_when_to_retry(stub: Any) -> None:
    error = await refused(stub.ModelInfer(a_request(parameters=scripted("busy"))))

    status, found = details(error)
    assert (status.code, status.message) == (grpc.StatusCode.UNAVAILABLE.value[0], "the queue is full")
    info = rich_error_pb2.ErrorInfo.FromString(found["ErrorInfo"].value)
    assert (info.reason, info.domain) == ("UNAVAILABLE", "pointsman")
    assert rich_error_pb2.RetryInfo.FromString(found["RetryInfo"].value).retry_delay.ToMilliseconds() == 2500
    assert found["RetryInfo"].type_url == "type.googleapis.com/google.rpc.RetryInfo"


async def test_a_deferred_request_that_asked_for_an_error_is_told_the_answers_id(
    stub: Any, service: ScriptedService
) -> None:
    error = await refused(stub.ModelInfer(a_request(parameters=scripted("defer", pointsman_on_defer="error"))))

    (answer_id,) = service.kept
    metadata = dict(error.trailing_metadata() or ())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert answer_id in (error.details() or "")
    assert metadata[ANSWER_ID] == answer_id
    info = rich_error_pb2.ErrorInfo.FromString(details(error)[1]["ErrorInfo"].value)
    assert info.metadata["answer_id"] == answer_id


async def test_a_refusal_is_retried_by_clients_that_are_told_to(service: ScriptedService, server: GrpcServer) -> None:
    async with aio.insecure_channel(server.address, options=RETRYING) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await refused(stub.ModelInfer(a_request(parameters=scripted("busy"))))

    assert len(service.requests) == 3


async def test_an_answer_that_waits_for_a_person_is_not_asked_for_twice(
    service: ScriptedService, server: GrpcServer
) -> None:
    """Each repetition without a key would be one more task for that person."""
    async with aio.insecure_channel(server.address, options=RETRYING) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        error = await refused(stub.ModelInfer(a_request(parameters=scripted("pending"))))

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert len(service.requests) == 1
    assert "RetryInfo" not in details(error)[1]


async def test_a_bug_is_internal_and_says_nothing_internal(stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "gateway.status")

    error = await refused(stub.ModelInfer(a_request(parameters=scripted("bug"))))

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "shadow" not in (error.details() or "")
    assert "quote error id" in (error.details() or "")


async def test_the_deadline_is_the_earlier_of_the_calls_and_the_parameters(stub: Any, service: ScriptedService) -> None:
    now = time.monotonic()
    await stub.ModelInfer(a_request())
    await stub.ModelInfer(a_request(), timeout=100)
    await stub.ModelInfer(a_request(parameters={"timeout": {"int64_param": 7_000_000}}), timeout=100)
    await stub.ModelInfer(a_request(), timeout=360_000)

    none, call, parameter, long = [request.deadline for request in service.requests]
    assert none == NO_DEADLINE
    assert 95 < call - now < 102
    assert 6 < parameter - now < 9
    assert long - now > 300_000


@pytest.mark.parametrize("timeout_s", [0, 0.001])
async def test_an_expired_call_reaches_no_model_or_is_cancelled(
    stub: Any, service: ScriptedService, timeout_s: float
) -> None:
    error = await refused(stub.ModelInfer(a_request(parameters=scripted("hang")), timeout=timeout_s))

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await stub.ModelInfer(a_request())).model_name == "echo"


async def test_a_cancelled_call_is_cancelled_all_the_way(
    stub: Any, service: ScriptedService, exchanges: Exchanges
) -> None:
    call = stub.ModelInfer(a_request(parameters=scripted("hang")))
    await asyncio.wait_for(asyncio.shield(service.hanging.wait()), 2)

    call.cancel()
    await asyncio.wait_for(service.cancelled.wait(), 2)

    assert (exchanges.seen[-1].method, exchanges.seen[-1].code) == (INFER[1:], grpc.StatusCode.CANCELLED)


async def test_whom_a_request_is_about_travels_as_metadata_or_as_a_parameter(
    stub: Any, service: ScriptedService
) -> None:
    await stub.ModelInfer(a_request(id="1"), metadata=(("pointsman-subject", "anna"),))
    named = a_request(id="2")
    named.parameters["pointsman_subject"].string_param = "bert"
    await stub.ModelInfer(named, metadata=(("pointsman-subject", "anna"),))

    assert [request.subject for request in service.requests] == ["anna", "bert"]
    assert all(not request.parameters for request in service.requests)


async def test_an_idempotency_key_travels_as_metadata(stub: Any, service: ScriptedService) -> None:
    await stub.ModelInfer(a_request(id="1"), metadata=(("idempotency-key", '"k"'),))
    await stub.ModelInfer(a_request(id="2"), metadata=(("idempotency-key", "k"),))

    first, second = service.requests
    assert (first.idempotency_key, second.idempotency_key) == ("k", "k")
    assert first.fingerprint == second.fingerprint != b""


async def test_an_id_is_a_key_where_the_route_says_so(
    stub: Any, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stub.ModelInfer(a_request(id="1"))
    monkeypatch.setitem(ROUTES, "echo", replace(ROUTES["echo"], id_as_key=True))
    await stub.ModelInfer(a_request(id="1"))
    await stub.ModelInfer(a_request(id="1"), metadata=(("idempotency-key", "k"),))

    assert [request.idempotency_key for request in service.requests] == [None, "1", "k"]


SERVICES = [
    "",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "pointsman.v1.Gateway",
]


async def states(channel: Any) -> dict[str, int]:
    """What health's List says, by service."""
    reply = await channel.unary_unary("/grpc.health.v1.Health/List")(b"")
    found = health_list_pb2.HealthListResponse.FromString(reply)
    return {service: state.status for service, state in found.statuses.items()}


async def test_health_is_told_for_the_server_and_its_services(channel: Any) -> None:
    health = health_pb2_grpc.HealthStub(channel)

    for name in SERVICES:
        assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == 1
    error = await refused(health.Check(health_pb2.HealthCheckRequest(service="nothing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert await states(channel) == dict.fromkeys(SERVICES, health_pb2.HealthCheckResponse.SERVING)


async def test_a_service_that_is_unknown_can_be_watched(channel: Any) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="nothing"))

    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    watch.cancel()


async def test_health_is_a_state_of_every_service_and_not_serving_once_it_drains() -> None:
    health = Health(["some.Service"])
    call = Call(Caller(), {}, NO_DEADLINE, 0)
    methods: Any = health.methods

    health.drain()

    listed = await methods["List"].answer(call, health_list_pb2.HealthListRequest())
    checked = await methods["Check"].answer(call, health_pb2.HealthCheckRequest(service="some.Service"))
    watched = [r.status async for r in methods["Watch"].answer(call, health_pb2.HealthCheckRequest(service="unknown"))]
    not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
    assert {name: state.status for name, state in listed.statuses.items()} == {
        "": not_serving,
        "some.Service": not_serving,
    }
    assert checked.status == not_serving
    assert watched == [health_pb2.HealthCheckResponse.SERVICE_UNKNOWN]


async def test_draining_says_not_serving_and_lets_calls_in_flight_finish(
    server: GrpcServer, channel: Any, service: ScriptedService
) -> None:
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    in_flight = stub.ModelInfer(a_request(parameters=scripted("hang")))
    await asyncio.wait_for(service.hanging.wait(), 2)

    draining = asyncio.create_task(server.drain(5.0))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await watch.read() is aio.EOF
    service.release.set()
    assert (await in_flight).model_name == "echo"
    await asyncio.wait_for(draining, 2)
    await server.drain(0.0)


async def test_a_port_in_use_is_told(server: GrpcServer, service: ScriptedService, exchanges: Exchanges) -> None:
    port = int(server.address.rpartition(":")[2])
    everybody = Authenticator(SecurityOptions())
    second = GrpcServer(service, everybody, exchanges, port=port, transport=server.transport)

    with pytest.raises(OSError, match="choose another port"):
        await second.__aenter__()


@pytest.mark.parametrize(
    ("parameters", "content_type", "own"),
    [
        ({}, "", {}),
        ({"content_type": {"string_param": "Image/PNG"}, "lang": {"string_param": "de"}}, "image/png", {"lang": "de"}),
    ],
)
async def test_rules_see_the_content_type_that_the_caller_states(
    stub: Any, service: ScriptedService, parameters: dict[str, Any], content_type: str, own: dict[str, str]
) -> None:
    await stub.ModelInfer(a_request(parameters=parameters))

    (request,) = service.requests
    assert (request.payload.content_type, request.parameters) == (content_type, own)


async def test_a_large_message_is_read_and_answered_beside_the_event_loop(
    stub: Any, done_in_threads: list[str]
) -> None:
    data = b"".join(struct.pack("<I", 20) + b"x" * 20 for _ in range(30_000))
    request = a_request({"name": "BYTES", "datatype": "BYTES", "shape": [1, 30_000]}, raw_input_contents=[data])

    reply = await stub.ModelInfer(request)
    await stub.ModelInfer(a_request())

    assert reply.raw_output_contents[0] == data
    assert done_in_threads == ["_parsed", "tensors", "render", "_fill"]
