"""What a gRPC client may do wrong, on each transport in turn: the calls of FAULTS 11 to 14, each with four oracles.

The exact status and a message that helps; afterwards the same gateway answers a good request; its memory and its event
loop are as before; nothing that was accepted is lost or left running. What was sent stands in no log and no metric.

Where the transports differ, `DIFFERENCES` says how, and `gateway.grpc_edge.transport` why, and what protects instead.
"""

from __future__ import annotations

import gzip
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as pb

from gateway.grpc_edge.on_grpcio import MAX_STREAMS
from gateway.grpc_edge.transport import Transport, why_not_native
from pointsman_pb import gateway_pb2
from tests.faults.oracle import (
    CANARY,
    assert_no_growth,
    assert_no_stall,
    decisions,
    series,
    silent_about_the_canary,
    total,
    wait_for,
)
from tests.faults.raw_http2 import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    Http2,
    call_headers,
    frame,
    literal,
    message,
)
from tests.integration.process import CONFIG, GatewayProcess, running

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
DECIDE = "/pointsman.v1.Gateway/Decide"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
BODY_LIMIT_BYTES = 16 << 20
MIB = 1 << 20

# Any, throughout: grpcio's stubs know no untyped messages.


@dataclass(frozen=True, slots=True)
class Difference:
    """What one transport makes of what the other takes differently.

    Attributes:
        takes_in_whole: a message is in memory before its size is looked at.
        no_such_length: status of a length prefix of 2^32-1 with no message behind it.
        unknown_coding: status of a message in a compression that nobody knows.
        deflate: status of a message that is compressed so.
        unreadable_deadline: status of a call whose grpc-timeout is none.
        ends_resets: a connection that resets its calls as fast as it makes them is ended.
        ends_pings: one that floods with pings is ended.
    """

    takes_in_whole: bool
    no_such_length: StatusCode
    unknown_coding: StatusCode
    deflate: StatusCode
    unreadable_deadline: StatusCode
    ends_resets: bool
    ends_pings: bool


DIFFERENCES = {
    Transport.GRPCIO: Difference(
        takes_in_whole=False,
        no_such_length=StatusCode.RESOURCE_EXHAUSTED,
        unknown_coding=StatusCode.INTERNAL,
        deflate=StatusCode.OK,
        unreadable_deadline=StatusCode.INTERNAL,
        ends_resets=False,
        ends_pings=True,
    ),
    Transport.NATIVE: Difference(
        takes_in_whole=True,
        no_such_length=StatusCode.INTERNAL,
        unknown_coding=StatusCode.UNIMPLEMENTED,
        deflate=StatusCode.UNIMPLEMENTED,
        unreadable_deadline=StatusCode.OK,
        ends_resets=True,
        ends_pings=False,
    ),
}


