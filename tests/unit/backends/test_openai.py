"""A language model behind a chat completions API."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

import backends.openai
from backends.conformance import exercise_backend
from backends.contract import NO_DEADLINE, TRACE, Batch, Datatype, Deadline, State, Tensor, TensorSpec
from backends.credentials import retry_after_s
from backends.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PointsmanError,
    ReplicaFailed,
    Unavailable,
)
from backends.openai import OPENAI, OpenAI, OpenAIOptions
from backends.trace_context import TraceContext
from gateway.certificates import stage_subject
from gateway.settings import SettingsError, load_settings
from router.certificate import StageSubject
from tests.unit.backends.chat_server import KEY, MODEL, ChatServer, Fault, chat_server, completion, logprob

CANARY = "the text of a caller"


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    """One server for all tests here."""
    with chat_server() as chat:
        yield chat


@pytest.fixture
def chat(running: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """It, well behaved, with its key in the environment."""
    monkeypatch.setenv("CHAT_KEY", KEY)
    running.fault_of = lambda _: None
    running.takes_key = running.says_logprobs = True
    running.requests.clear()
    running.traces.clear()
    running.gone.clear()
    running.go_on()
    while running.arrived.acquire(blocking=False) or running.left.acquire(blocking=False):
        pass
    yield running
    assert running.bugs == []


def options(chat: ChatServer, **others: Any) -> OpenAIOptions:
    return OpenAIOptions(chat.url, MODEL, api_key_env="CHAT_KEY", **others)


@asynccontextmanager
async def opened(settings: OpenAIOptions) -> AsyncIterator[OpenAI]:
    backend = await OPENAI.open("m", settings)
    assert isinstance(backend, OpenAI)
    try:
        yield backend
    finally:
        await backend.aclose()


def texts(*items: str | bytes, name: str = "text") -> Batch:
    column = np.empty((len(items), 1), object)
    column[:, 0] = [item.encode() if isinstance(item, str) else item for item in items]
    return Batch.of({name: Tensor.of(column)})


def sample(size: int, rng: np.random.Generator) -> Batch:
    return texts(*("".join(rng.choice(list("abcdefgh äß\n"), 12)) for _ in range(size)))


def within(seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds)


async def failure_of(chat: ChatServer, fault: Fault, **others: Any) -> PointsmanError:
    """What a call ends in where the server has *fault*."""
    chat.fault_of = lambda _: fault
    async with opened(options(chat, **others)) as backend:
        with pytest.raises(PointsmanError) as failed:
            await backend.infer(texts(CANARY), within(20))
    return failed.value


def everything_told(error: BaseException) -> str:
    """All that a log could show of *error*: it, its causes and contexts, as text and as `repr`."""
    told, seen = "", set()
    line: list[BaseException | None] = [error]
    while line:
        one = line.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            told += f"{one} {one!r} {vars(one)}\n"
            line += [one.__cause__, one.__context__]
    return told


# --- the contract ---


@pytest.mark.parametrize(
    "others",
    [
        {"max_in_flight": 3},
        {"max_batch": 5, "max_in_flight": 2, "logprobs": True},
        {"max_batch": 3, "max_in_flight": 2, "logprobs": True, "choices": ("yes", "no")},
    ],
    ids=["one item a call", "batches, with confidence", "choices"],
)
async def test_it_keeps_the_contract(chat: ChatServer, others: dict[str, Any]) -> None:
    def answers(size: int, rng: np.random.Generator) -> Batch:
        # Of two words, which the server gives back in their right order; runs of blanks change the confidence.
        return texts(*(str(rng.choice(["sey", "on"])) + " " * int(rng.integers(30)) for _ in range(size)))

    await exercise_backend(
        lambda: OPENAI.open("m", options(chat, **others)), answers if "choices" in others else sample
    )


def test_it_keeps_the_contract_on_the_event_loop_of_the_gateway(chat: ChatServer) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(exercise_backend(lambda: OPENAI.open("m", options(chat, max_batch=2, max_in_flight=2)), sample))


async def test_an_item_is_one_request_of_the_apis_form(chat: ChatServer) -> None:
    asked = options(
        chat, system="Turn it round.", prompt="<{text}>", max_tokens=9, temperature=0.5, extra={"seed": 7}, max_batch=2
    )
    async with opened(asked) as backend:
        outputs = await backend.infer(texts("ab", "{text}"), NO_DEADLINE)
    assert outputs["text"].numpy().tolist() == [[b">ba<"], [b">}txet{<"]]
    common = {"model": MODEL, "stream": False, "max_tokens": 9, "temperature": 0.5, "seed": 7}
    assert sorted(chat.requests, key=json.dumps) == [
        {**common, "messages": [{"role": "system", "content": "Turn it round."}, {"role": "user", "content": prompt}]}
        for prompt in ("<ab>", "<{text}>")
    ]


async def test_what_the_server_is_to_decide_is_not_sent(chat: ChatServer) -> None:
    async with opened(options(chat, max_tokens=None, temperature=None)) as backend:
        await backend.infer(texts("ab"), NO_DEADLINE)
    assert chat.requests[0].keys() == {"model", "messages", "stream"}


async def test_the_input_has_the_name_that_is_configured(chat: ChatServer) -> None:
    async with opened(options(chat, input="body")) as backend:
        assert backend.signature.inputs == (TensorSpec("body", Datatype.BYTES, (1,)),)
        assert (await backend.infer(texts("ab", name="body"), NO_DEADLINE))["text"].numpy()[0, 0] == b"ba"


async def test_confidence_is_exp_of_the_mean_log_probability(chat: ChatServer) -> None:
    async with opened(options(chat, logprobs=True)) as backend:
        outputs = await backend.infer(texts("ihgfedcba"), NO_DEADLINE)
    expected = math.exp((logprob("abcd") + logprob("efgh") + logprob("i")) / 3)
    assert outputs["confidence"].numpy() == pytest.approx(np.array([[expected]]))


@pytest.mark.parametrize("said", [True, False], ids=["an answer of no tokens", "a server that does not say"])
async def test_without_log_probabilities_there_is_no_confidence(chat: ChatServer, said: bool) -> None:
    chat.says_logprobs = said
    async with opened(options(chat, logprobs=True)) as backend:
        outputs = await backend.infer(texts("" if said else "abc"), NO_DEADLINE)
    assert np.isnan(outputs["confidence"].numpy()).all()


async def test_a_choice_is_the_largest_probability_by_how_sure_the_model_is(chat: ChatServer) -> None:
    async with opened(options(chat, logprobs=True, choices=("billing", "sales", "other"))) as backend:
        assert backend.signature.outputs == (TensorSpec("probabilities", Datatype.FP32, (3,)),)
        rows = [
            (await backend.infer(texts(said[::-1]), NO_DEADLINE))["probabilities"].numpy()[0]
            for said in ("sales", ' "Sales".\n', "billing")
        ]
    for row, place in zip(rows, (1, 1, 0), strict=True):
        assert int(row.argmax()) == place
        assert float(row.sum()) == pytest.approx(1.0)
    sure = math.exp((logprob("sale") + logprob("s")) / 2)
    assert rows[0].tolist() == pytest.approx([(1 - sure) / 3, 1 / 3 + sure * 2 / 3, (1 - sure) / 3])


@pytest.mark.parametrize(("logprob", "place"), [(-13.8, 2), (-13.9, None), (-9999.0, None), (0.0, 2)])
async def test_a_choice_stays_the_largest_down_to_a_mere_guess(
    chat: ChatServer, logprob: float, place: int | None
) -> None:
    said = {"message": {"content": "c"}, "logprobs": {"content": [{"token": "c", "logprob": logprob}]}}
    chat.fault_of = lambda _: Fault(body=json.dumps({"choices": [said]}).encode())
    async with opened(options(chat, logprobs=True, choices=("a", "b", "c"))) as backend:
        row = (await backend.infer(texts("x"), within(20)))["probabilities"].numpy()[0]
    assert np.isnan(row).all() == (place is None)
    assert place is None or int(row.argmax()) == place


@pytest.mark.parametrize("said", ["sales or billing", "", "salesforce"])
async def test_an_answer_that_is_no_choice_is_a_row_without_confidence(chat: ChatServer, said: str) -> None:
    async with opened(options(chat, logprobs=True, choices=("billing", "sales"), max_batch=2)) as backend:
        outputs = await backend.infer(texts(said[::-1], "selas"), NO_DEADLINE)
    row, beside = outputs["probabilities"].numpy()
    assert np.isnan(row).all()
    assert int(beside.argmax()) == 1


# --- batches ---


async def test_the_items_of_a_batch_are_asked_side_by_side(chat: ChatServer) -> None:
    chat.hold()
    async with opened(options(chat, max_batch=4)) as backend:
        call = asyncio.create_task(backend.infer(texts("a", "b", "c", "d"), NO_DEADLINE))
        for _ in range(4):
            assert await asyncio.to_thread(chat.arrived.acquire, True, 10)
        chat.go_on()
        assert (await call)["text"].numpy()[:, 0].tolist() == [b"a", b"b", b"c", b"d"]


async def test_there_are_never_more_requests_than_calls_in_flight_may_have(chat: ChatServer) -> None:
    chat.hold()
    async with opened(options(chat, max_batch=2, max_in_flight=2)) as backend:
        calls = [asyncio.create_task(backend.infer(texts(f"a{i}", f"b{i}"), NO_DEADLINE)) for i in range(20)]
        for _ in range(4):
            assert await asyncio.to_thread(chat.arrived.acquire, True, 10)
        assert not await asyncio.to_thread(chat.arrived.acquire, True, 0.2)  # while nothing is answered
        chat.go_on()
        await asyncio.gather(*calls)
    assert len(chat.requests) == 40


async def test_one_item_that_fails_ends_the_batch_and_its_other_requests(chat: ChatServer) -> None:
    chat.fault_of = lambda text: Fault(400, body=b"no") if text == "bad" else Fault(hang=True)
    async with opened(options(chat, max_batch=3)) as backend:
        with pytest.raises(BackendFailed):
            await backend.infer(texts("one", "bad", "two"), within(20))
        for request in chat.requests:
            if request["messages"][0]["content"] != "bad":
                assert await asyncio.to_thread(chat.left.acquire, True, 10)


async def test_a_text_that_is_not_utf8_is_refused_before_anything_is_asked(chat: ChatServer) -> None:
    async with opened(options(chat, max_batch=2)) as backend:
        with pytest.raises(InvalidInput, match="UTF-8"):
            await backend.infer(texts("good", b"\xff"), NO_DEADLINE)
    assert chat.requests == []


# --- failures ---


async def test_429_is_overloaded_with_the_time_that_the_server_says(chat: ChatServer) -> None:
    error = await failure_of(chat, Fault(429, {"Retry-After": "7"}))
    assert (type(error), error.retry_after_s) == (Overloaded, 7.0)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("0", 0.0), ("120", 120.0), (" 5 ", 5.0), ("", None), ("-1", None), ("soon", None), ("1e9", None),
        ("١٢", None), ("Thu, 26 Nov 2026 12:00:30 GMT", 30.0), ("Thu, 26 Nov 2026 11:00:00 GMT", 0.0),
        ("Thu, 99 Nov 2026 11:00:00 GMT", None), ("999999999999", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(stated: str, expected: float | None) -> None:
    now = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s(stated, now) == expected


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 409, 301, 302, 307, 204])
async def test_a_server_that_cannot_answer_is_a_failed_replica(chat: ChatServer, status: int) -> None:
    error = await failure_of(chat, Fault(status, {"Location": "/v1/models"}, b"" if status == 204 else b"{}"))
    assert isinstance(error, ReplicaFailed)


async def test_a_redirect_is_not_followed(chat: ChatServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        where = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/v1/chat/completions"
        await failure_of(chat, Fault(307, {"Location": where}))
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


NONSENSE = [
    b"", b"not json", b"[]", b"{}", b"null", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": {"0": 1}}',
    b'{"choices": [{"message": {}}]}', b'{"choices": [{"message": {"content": 5}}]}',
    b'{"choices": [{"message": {"content": ["a"]}}]}', b'{"choices": [{"message": {"content": "\\ud800"}}]}',
    b'{"choices": [{"message": {"content": "a"}, "logprobs": 5}]}',
    b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{}]}}]}',
    b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"logprob": 1}]}}]}',
    b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"logprob": 1e400}]}}]}',
    b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": [{"logprob": null}]}}]}',
    b'{"choices": [{"message": {"content": "a"}, "logprobs": {"content": {"logprob": -1}}}]}',
    b'{"choices": [{"message": {"content": "a"}}', b"\x1f\x8b\x08\x00", b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("body", NONSENSE, ids=range(len(NONSENSE)))
async def test_an_answer_that_makes_no_sense_is_a_failed_replica(chat: ChatServer, body: bytes) -> None:
    error = await failure_of(chat, Fault(body=body), logprobs=True)
    assert (type(error), "no sense" in str(error)) == (ReplicaFailed, True)


async def test_an_answer_that_the_server_kept_back_is_that_items_fault(chat: ChatServer) -> None:
    body = b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'
    error = await failure_of(chat, Fault(body=body))
    assert (type(error), "(content_filter)" in str(error)) == (BackendFailed, True)


def _refusal(code: str) -> bytes:
    return json.dumps({"error": {"message": CANARY, "type": "t", "param": None, "code": code}}).encode()


@pytest.mark.parametrize(
    ("fault", "expected", "says"),
    [
        (Fault(400, body=_refusal("context_length_exceeded")), InvalidInput, "shorten"),
        (Fault(413, body=b"<html>"), InvalidInput, "shorten"),
        (Fault(400, body=_refusal("content_filter")), InvalidInput, "filter"),
        (Fault(400, body=_refusal("unsupported_parameter")), BackendFailed, "400 (unsupported_parameter)"),
        (Fault(400, body=_refusal(CANARY)), BackendFailed, "HTTP 400"),
        (Fault(422, body=b'{"error": "a string"}'), BackendFailed, "HTTP 4"),
        (Fault(403, body=b"null"), ReplicaFailed, "does not let this gateway in"),
        (Fault(404, body=_refusal("model_not_found")), BackendFailed, "`model`"),
        (Fault(418, body=b"\xff"), BackendFailed, "HTTP 4"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Fault) else "",
)
async def test_a_refusal_says_who_can_help(
    chat: ChatServer, fault: Fault, expected: type[PointsmanError], says: str
) -> None:
    error = await failure_of(chat, fault)
    assert (type(error), says in str(error)) == (expected, True)
    assert f"HTTP {fault.status}" in str(error.__cause__)
    assert CANARY not in str(error)
    assert chat.url not in str(error)


async def test_an_unknown_model_is_told_to_the_operator(chat: ChatServer) -> None:
    async with opened(replace(options(chat), model="another")) as backend:
        with pytest.raises(BackendFailed, match="does not know the model"):
            await backend.infer(texts("a"), within(20))


@pytest.mark.parametrize("fault", [Fault(body=b" " * 3000), Fault(body=b" " * 3000, drip=True)], ids=["stated", "not"])
async def test_an_answer_larger_than_allowed_is_given_up(chat: ChatServer, fault: Fault) -> None:
    error = await failure_of(chat, fault, max_reply_bytes=2000)
    assert (type(error), "2000 bytes" in str(error.__cause__)) == (BackendFailed, True)


async def test_an_answer_as_large_as_allowed_is_taken(chat: ChatServer) -> None:
    body = json.dumps(completion({"model": MODEL}, "a" * 1500)).encode()
    chat.fault_of = lambda _: Fault(body=body)
    async with opened(options(chat, max_reply_bytes=len(body))) as backend:
        assert (await backend.infer(texts("x"), within(20)))["text"].numpy()[0, 0] == b"a" * 1500
    assert isinstance(await failure_of(chat, Fault(body=body), max_reply_bytes=len(body) - 1), BackendFailed)


async def test_a_connection_that_ends_within_an_answer_is_a_failed_replica(chat: ChatServer) -> None:
    assert isinstance(await failure_of(chat, Fault(body=b'{"choices": [', cut=True)), ReplicaFailed)


async def test_a_server_that_refuses_connections_is_a_failed_replica(chat: ChatServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    async with opened(replace(options(chat), url=f"http://127.0.0.1:{port}/v1")) as backend:
        with pytest.raises(ReplicaFailed, match="cannot be reached"):
            await backend.infer(texts("a"), within(20))


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nA" + b"a" * 70_000])
async def test_a_server_that_speaks_no_http_is_a_failed_replica(chat: ChatServer, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with (
        server,
        opened(replace(options(chat), url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")) as m,
    ):
        with pytest.raises(ReplicaFailed) as failed:
            await m.infer(texts("a"), within(20))
    assert KEY not in everything_told(failed.value)


async def test_a_request_is_never_sent_twice(chat: ChatServer) -> None:
    await failure_of(chat, Fault(body=b'{"choices": [', cut=True))
    await failure_of(chat, Fault(503))
    assert len(chat.requests) == 2


# --- deadlines ---


@pytest.mark.parametrize("fault", [Fault(hang=True), Fault(drip=True, body=b"{")], ids=["silence", "a slow drip"])
async def test_at_the_deadline_the_request_is_called_off(chat: ChatServer, fault: Fault) -> None:
    chat.fault_of = lambda _: fault
    async with opened(options(chat)) as backend:
        with pytest.raises(DeadlineExceeded):
            await backend.infer(texts("a"), within(0.2))
        assert await asyncio.to_thread(chat.left.acquire, True, 10)
        chat.fault_of = lambda _: None
        assert (await backend.infer(texts("ab"), within(20)))["text"].numpy()[0, 0] == b"ba"


async def test_a_cancelled_call_closes_its_connection(chat: ChatServer) -> None:
    chat.fault_of = lambda _: Fault(hang=True)
    async with opened(options(chat)) as backend:
        call = asyncio.create_task(backend.infer(texts("a"), NO_DEADLINE))
        assert await asyncio.to_thread(chat.arrived.acquire, True, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(chat.left.acquire, True, 10)


async def test_a_server_that_is_silent_for_too_long_is_a_failed_replica(chat: ChatServer) -> None:
    chat.fault_of = lambda _: Fault(hang=True)
    async with opened(options(chat, timeout_s=0.2)) as backend:
        with pytest.raises(ReplicaFailed, match=r"within 0\.2 s"):
            await backend.infer(texts("a"), NO_DEADLINE)


async def test_a_server_that_does_not_take_connections_is_given_up_in_time(chat: ChatServer) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # in the queue, which is full then: further connections get no answer
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        async with opened(replace(options(chat), url=url, connect_timeout_s=0.2)) as backend:
            with pytest.raises(ReplicaFailed, match="cannot be reached"):
                await backend.infer(texts("a"), within(20))


# --- probing and closing ---


async def test_a_probe_passes_where_the_server_takes_the_key(chat: ChatServer) -> None:
    async with opened(options(chat)) as backend:
        await backend.probe(within(20))
        chat.takes_key = False
        with pytest.raises(ReplicaFailed, match="does not let this gateway in"):
            await backend.probe(within(20))
        chat.takes_key, chat.fault_of = True, lambda _: Fault(hang=True)
        with pytest.raises(DeadlineExceeded):
            await backend.probe(within(0.2))


async def test_a_closed_backend_asks_for_nothing(chat: ChatServer) -> None:
    async with opened(options(chat)) as backend:
        await backend.aclose()
        assert backend.state is State.CLOSED
        for call in (backend.infer(texts("a"), NO_DEADLINE), backend.probe(NO_DEADLINE)):
            with pytest.raises(Unavailable):
                await call
    assert chat.requests == []


# --- the key ---


async def test_the_key_is_in_nothing_that_is_shown(
    chat: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    chat.takes_key = False  # the refusal repeats it
    asked = options(chat)
    async with opened(asked) as backend:
        with pytest.raises(ReplicaFailed) as failed:
            await backend.infer(texts("a"), within(20))
        shown = everything_told(failed.value) + repr(backend) + repr(asked) + caplog.text
    assert "(the key)" in str(failed.value.__cause__)
    assert KEY not in shown


async def test_not_even_a_part_of_the_key_is_shown_where_what_the_server_says_is_cut(chat: ChatServer) -> None:
    for length in range(300, 520, 10):
        error = await failure_of(chat, Fault(400, body=b"x" * length + KEY.encode()))
        assert KEY[:10] not in everything_told(error)


async def test_the_key_can_come_from_a_file(chat: ChatServer, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    async with opened(replace(options(chat), api_key_env="", api_key_file=file)) as backend:
        await backend.probe(within(20))


async def test_without_a_key_none_is_sent(chat: ChatServer) -> None:
    async with opened(replace(options(chat), api_key_env="")) as backend:
        with pytest.raises(ReplicaFailed) as failed:
            await backend.probe(within(20))
    assert "Incorrect API key provided: ." in str(failed.value.__cause__)


@pytest.mark.parametrize(
    ("value", "says"), [(None, "nothing"), ("  ", "nothing"), ("two words", "more"), ("kéy", "more")]
)
async def test_a_key_that_is_none_stops_the_start(
    chat: ChatServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None, says: str
) -> None:
    file = tmp_path / "key"
    if value is None:
        monkeypatch.delenv("CHAT_KEY")
        file.write_text("")
    else:
        monkeypatch.setenv("CHAT_KEY", value)
        file.write_text(value)
    for settings in (options(chat), replace(options(chat), api_key_env="", api_key_file=file)):
        with pytest.raises(InvalidInput, match=says) as refused:
            await OPENAI.open("m", settings)
        assert value is None or not value.strip() or value not in str(refused.value)
    with pytest.raises(InvalidInput, match="cannot be read"):
        await OPENAI.open("m", replace(options(chat), api_key_env="", api_key_file=tmp_path))


async def test_proxies_of_the_environment_are_not_used(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with opened(options(chat)) as backend:
        await backend.probe(within(20))


# --- TLS ---


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ChatServer, Path]]:
    """A server with a certificate of its own, and that."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl, which is not installed")
    monkeypatch.setenv("CHAT_KEY", KEY)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=another", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, *made, *named, "-keyout", key, "-out", certificate], check=True, timeout=30)
    with chat_server(certificate, key) as chat:
        yield chat, certificate


