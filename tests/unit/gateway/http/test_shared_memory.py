"""Shared memory over HTTP: regions, inputs and outputs in them, and whose they are."""

from __future__ import annotations

import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.http.messages import HttpResponse
from gateway.security import ApiKey, SecurityOptions
from gateway.shared_memory import SharedMemory, SharedMemoryOptions
from tests.unit.gateway.http.conftest import Plane

SYSTEM = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"
INFER = "/v2/models/echo/infer"
A_REGION = {"key": "/object", "offset": 16, "byte_size": 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "object").write_bytes(bytes(100))
    return tmp_path


@pytest.fixture
async def sharing(folder: Path) -> Plane:
    """A plane that shares memory, with two tenants' keys."""
    keys = tuple(ApiKey(name, sha256(name.encode()).hexdigest(), tenant=name) for name in ("ours", "theirs"))
    memory = SharedMemory(SharedMemoryOptions(enabled=True), folder=folder)
    return Plane(options=SecurityOptions(keys), memory=memory)


async def send(
    plane: Plane, method: str, path: str, body: Any = b"", key: str = "ours", **headers: str
) -> HttpResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await plane.send(method, path, body, {"x-api-key": key, **named})


async def registered(plane: Plane, **changes: Any) -> HttpResponse:
    return await send(plane, "POST", f"{SYSTEM}/region/r/register", A_REGION | changes)


def at(offset: int, size: int, region: str = "r") -> dict[str, Any]:
    return {
        "shared_memory_region": region,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


def an_input(name: str = "FP32", **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [1, 2], "datatype": name, **changes}


def told(response: HttpResponse) -> Any:
    return orjson.loads(response.body)


async def test_a_region_lives_from_register_to_unregister(sharing: Plane) -> None:
    region = {"name": "r", **A_REGION}

    done = await registered(sharing)
    assert (done.status, done.body) == (200, b"")
    for path in (f"{SYSTEM}/status", f"{SYSTEM}/region/r/status"):
        assert told(await send(sharing, "GET", path)) == [region]
    again = await registered(sharing)
    assert (again.status, told(again)["error"]) == (
        409, "shared memory region 'r' already in manager; unregister it first",
    )  # fmt: skip

    done = await send(sharing, "POST", f"{SYSTEM}/region/r/unregister")
    assert (done.status, done.body) == (200, b"")
    assert told(await send(sharing, "GET", f"{SYSTEM}/status")) == []
    assert (await send(sharing, "GET", f"{SYSTEM}/region/r/status")).status == 404
    await registered(sharing)
    assert (await send(sharing, "POST", f"{SYSTEM}/unregister")).status == 200
    assert told(await send(sharing, "GET", f"{SYSTEM}/status")) == []


async def test_regions_are_their_tenant_s(sharing: Plane) -> None:
    await registered(sharing)

    assert told(await send(sharing, "GET", f"{SYSTEM}/status", key="theirs")) == []
    assert (await send(sharing, "GET", f"{SYSTEM}/region/r/status", key="theirs")).status == 404
    body = {"inputs": [an_input(parameters=at(0, 8))]}
    assert (await send(sharing, "POST", INFER, body, key="theirs")).status == 404
    assert (await send(sharing, "POST", f"{SYSTEM}/region/r/register", A_REGION, key="theirs")).status == 403
    assert (await send(sharing, "POST", f"{SYSTEM}/unregister", key="theirs")).status == 200
    assert (await send(sharing, "GET", f"{SYSTEM}/region/r/status")).status == 200
    assert (await sharing.send("GET", f"{SYSTEM}/status")).status == 401


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "must be a JSON object with 'key' and 'byte_size'"),
        ({"byte_size": 8}, "'key' is None"),
        ({"key": 7, "byte_size": 8}, "'key' is 7"),
        ({"key": "/object"}, "'byte_size' None"),
        ({"key": "/object", "byte_size": "8"}, "'byte_size' '8'"),
        ({"key": "/object", "byte_size": True}, "'byte_size' True"),
        ({"key": "/object", "byte_size": 8, "offset": 1.5}, "'offset' is 1.5"),
        ({"key": "/object", "byte_size": 8, "offset": -1}, "offset -1"),
        ({"key": "/object", "byte_size": 0}, "byte_size 0"),
        ({"key": "/object", "byte_size": 101}, "101 bytes at offset 0, but the object '/object' has 100"),
        ({"key": "/object", "byte_size": 2**63, "offset": 2**63}, "has 100 in all"),
        ({"key": "///object", "byte_size": 8}, "names no shared memory object"),
        (b"{", "JSON"),
    ],
)
async def test_a_registration_that_cannot_be_is_400(sharing: Plane, body: Any, message: str) -> None:
    response = await send(sharing, "POST", f"{SYSTEM}/region/r/register", body)

    assert response.status == 400
    assert message in told(response)["error"]


async def test_a_long_registration_is_413(sharing: Plane) -> None:
    assert (await registered(sharing, more="x" * 5000)).status == 413