@pytest.fixture(scope="module", params=[Transport.GRPCIO, Transport.NATIVE])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Every test runs on both."""
    wanted: Transport = request.param
    if wanted is Transport.NATIVE and (why := why_not_native()) is not None:
        pytest.skip(f"native {why}")
    return wanted


@pytest.fixture(scope="module")
def differs(transport: Transport) -> Difference:
    return DIFFERENCES[transport]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: Transport) -> Iterator[GatewayProcess]:
    """One gateway for all; at its end, nothing that was sent is in its log or its metrics."""
    config = f"{CONFIG}\nserver: {{grpc_transport: {transport}}}\n"
    with running(tmp_path_factory.mktemp("grpc_faults"), config) as process:
        yield process
        silent_about_the_canary(process)


@pytest.fixture(scope="module")
def channel(server: GatewayProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture(autouse=True)
def unharmed(server: GatewayProcess, channel: Any) -> Iterator[None]:
    """After every test the gateway answers, on connections that were there and on new ones; nothing is left running."""
    yield
    wait_for(lambda: answered(channel))
    with Http2(server.grpc) as connection:
        assert connection.call(MODEL_INFER, message(GOOD)).status == 0
    wait_for(lambda: total(server, r"pointsman_(?:queue_depth|batches_in_flight)\{.*\}") == 0)


def a_request(**changes: Any) -> Any:
    return pb.ModelInferRequest(
        **{
            "model_name": "double",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}}],
            **changes,
        }
    )


def an_input(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 2], **changes}


GOOD: bytes = a_request().SerializeToString()


def answered(channel: Any) -> bool:
    """Whether a good request gets its answer, and is not dropped (see `Difference.spares_neighbours`)."""
    return asked(channel) is StatusCode.OK


def asked(channel: Any) -> StatusCode:
    """How a good request ended."""
    try:
        reply = pb.ModelInferResponse.FromString(channel.unary_unary(MODEL_INFER)(GOOD, timeout=10))
    except grpc.RpcError as error:
        code: StatusCode = error.code()
        return code
    assert list(reply.raw_output_contents) == [struct.pack("<2f", 2, 4)]
    return StatusCode.OK


def grpc_error(channel: Any, data: Any, method: str = MODEL_INFER, **options: Any) -> Any:
    sent = data if isinstance(data, bytes) else data.SerializeToString()
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(method)(sent, **{"timeout": 20, **options})
    return error.value


def calls(server: GatewayProcess, code: StatusCode) -> float:
    """Calls that were reported to have ended so."""
    return total(server, rf'pointsman_grpc_calls_total\{{code="{code.name}",method=.*\}}')


# --- 11, 13: paths, frames, messages ---


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0b" * 5000, "not a inference.ModelInferRequest"),
        (b"\x0a\xff\xff\xff\xff\x0f", "not a inference.ModelInferRequest"),
        (b"\x2a\x00" * 40_000, "more than 10000 fields; send tensors raw"),
        (b"\x2a\x80\xf1\x04" + b"\x22\x00" * 40_000, "more than 10000 fields; send tensors raw"),
        (a_request(inputs=[an_input()] * 2, raw_input_contents=[b"\0" * 8] * 3), "'x' is there twice"),
        (a_request(inputs=[an_input()], raw_input_contents=[b"\0" * 8] * 3), "has 3 entries for 1 inputs"),
        (a_request(raw_input_contents=[b"\0" * 8]), "contents beside raw_input_contents"),
        (a_request(inputs=[an_input()], raw_input_contents=[b"\0" * 7]), "has 7 bytes; shape"),
        (a_request(inputs=[an_input(shape=[1, -1])]), "-1 in its shape"),
        (a_request(inputs=[an_input(shape=[1, 2**62, 2**62])]), "more elements than any request can hold"),
        (a_request(inputs=[an_input(shape=[1] * 30_000)]), "30000 dimensions; at most 32"),
        (a_request(inputs=[an_input(datatype=CANARY)]), "known datatypes"),
        (a_request(inputs=[an_input(datatype="UINT8", contents={"uint_contents": [300, 0]})]), "element 300, which"),
        (a_request(inputs=[an_input(name=CANARY * 1000)]), "at most 255"),
        (a_request(outputs=[{"name": CANARY * 1000}]), "at most 255"),
        (a_request(outputs=[{"name": str(i)} for i in range(1000)]), "1000 outputs; at most 256"),
        (a_request(parameters={f"p{i}": {"bool_param": True} for i in range(1000)}), "1000 parameters; at most 256"),
        (a_request(parameters={"pointsman_" + CANARY * 1000: {"bool_param": True}}), "is unknown; of pointsman_"),
        (a_request(model_name="../etc"), "names no model"),
        (a_request(model_name="a/../b"), "names no model"),
        (a_request(model_name="double/"), "names no model"),
        (a_request(model_name="a\tb"), "names no model"),
        (a_request(model_name=""), "names no model"),
        (a_request(model_name="a" * 256), "names no model"),
    ],
)
def test_a_message_that_cannot_be_is_an_invalid_argument(channel: Any, data: Any, message: str) -> None:
    error = grpc_error(channel, data)

    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert re.search(message, error.details()), error.details()


@pytest.mark.parametrize(
    "method", ["/nothing.Here/Call", "/inference.GRPCInferenceService/Nothing", "/", "//", "/a", f"/{CANARY}/Call"]
)
def test_a_method_that_does_not_exist_is_unimplemented(channel: Any, method: str) -> None:
    assert grpc_error(channel, b"", method).code() is StatusCode.UNIMPLEMENTED


def test_a_message_beyond_the_limit_is_resource_exhausted(channel: Any) -> None:
    error = grpc_error(channel, b"\0" * (BODY_LIMIT_BYTES + 1))

    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    assert str(BODY_LIMIT_BYTES) in error.details()


def test_a_message_at_the_limit_is_read(server: GatewayProcess) -> None:
    count = (BODY_LIMIT_BYTES - 1000) // 4
    data = a_request(inputs=[an_input(shape=[1, count])], raw_input_contents=[b"\0" * (4 * count)]).SerializeToString()
    options = [("grpc.max_receive_message_length", -1)]

    with grpc.insecure_channel(server.grpc, options=options) as channel:
        reply = pb.ModelInferResponse.FromString(channel.unary_unary(MODEL_INFER)(data, timeout=20))

    assert BODY_LIMIT_BYTES - 1000 < len(data) <= BODY_LIMIT_BYTES
    assert len(reply.raw_output_contents[0]) == 4 * count


def test_a_message_that_claims_four_gigabytes_ends_its_call(server: GatewayProcess, differs: Difference) -> None:
    with Http2(server.grpc) as connection:
        assert connection.call(MODEL_INFER, b"\0\xff\xff\xff\xff").status == differs.no_such_length.value[0]


def test_a_message_that_claims_four_gigabytes_and_sends_64_mib_takes_no_memory_for_long(
    server: GatewayProcess, differs: Difference
) -> None:
    """grpcio refuses it by its prefix; native takes in what comes, and forgets it when its sender leaves."""
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss

    with Http2(server.grpc) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, call_headers(MODEL_INFER)))
        sent = connection.send_body(1, b"\0\xff\xff\xff\xff" + b"\0" * (64 * MIB), ends=False)
        assert (sent > 64 * MIB) is differs.takes_in_whole
        if not differs.takes_in_whole:
            connection.read_until(lambda: connection.stream(1).is_over)
            assert connection.stream(1).status == StatusCode.RESOURCE_EXHAUSTED.value[0]

    wait_for(lambda: process.memory_info().rss < before + 16 * MIB)


def packed(data: bytes, pack: Callable[[bytes], bytes]) -> bytes:
    """*data*, compressed, behind the five bytes that say so."""
    return struct.pack(">BI", 1, len(short := pack(data))) + short


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_message_is_read(
    server: GatewayProcess, differs: Difference, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    wanted = StatusCode.OK if coding == "gzip" else differs.deflate
    with Http2(server.grpc) as connection:
        assert connection.call(MODEL_INFER, packed(GOOD, pack), grpc_encoding=coding).status == wanted.value[0]


def test_a_message_that_unpacks_beyond_the_limit_is_resource_exhausted(server: GatewayProcess) -> None:
    bomb = packed(b"\0" * (64 * MIB), gzip.compress)
    with Http2(server.grpc) as connection:
        assert connection.call(MODEL_INFER, bomb, grpc_encoding="gzip").status == StatusCode.RESOURCE_EXHAUSTED.value[0]


def test_what_is_not_gzip_is_internal(server: GatewayProcess) -> None:
    with Http2(server.grpc) as connection:
        assert connection.call(MODEL_INFER, b"\1\0\0\0\3abc", grpc_encoding="gzip").status == 13


def test_a_compression_that_nobody_knows_is_refused(server: GatewayProcess, differs: Difference) -> None:
    with Http2(server.grpc) as connection:
        stream = connection.call(MODEL_INFER, b"\1\0\0\0\3abc", grpc_encoding="bogus")

    assert stream.status == differs.unknown_coding.value[0]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"x-a": b"\xff\xfe"}, id="not UTF-8"),
        pytest.param({"x-a-bin": "AAEC"}, id="-bin"),
        pytest.param({"x-a-bin": "!!!"}, id="-bin that is not base64"),
        pytest.param({"x-api-key": b"\xff" + CANARY.encode()}, id="a key that is not UTF-8"),
        pytest.param({"x-a": b"a\0b"}, id="NUL"),
        pytest.param({"x-a": b"a\rb"}, id="CR"),
        pytest.param({"X-A": b"a"}, id="upper case"),
        pytest.param({"connection": "close"}, id="a header of HTTP/1.1"),
        pytest.param({"te": None}, id="no te"),
        pytest.param({":path": None}, id="no path"),
        pytest.param({":method": "GET"}, id="GET"),
        pytest.param({"content-type": "application/json"}, id="JSON"),
        pytest.param({"content-type": None}, id="no content type"),
        pytest.param({"content-length": "3"}, id="a content length that is not so"),
        pytest.param({"x-a": "a" * 16_000}, id="16 kB of metadata"),
    ],
)
def test_metadata_of_any_kind_is_ignored_or_ends_its_call_or_its_connection(
    server: GatewayProcess, changes: dict[str, str | bytes | None]
) -> None:
    with Http2(server.grpc) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, call_headers(MODEL_INFER, changes)))
        connection.send_body(1, message(GOOD))
        connection.read_until(lambda: connection.stream(1).is_over or connection.is_over)

        stream = connection.stream(1)
        assert stream.is_over or connection.is_over
        assert stream.status in (None, 0, 3, 8, 13)


@pytest.mark.parametrize("method", [STREAM_INFER, DECIDE, "/grpc.health.v1.Health/Watch"])
def test_streams_refuse_what_is_no_message(server: GatewayProcess, method: str) -> None:
    with Http2(server.grpc) as connection:
        stream = connection.call(method, message(b"\xff\xff\xff"))

    assert stream.status == 3 or b"is not a inference.ModelInferRequest" in stream.data


# --- 12: floods ---


@contextmanager
def a_neighbour(server: GatewayProcess) -> Iterator[list[StatusCode]]:
    """Good calls on another connection, one after the other; how they ended."""
    ended: list[StatusCode] = []
    stop = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            while not stop.is_set():
                ended.append(asked(channel))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield ended
        at_the_end = len(ended)
        wait_for(lambda: ended[at_the_end:].count(StatusCode.OK) > 3, within_s=30)  # it goes on
    finally:
        stop.set()
        asking.join()


CALL = call_headers(MODEL_INFER)


def resets(number: int) -> bytes:
    stream = 2 * number + 1
    return frame(HEADERS, END_HEADERS, stream, CALL) + frame(RST_STREAM, 0, stream, CANCEL)


def resets_of_whole_calls(number: int) -> bytes:
    stream = 2 * number + 1
    whole = frame(HEADERS, END_HEADERS, stream, CALL) + frame(DATA, END_STREAM, stream, message(GOOD))
    return whole + frame(RST_STREAM, 0, stream, CANCEL)


def continuations(number: int) -> bytes:
    if number == 0:
        return frame(HEADERS, 0, 1, CALL)
    return frame(CONTINUATION, 0, 1, literal(b"x-%d" % number, b"a" * 100))


def empty_continuations(number: int) -> bytes:
    return frame(HEADERS, 0, 1, CALL) if number == 0 else frame(CONTINUATION, 0, 1)


def empty_data(number: int) -> bytes:
    return frame(HEADERS, END_HEADERS, 1, CALL) if number == 0 else frame(DATA, 0, 1)


def pings(number: int) -> bytes:
    return frame(PING, 0, 0, b"pm-flood")


def settings(number: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535))


def flood(server: GatewayProcess, frames: Callable[[int], bytes], times: int) -> bool:
    """Send *frames* so often, reading what comes back; whether the server ended the connection."""
    with Http2(server.grpc) as connection:
        for number in range(times):
            if not connection.send(frames(number)):
                return True
            if number % 100 == 99:
                connection.take_what_came()
        connection.send(frame(PING, 0, 0, b"are you?"))
        connection.take_what_came()
        return connection.is_over


FLOODS = [resets, resets_of_whole_calls, continuations, empty_continuations, empty_data, pings, settings]


@pytest.mark.parametrize("frames", FLOODS)
def test_neighbours_of_a_flood_are_served(
    server: GatewayProcess, differs: Difference, frames: Callable[[int], bytes]
) -> None:
    ends: dict[Callable[[int], bytes], bool] = {
        resets: differs.ends_resets,
        resets_of_whole_calls: differs.ends_resets,
        pings: differs.ends_pings,
    }
    times = 20_000 if frames in (resets, resets_of_whole_calls) else 3000  # that many wait before they are taken

    with a_neighbour(server) as ended:
        over = any(flood(server, frames, times) for _ in range(10 if ends.get(frames) else 1))  # some get through

    assert set(ended) == {StatusCode.OK}
    assert over is ends.get(frames, over)


@pytest.mark.parametrize("frames", [resets, resets_of_whole_calls])
def test_neighbours_of_several_floods_at_a_time_are_served(
    server: GatewayProcess, frames: Callable[[int], bytes]
) -> None:
    with a_neighbour(server) as ended, ThreadPoolExecutor() as floods:
        list(floods.map(lambda _: flood(server, frames, 5000), range(8)))

    assert set(ended) == {StatusCode.OK}


def test_a_thousand_calls_at_a_time_on_one_connection_are_answered(channel: Any) -> None:
    assert MAX_STREAMS > 1000
    calls = [channel.unary_unary(MODEL_INFER).future(GOOD, timeout=60) for _ in range(1000)]

    assert {call.code() for call in calls} == {StatusCode.OK}


@pytest.mark.parametrize("frames", FLOODS)
def test_a_flood_takes_no_memory(server: GatewayProcess, frames: Callable[[int], bytes]) -> None:
    def send(times: int) -> None:
        flood(server, frames, times)

    assert_no_growth(server, send, times=1000)


@pytest.mark.parametrize("frames", FLOODS)
def test_a_flood_holds_up_nobody(server: GatewayProcess, frames: Callable[[int], bytes]) -> None:
    assert_no_stall(server, lambda: flood(server, frames, 1000))


# --- 14: deadlines, and callers that leave ---


def test_a_deadline_may_be_a_millisecond_a_hundred_hours_or_none(channel: Any) -> None:
    call = channel.unary_unary(MODEL_INFER)

    assert call(GOOD, timeout=360_000)
    assert call(GOOD)
    slow = gateway_pb2.DecideRequest(route="alone", text="fast=slow").SerializeToString()
    with pytest.raises(grpc.RpcError) as late:
        list(channel.unary_stream(DECIDE)(slow, timeout=0.02))
    assert late.value.code() is StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("timeout", ["0m", "1n", "1u"])
def test_an_expired_request_makes_no_backend_call(server: GatewayProcess, timeout: str) -> None:
    before = decisions(server)

    with Http2(server.grpc) as connection:
        stream = connection.call(MODEL_INFER, message(GOOD), grpc_timeout=timeout)

    assert stream.status == StatusCode.DEADLINE_EXCEEDED.value[0] or stream.reset is not None
    assert decisions(server) == before


@pytest.mark.parametrize("timeout", ["", "abc", "-1S", "1"])
def test_a_deadline_that_is_none_is_refused_or_ignored(
    server: GatewayProcess, differs: Difference, timeout: str
) -> None:
    with Http2(server.grpc) as connection:
        stream = connection.call(MODEL_INFER, message(GOOD), grpc_timeout=timeout)

    assert stream.status == differs.unreadable_deadline.value[0]


SLOW = gateway_pb2.DecideRequest(route="words", text="fast=slow strong=slow").SerializeToString()


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(lambda c, s: None, id="after the headers"),
        pytest.param(lambda c, s: c.send(frame(DATA, 0, s, message(SLOW)[:3])), id="in mid prefix"),
        pytest.param(lambda c, s: c.send(frame(DATA, 0, s, message(SLOW)[:9])), id="in mid message"),
        pytest.param(lambda c, s: c.send(frame(DATA, 0, s, message(SLOW))), id="before the end"),
        pytest.param(lambda c, s: c.send(frame(DATA, END_STREAM, s, message(SLOW))), id="behind the message"),
    ],
)
@pytest.mark.parametrize("resets", [True, False], ids=["resets", "closes"])
def test_a_caller_may_leave_at_every_step(
    server: GatewayProcess, step: Callable[[Http2, int], object], resets: bool
) -> None:
    """What it has begun ends: `unharmed` sees that no batch runs, and none waits, when all is over."""
    with Http2(server.grpc) as connection:
        for stream in range(1, 21, 2):
            connection.send(frame(HEADERS, END_HEADERS, stream, call_headers(DECIDE)))
            step(connection, stream)
            if resets:
                connection.send(frame(RST_STREAM, 0, stream, CANCEL))


def test_a_caller_that_leaves_while_its_model_runs_is_cancelled(server: GatewayProcess, channel: Any) -> None:
    before = calls(server, StatusCode.CANCELLED)
    call = channel.unary_stream(DECIDE)(SLOW)
    wait_for(lambda: total(server, r'pointsman_batches_in_flight\{model="fast"\}') > 0)

    call.cancel()

    wait_for(lambda: calls(server, StatusCode.CANCELLED) == before + 1)


def test_a_caller_that_leaves_a_stream_is_cancelled(server: GatewayProcess) -> None:
    before = calls(server, StatusCode.CANCELLED)
    with Http2(server.grpc) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, call_headers("/grpc.health.v1.Health/Watch")))
        connection.send_body(1, message(b""))
        connection.read_until(lambda: bool(connection.stream(1).data))

    wait_for(lambda: calls(server, StatusCode.CANCELLED) == before + 1)


# --- memory, the event loop, metrics ---


def test_a_message_of_eight_million_tensors_holds_up_nobody(server: GatewayProcess, channel: Any) -> None:
    data = b"\x2a\x00" * (BODY_LIMIT_BYTES // 2 - 10)

    assert_no_stall(server, lambda: grpc_error(channel, data))


def test_a_message_beyond_the_limit_holds_up_nobody(server: GatewayProcess, channel: Any) -> None:
    data = b"\0" * (BODY_LIMIT_BYTES + 1)

    assert_no_stall(server, lambda: grpc_error(channel, data))


REFUSED = {
    "structure": message(a_request(outputs=[{"name": CANARY}] * 9_000).SerializeToString()),
    "no message": message(b"\xff" * 1000),
    "no route": message(a_request(model_name=CANARY).SerializeToString()),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_calls_that_are_refused_again_and_again_take_no_memory(server: GatewayProcess, body: bytes) -> None:
    def send(times: int) -> None:
        with Http2(server.grpc) as connection:
            for number in range(times):
                stream = connection.call(MODEL_INFER, body, stream=2 * number + 1)
                assert stream.status not in (None, 0)

    assert_no_growth(server, send)


def test_a_hundred_invented_names_make_no_new_series(server: GatewayProcess, channel: Any) -> None:
    def invent(number: int) -> None:
        grpc_error(channel, a_request(model_name=f"{CANARY}-{number}"))
        grpc_error(channel, b"", f"/{CANARY}-{number}/Call")
        grpc_error(channel, b"", f"/inference.GRPCInferenceService/{CANARY}{number}")

    invent(0)
    before = series(server)
    for number in range(1, 100):
        invent(number)

    assert series(server) == before
