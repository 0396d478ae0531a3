"""A small chat completions API that is a real HTTP server, on a thread of its own: `chat_server()`.

It answers by a rule: a text comes back reversed, in tokens of four letters, each with a log probability that its
letters decide. It takes nothing but what the API describes, key included; a request of another form is a bug of the
client, which `ChatServer.bugs` holds and the caller hears as 400.

What goes wrong on purpose is decided by `ChatServer.fault_of`, from the text of the user's message.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-test-canary-0123456789"
MODEL = "reverser-2026-01-31"

_MAY_HOLD = {"model", "messages", "max_tokens", "temperature", "stream", "logprobs", "seed"}


@dataclass(frozen=True)
class Fault:
    """What is answered instead.

    Attributes:
        body: sent as it is.
        drip: the body comes byte by byte, and does not end.
        hang: nothing comes, or with `drip` nothing more.
        cut: the connection ends before the body does.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drip: bool = False
    hang: bool = False
    cut: bool = False


FaultOf: TypeAlias = Callable[[str], Fault | None]


class ChatServer:
    """A running server, and what it saw.

    Attributes:
        url: with /v1.
        requests: bodies of good requests, in the order of their arrival.
        traces: what each of them says of its trace, by header.
        bugs: what was wrong with the others.
        gone: texts whose caller closed the connection before it was answered.
        arrived: released for every good request.
        left: released for every caller that closed the connection early.
    """

    def __init__(self) -> None:
        self.url = ""
        self.fault_of: FaultOf = lambda _: None
        self.takes_key = True
        self.says_logprobs = True
        self.requests: list[dict[str, Any]] = []  # Any: JSON
        self.traces: list[dict[str, str]] = []
        self.bugs: list[str] = []
        self.gone: list[str] = []
        self.arrived = threading.Semaphore(0)
        self.left = threading.Semaphore(0)
        self._gate = asyncio.Event()
        self._gate.set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def app(self) -> Starlette:
        """As ASGI."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
            ]
        )

    def hold(self) -> None:
        """From here on, requests wait."""
        self._soon(self._gate.clear)

    def go_on(self) -> None:
        """They wait no longer."""
        self._soon(self._gate.set)

    def run(self, server: uvicorn.Server, listener: socket.socket, running: threading.Event) -> None:
        """Serve until told to stop; on a thread."""

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            running.set()
            await server.serve([listener])

        asyncio.run(serve())

    def _soon(self, act: Callable[[], object]) -> None:
        assert self._loop is not None
        done = threading.Event()
        self._loop.call_soon_threadsafe(act)
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(10)

    async def _models(self, request: Request) -> Response:
        if refusal := self._refusal_of_key(request):
            return refusal
        if fault := self.fault_of("models"):
            return await self._faulty(fault, request, "models")
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "tests"}]})

    async def _complete(self, request: Request) -> Response:
        if refusal := self._refusal_of_key(request):
            return refusal
        body = await request.body()
        if bug := _bug_in(body, request.headers):
            self.bugs.append(bug)
            return _error(400, bug, "invalid_request")
        asked = json.loads(body)
        if asked["model"] != MODEL:
            return _error(404, f"The model `{asked['model']}` does not exist", "model_not_found")
        self.requests.append(asked)
        self.traces.append({name: value for name, value in request.headers.items() if name.startswith("trace")})
        text = asked["messages"][-1]["content"]
        self.arrived.release()
        if not await self._gate_or_gone(request, text):
            return Response(status_code=499)
        if fault := self.fault_of(text):
            return await self._faulty(fault, request, text)
        return JSONResponse(completion(asked, text[::-1], self.says_logprobs))

    def _refusal_of_key(self, request: Request) -> Response | None:
        sent = request.headers.get("authorization", "")
        if self.takes_key and sent == f"Bearer {KEY}":
            return None
        return _error(401, f"Incorrect API key provided: {sent.removeprefix('Bearer ')}.", "invalid_api_key")

    async def _gate_or_gone(self, request: Request, text: str) -> bool:
        """Wait while requests are held; False where the caller left meanwhile."""
        if self._gate.is_set():
            return True
        waiting = asyncio.create_task(self._gate.wait())
        leaving = asyncio.create_task(_left(request))
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        is_gone = leaving.done()
        for task in (waiting, leaving):
            task.cancel()
        if is_gone:
            self._note_gone(text)
        return not is_gone

    def _note_gone(self, text: str) -> None:
        self.gone.append(text)
        self.left.release()

    async def _faulty(self, fault: Fault, request: Request, text: str) -> Response:
        if fault.hang and not fault.drip:
            await _left(request)
            self._note_gone(text)
            return Response(status_code=499)
        body = b"{}" if fault.body is None else fault.body
        if fault.drip or fault.cut:
            pieces = self._pieces(fault, body, request, text)
            length = {"content-length": str(len(body) + 1)} if fault.cut else {}
            return StreamingResponse(pieces, fault.status, {**length, **fault.headers}, "application/json")
        return Response(body, fault.status, dict(fault.headers), "application/json")

    async def _pieces(self, fault: Fault, body: bytes, request: Request, text: str) -> AsyncIterator[bytes]:
        if fault.cut:
            yield body
            return  # short of what the headers say: uvicorn closes the connection
        try:
            for byte in body:
                yield bytes([byte])
            while True:
                yield b" "
                await asyncio.sleep(0.01)
        finally:
            self._note_gone(text)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _bug_in(body: bytes, headers: Mapping[str, str]) -> str | None:
    """What the API does not allow in a request."""
    if headers.get("content-type") != "application/json":
        return f"content-type {headers.get('content-type')}"
    try:
        asked = json.loads(body)
    except ValueError as error:
        return f"no JSON: {error}"
    if unknown := asked.keys() - _MAY_HOLD:
        return f"unknown members {sorted(unknown)}"
    if asked.get("stream") is not False or not isinstance(asked.get("logprobs", False), bool):
        return "stream or logprobs"
    messages = asked.get("messages")
    roles = [message.get("role") for message in messages] if isinstance(messages, list) else None
    if roles not in (["user"], ["system", "user"]):
        return f"roles {roles}"
    if not all(message.keys() == {"role", "content"} and isinstance(message["content"], str) for message in messages):
        return "messages"
    return None


def completion(asked: Mapping[str, Any], answer: str, says_logprobs: bool = True) -> dict[str, Any]:  # Any: JSON
    """The API's answer to *asked*."""
    tokens = [answer[at : at + 4] for at in range(0, len(answer), 4)]
    stated = [{"token": t, "logprob": logprob(t), "bytes": list(t.encode()), "top_logprobs": []} for t in tokens]
    wants = asked.get("logprobs") and says_logprobs
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer, "refusal": None},
        "logprobs": {"content": stated, "refusal": None} if wants else None,
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 1, "completion_tokens": len(tokens), "total_tokens": 1 + len(tokens)}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [choice], "usage": usage}  # fmt: skip


def logprob(token: str) -> float:
    """By the rule."""
    return -(sum(token.encode()) % 97) / 50.0


def _error(status: int, message: str, code: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": code, "param": None, "code": code}}, status)


@contextmanager
def chat_server(certificate: Path | None = None, key: Path | None = None) -> Iterator[ChatServer]:
    """A running server; ended on leaving.

    Args:
        certificate: for TLS, with its *key*.
    """
    chat = ChatServer()
    server = uvicorn.Server(
        uvicorn.Config(
            chat.app(), log_level="critical", lifespan="off", timeout_graceful_shutdown=1, ws="none",
            ssl_certfile=certificate, ssl_keyfile=key,
        )
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    chat.url = f"{'https' if certificate else 'http'}://127.0.0.1:{listener.getsockname()[1]}/v1"
    running = threading.Event()
    thread = threading.Thread(target=chat.run, args=(server, listener, running))
    thread.start()
    try:
        assert running.wait(30), "the chat server did not start"
        yield chat
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
