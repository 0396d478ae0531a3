"""A server over gRPC, which answers what a test says: every status, and every way in which an answer can be none."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from backends.contract import Batch, Deadline, SharedMemoryWindow, State, Tensor
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
from backends.oip.grpc_remote import GrpcRemote, channel
from backends.oip.remote import InferCall, ServerSaid
from tests.unit.backends.oip.scripted import (
    NEVER,
    SECRET,
    Answer,
    Context,
    Message,
    aborting,
    call_of,
    over_grpc,
    replying,
    served,
)

Y = np.arange(6, dtype=np.float32).reshape(2, 3) * 2
G = grpc.StatusCode


def reply_of(*raw: bytes, outputs: Any = (("y", "FP32", [2, 3]),), **members: str) -> Message:
    """An answer whose outputs are *raw*."""
    reply = service_pb2.ModelInferResponse(model_name="dbl", **members)
    for name, datatype, shape in outputs:
        reply.outputs.add(name=name, datatype=datatype, shape=shape)
    reply.raw_output_contents.extend(raw)
    return reply


def typed_reply(field: str, *elements: Any, **stated: Any) -> Message:
    """An answer whose output has *elements* in *field*."""
    reply = reply_of(outputs=[(stated.get("name", "y"), stated.get("datatype", "FP32"), stated.get("shape", [2, 3]))])
    getattr(reply.outputs[0].contents, field).extend(elements)
    return reply


# --- the table of statuses ---

STATUSES = [
    (aborting(G.INVALID_ARGUMENT), InvalidInput),
    (aborting(G.OUT_OF_RANGE), InvalidInput),
    (aborting(G.UNAUTHENTICATED), ReplicaFailed),
    (aborting(G.PERMISSION_DENIED), ReplicaFailed),
    (aborting(G.NOT_FOUND), ReplicaFailed),
    (aborting(G.UNIMPLEMENTED), ReplicaFailed),
    (aborting(G.FAILED_PRECONDITION), ReplicaFailed),
    (aborting(G.ALREADY_EXISTS), ReplicaFailed),
    (aborting(G.DATA_LOSS), ReplicaFailed),
    (aborting(G.CANCELLED), ReplicaFailed),
    (aborting(G.UNAVAILABLE), ReplicaFailed),
    (aborting(G.UNAVAILABLE, f"{SECRET}: Exceeds maximum queue size"), Overloaded),
    (aborting(G.UNAVAILABLE, f"{SECRET}: the models of route 'words' are overloaded; try again"), Overloaded),
    (aborting(G.UNAVAILABLE, trailers=(("pointsman-answer-id", "an-id"),)), Unavailable),
    (aborting(G.UNAVAILABLE, f"{SECRET}: it has no person to ask"), Unavailable),
    (aborting(G.RESOURCE_EXHAUSTED), Overloaded),
    (aborting(G.RESOURCE_EXHAUSTED, f"grpc: received message larger than max, {SECRET}"), BackendFailed),
    (aborting(G.RESOURCE_EXHAUSTED, f"gRPC message exceeds maximum size, {SECRET}"), BackendFailed),
    (aborting(G.INTERNAL), BackendFailed),
    (aborting(G.INTERNAL, f"Received RST_STREAM with error code 2, {SECRET}"), ReplicaFailed),
    (aborting(G.UNKNOWN), BackendFailed),
    (aborting(G.ABORTED), BackendFailed),
    (
        aborting(G.ABORTED, f"{SECRET}: sequence 7 of model 'm' is over: its state is lost, or nobody knows"),
        SequenceOver,
    ),
]


@pytest.mark.parametrize(("answer", "expected"), STATUSES)
async def test_a_status_is_an_error_that_names_the_model_and_nothing_else(
    answer: Answer, expected: type[PointsmanError]
) -> None:
    async with over_grpc(answer) as (remote, server):
        with pytest.raises(PointsmanError) as raised:
            await remote.infer(call_of(), NEVER)

    assert type(raised.value) is expected
    message, cause = str(raised.value), raised.value.__cause__
    assert "model 'mine'" in message
    assert SECRET not in message
    assert server.address.rpartition(":")[2] not in message
    assert isinstance(cause, ServerSaid)
    assert SECRET in str(cause)


@pytest.mark.parametrize("answer", [aborting(G.UNAVAILABLE, "Request timeout expired"), aborting(G.DEADLINE_EXCEEDED)])
async def test_a_server_that_ran_out_of_time_is_late(answer: Answer) -> None:
    async with over_grpc(answer) as (remote, _):
        with pytest.raises(DeadlineExceeded, match="'mine'") as raised:
            await remote.infer(call_of(), NEVER)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("code", [G.NOT_FOUND, G.UNIMPLEMENTED])
async def test_what_a_server_has_not_is_told_when_it_is_asked_what_it_has(code: grpc.StatusCode) -> None:
    async with over_grpc(aborting(code, "Method not found!")) as (remote, _):
        for asking in (remote.model("dbl", "7", NEVER), remote.config("dbl", "7", NEVER), remote.models(NEVER)):
            with pytest.raises(NotFound, match=r"the server has no .*: Method not found!"):
                await asking


async def test_a_call_larger_than_its_server_takes_is_the_batchs_fault() -> None:
    """Half of it may fit."""
    async with over_grpc(replying(reply_of(Y.tobytes())), takes_bytes=1000) as (remote, _):
        large = Tensor.of(np.zeros((100, 16), np.float32))
        with pytest.raises(BackendFailed, match="'mine'"):
            await remote.infer(InferCall("dbl", "", "1", {"x": large}, {}, {}), NEVER)
        await remote.infer(call_of(), NEVER)


async def test_an_answer_larger_than_this_side_allows_is_no_server_s_fault() -> None:
    async with over_grpc(replying(reply_of(bytes(5000))), limit_bytes=1000) as (remote, _):
        with pytest.raises(BackendFailed, match="max_reply_bytes"):
            await remote.infer(call_of(), NEVER)


# --- answers that are none ---


@pytest.mark.parametrize(
    "reply",
    [
        b"\xff\xff\xff",
        reply_of(Y.tobytes(), Y.tobytes()),
        reply_of(Y.tobytes(), outputs=[]),
        reply_of(Y.tobytes(), outputs=[("y", "FP32", [2, 3])] * 2),
        reply_of(Y.tobytes(), Y.tobytes(), outputs=[("y", "FP32", [2, 3])] * 2),
        reply_of(Y.tobytes()[:-1]),
        reply_of(Y.tobytes() + b"x"),
        reply_of(b""),
        reply_of(Y.tobytes(), outputs=[("y", "FP32", [3, 3])]),
        reply_of(Y.tobytes(), outputs=[("y", "FP32", [-2, -3])]),
        reply_of(Y.tobytes(), outputs=[("y", "FP8", [2, 3])]),
        reply_of(Y.tobytes(), outputs=[("y", "", [2, 3])]),
        reply_of(Y.tobytes(), outputs=[("", "FP32", [2, 3])]),
        reply_of(b"", outputs=[("y", "FP32", [0, 2**62, 2**62])]),
        reply_of(Y.tobytes(), outputs=[("y", "FP32", [2**62, 2**62])]),
        reply_of(b"\x09\x00\x00\x00short", outputs=[("y", "BYTES", [1, 1])]),
        reply_of(b"\x02", outputs=[("y", "BOOL", [1, 1])]),
        reply_of(),
        typed_reply("fp32_contents", 1, 2, 3, 4, 5),
        typed_reply("fp32_contents", 1, 2, 3, 4, 5, 6, 7),
        typed_reply("fp64_contents", 1, 2, 3, 4, 5, 6),
        typed_reply("int_contents", 300, datatype="INT8", shape=[1, 1]),
        typed_reply("bytes_contents", b"\x00\x00", datatype="FP16", shape=[1, 1]),
    ],
)
async def test_a_malformed_answer_is_nonsense_and_reaches_nobody(reply: Message) -> None:
    async with over_grpc(replying(reply)) as (remote, _):
        with pytest.raises(ReplicaFailed, match="model 'mine': its server gave an answer that makes no sense"):
            await remote.infer(call_of(), NEVER)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (reply_of(Y.tobytes(), outputs=[("z", "FP32", [2, 3])]), "output 'y' is missing"),
        (reply_of(Y.tobytes(), outputs=[("y", "INT32", [2, 3])]), "datatype INT32; expected FP32"),
        (reply_of(Y.tobytes(), outputs=[("y", "FP32", [2, 3, 1])]), r"shape \[2, 3, 1\]; expected \[-1, 3\]"),
        (reply_of(Y[:1].tobytes(), outputs=[("y", "FP32", [1, 3])]), r"shape \[1, 3\] for a batch of 2"),
        (reply_of(Y.tobytes(), id="another"), "is that to 'another'"),
        (reply_of(Y.tobytes(), model_version="8"), "version '8' answered in place of '7'"),
    ],
)
async def test_an_answer_to_something_else_is_nonsense(reply: Message, told: str) -> None:
    async with over_grpc(replying(reply)) as (remote, _):
        with pytest.raises(ReplicaFailed, match="makes no sense") as raised:
            await served(remote, version="7").infer(Batch(call_of().inputs, 2), NEVER)
    with pytest.raises(ServerSaid, match=told):
        raise raised.value.__cause__ or AssertionError("it has no cause")


async def test_another_versions_answer_is_the_end_of_the_backend() -> None:
    async with over_grpc(replying(reply_of(Y.tobytes(), model_version="8"))) as (remote, _):
        backend = served(remote, version="7")
        for _ in range(2):
            with pytest.raises(ReplicaFailed):
                await backend.infer(Batch(call_of().inputs, 2), NEVER)
        assert backend.state is State.FAILED


def beside_empty_contents() -> Message:
    """As MLServer sends it."""
    reply = reply_of(Y.tobytes())
    reply.outputs[0].contents.SetInParent()
    return reply


@pytest.mark.parametrize(
    "reply",
    [
        reply_of(Y.tobytes()),
        reply_of(Y.tobytes(), id="", model_version=""),
        reply_of(b"\x01", Y.tobytes(), outputs=[("more", "BOOL", [1]), ("y", "FP32", [2, 3])]),
        typed_reply("fp32_contents", *Y.ravel().tolist()),
        beside_empty_contents(),
    ],
)
async def test_every_form_of_an_answer_is_read(reply: Message) -> None:
    async with over_grpc(replying(reply)) as (remote, _):
        outputs = (await remote.infer(call_of(), NEVER)).outputs

    np.testing.assert_array_equal(outputs["y"].numpy(), Y)


async def test_outputs_in_shared_memory_are_where_they_were_wanted() -> None:
    place = SharedMemoryWindow("region", 64, 20)
    call = InferCall("dbl", "", "id-1", call_of().inputs, {}, {"y": place})
    fitting = reply_of(outputs=[("y", "FP32", [1, 3])])
    async with over_grpc(replying(fitting)) as (remote, _):
        assert (await remote.infer(call, NEVER)).outputs["y"].data == SharedMemoryWindow("region", 64, 12)
    async with over_grpc(replying(reply_of(outputs=[("y", "FP32", [2, 3])]))) as (remote, _):
        with pytest.raises(ReplicaFailed, match="makes no sense"):
            await remote.infer(call, NEVER)


@pytest.mark.parametrize(("name", "datatype"), [("", "FP32"), ("x", "FP8"), ("x", "")])
async def test_metadata_that_are_none_are_nonsense(name: str, datatype: str) -> None:
    reply = service_pb2.ModelMetadataResponse(name="dbl")
    reply.inputs.add(name=name, datatype=datatype, shape=[-1])
    async with over_grpc(replying(reply)) as (remote, _):
        with pytest.raises(ReplicaFailed, match="makes no sense"):
            await remote.model("dbl", "", NEVER)


# --- what is sent ---


async def test_tensors_parameters_and_the_token_are_sent() -> None:
    call = InferCall("dbl", "7", "id-1", call_of().inputs, {"timeout": 9, "priority": 1}, {})
    async with over_grpc(replying(reply_of(Y.tobytes())), token="hunter2") as (remote, server):
        await remote.infer(call, NEVER)
        assert "hunter2" not in repr(remote)

    ((method, request),) = server.calls
    assert (method, request.model_name, request.model_version, request.id) == ("ModelInfer", "dbl", "7", "id-1")
    (x,) = request.inputs
    assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [2, 3])
    assert list(request.raw_input_contents) == [call.inputs["x"].numpy().tobytes()]
    assert request.parameters["timeout"].int64_param == 9
    assert server.metadata[0]["authorization"] == "Bearer hunter2"


# --- calls that end early ---


class Held:
    """Answers `ModelInfer` when it is told to, and everything else as a server of a name and version.

    Attributes:
        came: set when a call has come.
        cancelled: set when one was cancelled.
        release: set to have it answered.
        answered: how many were.
    """

    def __init__(self, name: str, version: str) -> None:
        self.came, self.cancelled, self.release = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.answered = 0
        self._metadata = service_pb2.ServerMetadataResponse(name=name, version=version)

    async def __call__(self, method: str, request: Message, context: Context) -> Message:
        if method == "ServerMetadata":
            return self._metadata
        self.came.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.answered += 1
        return reply_of(Y.tobytes())


ENDS = [("triton", "2.58.0"), ("triton", "2.60.0"), ("triton", "3.0"), ("mlserver", "1.7.1"), ("", "")]
DOES_NOT = [("triton", "2.51.0"), ("triton", "2.57.9"), ("triton", "1.99"), ("triton", ""), ("triton", "2.x")]


@pytest.mark.parametrize(("name", "version"), ENDS)
async def test_a_cancelled_call_ends_at_a_server_that_survives_it(name: str, version: str) -> None:
    held = Held(name, version)
    async with over_grpc(held) as (remote, _):
        await remote.about(NEVER)
        call = asyncio.ensure_future(remote.infer(call_of(), NEVER))
        await held.came.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(held.cancelled.wait(), 5)


async def test_a_deadline_ends_the_call_at_a_server_that_survives_it() -> None:
    held = Held("mlserver", "1.7.1")
    async with over_grpc(held) as (remote, _):
        await remote.about(NEVER)
        with pytest.raises(DeadlineExceeded, match="'mine'"):
            await remote.infer(call_of(), Deadline(time.monotonic() + 0.1))
        await asyncio.wait_for(held.cancelled.wait(), 5)


@pytest.mark.parametrize(("name", "version"), DOES_NOT)
async def test_a_triton_that_would_die_of_it_hears_nothing_of_a_cancelled_call(name: str, version: str) -> None:
    held = Held(name, version)
    async with over_grpc(held) as (remote, _):
        await remote.about(NEVER)
        call = asyncio.ensure_future(remote.infer(call_of(), NEVER))
        await held.came.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        held.release.set()
        await remote.aclose()  # which waits for it

    assert (held.answered, held.cancelled.is_set()) == (1, False)


async def test_a_triton_that_would_die_of_it_gets_no_deadline_either() -> None:
    held = Held("triton", "2.51.0")
    async with over_grpc(held) as (remote, _):
        await remote.about(NEVER)
        with pytest.raises(DeadlineExceeded, match="'mine'"):
            await remote.infer(call_of(), Deadline(time.monotonic() + 0.1))

        held.release.set()
        await remote.aclose()

    assert (held.answered, held.cancelled.is_set()) == (1, False)


async def test_a_call_whose_deadline_has_passed_is_not_sent() -> None:
    async with over_grpc(replying(reply_of(Y.tobytes()))) as (remote, server):
        with pytest.raises(DeadlineExceeded):
            await remote.infer(call_of(), Deadline(time.monotonic() - 1))
    assert server.calls == []


async def test_a_server_that_is_not_there_cannot_be_reached_and_fails_at_once() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        remote = GrpcRemote("mine", lambda: channel(f"127.0.0.1:{port}", credentials=None, limit_bytes=1000))
        started = time.monotonic()
        with pytest.raises(ReplicaFailed, match="'mine'") as raised:
            await remote.infer(call_of(), NEVER)
        await remote.aclose()
    assert time.monotonic() - started < 3
    assert str(port) not in str(raised.value)
    assert "connect" in str(raised.value.__cause__)


async def test_a_closed_remote_cannot_be_reached() -> None:
    async with over_grpc(replying(reply_of(Y.tobytes()))) as (remote, _):
        await remote.infer(call_of(), NEVER)
        await remote.aclose()
        with pytest.raises(ReplicaFailed, match="cannot be reached"):
            await remote.infer(call_of(), NEVER)