async def test_a_server_has_to_prove_itself(secure: tuple[ChatServer, Path]) -> None:
    chat, certificate = secure
    async with opened(options(chat, ca=certificate)) as backend:
        assert (await backend.infer(texts("ab"), within(20)))["text"].numpy()[0, 0] == b"ba"
    asked = len(chat.requests)
    async with opened(options(chat)) as backend:  # trusts what the system trusts
        with pytest.raises(ReplicaFailed, match="cannot be reached"):
            await backend.infer(texts("ab"), within(20))
    other_name = replace(options(chat, ca=certificate), url=chat.url.replace("127.0.0.1", "localhost"))
    async with opened(other_name) as backend:
        with pytest.raises(ReplicaFailed, match="cannot be reached"):
            await backend.infer(texts("ab"), within(20))
    assert len(chat.requests) == asked


async def test_certificates_that_are_none_stop_the_start(chat: ChatServer, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    secure = replace(options(chat), url="https://127.0.0.1/v1")
    for ca in (file, tmp_path / "missing.pem"):
        with pytest.raises(InvalidInput, match="ca:"):
            await OPENAI.open("m", replace(secure, ca=ca))


# --- options ---


async def test_without_aiohttp_it_says_what_to_install(chat: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.openai, "find_spec", lambda _: None)
    with pytest.raises(NotFound, match=r"pointsman\[openai\]"):
        await OPENAI.open("m", options(chat))


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"url": "ftp://host/v1"}, "https://host/v1"),
        ({"url": "host/v1"}, "https://host/v1"),
        ({"url": "http://[::1/v1"}, "malformed"),
        ({"url": "http://host:port/v1"}, "malformed"),
        ({"url": "https://user:secret@host/v1"}, "api_key_env"),
        ({"url": "https://host/v1?key=secret"}, "goes on"),
        ({"url": "https://host/v1/chat/completions"}, "goes on"),
        ({"model": ""}, "model is empty"),
        ({"input": ""}, "input is empty"),
        ({"prompt": "Say something."}, "{text}"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
        ({"max_reply_bytes": 0}, "max_reply_bytes is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"timeout_s": 0.0}, "timeout_s is 0"),
        ({"connect_timeout_s": math.inf}, "connect_timeout_s is inf"),
        ({"api_key_env": "A", "api_key_file": Path("b")}, "keep one"),
        ({"extra": {"stream": True}}, "'stream'"),
        ({"url": "http://host/v1", "ca": Path("c")}, "without TLS"),
        ({"choices": ("a", "b")}, "logprobs: true"),
        ({"choices": ("a",), "logprobs": True}, "two answers"),
        ({"choices": ("a", " A. "), "logprobs": True}, "twice"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_remedy(others: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as refused:
        OpenAIOptions(**{"url": "https://host/v1", "model": "m", **others})
    assert "secret" not in str(refused.value)


def test_all_faults_of_the_options_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"url.*model is empty.*max_batch is 0"):
        OpenAIOptions("", "", max_batch=0)


YAML = """
models:
  chat: {{backend: openai, url: "{url}", model: "{model}", temperature: 0, extra: {{seed: 7}}, logprobs: true,
          confidence: "output:confidence", expose: true}}
"""


def subject_of_stage(folder: Path, **stated: str) -> StageSubject:
    file = folder / "gateway.yaml"
    file.write_text(YAML.format(**{"url": "https://host/v1", "model": "one", **stated}))
    return stage_subject(load_settings(file).models["chat"], "1", None)


def test_a_certificate_is_about_what_is_asked_and_not_about_where(tmp_path: Path) -> None:
    one = subject_of_stage(tmp_path)
    assert subject_of_stage(tmp_path, url="https://elsewhere/v1") == one
    assert subject_of_stage(tmp_path, model="another") != one


def test_a_mistake_in_the_configuration_is_told_with_its_place_and_without_the_url(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"models\.chat: url has credentials in it; name an `api_key_env`") as bad:
        subject_of_stage(tmp_path, url="https://user:secret@host/v1")
    assert "secret" not in str(bad.value)


@pytest.mark.parametrize(
    "trace", [None, TraceContext.begin(sampled=True), TraceContext(f"00-{1:032x}-{1:016x}-00", "a=1")]
)
async def test_every_request_of_a_call_names_the_calls_span(chat: ChatServer, trace: TraceContext | None) -> None:
    async with opened(options(chat, max_batch=2)) as backend:
        before = TRACE.set(trace)
        await backend.infer(texts("one", "two"), within(20))
        TRACE.reset(before)

    assert chat.traces == [{} if trace is None else dict(trace.headers())] * 2
