"""Whatever a client sends, it is told what is wrong, and nobody else notices.

Each case has its exact status and what the message must say. After each the same gateway answers a good request; after
all of them its log and its metrics hold nothing of what was sent. What could make a server slow or large is repeated,
and its memory and its event loop are watched.
"""

from __future__ import annotations

import gzip
import http.client
import json
import pickle
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from socket import MSG_WAITALL, socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.oracle import (
    CANARY,
    STALL_S,
    assert_no_growth,
    assert_no_stall,
    decisions,
    series,
    silent_about_the_canary,
    total,
    wait_for,
)
from tests.faults.raw_http import RawReply, connect, exchange, post, post_chunks, read
from tests.integration.process import CONFIG, GatewayProcess, running

gzipped = partial(gzip.compress, mtime=0)  # the same bytes, and so the same test, for every process

DECIDE = "/v1/routes/words:decide"
INFER = "/v2/models/double/infer"
BODY_LIMIT_BYTES = 16 << 20
JSON_LIMIT_BYTES = 4 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for all; at its end, nothing that was sent is in its log or its metrics."""
    with running(tmp_path_factory.mktemp("bad_input")) as process:
        yield process
        silent_about_the_canary(process)


@pytest.fixture(autouse=True)
def unharmed(server: GatewayProcess) -> Iterator[None]:
    """After every test the gateway answers."""
    yield
    reply = exchange(server.http, post(DECIDE, b"fast=0.99:b", "text/plain"))
    assert (reply.statuses, json.loads(reply.body)["label"]) == ((200,), "b")


def refused(reply: RawReply, status: int, message: str) -> None:
    assert reply.statuses == (status,)
    assert re.search(message, reply.message), reply.message
    for internal in ("Traceback", ".py", " object at 0x"):
        assert internal not in reply.message


# --- HTTP: framing ---

GOOD_CHUNK = b"5\r\nhello\r\n0\r\n\r\n"
SMUGGLED = post(DECIDE, f"fast=0.1 {CANARY}".encode(), "text/plain")


def chunked(size: bytes) -> bytes:
    return post_chunks(DECIDE, size + b"\r\nhello\r\n0\r\n\r\n")


def request(*lines: str, target: str = "/v2/health/live") -> bytes:
    return "\r\n".join((f"GET {target} HTTP/1.1", *lines, "", "")).encode("latin-1")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(post(DECIDE, GOOD_CHUNK, "text/plain", "Transfer-Encoding: chunked"), id="length and chunked"),
        pytest.param(post(DECIDE, b"hello", "text/plain", "Content-Length: 6"), id="two lengths"),
        pytest.param(post(DECIDE, b"hello", "text/plain", "Content-Length: 5"), id="the same length twice"),
        pytest.param(post_chunks(DECIDE, GOOD_CHUNK).replace(b"Encoding:", b"Encoding :"), id="space before the colon"),
        pytest.param(post_chunks(DECIDE, GOOD_CHUNK).replace(b"chunked", b"xchunked"), id="unknown transfer coding"),
        pytest.param(chunked(b"0x5"), id="chunk size 0x5"),
        pytest.param(chunked(b"-1"), id="chunk size -1"),
        pytest.param(chunked(b"1" + b"0" * 16), id="chunk size 2^64"),
        pytest.param(post_chunks(DECIDE, b"5\r\nhelloXX0\r\n\r\n"), id="junk for a chunk's CRLF"),
        pytest.param(post_chunks(DECIDE, b"5\nhello\n0\n\n"), id="bare LF after a chunk size"),
        pytest.param(request("Host: localhost", "X-A: b", " folded"), id="folded header"),
        pytest.param(request("Host: localhost", "X-A: b\0c"), id="NUL in a header"),
        pytest.param(request("Host: localhost", "X-A: b\rc"), id="CR in a header"),
        pytest.param(request("Host: localhost", "X-A: b\nX-B: c"), id="LF in a header"),
        pytest.param(request("Host: localhost", target="v2/health/live"), id="no leading slash"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32, id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
    ],
)
def test_a_request_that_two_readers_could_split_differently_is_400_and_ends_the_connection(
    server: GatewayProcess, sent: bytes
) -> None:
    before = decisions(server)

    reply = exchange(server.http, sent, SMUGGLED)

    refused(reply, 400, "Invalid HTTP request")
    assert reply.closed
    assert decisions(server) == before


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(post_chunks(DECIDE, b"5 \r\nhello\r\n0\r\n\r\n"), id="space behind a chunk size"),
        pytest.param(post_chunks(DECIDE, b"5\r\nhello\r\n0\r\n a: b\r\n\r\n"), id="folded trailer"),
        pytest.param(post_chunks(DECIDE, GOOD_CHUNK).replace(b"HTTP/1.1", b"HTTP/1.0"), id="chunked in HTTP/1.0"),
        pytest.param(request("Host: localhost", target="http://localhost/v2"), id="absolute form"),
        pytest.param(request("Host: localhost", target="*"), id="asterisk form"),
        pytest.param(request("Host: localhost", target="/v2#a"), id="fragment"),
        pytest.param(request("Host: localhost").replace(b"\r\n", b"\n"), id="LF for CRLF"),
        pytest.param(request("Host: localhost").replace(b"GET", b"G\xc3T"), id="method that is no token"),
    ],
)
def test_what_our_own_reading_refuses_is_400_and_ends_the_connection(server: GatewayProcess, sent: bytes) -> None:
    before = decisions(server)

    reply = exchange(server.http, sent, SMUGGLED)

    refused(reply, 400, "Invalid HTTP request")
    assert reply.closed
    assert decisions(server) == before


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([f"X-{CANARY}: " + "a" * (1 << 20)], id="1 MiB in one"),
        pytest.param([f"X-{number}: {CANARY}" for number in range(10_000)], id="10000 headers"),
        pytest.param([f"{number:x}:" for number in range(10_000)], id="10000 short headers"),
    ],
)
def test_headers_beyond_their_limits_are_431(server: GatewayProcess, fields: list[str]) -> None:
    def send() -> None:
        reply = exchange(server.http, request("Host: localhost", *fields), SMUGGLED)
        refused(reply, 431, "the most that is read|at most 256 are read")
        assert reply.closed

    assert_no_stall(server, send)


@pytest.mark.parametrize("chunks", [65_537, 1_000_000])
def test_a_body_in_too_many_chunks_is_413(server: GatewayProcess, chunks: int) -> None:
    sent = post_chunks(DECIDE, b"1\r\na\r\n" * chunks + b"0\r\n\r\n")

    def send() -> None:
        reply = exchange(server.http, sent, SMUGGLED)
        refused(reply, 413, "too many chunks")
        assert reply.closed

    assert_no_stall(server, send)


def test_an_expected_100_comes_before_the_body_and_another_expectation_is_417(server: GatewayProcess) -> None:
    whole = post(DECIDE, b"fast=0.99:b", "text/plain", "Expect: 100-continue")
    head, body = whole[:-11], whole[-11:]
    with connect(server.http) as connection:
        connection.sendall(head)
        assert read(connection).statuses == (100,)
        connection.sendall(body)
        connection.settimeout(10)
        assert read(connection).statuses == (200,)

    refused(exchange(server.http, whole.replace(b"100-c", b"200-c")), 417, "Expect is not 100-continue")


def test_requests_in_a_row_are_answered_in_a_row(server: GatewayProcess) -> None:
    labels = [b"abc"[number % 3 : number % 3 + 1] for number in range(200)]
    with connect(server.http) as connection:
        for label in labels:
            connection.sendall(post(DECIDE, b"fast=0.99:" + label, "text/plain"))
        for label in labels:
            assert json.loads(next_body(connection))["label"] == label.decode()


def next_body(connection: socket) -> bytes:
    """The body of the next reply, and not a byte of the one after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        assert part, head
        head += part
    (length,) = re.findall(rb"content-length: (\d+)", head)
    return connection.recv(int(length), MSG_WAITALL)


