"""The gateway as a process: listeners, signals, and an end at which nothing accepted is lost.

Stopping, on SIGTERM or SIGINT:

1. Readiness turns 503 and gRPC health NOT_SERVING; new requests are refused as UNAVAILABLE, long polls return.
2. The data plane's listeners close; what was accepted goes on, for `drain_s` seconds at most.
3. What is left then is refused as UNAVAILABLE.
4. The control plane closes, then the models, then the store, which commits what it has queued.

A second signal skips the waiting. Addresses are bound before any model is loaded, so that a port in use is told at
once; they accept only when everything is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import uvicorn
import uvloop
from starlette.types import ASGIApp

from gateway.compose import Gateway, Patience, compose
from gateway.grpc_server import GrpcServer
from gateway.http.listener import HttpListener
from gateway.ports import address_of, bind
from gateway.rereading import Rereading
from gateway.settings import ServerOptions, Settings

MAINTENANCE_S = 2.0
"""Between two rounds of upkeep."""

LAG_PROBE_S = 0.1
"""Between two measurements of how late the event loop is."""

LAST_REPLIES_S = 2.0
"""What refused requests get to write their replies."""

log = logging.getLogger("pointsman.serve")


@dataclass(frozen=True, slots=True)
class Retiring:
    """How a gateway leaves others that listen on the same ports, or behind the same balancer, before it drains.

    Attributes:
        unready_s: for so long it says that it is not ready, and takes connections still: a balancer may need that.
        last_s: then, with its listeners closed, for so long who is connected may still ask, once.
    """

    unready_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the gateway listens, each as `host:port`."""

    http: str
    grpc: str
    control: str


def run(settings: Settings, announce: Callable[[Addresses], None]) -> None:
    """Serve *settings* in this process until a signal ends it; calls *announce* once, when every listener answers.

    Raises:
        OSError: an address cannot be bound.
        PointsmanError: a model or the store cannot be opened.
    """
    uvloop.run(serve(settings, announce))


async def serve(settings: Settings, announce: Callable[[Addresses], None]) -> None:
    """As `run`, on the running loop, which belongs to the gateway alone."""
    server = settings.server
    if server.grpc_port:
        bind(server.host, server.grpc_port).close()  # gRPC binds for itself, but late: a port in use is told now
    with (
        Signals() as signals,
        bind(server.host, server.http_port) as http,
        bind(server.host, server.control_port) as control,
    ):
        where = (address_of(http), address_of(control))

        def ready(grpc: str) -> None:
            announce(Addresses(where[0], grpc, where[1]))

        async with (
            compose(settings) as gateway,
            background(
                maintaining(gateway.maintain),
                maintaining(gateway.keys.look),
                gateway.loader.watch(),
                gateway.deliver(),
                probing_lag(gateway),
            ),
            Listener(gateway.control_app, control, LAST_REPLIES_S),
        ):
            await serve_data(gateway, server, http, signals, ready)
    end_without(gateway.patience)


async def serve_data(
    gateway: Gateway,
    server: ServerOptions,
    http: socket.socket,
    stop: Stop,
    ready: Callable[[str], None],
    retiring: Retiring | None = None,
) -> None:
    """Serve the data plane, HTTP on the bound socket *http*, until *stop* ends it and it has drained.

    Args:
        ready: is told gRPC's address once both listeners answer.
        retiring: how it leaves others; None: there are none.

    Raises:
        OSError: gRPC's address cannot be bound.
    """
    tls = server.tls.context() if server.tls else None
    data = HttpListener(gateway.http, http, server.drain_s + LAST_REPLIES_S, tls=tls)
    async with data, gateway.grpc as grpc, background(*_renewing(server, data)):
        gc.freeze()  # what start-up has built stays: collections need not walk it again
        gc.set_threshold(10_000, 20, 50)  # a request makes a hundred objects and few cycles
        ready(grpc.address)
        await stop.first.wait()
        log.info("stopping: %d requests in flight, up to %g s", gateway.pipeline.in_flight, server.drain_s)
        closing: asyncio.Future[None] | None = None
        if retiring is not None:
            gateway.pipeline.retire()
            await stop.hurried_within(retiring.unready_s)
            data.retire()
            closing = asyncio.ensure_future(grpc.hand_over(retiring.last_s + server.drain_s + LAST_REPLIES_S))
            await stop.hurried_within(retiring.last_s)
        await _drain(gateway, data, grpc, stop, server.drain_s)
        if closing is not None:
            await closing


