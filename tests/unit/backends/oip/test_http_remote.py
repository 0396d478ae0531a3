"""A server over HTTP, which answers what a test says: every status, and every way in which an answer can be none."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from typing import Any

import numpy as np
import orjson
import pytest

from backends.contract import Batch, Datatype, Deadline, SharedMemoryWindow, State, Tensor
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PointsmanError,
    ReplicaFailed,
    SequenceOver,
    Unavailable,
)
from backends.http_client import HttpClient
from backends.oip.http_remote import HttpRemote
from backends.oip.options import ServerOptions, remote_of
from backends.oip.remote import InferCall, ServerSaid
from tests.unit.backends.oip.scripted import (
    NEVER,
    SECRET,
    Request,
    call_of,
    error,
    http,
    over_http,
    served,
)

Y = np.arange(6, dtype=np.float32).reshape(2, 3) * 2
NO_BINARY = http(200, b'{"name": "some", "version": "1", "extensions": []}')


def output(**changes: Any) -> dict[str, Any]:
    """The right output, but for *changes*; None leaves a member out."""
    whole = {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": Y.ravel().tolist(), **changes}
    return {name: value for name, value in whole.items() if value is not None}


def answer(*outputs: Any, **changes: Any) -> bytes:
    """An answer in JSON."""
    return http(200, json.dumps({"model_name": "dbl", "outputs": outputs or [output()], **changes}).encode())


def binary(tail: bytes, *outputs: Any, end: str | None = None) -> bytes:
    """An answer with *tail* behind its JSON, which ends where *end* says, or where it does."""
    head = json.dumps({"outputs": outputs}).encode()
    return http(200, head + tail, Inference_Header_Content_Length=end or len(head))


def sized(size: Any, **changes: Any) -> dict[str, Any]:
    return output(data=None, parameters={"binary_data_size": size}, **changes)


# --- the table of statuses ---

STATUSES = [
    (error(400), InvalidInput),
    (error(422), InvalidInput),
    (http(422, json.dumps({"detail": [{"msg": SECRET}]}).encode()), InvalidInput),
    (error(401), ReplicaFailed),
    (error(403), ReplicaFailed),
    (error(404), ReplicaFailed),
    (error(408), ReplicaFailed),
    (error(409), ReplicaFailed),
    (error(409, f"{SECRET}: sequence 7 of model 'm' is over: its state is lost, or nobody knows"), SequenceOver),
    (error(413), BackendFailed),
    (error(429), Overloaded),
    (error(500), BackendFailed),
    (http(500, SECRET.encode()), BackendFailed),
    (error(501), ReplicaFailed),
    (error(502), BackendFailed),
    (http(502, f"<html>{SECRET}</html>".encode()), ReplicaFailed),
    (error(503), ReplicaFailed),
    (http(503), ReplicaFailed),
    (error(503, f"{SECRET}: Exceeds maximum queue size"), Overloaded),
    (error(503, f"{SECRET}: the models of route 'words' are overloaded; try again"), Overloaded),
    (error(503, pointsman_answer_id="an-id"), Unavailable),
    (error(503, f"{SECRET}: it has no person to ask"), Unavailable),
    (http(504, f"<html>{SECRET}</html>".encode()), ReplicaFailed),
    (error(418), ReplicaFailed),
    (http(302, SECRET.encode(), Location="http://elsewhere"), ReplicaFailed),
    (http(204), ReplicaFailed),
]


@pytest.mark.parametrize(("reply", "expected"), STATUSES, ids=map(str, range(len(STATUSES))))
async def test_a_status_is_an_error_that_names_the_model_and_nothing_else(
    reply: bytes, expected: type[PointsmanError]
) -> None:
    async with over_http(reply) as (remote, server):
        with pytest.raises(PointsmanError) as raised:
            await remote.infer(call_of(), NEVER)

    assert type(raised.value) is expected
    message, cause = str(raised.value), raised.value.__cause__
    assert "model 'mine'" in message
    assert SECRET not in message
    assert server.address.rpartition(":")[2] not in message
    assert isinstance(cause, ServerSaid)
    assert reply.split()[1].decode() in str(cause)
    assert SECRET in str(cause) or SECRET.encode() not in reply


@pytest.mark.parametrize("reply", [error(503, "Request timeout expired"), error(504)])
async def test_a_server_that_ran_out_of_time_is_late(reply: bytes) -> None:
    async with over_http(reply) as (remote, _):
        with pytest.raises(DeadlineExceeded, match="'mine'") as raised:
            await remote.infer(call_of(), NEVER)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("stated", "expected"), [("7", 7.0), ("0", 0.0), ("-1", None), ("soon", None), ("9999999", None)]
)
async def test_when_to_try_again_is_passed_on_where_it_makes_sense(stated: str, expected: float | None) -> None:
    async with over_http(error(429, Retry_After=stated)) as (remote, _):
        with pytest.raises(Overloaded) as raised:
            await remote.infer(call_of(), NEVER)
    assert raised.value.retry_after_s == expected


@pytest.mark.parametrize("status", [404, 501])
async def test_what_a_server_has_not_is_told_when_it_is_asked_what_it_has(status: int) -> None:
    async with over_http(error(status, "Model versioning not supported yet.")) as (remote, _):
        for asking in (remote.model("dbl", "7", NEVER), remote.config("dbl", "7", NEVER), remote.models(NEVER)):
            with pytest.raises(NotFound, match=r"the server has no /v2/.*: Model versioning not supported yet\."):
                await asking


@pytest.mark.parametrize("reply", [error(400), error(404), error(503), http(204)])
async def test_a_server_is_ready_when_it_says_200_and_only_then(reply: bytes) -> None:
    async with over_http(http(200), reply) as (remote, _):
        assert [await remote.is_ready("dbl", "1", NEVER) for _ in range(2)] == [True, False]


# --- answers that are none ---


@pytest.mark.parametrize(
    "reply",
    [
        http(200),
        http(200, b"\xff"),
        http(200, b"null"),
        http(200, b"[]"),
        http(200, b"[" * 5000),
        http(200, b'{"outputs": null}'),
        http(200, b'{"outputs": ["y"]}'),
        answer(output(name=None)),
        answer(output(name=7)),
        answer(output(name="")),
        answer(output(datatype="FP8")),
        answer(output(datatype=None)),
        answer(output(shape=None)),
        answer(output(shape=6)),
        answer(output(shape=[-1, 3])),
        answer(output(shape=["a"])),
        answer(output(shape=[2, None])),
        answer(output(shape=[3, 3])),
        answer(output(shape=[0, 10**30], data=[])),
        answer(output(data=None)),
        answer(output(data="text")),
        answer(output(data=[1, 2, 3, 4, 5, "6"])),
        answer(output(data=[1, 2, 3, 4, 5, True])),
        answer(output(data=[[1, 2, 3], [4, 5]])),
        answer(output(data=[[[[1]]]])),
        answer(output(data=[1, 2, 3, 4, 5, 1e39])),
        answer(output(data=[None] * 5)),
        answer(output(data=[None, None, None, None, None, "nan"])),
        answer(output(datatype="INT32", data=[None] * 6)),
        answer(output(), output()),
        answer(output(parameters=[1])),
        binary(Y.tobytes(), sized(25)),
        binary(Y.tobytes(), sized(23)),
        binary(Y.tobytes(), sized(-24)),
        binary(Y.tobytes(), sized("24")),
        binary(Y.tobytes(), sized(True)),
        binary(Y.tobytes(), sized(10**30)),
        binary(Y.tobytes() + b"x", sized(24)),
        binary(Y.tobytes(), sized(24, shape=[2, 4])),
        binary(Y.tobytes(), sized(24), sized(24)),
        binary(Y.tobytes(), sized(24), end="0"),
        binary(Y.tobytes(), sized(24), end="-24"),
        binary(Y.tobytes(), sized(24), end="99999"),
        binary(Y.tobytes(), sized(24), end="ten"),
        binary(b"", sized(0, shape=[0, 10**30])),
        binary(b"\x09\x00\x00\x00short", sized(9, datatype="BYTES", shape=[1, 1])),
        binary(b"\x02", sized(1, datatype="BOOL", shape=[1, 1])),
    ],
)
async def test_a_malformed_answer_is_nonsense_and_reaches_nobody(reply: bytes) -> None:
    async with over_http(reply) as (remote, _):
        with pytest.raises(
            ReplicaFailed, match="model 'mine': its server gave an answer that makes no sense"
        ) as raised:
            await remote.infer(call_of(), NEVER)
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (http(200, b'{"outputs": []}'), "output 'y' is missing"),
        (answer(output(name="z")), "output 'y' is missing"),
        (answer(output(datatype="FP64")), "datatype FP64; expected FP32"),
        (answer(output(shape=[2, 3, 1])), r"shape \[2, 3, 1\]; expected \[-1, 3\]"),
        (answer(output(shape=[1, 3], data=[1, 2, 3])), r"shape \[1, 3\] for a batch of 2"),
        (answer(id="another"), "is that to 'another'"),
        (answer(model_version="8"), "version '8' answered in place of '7'"),
    ],
)
async def test_an_answer_to_something_else_is_nonsense(reply: bytes, told: str) -> None:
    async with over_http(reply) as (remote, _):
        backend = served(remote, version="7")
        with pytest.raises(ReplicaFailed, match="makes no sense") as raised:
            await backend.infer(Batch(call_of().inputs, 2), NEVER)
    assert raised.match("mine")
    with pytest.raises(ServerSaid, match=told):
        raise raised.value.__cause__ or AssertionError("it has no cause")


async def test_another_versions_answer_is_the_end_of_the_backend() -> None:
    async with over_http(answer(model_version="8")) as (remote, _):
        backend = served(remote, version="7")
        for _ in range(2):
            with pytest.raises(ReplicaFailed):
                await backend.infer(Batch(call_of().inputs, 2), NEVER)
        assert backend.state is State.FAILED


@pytest.mark.parametrize(
    "reply",
    [
        answer(),
        answer(output(data=Y.tolist())),
        answer(id=None, model_version=None, parameters=None),
        answer(output(parameters=None), output(name="more", shape=[1], data=[1])),
        binary(Y.tobytes(), sized(24)),
        binary(b"x" + Y.tobytes(), sized(1, name="odd", datatype="UINT8", shape=[1]), sized(24)),
        binary(Y.tobytes(), output(name="json"), sized(24)),
    ],
)
async def test_every_form_of_an_answer_is_read(reply: bytes) -> None:
    async with over_http(reply) as (remote, _):
        outputs = (await remote.infer(call_of(), NEVER)).outputs

    np.testing.assert_array_equal(outputs["y"].numpy(), Y)


@pytest.mark.parametrize("datatype", [Datatype.FP16, Datatype.FP32, Datatype.FP64])
@pytest.mark.parametrize("data", [[1.5, None, 3, 4, 5, None], [[1.5, None, 3], [4, 5, None]]])
async def test_null_among_floats_is_nan(datatype: Datatype, data: Any) -> None:
    async with over_http(answer(output(datatype=datatype, data=data))) as (remote, _):
        y = (await remote.infer(call_of(), NEVER)).outputs["y"].numpy()

    assert y.dtype == datatype.numpy
    np.testing.assert_array_equal(y, [[1.5, math.nan, 3], [4, 5, math.nan]])


async def test_null_is_nan_in_outputs_of_many_elements_too() -> None:
    data = [None if i % 7 == 0 else i for i in range(70_000)]
    async with over_http(answer(output(shape=[2, 35_000], data=data))) as (remote, _):
        y = (await remote.infer(call_of(), NEVER)).outputs["y"].numpy().ravel()

    assert np.isnan(y[::7]).all()
    assert y[1:7].tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isnan(y).sum() == 10_000


async def test_outputs_in_shared_memory_are_where_they_were_wanted() -> None:
    place = SharedMemoryWindow("region", 64, 100)
    call = InferCall("dbl", "", "id-1", call_of().inputs, {}, {"y": place})
    async with over_http(answer(output(data=None)), answer(output(data=None, shape=[9, 3]))) as (remote, _):
        found = (await remote.infer(call, NEVER)).outputs["y"]
        with pytest.raises(ReplicaFailed, match="makes no sense"):
            await remote.infer(call, NEVER)

    assert found.data == SharedMemoryWindow("region", 64, 24)


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"{}",
        b'{"inputs": [], "outputs": null}',
        b'{"inputs": [{"name": "x"}], "outputs": []}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": 3}], "outputs": []}',
        b'{"inputs": [{"name": "x", "datatype": "FP99", "shape": [3]}], "outputs": []}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [null]}], "outputs": []}',
        b'{"inputs": ["x"], "outputs": []}',
        b'{"inputs": [], "outputs": [], "versions": 7}',
    ],
)
async def test_metadata_that_are_none_are_nonsense(body: bytes) -> None:
    async with over_http(http(200, body)) as (remote, _):
        with pytest.raises(ReplicaFailed, match="makes no sense"):
            await remote.model("dbl", "", NEVER)


@pytest.mark.parametrize("body", [b"null", b'"text"', b'{"name": "dbl"}', b"[7]", b'[{"version": "1"}]', b"no JSON"])
async def test_an_index_that_is_none_is_nonsense(body: bytes) -> None:
    async with over_http(http(200, body)) as (remote, _):
        with pytest.raises(ReplicaFailed, match="makes no sense"):
            await remote.models(NEVER)


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"extensions": "all"}', b'{"extensions": [7]}'])
async def test_what_a_server_says_of_itself_may_be_nonsense(body: bytes) -> None:
    async with over_http(http(200, body)) as (remote, _):
        with pytest.raises(ReplicaFailed, match="makes no sense"):
            await remote.about(NEVER)


# --- what is sent ---


async def test_tensors_go_behind_the_json_and_are_asked_for_there() -> None:
    async with over_http(binary(Y.tobytes(), sized(24))) as (remote, server):
        await remote.infer(call_of(version="7"), NEVER)

    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v2/models/dbl/versions/7/infer")
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.json() == {
        "id": "id-1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}],
        "parameters": {"binary_data_output": True},
    }
    assert request.body.endswith(call_of().inputs["x"].numpy().tobytes())


async def test_a_server_without_the_extension_gets_json() -> None:
    async with over_http(NO_BINARY, answer()) as (remote, server):
        await remote.about(NEVER)
        await remote.infer(call_of(), NEVER)

    request = server.requests[1]
    assert request.headers["content-type"] == "application/json"
    assert request.json() == {
        "id": "id-1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}],
        "parameters": {},
    }


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor.of(np.array([[math.nan]], np.float32)),
        Tensor.of(np.array([[math.inf]], np.float64)),
        Tensor.of(np.array([[1]], np.uint16), Datatype.BF16),
        Tensor(Datatype.BYTES, (1, 1), np.array([[b"\xff"]], object)),
    ],
)
async def test_what_json_cannot_carry_is_refused_and_not_sent(tensor: Tensor) -> None:
    async with over_http(NO_BINARY, answer()) as (remote, server):
        await remote.about(NEVER)
        with pytest.raises(InvalidInput, match="'x'"):
            await remote.infer(InferCall("dbl", "", "1", {"x": tensor}, {}, {}), NEVER)
        assert len(server.requests) == 1


# --- calls that end early ---


def silent(request: Request) -> None:
    """No word."""


async def test_a_cancelled_call_ends_at_the_server() -> None:
    async with over_http(silent) as (remote, server):
        call = asyncio.ensure_future(remote.infer(call_of(), NEVER))
        await server.came.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(server.left.wait(), 5)


async def test_a_call_past_its_deadline_ends_at_the_server() -> None:
    async with over_http(silent) as (remote, server):
        with pytest.raises(DeadlineExceeded, match="'mine'"):
            await remote.infer(call_of(), Deadline(time.monotonic() + 0.05))
        await asyncio.wait_for(server.left.wait(), 5)


def hanging_up(request: Request) -> None:
    raise ConnectionResetError


async def test_a_server_that_hangs_up_has_failed() -> None:
    async with over_http(hanging_up) as (remote, _):
        with pytest.raises(ReplicaFailed, match="model 'mine': its server hung up") as raised:
            await remote.infer(call_of(), NEVER)
    assert raised.value.__cause__ is not None


async def test_closing_ends_the_calls_that_go_on() -> None:
    async with over_http(silent) as (remote, server):
        call = asyncio.ensure_future(remote.infer(call_of(), NEVER))
        await server.came.wait()
        await remote.aclose()
        with pytest.raises(ReplicaFailed, match="'mine'"):
            await call


async def test_a_server_that_is_not_there_cannot_be_reached() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        remote = HttpRemote("mine", HttpClient("127.0.0.1", port, authority="x"))
        with pytest.raises(ReplicaFailed, match="model 'mine': its server cannot be reached") as raised:
            await remote.infer(call_of(), NEVER)
    assert str(port) not in str(raised.value)
    assert raised.value.__cause__ is not None


async def test_bytes_that_are_no_http_are_nonsense() -> None:
    async with over_http(b"SSH-2.0-OpenSSH\r\n\r\n") as (remote, _):
        with pytest.raises(ReplicaFailed, match="makes no sense"):
            await remote.infer(call_of(), NEVER)


async def test_an_answer_larger_than_is_allowed_is_no_server_s_fault() -> None:
    """Another would say as much, and half of the batch may be answered."""
    async with over_http(lambda _: http(200, b" " * 5000)) as (_, server):
        options = ServerOptions(f"http://{server.address}", max_reply_bytes=1000)
        remote = remote_of("mine", options.urls[0], options)
        with pytest.raises(BackendFailed, match="max_reply_bytes"):
            await remote.infer(call_of(), NEVER)
        await remote.aclose()


async def test_what_is_wrong_with_an_output_is_not_said_of_an_input() -> None:
    outputs = [{"name": "y", "datatype": "INT32", "shape": [1], "data": [1.5]}]
    async with over_http(lambda _: http(200, orjson.dumps({"outputs": outputs}))) as (remote, _):
        with pytest.raises(ReplicaFailed) as failed:
            await remote.infer(call_of(), NEVER)

    assert str(failed.value.__cause__).startswith("output 'y' has element 1.5")


async def test_a_server_that_says_that_it_is_late_is_quoted_in_the_cause() -> None:
    async with over_http(lambda _: error(504)) as (remote, _):
        with pytest.raises(DeadlineExceeded) as late:
            await remote.infer(call_of(), NEVER)

    assert SECRET in str(late.value.__cause__)