def test_five_hundred_slow_clients_are_408_and_nobody_else_is_slower(server: GatewayProcess) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server.http, timeout_s=20)) for _ in range(500)]
        begun = time.monotonic()
        for connection in slow:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost:")
        while time.monotonic() - begun < 8:
            for connection in slow[::10]:
                connection.sendall(b"a")
            assert exchange(server.http, request("Host: localhost"), quiet_s=0.0001).statuses == (200,)
            time.sleep(0.2)  # they drip

        for connection in slow:
            refused(read(connection, quiet_s=1), 408, "headers did not arrive within 10 s")
        assert 10 <= time.monotonic() - begun < 15


@pytest.mark.parametrize("hosts", [0, 2])
def test_a_request_has_one_host(server: GatewayProcess, hosts: int) -> None:
    reply = exchange(server.http, request(*["Host: localhost"] * hosts), SMUGGLED)

    refused(reply, 400, f"has {hosts} Host headers; HTTP/1.1 needs exactly one")
    assert reply.closed


@pytest.mark.parametrize(
    "target",
    ["/v2/%2e%2e%2fv2", "//v2", "/v2%00", "/v2/../v2", "/v2/", "/v2/models/../etc", "/v2/models//ready", "/V2", "/"],
)
def test_a_path_is_taken_as_it_came(server: GatewayProcess, target: str) -> None:
    refused(exchange(server.http, request("Host: localhost", target=target)), 404, "nothing at this path")