def _renewing(server: ServerOptions, data: HttpListener) -> list[Coroutine[Any, Any, None]]:
    """Has *data* prove itself with the certificate that is in its file now, for ever; nothing without TLS."""
    tls = server.tls
    if tls is None:
        return []
    return [maintaining(Rereading("the TLS certificate", (tls.cert, tls.key), tls.context, data.use_tls).look)]


def end_without(patience: Patience) -> None:
    """End the process, where models that hang would keep it.

    Everything that counts is committed; Python would wait for their threads for ever.
    """
    if patience.abandoned:
        logging.shutdown()
        os._exit(0)


async def _drain(gateway: Gateway, data: HttpListener, grpc: GrpcServer, stop: Stop, drain_s: float) -> None:
    gateway.pipeline.drain()
    data.close()
    closing = asyncio.ensure_future(grpc.drain(drain_s + LAST_REPLIES_S))
    await drain_without_listeners(gateway, stop, drain_s)
    if stop.second.is_set():
        data.abort()
    await closing


async def drain_without_listeners(gateway: Gateway, stop: Stop, drain_s: float) -> None:
    """Finish what was accepted by others' listeners, and refuse what is left after *drain_s* seconds."""
    gateway.pipeline.drain()
    idle = asyncio.ensure_future(gateway.pipeline.idle())
    again = asyncio.ensure_future(stop.second.wait())
    await asyncio.wait((idle, again), timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    again.cancel()
    await gateway.refuse_the_rest()


class Stop:
    """What ends a gateway.

    Attributes:
        first: stop.
        second: and wait no longer.
    """

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    async def hurried_within(self, wait_s: float) -> None:
        """Return after *wait_s* seconds, or once nobody is to wait any longer."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.second.wait(), wait_s)


class Signals(Stop):
    """SIGTERM and SIGINT as what ends it, in place of what Python does on them."""

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _arrived(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class Listener:
    """An ASGI application on a bound socket, by uvicorn, without its signal handlers."""

    def __init__(self, app: ASGIApp, bound: socket.socket, grace_s: float) -> None:
        self._bound = bound
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=int(grace_s),
            )
        )

    async def __aenter__(self) -> Self:
        server = self._server
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[self._bound])
        self._running = asyncio.ensure_future(server.main_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self._closing

    def close(self) -> None:
        """Stop accepting now; `__aexit__` waits for what was accepted. Closing twice is harmless."""
        if not self._server.should_exit:
            self._server.should_exit = True
            self._closing = asyncio.ensure_future(self._close())

    def abort(self) -> None:
        """Wait for nothing any more."""
        self._server.force_exit = True

    async def _close(self) -> None:
        await self._running
        await self._server.shutdown(sockets=[self._bound])


@contextlib.asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """*work* that goes on beside requests until it is cancelled, which happens on leaving; what fails is logged.

    No TaskGroup: it would wrap what ends the gateway itself, such as a port in use, into a group.
    """
    running = [asyncio.create_task(task) for task in work]
    for task in running:
        task.add_done_callback(_tell_of_end)
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


def _tell_of_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        name = getattr(task.get_coro(), "__qualname__", "work")
        log.error("%s has ended, and is not done any more until the next start", name, exc_info=error)


async def maintaining(upkeep: Callable[[], Awaitable[object]]) -> None:
    """Do *upkeep* every few seconds; what fails in it is logged, and tried again."""
    while True:
        try:
            await upkeep()
        except Exception:  # the next round may fare better, and upkeep must never stop
            log.exception("upkeep failed; it is tried again in %g s", MAINTENANCE_S)
        await asyncio.sleep(MAINTENANCE_S)


async def probing_lag(gateway: Gateway) -> None:
    """Measure how late the event loop is, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_PROBE_S
        await asyncio.sleep(LAG_PROBE_S)
        gateway.telemetry.on_lag(max(0.0, loop.time() - due))
