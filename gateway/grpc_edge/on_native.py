"""The gRPC transport on `pygrpc-native`: HTTP/2 and gRPC in Rust, outside the GIL (see `transport` for when).

    front (its thread) -> events, many at a time -> one thread of ours -> one call_soon_threadsafe -> a task each

The front's low-level interface is used, and not its drop-in server, whose context for every call costs more than what
it carries. The thread takes the GIL once for all events that have come, and the loop is woken once for them.

Every method is a stream to the front, those with one reply too: on the wire they are the same, and only a stream's
headers can be sent ahead of its trailers. That is how clients with a retry policy are kept from repeating a call
(gRFC A6: a call is committed once its headers have come), as the front refuses to carry `grpc-retry-pushback-ms`.
It costs nothing that could be measured.

Conversations, methods that are not served and paths that are none go to a grpcio server behind the front, on a Unix
socket in a folder that only this user can open.

Rejected: running a call without a task until it first waits (an inference waits for its batch always, and Python 3.11
cannot go on with what was begun so in a task); the front's waiting `stream_send` in a thread for a client that reads
slowly (a few dozen such clients would hold every thread that large messages are read in; the loop looks again instead).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, TypeAlias

import grpc
from pygrpc_native import EVENT_CANCEL, STREAM_CLOSED, STREAM_FULL, NativeGrpcFront

from gateway.folders import private_folder
from gateway.grpc_edge.calls import (
    CallServer,
    Offer,
    Pairs,
    Streaming,
    Trailers,
    Unary,
    deadline_in,
    shutting_down,
    too_large,
    trailers_of,
)
from gateway.grpc_edge.on_grpcio import GrpcioListener
from gateway.status import refusal_of

log = logging.getLogger("pointsman.grpc")

_BATCH = 256
"""Most events that are handed over at a time."""

_ROOM_S, _MOST_ROOM_S = 0.005, 0.2
"""Between two looks at whether a slow reader has made room: at first, and at most."""

_MOST_PATH = 95
"""Longest name of the folder of a Unix socket; that of the socket may have 103 characters on every system."""

_LOOK_S = 0.01
"""Between two looks at whether every reply has gone out, at the end."""

_FLUSH_S = 0.05
"""What the last bytes get to reach the kernel: the front counts a reply once its reader has room for all of it."""

_Details: TypeAlias = tuple[tuple[tuple[str, str | bytes], ...], str, float | None]
_Event: TypeAlias = tuple[int, int, int, bytes | None, bytes | str | None, _Details | None]
_Serve: TypeAlias = Callable[[int, bytes, Pairs, float | None, float], Coroutine[Any, Any, None]]


class NativeListener:
    """Serves *offers* on *address* while it is started; implements `transport.Listener`."""

    def __init__(
        self, calls: CallServer, offers: Sequence[Offer], address: str, message_bytes: int, *, reuse_port: bool = False
    ) -> None:
        """As `on_grpcio.GrpcioListener`; *address* is `host:port`."""
        self._calls = calls
        self._offers = offers
        self._address = address
        self._message_bytes = message_bytes
        self._reuse_port = reuse_port
        self._running: dict[int, asyncio.Task[None]] = {}
        self._refusal: Trailers | None = None

    async def start(self) -> int:
        """Listen; the port.

        Raises:
            OSError: the address cannot be bound, or no socket made behind it.
        """
        self._loop = asyncio.get_running_loop()
        native = [
            (f"{offer.service.full_name}/{name}", method)
            for offer in self._offers
            for name, method in offer.methods.items()
            if isinstance(method, Unary | Streaming)
        ]
        self._names = [name for name, _ in native]
        async with AsyncExitStack() as stack:
            socket = stack.enter_context(private_folder("grpc", _MOST_PATH)) / "calls"
            self._front = self._bind()
            stack.callback(self._front.close)  # twice is harmless
            self._serve: list[_Serve] = [
                self._unary(name, method) if isinstance(method, Unary) else self._streaming(name, method)
                for name, method in native
            ]
            self._behind = GrpcioListener(self._calls, self._offers, f"unix:{socket}", self._message_bytes)
            stack.push_async_callback(self._behind.stop, 0.0)
            await self._behind.start()
            self._front.set_fallback(str(socket))
            receiving = threading.Thread(target=self._receive, name="grpc-native", daemon=True)
            self._front.start()
            receiving.start()
            stack.push_async_callback(asyncio.to_thread, receiving.join)
            stack.push_async_callback(asyncio.to_thread, self._front.close)
            self._open = stack.pop_all()
        return self._front.bound_port

    def _bind(self) -> NativeGrpcFront:
        try:
            return NativeGrpcFront(
                self._address,
                [(f"/{name}", True) for name in self._names],
                io_threads=1,
                call_details=True,
                delay_stream_headers=True,
                reuse_port=self._reuse_port,
                metrics=True,
            )
        except OSError as error:
            raise OSError(f"{error}; choose another port") from error

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, and end those in flight after *grace_s* seconds.

        The port stays open until then, as the front closes it only together with its connections.
        """
        until_s = self._calls.clock() + grace_s
        self._refusal = trailers_of(refusal_of(shutting_down()))
        behind = asyncio.ensure_future(self._behind.stop(grace_s))
        if self._running and grace_s > 0:
            await asyncio.wait(self._running.values(), timeout=grace_s)
        left = list(self._running.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await behind
        while self._unsent() and self._calls.clock() < until_s:  # noqa: ASYNC110  (the front has no event for it)
            await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(_FLUSH_S)
        await self._open.aclose()

    async def hand_over(self, grace_s: float) -> None:
        """As `stop`: the front can tell nobody to go elsewhere, so callers that come meanwhile are refused."""
        await self.stop(grace_s)

    def _unsent(self) -> int:
        """Calls whose replies their readers have not made room for: a close would cut them off."""
        methods = (self._front.metrics() or {"methods": {}})["methods"].values()
        return sum(one["started"] - sum(ended["count"] for ended in one["status"].values()) for one in methods)

    def _receive(self) -> None:
        """Hand events over to the loop, until the front is closed (in a thread of its own)."""
        receive, clock, hand_over, take = (
            self._front.recv_batch_details,
            self._calls.clock,
            self._loop.call_soon_threadsafe,
            self._take,
        )
        while (events := receive(_BATCH)) is not None:
            try:
                hand_over(take, events, clock())
            except RuntimeError:  # the loop was closed, and nobody has stopped this
                self._front.close()
                return

    def _take(self, events: Sequence[_Event], received_s: float) -> None:
        """Begin calls, and cancel those whose caller has left or whose deadline has passed."""
        for event in events:
            try:
                self._take_one(event, received_s)
            except Exception as error:  # a bug, here or in the front; those behind it are not to pay for it
                log.exception("a gRPC call could not be taken")
                with suppress(Exception):
                    self._end(event[1], trailers_of(refusal_of(error)))

    def _take_one(self, event: _Event, received_s: float) -> None:
        kind, call_id, method_id, payload, _, details = event
        if kind == EVENT_CANCEL:
            self._cancel(call_id)
            return
        assert payload is not None
        assert details is not None
        if self._refusal is not None:
            code = self._refuse(call_id, self._refusal)
            self._calls.ended(self._names[method_id], code, received_s)
            return
        metadata, _, remaining_s = details
        serving = self._serve[method_id](call_id, payload, metadata, remaining_s, received_s)
        self._running[call_id] = self._loop.create_task(serving, name=self._names[method_id])

    def _cancel(self, call_id: int) -> None:
        task = self._running.get(call_id)
        if task is None:
            return  # it has just been answered
        serving = task.get_coro()
        assert inspect.iscoroutine(serving)
        if inspect.getcoroutinestate(serving) == inspect.CORO_CREATED:
            # Cancelled now it never runs, and so would not report itself.
            del self._running[call_id]
            self._calls.ended(task.get_name(), grpc.StatusCode.CANCELLED, self._calls.clock())
        task.cancel()

    def _unary(self, name: str, method: Unary) -> _Serve:
        answer, ended = self._calls.answer, self._calls.ended
        send, end = self._front.stream_try_send, self._front.stream_end
        forget, limit = self._running.pop, self._message_bytes

        async def serve(
            call_id: int, data: bytes, metadata: Pairs, remaining_s: float | None, started_s: float
        ) -> None:
            code = grpc.StatusCode.CANCELLED
            try:
                if len(data) > limit:
                    reply: bytes | Trailers = trailers_of(refusal_of(too_large(len(data), limit)))
                else:
                    reply = await answer(method, data, metadata, deadline_in(remaining_s, started_s))
                if isinstance(reply, Trailers):
                    code = self._refuse(call_id, reply)
                elif send(call_id, reply) != STREAM_CLOSED:  # the first message of a stream has room
                    end(call_id)
                    code = grpc.StatusCode.OK
            except asyncio.CancelledError:
                self._end_unfinished(call_id)
                raise
            except Exception as error:  # the front took offence: its caller must not wait for ever
                code = self._refuse(call_id, trailers_of(refusal_of(error)))
            finally:
                forget(call_id, None)
                ended(name, code, started_s)

        return serve

    def _streaming(self, name: str, method: Streaming) -> _Serve:
        async def serve(
            call_id: int, data: bytes, metadata: Pairs, remaining_s: float | None, started_s: float
        ) -> None:
            code = grpc.StatusCode.CANCELLED
            try:
                if len(data) > self._message_bytes:
                    code = self._refuse(call_id, trailers_of(refusal_of(too_large(len(data), self._message_bytes))))
                    return
                deadline = deadline_in(remaining_s, started_s)
                async with aclosing(self._calls.replies(method, data, metadata, deadline)) as replies:
                    async for reply in replies:
                        if isinstance(reply, Trailers):
                            code = self._refuse(call_id, reply)
                            return
                        if not await self._send(call_id, reply):
                            return
                self._front.stream_end(call_id)
                code = grpc.StatusCode.OK
            except asyncio.CancelledError:
                self._end_unfinished(call_id)
                raise
            except Exception as error:  # as above
                code = self._refuse(call_id, trailers_of(refusal_of(error)))
            finally:
                self._running.pop(call_id, None)
                self._calls.ended(name, code, started_s)

        return serve

    async def _send(self, call_id: int, reply: bytes) -> bool:
        """Whether *reply* is on its way, once there is room for it; False where its caller has left."""
        pause_s = _ROOM_S
        while (sent := self._front.stream_try_send(call_id, reply)) == STREAM_FULL:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_ROOM_S)
        return sent != STREAM_CLOSED

    def _refuse(self, call_id: int, trailers: Trailers) -> grpc.StatusCode:
        """End the call with *trailers*; what its caller was told, CANCELLED where it has left."""
        return trailers.code if self._end(call_id, trailers) else grpc.StatusCode.CANCELLED

    def _end(self, call_id: int, trailers: Trailers) -> bool:
        """Whether the call ended with *trailers*; False where its caller has left."""
        if not trailers.repeatable:
            self._front.stream_send_initial_metadata(call_id, ())  # commits the call: nobody repeats it
        return self._front.fail(call_id, trailers.code.value[0], trailers.message, trailers.metadata)

    def _end_unfinished(self, call_id: int) -> None:
        """Tell its caller, if there still is one, that this gateway ends before the call does."""
        if self._refusal is not None:
            self._end(call_id, self._refusal)