async def test_inputs_and_outputs_in_memory_are_not_in_the_messages(sharing: Plane, folder: Path) -> None:
    await registered(sharing)
    with (folder / "object").open("r+b") as file:
        file.seek(16 + 8)
        file.write(struct.pack("<2f", 1, 2.5))
    body = {
        "inputs": [an_input(parameters=at(8, 8)), an_input("INT8", data=[3, 4])],
        "outputs": [{"name": "FP32", "parameters": at(32, 20)}, {"name": "INT8"}],
    }

    response = await send(sharing, "POST", INFER, body)

    placed, plain = told(response)["outputs"]
    assert placed == {"name": "FP32", "datatype": "FP32", "shape": [1, 2]}
    assert plain["data"] == [3, 4]
    assert (folder / "object").read_bytes()[48:56] == struct.pack("<2f", 1, 2.5)


async def test_binary_data_stands_beside_memory(sharing: Plane, folder: Path) -> None:
    await registered(sharing)
    head = orjson.dumps(
        {
            "inputs": [
                an_input(parameters=at(0, 8)),
                an_input("INT8", parameters={"binary_data_size": 2}),
            ],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "INT8", "parameters": at(16, 2)}, {"name": "FP32"}],
        }
    )

    response = await send(sharing, "POST", INFER, head + b"\5\6", inference_header_content_length=str(len(head)))

    length = int(dict(response.headers)["inference-header-content-length"])
    assert response.body[length:] == bytes(8)
    assert [output.get("parameters") for output in orjson.loads(response.body[:length])["outputs"]] == [
        None, {"binary_data_size": 8},
    ]  # fmt: skip
    assert (folder / "object").read_bytes()[32:34] == b"\5\6"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"inputs": [an_input(parameters=at(0, 8), data=[1, 2])]}, 400, "needs either data or"),
        ({"inputs": [an_input(parameters=at(0, 8) | {"binary_data_size": 8})]}, 400, "send one of the two"),
        ({"inputs": [an_input(parameters={"shared_memory_region": "r"})]}, 400, "shared_memory_byte_size None"),
        ({"inputs": [an_input(parameters=at(60, 8))]}, 400, "8 bytes at offset 60 are beyond region 'r', which has 64"),
        ({"inputs": [an_input(parameters=at(0, 12))]}, 400, "has 12 bytes"),
        ({"inputs": [an_input(parameters=at(0, 8, "s"))]}, 404, "no shared memory region 's'"),
        ({"inputs": [an_input(data=[1, 2])], "outputs": [{"name": "FP32", "parameters": at(60, 8)}]}, 400, "beyond"),
        (
            {"inputs": [an_input(data=[1, 2])], "outputs": [{"name": "FP32", "parameters": at(0, 7)}]},
            400,
            "output 'FP32' takes 8 bytes, and its place in shared memory has 7",
        ),
        (
            {"inputs": [an_input(data=[1, 2])], "outputs": [{"name": "FP9", "parameters": at(0, 8)}]},
            400,
            "output 'FP9' is unknown",
        ),
        (
            {
                "inputs": [an_input(data=[1, 2])],
                "outputs": [{"name": "FP32", "parameters": at(0, 8) | {"classification": 1}}],
            },
            400,
            "cannot be told by its classes in shared memory",
        ),
        (
            {
                "inputs": [an_input(data=[1, 2])],
                "outputs": [{"name": "FP32", "parameters": at(0, 8) | {"binary_data": True}}],
            },
            400,
            "output 'FP32' has binary_data, and a place in shared memory",
        ),
    ],
)
async def test_a_tensor_that_cannot_be_in_memory_is_refused(
    sharing: Plane, body: Any, status: int, message: str
) -> None:
    await registered(sharing)

    response = await send(sharing, "POST", INFER, body)

    assert (response.status, message in told(response)["error"]) == (status, True), response.body


async def test_extensions_name_what_is_on(plane: Plane, sharing: Plane) -> None:
    off, on = told(await plane.send("GET", "/v2")), told(await send(sharing, "GET", "/v2"))

    assert set(on["extensions"]) - set(off["extensions"]) == {"system_shared_memory"}


async def test_off_refuses_to_register_and_has_nothing_else(plane: Plane) -> None:
    refused = await plane.send("POST", f"{SYSTEM}/region/r/register", A_REGION)

    assert refused.status == 501
    assert "set `server: {shared_memory: {enabled: true}}`" in told(refused)["error"]
    assert told(await plane.send("GET", f"{SYSTEM}/status")) == []
    assert (await plane.send("POST", f"{SYSTEM}/unregister")).status == 200
    assert (await plane.send("GET", f"{SYSTEM}/region/r/status")).status == 404


async def test_cuda_memory_is_refused_and_there_is_none(sharing: Plane) -> None:
    refused = await send(sharing, "POST", f"{CUDA}/region/r/register", {"raw_handle": {"b64": ""}, "byte_size": 8})

    assert refused.status == 501
    assert "use system shared memory" in told(refused)["error"]
    assert told(await send(sharing, "GET", f"{CUDA}/status")) == []
    assert (await send(sharing, "GET", f"{CUDA}/region/r/status")).status == 404
    for path in (f"{CUDA}/unregister", f"{CUDA}/region/r/unregister"):
        assert (await send(sharing, "POST", path)).status == 200
