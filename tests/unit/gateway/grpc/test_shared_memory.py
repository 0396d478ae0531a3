"""Shared memory over gRPC: regions, inputs and outputs in them, and whose they are."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Awaitable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.grpc_server import GrpcServer
from gateway.security import ApiKey, Authenticator, SecurityOptions
from gateway.shared_memory import SharedMemory, SharedMemoryOptions
from tests.unit.gateway.grpc.conftest import LIMITS, Exchanges
from tests.unit.gateway.scripted import ScriptedService

OURS, THEIRS = (("x-api-key", "ours"),), (("x-api-key", "theirs"),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "object").write_bytes(bytes(100))
    return tmp_path


@pytest.fixture
async def sharing(folder: Path, service: ScriptedService, exchanges: Exchanges) -> AsyncIterator[Any]:
    """A stub to a server that shares memory, with two tenants' keys."""
    keys = tuple(ApiKey(name, sha256(name.encode()).hexdigest(), tenant=name) for name in ("ours", "theirs"))
    memory = SharedMemory(SharedMemoryOptions(enabled=True), folder=folder)
    authenticator = Authenticator(SecurityOptions(keys))
    async with (
        GrpcServer(service, authenticator, exchanges, limits=LIMITS, memory=memory) as server,
        aio.insecure_channel(server.address) as channel,
    ):
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
async def stub(channel: Any) -> Any:
    """To a server that shares none."""
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


def a_registration(name: str = "r", **changes: Any) -> Any:
    return service_pb2.SystemSharedMemoryRegisterRequest(
        **{"name": name, "key": "/object", "offset": 16, "byte_size": 64} | changes
    )


def tensor(name: str, offset: int | None = None, size: int = 8, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, **more}
    if offset is not None:
        found["parameters"] = {
            "shared_memory_region": {"string_param": "r"},
            "shared_memory_offset": {"int64_param": offset},
            "shared_memory_byte_size": {"int64_param": size},
        }
    return found


def an_input(name: str, offset: int | None = None, size: int = 8, **more: Any) -> dict[str, Any]:
    return tensor(name, offset, size, datatype=name, shape=[1, 2], **more)


def a_request(*inputs: dict[str, Any], **more: Any) -> Any:
    return service_pb2.ModelInferRequest(model_name="echo", inputs=inputs, **more)


async def regions(stub: Any, metadata: Any, name: str = "") -> dict[str, Any]:
    reply = await stub.SystemSharedMemoryStatus(
        service_pb2.SystemSharedMemoryStatusRequest(name=name), metadata=metadata
    )
    return {name: (one.name, one.key, one.offset, one.byte_size) for name, one in reply.regions.items()}


async def test_a_region_lives_from_register_to_unregister(sharing: Any) -> None:
    await sharing.SystemSharedMemoryRegister(a_registration(), metadata=OURS)

    assert await regions(sharing, OURS) == await regions(sharing, OURS, "r") == {"r": ("r", "/object", 16, 64)}
    code, message = await refused(sharing.SystemSharedMemoryRegister(a_registration(), metadata=OURS))
    assert (code, "already in manager" in message) == (grpc.StatusCode.ALREADY_EXISTS, True)
    for name in ("r", ""):
        unregister = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        await sharing.SystemSharedMemoryUnregister(unregister, metadata=OURS)
        assert await regions(sharing, OURS) == {}
        await sharing.SystemSharedMemoryRegister(a_registration(), metadata=OURS)


async def test_regions_are_their_tenant_s(sharing: Any) -> None:
    await sharing.SystemSharedMemoryRegister(a_registration(), metadata=OURS)
    missing, forbidden = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED

    assert await regions(sharing, THEIRS) == {}
    status = service_pb2.SystemSharedMemoryStatusRequest(name="r")
    assert (await refused(sharing.SystemSharedMemoryStatus(status, metadata=THEIRS)))[0] is missing
    assert (await refused(sharing.ModelInfer(a_request(an_input("FP32", 0)), metadata=THEIRS)))[0] is missing
    assert (await refused(sharing.SystemSharedMemoryRegister(a_registration("s"), metadata=THEIRS)))[0] is forbidden