@pytest.mark.parametrize("name", ["a" * 256, ".hidden", "-a"])
def test_a_name_that_no_model_can_have_is_400(server: GatewayProcess, name: str) -> None:
    refused(exchange(server.http, post(f"/v2/models/{name}/infer", b"{}")), 400, "names no model: names have 1 to 255")


# --- HTTP: bodies ---


def test_a_body_that_declares_too_much_is_413_before_it_is_sent(server: GatewayProcess) -> None:
    head = post(DECIDE, b"", "text/plain").replace(b"Content-Length: 0", b"Content-Length: %d" % (BODY_LIMIT_BYTES + 1))

    reply = exchange(server.http, head)

    refused(reply, 413, f"{BODY_LIMIT_BYTES + 1} bytes; at most {BODY_LIMIT_BYTES} are read")
    assert reply.closed


def test_a_body_that_does_not_declare_its_size_is_413_at_the_limit(server: GatewayProcess) -> None:
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"

    reply = exchange(server.http, post_chunks(DECIDE, b""), *[chunk] * (BODY_LIMIT_BYTES // 0x10000 + 1))

    refused(reply, 413, f"longer than {BODY_LIMIT_BYTES} bytes")
    assert reply.closed


@pytest.mark.parametrize(
    ("coding", "body", "status", "message"),
    [
        ("gzip", gzipped(b"\0" * (8 << 20)), 413, "unpacks to more than"),
        ("gzip, gzip", gzipped(gzipped(b"a")), 415, "'gzip, gzip' is not read"),
        ("br", b"a", 415, "'br' is not read here; use gzip, deflate or none"),
        (CANARY, b"a", 415, "is not read here"),
        ("gzip", gzipped(b"a" * 1000)[:-9], 400, "ends too early"),
        ("gzip", b"hello", 400, "not gzip"),
        ("gzip", gzipped(b"a") + b"b", 400, "1 bytes after its end"),
    ],
)
def test_a_body_that_does_not_unpack_is_refused(
    server: GatewayProcess, coding: str, body: bytes, status: int, message: str
) -> None:
    reply = exchange(server.http, post(DECIDE, body, "text/plain", f"Content-Encoding: {coding}"))

    refused(reply, status, message)


@pytest.mark.parametrize("path", [DECIDE, INFER])
@pytest.mark.parametrize(
    "media",
    ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/x-pickle", "a/b; c", "json"],
)
def test_forms_pickles_and_the_like_are_415(server: GatewayProcess, path: str, media: str) -> None:
    refused(
        exchange(server.http, post(path, pickle.dumps(object), media)),
        415,
        "not read here|are application/json|is not a media type|malformed parameter",
    )


@pytest.mark.parametrize("path", [DECIDE, INFER])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b'{"inputs":' + b"[" * 101 + b"]" * 101 + b"}", "nests deeper than 100", id="depth 101"),
        pytest.param(b"[" * 1000 + b"]" * 1000, "nests deeper than 100", id="depth 1000"),
        pytest.param(b"[" * 250_000 + b"]" * 250_000, "at most 200000 are read", id="depth 250000"),
        pytest.param(b'{"a":' * 90_000 + b"1" + b"}" * 90_000, "not JSON: .*depth", id="objects of depth 90000"),
        pytest.param(b"[" + b"[]," * 300_000 + b"[]]", "lists, objects and keys; at most", id="300000 lists"),
        pytest.param(b'{"inputs": NaN}', "not JSON", id="NaN"),
        pytest.param(b'{"inputs": [1e400]}', "not JSON: .*infinity", id="1e400"),
        pytest.param(b'{"inputs": [' + b"9" * 5000 + b"]}", "not JSON: .*infinity", id="5000 digits"),
        pytest.param(b'{"inputs": "\\ud800"}', "not JSON: .*surrogate", id="lone surrogate"),
        pytest.param(b'{"inputs": {"a": 1, "a": 2}}', "key 'a' twice", id="equal keys"),
        pytest.param(b'{"inputs": {"a": 1, "\\u0061": 2}}', "key 'a' twice", id="equal keys, one escaped"),
        pytest.param(b'{"inputs": "\xff"}', "not JSON: .*UTF-8", id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", "not JSON: .*byte order mark", id="byte order mark"),
        pytest.param(b"null", "must be a JSON object", id="null"),
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b'{"inputs": {}', "not JSON", id="cut off"),
    ],
)
def test_json_is_read_strictly(server: GatewayProcess, path: str, body: bytes, message: str) -> None:
    refused(exchange(server.http, post(path, body)), 400, message)


