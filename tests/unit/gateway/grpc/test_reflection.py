"""Server reflection as grpcurl and its kind use it: raw calls of both versions, on both transports."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha

from gateway.grpc_server import GrpcServer
from pointsman_pb import reflection_pb2 as v1
from tests.unit.gateway.grpc.conftest import KEY

VERSIONS = (v1, v1alpha)
SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "pointsman.v1.Gateway",
]


async def ask(channel: Any, version: Any, *requests: Any, **how: Any) -> list[Any]:
    """The replies to *requests*, sent in one stream."""
    package = version.DESCRIPTOR.package
    stream = channel.stream_stream(
        f"/{package}.ServerReflection/ServerReflectionInfo",
        request_serializer=version.ServerReflectionRequest.SerializeToString,
        response_deserializer=version.ServerReflectionResponse.FromString,
    )(**how)
    for request in requests:
        await stream.write(request)
    await stream.done_writing()
    return [reply async for reply in stream]


def files_of(reply: Any) -> list[descriptor_pb2.FileDescriptorProto]:
    found = reply.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(data) for data in found]


@pytest.fixture(params=VERSIONS, ids=["v1", "v1alpha"])
def version(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_every_service_is_listed(channel: Any, version: Any) -> None:
    (reply,) = await ask(channel, version, version.ServerReflectionRequest(host="here", list_services=""))

    assert [service.name for service in reply.list_services_response.service] == SERVICES
    assert reply.valid_host == "here"
    assert reply.original_request.WhichOneof("message_request") == "list_services"


@pytest.mark.parametrize("symbol", [*SERVICES, "inference.ModelInferRequest.InferInputTensor"])
async def test_a_client_that_knows_nothing_can_build_what_a_symbol_needs(
    channel: Any, version: Any, symbol: str
) -> None:
    (reply,) = await ask(channel, version, version.ServerReflectionRequest(file_containing_symbol=symbol))

    pool = descriptor_pool.DescriptorPool()
    for file in reversed(files_of(reply)):
        pool.Add(file)
    assert pool.FindFileContainingSymbol(symbol).name == files_of(reply)[0].name


@pytest.mark.parametrize("symbol", ["inference.GRPCInferenceService.ModelInfer", "inference.ModelInferRequest.id"])
async def test_a_method_and_a_field_are_symbols_too(channel: Any, version: Any, symbol: str) -> None:
    (reply,) = await ask(channel, version, version.ServerReflectionRequest(file_containing_symbol=symbol))

    assert files_of(reply)[0].name == "grpc_service.proto"


async def test_a_file_is_found_by_its_name(channel: Any, version: Any) -> None:
    (reply,) = await ask(channel, version, version.ServerReflectionRequest(file_by_filename="grpc_service.proto"))

    assert [file.name for file in files_of(reply)] == ["grpc_service.proto", "model_config.proto"]


async def test_proto3_has_no_extensions(channel: Any, version: Any) -> None:
    request = version.ServerReflectionRequest(all_extension_numbers_of_type="inference.ModelInferRequest")

    (reply,) = await ask(channel, version, request)

    assert reply.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    assert list(reply.all_extension_numbers_response.extension_number) == []


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"file_containing_symbol": "inference.Nothing"}, grpc.StatusCode.NOT_FOUND),
        ({"file_containing_symbol": ""}, grpc.StatusCode.NOT_FOUND),
        ({"file_by_filename": "../etc/passwd"}, grpc.StatusCode.NOT_FOUND),
        ({"all_extension_numbers_of_type": "inference.Nothing"}, grpc.StatusCode.NOT_FOUND),
        (
            {"file_containing_extension": {"containing_type": "inference.ModelInferRequest", "extension_number": 7}},
            grpc.StatusCode.NOT_FOUND,
        ),
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_is_not_there_is_told_in_a_reply_and_the_stream_goes_on(
    channel: Any, version: Any, asked: dict[str, Any], code: grpc.StatusCode
) -> None:
    request = version.ServerReflectionRequest(**asked)

    refused, answered = await ask(channel, version, request, version.ServerReflectionRequest(list_services=""))

    assert refused.error_response.error_code == code.value[0]
    assert refused.error_response.error_message
    assert refused.original_request == request
    assert len(answered.list_services_response.service) == len(SERVICES)


async def test_files_of_this_process_that_describe_no_service_are_not_told(channel: Any, version: Any) -> None:
    """The twins of google.rpc.Status are loaded, and in the same pool."""
    request = version.ServerReflectionRequest(file_containing_symbol="pointsman.v1.RichError")

    (reply,) = await ask(channel, version, request)

    assert reply.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_replies_come_in_the_order_of_their_requests(channel: Any, version: Any) -> None:
    hosts = [str(number) for number in range(200)]

    replies = await ask(
        channel, version, *(version.ServerReflectionRequest(host=host, list_services="") for host in hosts)
    )

    assert [reply.valid_host for reply in replies] == hosts


async def test_what_is_no_message_leaves_the_stream_open(channel: Any, version: Any) -> None:
    stream = channel.stream_stream(f"/{version.DESCRIPTOR.package}.ServerReflection/ServerReflectionInfo")()
    await stream.write(b"\xff\xff")
    refused = version.ServerReflectionResponse.FromString(await stream.read())
    await stream.write(version.ServerReflectionRequest(list_services="").SerializeToString())
    answered = version.ServerReflectionResponse.FromString(await stream.read())
    await stream.done_writing()

    assert refused.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert len(answered.list_services_response.service) == len(SERVICES)


async def test_it_needs_a_key_as_other_metadata_does(locked: GrpcServer, version: Any) -> None:
    request = version.ServerReflectionRequest(list_services="")
    async with aio.insecure_channel(locked.address) as channel:
        with pytest.raises(aio.AioRpcError) as refused:
            await ask(channel, version, request)
        (reply,) = await ask(channel, version, request, metadata=(("x-api-key", KEY),))

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(reply.list_services_response.service) == len(SERVICES)


async def test_a_tool_that_stays_does_not_hold_up_the_end(server: GrpcServer, channel: Any, version: Any) -> None:
    stream = channel.stream_stream(f"/{version.DESCRIPTOR.package}.ServerReflection/ServerReflectionInfo")()
    await stream.write(version.ServerReflectionRequest(list_services="").SerializeToString())
    await stream.read()

    await asyncio.wait_for(server.drain(20.0), 10)

    assert await stream.code() is grpc.StatusCode.UNAVAILABLE
