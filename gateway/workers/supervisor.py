"""The supervisor as a process: the control port, the workers, and their end in order.

Stopping, on SIGTERM or SIGINT: every worker drains, as `gateway.serve` has it, while the control port goes on; then
that closes, and the store. A second signal skips the waiting. A worker that is late is killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import uvloop

from gateway.compose import CLOSE_S, compose_control
from gateway.folders import private_folder
from gateway.ports import address_of, bind, held, port_of
from gateway.serve import LAST_REPLIES_S, Addresses, Listener, Signals, background, maintaining
from gateway.settings import Settings
from gateway.workers.crew import Crew

_MOST_PATH = 60
"""Longest name of the workers' folder, in which each has one for the socket behind its gRPC port."""

_LAST_PAGES_S = 1.0
"""What the control port's last requests get."""


def run(settings: Settings, announce: Callable[[Addresses], None]) -> None:
    """Serve *settings* by `server.workers` processes until a signal ends it; calls *announce* once all are ready.

    Raises:
        OSError: an address cannot be bound.
        PointsmanError: a worker cannot start, or the store be opened.
    """
    uvloop.run(supervise(settings, announce))


async def supervise(settings: Settings, announce: Callable[[Addresses], None]) -> None:
    """As `run`, on the running loop."""
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        server = settings.server
        http = stack.enter_context(held(server.host, server.http_port))
        grpc = stack.enter_context(held(server.host, server.grpc_port))
        control = stack.enter_context(bind(server.host, server.control_port))
        folder = stack.enter_context(private_folder("workers", _MOST_PATH))
        settings = replace(settings, server=replace(server, http_port=port_of(http), grpc_port=port_of(grpc)))
        crew = Crew(settings, folder)
        async with compose_control(settings, crew) as plane, crew:
            if not await crew.wait_ready(signals.first):
                return
            work = background(
                maintaining(plane.maintain),
                maintaining(plane.keys.look),
                plane.deliver(),
                maintaining(crew.look),
            )
            async with work, Listener(plane.app, control, _LAST_PAGES_S):
                announce(Addresses(address_of(http), address_of(grpc), address_of(control)))
                await crew.watch(signals.first)
                await crew.drain(signals.second, server.drain_s + LAST_REPLIES_S + CLOSE_S)
