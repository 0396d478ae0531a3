"""One worker as a process: the ordinary gateway without a control port; `gateway.workers` says how it is run."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvloop

from backends.errors import PointsmanError
from gateway.compose import Gateway, Patience, compose
from gateway.control.overview import overview_of
from gateway.folders import used
from gateway.http.messages import HttpRequest
from gateway.ports import bind_shared
from gateway.serve import Signals, background, end_without, maintaining, probing_lag, serve_data
from gateway.settings import Settings
from gateway.telemetry import configure_logging
from gateway.workers.link import Failed, Order, Ready, Reply, Report, Start, Tell, answering, receive, send


def main() -> None:
    """Serve what standard input, a socket to the supervisor, says."""
    link = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    sys.exit(uvloop.run(_work(link)))


async def _work(link: socket.socket) -> int:
    """Serve, until a signal or the supervisor ends it; the exit code."""
    reader, writer = await asyncio.open_connection(sock=link)
    start = await receive(reader)
    if not isinstance(start, Start):
        return 1  # the supervisor is gone already
    configure_logging(start.log_level, start.number)
    try:
        with used(start.questions.parent), Signals() as signals:
            async with background(_obey(reader, signals, start.questions)):
                patience = await _serve(start, signals, writer)
    except (PointsmanError, OSError, ValueError) as error:  # as the command `serve` tells them
        await send(writer, Failed(str(error)))
        return 1
    finally:
        writer.close()
    end_without(patience)  # here: the event loop's own end would wait for threads
    return 0


async def _serve(start: Start, signals: Signals, writer: asyncio.StreamWriter) -> Patience:
    settings: Settings = start.settings
    server = settings.server
    loop = asyncio.get_running_loop()
    with bind_shared(server.host, server.http_port) as http:
        async with compose(settings) as gateway:
            gateway.pipeline.traffic.halt(start.halted)
            work = background(
                maintaining(gateway.keep_up),
                maintaining(gateway.keys.look),
                gateway.loader.watch(),
                probing_lag(gateway),
            )
            async with work, answering(start.questions, _Answers(gateway)):
                telling: list[asyncio.Task[None]] = []

                def ready(grpc: str) -> None:
                    telling.append(loop.create_task(send(writer, Ready())))

                await serve_data(gateway, server, http, signals, ready)
                await send(writer, _report(gateway))
    return gateway.patience


class _Answers:
    """What the supervisor asks."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, question: object) -> Reply:
        """The reply to *question*."""
        if isinstance(question, HttpRequest):
            return await self._gateway.http.handle(question)
        if isinstance(question, Tell):
            self._gateway.pipeline.traffic.halt(question.halted)
        return _report(self._gateway)


def _report(gateway: Gateway) -> Report:
    pipeline = gateway.pipeline
    return Report(gateway.telemetry.families(), overview_of(pipeline), pipeline.traffic.halted)


async def _obey(reader: asyncio.StreamReader, signals: Signals, questions: Path) -> None:
    """Stop when the supervisor says so, or is gone."""
    while (order := await receive(reader)) is not None:
        signals.first.set()
        if order is Order.HURRY:
            signals.second.set()
    signals.first.set()
    _tidy_up(questions)


def _tidy_up(questions: Path) -> None:
    """Remove what the supervisor cannot any more; siblings have sockets there too, and the last takes the folder."""
    with suppress(OSError):
        questions.unlink()
        questions.parent.rmdir()