@pytest.mark.parametrize("path", [DECIDE, INFER])
def test_json_beyond_its_limit_is_413(server: GatewayProcess, path: str) -> None:
    body = b'{"inputs": "' + b" " * JSON_LIMIT_BYTES + b'"}'

    refused(exchange(server.http, post(path, body)), 413, f"at most {JSON_LIMIT_BYTES} are read")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": CANARY, CANARY * 1000: 1}, "is unknown; expected"),
        ({"text": ["a", "b"]}, r"shape \[1, 2\]; expected \[-1, 1\]"),
        ({"text": [["a"]] * 4097}, "outside 1 to 4096"),
        ({"text": [["a"], []]}, "ragged"),
        ({"text": {"b64": "?"}}, "invalid base64"),
        ({"text": {"b64": "/w=="}}, "UTF-8"),
        ({"text": 7}, "holds 7; write text"),
        ({}, "needs inputs"),
    ],
)
def test_json_that_is_not_the_routes_input_is_400(server: GatewayProcess, inputs: Any, message: str) -> None:
    refused(exchange(server.http, post(DECIDE, json.dumps({"inputs": inputs}).encode())), 400, message)


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("Pointsman-Timeout-Ms", "0", "positive whole number"),
        ("Pointsman-Timeout-Ms", "1e3", "positive whole number"),
        ("Pointsman-Timeout-Ms", "9" * 5000, "positive whole number"),
        ("Idempotency-Key", "a" * 256, "256 characters; it needs 1 to 255"),
        ("Idempotency-Key", '""', "0 characters"),
        ("Idempotency-Key", '"open', "no structured string"),
        ("Idempotency-Key", "caf\xe9", "printable ASCII"),
    ],
)
def test_a_header_that_cannot_be_is_400(server: GatewayProcess, header: str, value: str, message: str) -> None:
    refused(exchange(server.http, post(DECIDE, b"a", "text/plain", f"{header}: {value}")), 400, message)