async def test_an_input_and_an_output_in_memory_leave_the_raw_contents_of_others_in_their_places(
    sharing: Any, folder: Path
) -> None:
    await sharing.SystemSharedMemoryRegister(a_registration(), metadata=OURS)
    with (folder / "object").open("r+b") as file:
        file.seek(16 + 8)
        file.write(struct.pack("<2f", 1, 2.5))
    request = a_request(
        an_input("INT8"), an_input("FP32", 8), an_input("INT16"),
        outputs=[tensor("INT8"), tensor("FP32", 32, 20), tensor("INT16")],
        raw_input_contents=[b"\1\2", b"\3\0\4\0"],
    )  # fmt: skip

    reply = await sharing.ModelInfer(request, metadata=OURS)

    assert [(one.name, list(one.shape), len(one.parameters)) for one in reply.outputs] == [
        ("INT8", [1, 2], 0), ("FP32", [1, 2], 0), ("INT16", [1, 2], 0),
    ]  # fmt: skip
    assert list(reply.raw_output_contents) == [b"\1\2", b"", b"\3\0\4\0"]
    assert (folder / "object").read_bytes()[48:56] == struct.pack("<2f", 1, 2.5)


async def test_typed_contents_stand_beside_memory(sharing: Any) -> None:
    await sharing.SystemSharedMemoryRegister(a_registration(), metadata=OURS)
    request = a_request(an_input("FP32", 0), an_input("INT64", contents={"int64_contents": [7, 8]}))

    reply = await sharing.ModelInfer(request, metadata=OURS)

    assert dict(zip([one.name for one in reply.outputs], reply.raw_output_contents, strict=True)) == {
        "FP32": bytes(8), "INT64": struct.pack("<2q", 7, 8),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (a_request(an_input("FP32", 0, contents={"fp32_contents": [1, 2]})), "send one of the two"),
        (a_request(an_input("FP32", 0), raw_input_contents=[bytes(8)]), "1 entries for 0 inputs"),
        (a_request(an_input("FP32", 60)), "8 bytes at offset 60 are beyond region 'r', which has 64"),
        (a_request(an_input("FP32", 2**63 - 1)), "beyond region"),
        (a_request(an_input("FP32", -1)), "shared_memory_offset -1"),
        (a_request(an_input("FP32", 0, 12)), "has 12 bytes"),
        (a_request(an_input("FP32", 0), outputs=[tensor("FP32", 0, 7)]), "takes 8 bytes, and its place .* has 7"),
        (a_request(an_input("FP32", 0), outputs=[tensor("FP32", 60, 8)]), "beyond region"),
    ],
)
async def test_a_tensor_that_cannot_be_in_memory_is_refused(sharing: Any, request_: Any, message: str) -> None:
    await sharing.SystemSharedMemoryRegister(a_registration(), metadata=OURS)

    code, details = await refused(sharing.ModelInfer(request_, metadata=OURS))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, details)


@pytest.mark.parametrize(("offset", "byte_size"), [(2**64 - 8, 16), (2**63, 2**63), (0, 101), (0, 0), (100, 1)])
async def test_a_region_beyond_its_object_is_refused(sharing: Any, offset: int, byte_size: int) -> None:
    registration = a_registration(offset=offset, byte_size=byte_size)

    code, _ = await refused(sharing.SystemSharedMemoryRegister(registration, metadata=OURS))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert await regions(sharing, OURS) == {}


async def test_off_refuses_to_register_and_has_nothing_else(stub: Any) -> None:
    code, message = await refused(stub.SystemSharedMemoryRegister(a_registration()))

    assert (code, "shared memory is off" in message) == (grpc.StatusCode.UNIMPLEMENTED, True)
    assert await regions(stub, None) == {}
    await stub.SystemSharedMemoryUnregister(service_pb2.SystemSharedMemoryUnregisterRequest())
    extensions = (await stub.ServerMetadata(service_pb2.ServerMetadataRequest())).extensions
    assert "system_shared_memory" not in extensions


async def test_cuda_memory_is_refused_and_there_is_none(sharing: Any) -> None:
    register = service_pb2.CudaSharedMemoryRegisterRequest(name="r", byte_size=8)
    code, message = await refused(sharing.CudaSharedMemoryRegister(register, metadata=OURS))
    assert (code, "use system shared memory" in message) == (grpc.StatusCode.UNIMPLEMENTED, True)

    status = service_pb2.CudaSharedMemoryStatusRequest()
    assert not (await sharing.CudaSharedMemoryStatus(status, metadata=OURS)).regions
    status.name = "r"
    assert (await refused(sharing.CudaSharedMemoryStatus(status, metadata=OURS)))[0] is grpc.StatusCode.NOT_FOUND
    await sharing.CudaSharedMemoryUnregister(service_pb2.CudaSharedMemoryUnregisterRequest(), metadata=OURS)
    extensions = (await sharing.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=OURS)).extensions
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions
