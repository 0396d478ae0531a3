"""The data plane under generated input, a little of it in every run; `python -m tests.fuzz` searches for longer."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.compose import Gateway, compose
from gateway.http.messages import HttpRequest, HttpResponse
from gateway.settings import load_settings
from tests.fuzz import reference
from tests.fuzz.targets import BODY_BYTES, SEEDS, TARGETS, WIRE, read_in, read_like_the_reference
from tests.integration.process import CONFIG

# --- bytes: seeds, mutated ---

interesting = st.sampled_from(
    [b"\r\n", b"\r", b"\n", b" ", b"\t", b"\0", b"\xff", b":", b",", b'"', b"[", b"{", b"0", b"-1", b"1e400", b"NaN",
     b"99999999999999999999", b"\\u003a", b"\x80\x80\x80\x80\x10", b"Host: a\r\n", b"Transfer-Encoding: chunked\r\n"]
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of *seeds*, in which a few pieces are taken out, put in, or repeated."""
    found = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(found)))
        end = min(len(found), at + draw(st.integers(0, 8)))
        new = draw(interesting | st.binary(max_size=4) | st.just(found[at:end] * 2))
        found = found[:at] + new + found[end:]
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_as_it_should_be_or_refused(name: str) -> None:
    @settings(max_examples=300)
    @given(mutated(SEEDS[name]))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    for seed in SEEDS[name]:
        TARGETS[name](seed)
    check()


# --- streams of good requests, cut anywhere ---

names = st.sampled_from([b"A", b"x-a", b"Content-Type", b"Connection"])
placed = st.integers(0, 4).map(lambda json_bytes: b"Inference-Header-Content-Length: %d\r\n" % json_bytes)
values = st.binary(max_size=12).map(lambda value: bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F))
headers = st.lists(st.tuples(names, values), max_size=4).map(
    lambda pairs: b"".join(b"%b: %b\r\n" % pair for pair in pairs if pair != (b"Connection", b"Upgrade"))
)
bodies = st.binary(max_size=40)
chunks = st.lists(st.binary(min_size=1, max_size=20), max_size=5)


def with_length(fields: bytes, body: bytes) -> bytes:
    return b"POST /a?b=c HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (fields, len(body), body)


def in_chunks(fields: bytes, parts: Sequence[bytes], trailer: bytes) -> bytes:
    coded = b"".join(b"%x;e=1\r\n%b\r\n" % (len(part), part) for part in parts)
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n%b\r\n" % fields
    return head + coded + b"0\r\n" + trailer + b"\r\n"


good = st.one_of(
    headers.map(lambda fields: b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % fields),
    st.builds(with_length, headers, bodies),
    st.builds(with_length, placed, st.binary(min_size=4, max_size=40)),
    st.builds(in_chunks, headers, chunks, headers),
)


@st.composite
def cut(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    sent = draw(streams)
    at = sorted(draw(st.sets(st.integers(0, len(sent)), max_size=12)))
    return [sent[a:b] for a, b in zip([0, *at], [*at, len(sent)], strict=True) if a < b]


@settings(max_examples=300)
@given(cut(st.lists(good, min_size=1, max_size=5).map(b"".join)))
def test_good_requests_are_all_read_wherever_the_stream_is_cut(parts: list[bytes]) -> None:
    expected = reference.read(b"".join(parts), WIRE, BODY_BYTES)
    assert not expected.refused
    assert expected.rest == b""

    read_like_the_reference(parts)


def a_chunk_line(length: int) -> bytes:
    """A request whose one chunk has a first line of *length* bytes."""
    line = b"1;" + b"e" * (length - 4) + b"\r\n"
    return b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + line + b"a\r\n0\r\n\r\n"


def a_trailer(length: int) -> bytes:
    """A request whose trailer has *length* bytes."""
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    return head + b"X:" + b"e" * (length - 4) + b"\r\n\r\n"


@pytest.mark.parametrize(("make", "limit"), [(a_chunk_line, 256), (a_trailer, 8192)])
@pytest.mark.parametrize("length", [100, 255, 256, 257, 300, 8191, 8192, 8193])
def test_what_is_at_a_limit_is_read_or_refused_however_it_comes(
    make: Callable[[int], bytes], limit: int, length: int
) -> None:
    sent = make(length)
    refused = length > limit
    assert reference.read(sent, WIRE, BODY_BYTES).refused is refused

    for parts in (
        [sent],
        [sent[:-1], sent[-1:]],
        [sent[:-2], sent[-2:]],
        [sent[at : at + 1] for at in range(len(sent))],
    ):
        found, was_refused, _ = read_in(parts)
        assert (len(found), was_refused) == (0 if refused else 1, refused)


# --- a whole gateway ---


SPARE = "models:\n  spare: {backend: echo, expose: true}"
"""A model that calls may load and unload, while others must answer."""
EVERYTHING_ON = "{model_control: explicit, shared_memory: {enabled: true, max_regions: 3, limit: 1MiB}}"


class Running:
    """A gateway without its listeners, on an event loop of its own."""

    def __init__(self, folder: Path) -> None:
        path = folder / "gateway.yaml"
        path.write_text(f"{CONFIG.replace('models:', SPARE, 1)}\nserver: {EVERYTHING_ON}\n")
        self._settings = load_settings(path)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._over = asyncio.Event()
        self._gateway: Gateway
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        async with compose(self._settings) as self._gateway:
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)
        self._loop.close()

    def send(self, method: str, path: str, body: bytes, fields: dict[str, str]) -> HttpResponse:
        """The reply to a request."""
        path, _, query = path.partition("?")
        request = HttpRequest(method, path, query, {"host": "localhost", **fields}, body)
        return asyncio.run_coroutine_threadsafe(self._gateway.http.handle(request), self._loop).result(30)


REGION = f"pointsman-fuzz-{os.getpid()}"


@pytest.fixture(scope="module")
def region() -> Iterator[None]:
    """64 bytes that clients may share, under the key `REGION`."""
    path = Path("/dev/shm") / REGION
    path.write_bytes(bytes(64))
    yield
    path.unlink()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, region: None) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


DECLARED = {200, 201, 202, 204, 303, 400, 403, 404, 405, 409, 413, 415, 422, 429, 501, 503}
"""What may come of a call on which no model fails and nothing is late; every other 5xx is a fault of ours."""

paths = st.sampled_from(
    ["/v2", "/v2/health/ready", "/v2/models/stats", "/v2/models/words", "/v2/models/words/config", "/v2/models/double",
     "/v2/models/double/stats", "/v2/models/auto/ready", "/v2/models/../ready", "/v2/models/double/versions/1/infer",
     "/v2/models/double/versions/9/infer", "/v2/repository/index", "/v2/repository/models/spare/load",
     "/v2/repository/models/spare/unload", "/v2/systemsharedmemory/status", "/v2/cudasharedmemory/region/r/register",
     "/v2/systemsharedmemory/region/r/register", "/v1/reviews", "/v1/reviews?limit=2", "/v1/reviews?limit=x",
     "/v1/answers/nothing", "/v1/routes/words:decide", "/v1/routes/auto:decide", "/v1/nothing", "/"]
)  # fmt: skip
methods = st.sampled_from(["GET", "POST", "HEAD", "DELETE", "PUT", "INVENT"])
fields = st.dictionaries(
    st.sampled_from(
        ["content-type", "content-encoding", "inference-header-content-length", "idempotency-key", "prefer", "accept",
         "accept-encoding", "pointsman-timeout-ms", "traceparent", "authorization", "origin"]
    ),
    st.sampled_from(
        ["application/json", "application/octet-stream", "text/plain; charset=utf-8", "image/png", "gzip", "0", "5",
         "-1", '"a"', "wait=0", "respond-async, wait=0", "60000", "", "a" * 300, "\x80", "Bearer x"]
    ),
    max_size=3,
)  # fmt: skip
JSON = {"content-type": "application/json"}


class Calls(RuleBasedStateMachine):
    """Calls of all kinds, one after the other, of one gateway, which remembers what it answered."""

    gateway: Running

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = []

    def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
        response = self.gateway.send(method, path, body, headers or {})
        assert response.status in DECLARED, (method, path, body, response.status, response.body)
        told = json.loads(response.body) if response.body and b"json" in repr(response.headers).encode() else {}
        if response.status >= 400:
            assert told["error"]
            assert "Traceback" not in told["error"]
        return told

    @rule(method=methods, path=paths, body=st.binary(max_size=20) | st.sampled_from([b"{}", b"[]"]), headers=fields)
    def anything(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.call(method, path, body, headers)

    @rule(data=mutated(SEEDS["infer_body"]), model=st.sampled_from(["double", "words", "auto", "nothing"]))
    def infer(self, data: bytes, model: str) -> None:
        length = (
            {"inference-header-content-length": str(int.from_bytes(data[1:3], "big"))} if data[0:1] == b"\1" else {}
        )
        self.call("POST", f"/v2/models/{model}/infer", data[3:], length)

    @rule(
        text=st.text(max_size=10) | st.sampled_from(["fast=0.99:b", "fast=0.5:a strong=0.5:b", "fast=nan strong=nan"]),
        key=st.sampled_from(["", "k1", "k2"]),
    )
    def decide(self, text: str, key: str) -> None:
        headers = JSON | ({"idempotency-key": f'"{key}"'} if key else {})
        told = self.call("POST", "/v1/routes/words:decide", json.dumps({"inputs": {"text": text}}).encode(), headers)
        if "answer_id" in told:
            self.answers.append(told["answer_id"])

    @rule(
        name=st.sampled_from(["r", "s", "..", "none"]),
        key=st.sampled_from([f"/{REGION}", "/none", "//x", "/../etc/passwd", "", "/pointsman-x"]),
        offset=st.sampled_from([0, 4, 100, -1, 2**63]),
        size=st.sampled_from([0, 4, 64, 65, -1, 2**63]),
    )
    def share(self, name: str, key: str, offset: int, size: int) -> None:
        body = json.dumps({"key": key, "offset": offset, "byte_size": size}).encode()
        self.call("POST", f"/v2/systemsharedmemory/region/{name}/register", body, JSON)

    @rule(
        name=st.sampled_from(["r", "s", "none"]),
        offset=st.sampled_from([0, 4, 60, 64, -1, 2**63]),
        size=st.sampled_from([4, 8, 0, 65, -1]),
        into=st.booleans(),
    )
    def infer_from_shared_memory(self, name: str, offset: int, size: int, into: bool) -> None:
        window = {
            "shared_memory_region": name, "shared_memory_offset": offset, "shared_memory_byte_size": size
        }  # fmt: skip
        asked: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": window}]}
        if into:
            asked["outputs"] = [{"name": "y", "parameters": window}]
        self.call("POST", "/v2/models/double/infer", json.dumps(asked).encode(), JSON)

    @rule(name=st.sampled_from(["", "/region/r", "/region/s", "/region/none"]))
    def unshare(self, name: str) -> None:
        self.call("POST", f"/v2/systemsharedmemory{name}/unregister", b"", JSON)

    @rule(change=st.sampled_from(["load", "unload"]), parameters=st.sampled_from([{}, {"unload_dependents": True}]))
    def change_models(self, change: str, parameters: dict[str, Any]) -> None:
        self.call(
            "POST", f"/v2/repository/models/spare/{change}", json.dumps({"parameters": parameters}).encode(), JSON
        )

    @rule(number=st.integers(0, 9), label=st.sampled_from(["a", "nothing", "", 7]), item=st.integers(-1, 2))
    def feedback(self, number: int, label: Any, item: int) -> None:
        if self.answers:
            body = json.dumps({"label": label, "item": item}).encode()
            self.call("POST", f"/v1/answers/{self.answers[number % len(self.answers)]}/feedback", body, JSON)

    @invariant()
    def every_answer_is_still_there(self) -> None:
        for answer_id in self.answers[-2:]:
            assert self.gateway.send("GET", f"/v1/answers/{answer_id}", b"", {}).status in (200, 202)

    @invariant()
    def a_good_request_succeeds(self) -> None:
        body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[2]}]}'
        assert self.call("POST", "/v2/models/double/infer", body, JSON)["outputs"][0]["data"] == [4.0]


def test_whatever_is_called_no_call_fails_by_a_fault_of_ours(gateway: Running) -> None:
    class Here(Calls):
        pass

    Here.gateway = gateway
    run_state_machine_as_test(
        Here, settings=settings(max_examples=30, stateful_step_count=25, suppress_health_check=list(HealthCheck))
    )