def test_a_key_with_another_body_is_422_and_the_first_answer_stays(server: GatewayProcess) -> None:
    def send(text: bytes) -> RawReply:
        return exchange(server.http, post(DECIDE, text, "text/plain", f'Idempotency-Key: "{CANARY}"'))

    first = send(b"fast=0.99:b")
    refused(send(b"fast=0.99:c"), 422, "used with another request; use a new key")

    assert json.loads(send(b"fast=0.99:b").body)["answer_id"] == json.loads(first.body)["answer_id"]


# --- tensors ---


def tensor(**changes: Any) -> bytes:
    """A request that is good but for *changes* to its one input; a change to None takes a member away."""
    found = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], **changes}
    return json.dumps({"inputs": [{key: value for key, value in found.items() if value is not None}]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensor(shape=[1, 2**62, 2**62]), "more elements than any request can hold"),
        (tensor(shape=[1, 2**40]), "has 2 elements where shape"),
        (tensor(shape=[1, -1]), "-1 in its shape"),
        (tensor(shape=[1, 1.5]), "1.5 in its shape"),
        (tensor(shape=[1, "3"]), "'3' in its shape"),
        (tensor(shape=[1, True]), "True in its shape"),
        (tensor(shape=[1] * 1_000_000), "1000000 dimensions; at most 32"),
        (tensor(shape=[0, 2], data=[]), "outside 1 to"),
        (tensor(shape=[2**31, 1]), "items; at most 4096"),
        (tensor(shape=[1, 3]), "has 2 elements where shape"),
        (tensor(shape=[2, 2], data=[[1, 2], [3]]), "has 1 elements where shape"),
        (tensor(shape=None), "has shape None; a list of integers"),
        (tensor(datatype="FLOAT"), "datatype 'FLOAT'; known datatypes"),
        (tensor(datatype="OBJECT"), "datatype 'OBJECT'; known datatypes"),
        (tensor(datatype="UINT8", data=[300, 0]), "element 300, which UINT8 cannot hold"),
        (tensor(datatype="UINT64", data=[2**64, 0]), "UINT64 takes integers"),
        (tensor(datatype="INT32"), "has datatype INT32; expected FP32"),
        (tensor(data=[1e39, 0]), "which FP32 cannot hold"),
        (tensor(data=[True, 0]), "FP32 takes numbers"),
        (tensor(data=None), "needs either data or the parameter binary_data_size"),
        (tensor(name=""), "a non-empty text is needed"),
        (tensor(name=CANARY), "'x' is missing"),
        (tensor(name=CANARY * 1000), "at most 255"),
        (json.dumps({"inputs": [json.loads(tensor())["inputs"][0]] * 2}).encode(), "'x' is there twice"),
        (json.dumps({"inputs": [{}] * 10_000}).encode(), "10000 inputs; at most 256"),
        (
            tensor()[:-1] + b', "outputs": [' + b'{"name":"y"},' * 9_999 + b'{"name":"y"}]}',
            "10000 outputs; at most 256",
        ),
        (tensor()[:-1] + b', "outputs": [{"name": "nothing"}]}', "'nothing' is unknown; known outputs: y"),
        (tensor()[:-1] + b', "parameters": {"a": []}}', "a text, a number or a boolean"),
        (tensor()[:-1] + b', "parameters": {"timeout": "1s"}}', "whole number of microseconds"),
    ],
)
def test_a_tensor_that_cannot_be_is_400(server: GatewayProcess, body: bytes, message: str) -> None:
    refused(exchange(server.http, post(INFER, body)), 400, message)


def binary(tail: bytes, length: str | None = None, **changes: Any) -> bytes:
    head = tensor(data=None, **{"parameters": {"binary_data_size": len(tail)}, **changes})
    header = f"Inference-Header-Content-Length: {len(head) if length is None else length}"
    return post(INFER, head + tail, "application/octet-stream", header)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (binary(b"\0" * 8, length="9" * 30), "it is a number of bytes"),
        (binary(b"\0" * 8, length="-1"), "it is a number of bytes"),
        (binary(b"\0" * 8, length="1e3"), "it is a number of bytes"),
        (binary(b"\0" * 8, length="5000"), "is 5000, but the body has"),
        (binary(b"\0" * 7), "has 7 bytes; shape"),
        (binary(b"\0" * 8, parameters={"binary_data_size": 2**62}), "8 bytes are left"),
        (binary(b"\0" * 8, parameters={"binary_data_size": -1}), "it is a number of bytes"),
        (binary(b"\0" * 8, parameters={"binary_data_size": 4}), "4 bytes that no input's|has 4 bytes; shape"),
        (binary(b"\xff" * 8, datatype="BYTES"), "claims 4294967295 bytes where 4 are left"),
        (binary(b"\0" * 8, datatype="BYTES", shape=[1, 2**40]), "BYTES elements"),
        (binary(b"\2" * 2, datatype="BOOL"), "neither 0 nor 1"),
    ],
)
def test_binary_data_that_does_not_add_up_is_400(server: GatewayProcess, sent: bytes, message: str) -> None:
    refused(exchange(server.http, sent), 400, message)


# --- clients that leave ---


def test_a_client_that_leaves_in_mid_body_is_forgotten(server: GatewayProcess) -> None:
    before = decisions(server)

    for _ in range(20):
        with connect(server.http) as connection:
            connection.sendall(post(DECIDE, b"a" * 100_000, "text/plain")[:50_000])

    exchange(server.http, post(DECIDE, b"fast=0.99", "text/plain"))
    assert decisions(server) == before + 1


def test_clients_that_leave_in_mid_reply_free_their_slots(server: GatewayProcess) -> None:
    gone = rf'pointsman_http_responses_total\{{path="{re.escape("/v1/routes/{route}:decide")}",status="499"\}}'
    before = total(server, gone)
    waiting = [connect(server.http) for _ in range(4)]
    for connection in waiting:
        connection.sendall(post(DECIDE, b"fast=slow strong=slow", "text/plain"))
    wait_for(lambda: total(server, r'pointsman_batches_in_flight\{model="fast"\}') > 0)

    for connection in waiting:
        connection.close()

    wait_for(lambda: total(server, gone) == before + len(waiting))
    wait_for(lambda: total(server, r"pointsman_(?:queue_depth|batches_in_flight)\{.*\}") == 0)


# --- secrets ---


def test_what_a_model_fails_on_is_told_to_nobody(server: GatewayProcess) -> None:
    """The model's own message quotes its input; the reply must not, and `server` looks into the log."""
    reply = exchange(server.http, post(DECIDE, f"fast={CANARY} strong={CANARY}".encode(), "text/plain"))

    assert (reply.statuses, json.loads(reply.body)["reason"]) == ((202,), "stage_failed")
    assert CANARY.encode() not in reply.body
    wait_for(lambda: any("a batch of 1 failed in model strong" in line for line in server.log))


@pytest.mark.parametrize("header", ["Authorization: Bearer ", "X-API-Key: ", "Cookie: a=", "Host: "])
def test_headers_are_told_to_nobody(server: GatewayProcess, header: str) -> None:
    for target in ("/v2", "/nothing", "/v2/models/words?key=" + CANARY):
        reply = exchange(server.http, request("Host: localhost", header + CANARY, target=target))
        assert CANARY.encode() not in reply.body


# --- metrics ---


def test_ten_thousand_invented_names_make_no_new_series(server: GatewayProcess) -> None:
    def invent(number: int) -> None:
        name = f"{CANARY}-{number}"
        sent = (
            request("Host: localhost", target=f"/{name}")
            + request("Host: localhost", target=f"/v2/models/{name}")
            + post(f"/v2/models/{name}/infer", tensor())
            + post(f"/v1/routes/{name}:decide", b"a", "text/plain")
            + request("Host: localhost").replace(b"GET", (b"PROPFIND", b"DELETE", b"PATCH", b"MKCOL")[number % 4])
        )
        connection.sendall(sent)
        statuses.update(read(connection, replies=5, quiet_s=0.0001).statuses)

    statuses: set[int] = set()
    with connect(server.http) as connection:
        invent(0)
        before = series(server)
        for number in range(1, 2000):
            connection.settimeout(10)
            invent(number)

    assert statuses == {404, 405}
    assert series(server) == before


# --- memory and the event loop ---


def many_texts() -> bytes:
    return json.dumps({"inputs": {"text": [["a"]] * 90_000}}).encode()


def many_keys() -> bytes:
    return b"{" + b",".join(b'"%x":1' % i for i in range(190_000)) + b',"2e62f":1}'


def many_numbers() -> bytes:
    return b'{"inputs":{"x":[' + b"1," * 2_000_000 + b"1]}}"


def a_big_tensor() -> bytes:
    head = tensor(data=None, shape=[1, 4_000_000], parameters={"binary_data_size": 16_000_000})
    header = f"Inference-Header-Content-Length: {len(head)}"
    return post(INFER, head + b"\0\0\x80\x3f" * 4_000_000, "application/octet-stream", header)


def many_texts_raw() -> bytes:
    head = tensor(data=None, datatype="BYTES", shape=[4096, 64], parameters={"binary_data_size": 4 * 4096 * 64})
    header = f"Inference-Header-Content-Length: {len(head)}"
    return post(INFER, head + b"\0" * (4 * 4096 * 64), "application/octet-stream", header)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        pytest.param(lambda: post(DECIDE, many_texts()), 400, id="90000 texts"),
        pytest.param(lambda: post(DECIDE, many_keys()), 400, id="190000 keys, the last a second time"),
        pytest.param(lambda: post("/v1/routes/double:decide", many_numbers()), 200, id="2 million numbers in JSON"),
        pytest.param(a_big_tensor, 200, id="16 MB of numbers, asked for in JSON"),
        pytest.param(many_texts_raw, 400, id="262144 raw texts"),
    ],
)
def test_what_takes_long_to_read_holds_up_nobody(
    server: GatewayProcess, make: Callable[[], bytes], status: int
) -> None:
    sent = make()

    def send() -> None:
        assert exchange(server.http, sent).statuses == (status,)

    assert_no_stall(server, send)


def test_a_stall_would_be_seen(server: GatewayProcess) -> None:
    def stall() -> None:
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(3 * STALL_S)
        server.process.send_signal(signal.SIGCONT)

    with pytest.raises(AssertionError, match="late in each of 8 tries"):
        assert_no_stall(server, stall)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(post(DECIDE, b"[" * 100_000 + b"]" * 100_000), 400, id="deep JSON"),
        pytest.param(post(DECIDE, b"{" + b",".join(b'"%x":1' % i for i in range(20_000)) + b"}"), 400, id="many keys"),
        pytest.param(post(DECIDE, gzipped(b"\0" * (8 << 20)), "text/plain", "Content-Encoding: gzip"), 413, id="bomb"),
        pytest.param(post(INFER, tensor(shape=[1] * 100_000)), 400, id="100000 dimensions"),
        pytest.param(post_chunks(DECIDE, b"-1\r\n"), 400, id="bad chunk"),
    ],
)
def test_what_is_refused_again_and_again_takes_no_memory(server: GatewayProcess, sent: bytes, status: int) -> None:
    def send(times: int) -> None:
        for _ in range(times):
            assert exchange(server.http, sent, quiet_s=0.0001).statuses[0] == status

    assert_no_growth(server, send)


# --- anything at all ---

DECLARED = {200, 202, 400, 413, 415, 422, 429, 503, 504}
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["fast=0.5 strong=0.5", "fast=nan", "FP32", "BYTES", "x", "text", "y", {"b64": "AAAA"}])
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
parameters = anything | st.dictionaries(
    st.sampled_from(["timeout", "pointsman_on_defer", "binary_data_output", "binary_data_size", "sequence_id", "a"]),
    scalars | st.sampled_from(["error", "provisional"]),
    max_size=3,
)
decide_bodies = anything | st.fixed_dictionaries(
    {"inputs": anything | st.fixed_dictionaries({"text": anything})}, optional={"parameters": parameters}
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "text"]) | anything,
        "datatype": st.sampled_from(["FP32", "BYTES", "INT8", "BF16"]) | anything,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | anything,
    },
    optional={"data": st.lists(scalars, max_size=4) | anything, "parameters": parameters},
)
infer_bodies = anything | st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=2) | anything},
    optional={
        "id": anything,
        "parameters": parameters,
        "outputs": st.lists(st.fixed_dictionaries({"name": anything}, optional={"parameters": parameters}), max_size=2),
    },
)
GENERATED = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(server: GatewayProcess) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=10)
    yield connection
    connection.close()


def answered(client: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = client.getresponse()
    return response.status, json.loads(response.read())


@GENERATED
@given(decide_bodies)
def test_any_json_whatever_is_decided_or_refused(client: http.client.HTTPConnection, body: Any) -> None:
    status, told = answered(client, DECIDE, body)

    assert status in DECLARED
    assert "answer_id" in told if status < 300 else told["error"]


@GENERATED
@given(infer_bodies, st.sampled_from(["double", "words"]))
def test_any_json_whatever_is_inferred_or_refused(client: http.client.HTTPConnection, body: Any, model: str) -> None:
    status, told = answered(client, f"/v2/models/{model}/infer", body)

    assert status in DECLARED | {501}
    assert "outputs" in told if status == 200 else told["error"]


# --- configuration ---


FAULTS = [
    ("expose: true", "expose: !!python/object/apply:os.system [true]", "models.double.expose: has the tag"),
    ("cost: 0.1", "cost: &a 0.1", None),
    ("max_batch: 16", "max_batch: *a", "models.fast.max_batch: *a is an alias; write the value out"),
    ("labels: [a, b, c]", "labels: [a, b, c]\n    labels: [a]", "models.fast.labels: stands here twice, first in line"),
    (
        "accept: {min_confidence: 0.9, max",
        "acept: {min_confidence: .nan, max",
        "acept.min_confidence: is .nan, which is not",
    ),
    ("human: {queue: words", "humann: {queue: words", "humann: is an unknown key; did you mean human?"),
    ("cascade: [fast]", "cascade: [fast, alone]", "cascade[1]: there is no model 'alone'"),
    (
        "store: {path",
        "server: {max_body: 10}\nstore: {path",
        "server.max_body: is 10, which is not a size; write it like",
    ),
]


def test_a_configuration_at_fault_is_refused_with_every_line_and_remedy(tmp_path: Path) -> None:
    config = CONFIG
    for old, new, _ in FAULTS:
        assert old in config
        config = config.replace(old, new, 1)

    with pytest.raises(AssertionError, match="the gateway did not start") as failed, running(tmp_path, config):
        pass

    log = str(failed.value)
    for _, _, told in FAULTS:
        assert told is None or re.search(rf"gateway\.yaml:\d+:\d+: \S*{re.escape(told)}", log), f"{told!r} not in {log}"
    assert "Traceback" not in log
