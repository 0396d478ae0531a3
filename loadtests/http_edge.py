"""What the data plane's own HTTP transport costs beside uvicorn, with one handler behind both.

    python -m loadtests.http_edge [--rounds 5] [--seconds 0.3] [--out loadtests/results/http_edge.json]

Two servers run, each in a process of its own: `gateway.http.listener`, and uvicorn (httptools, uvloop) with the ASGI
application. A third process asks them in turn, A B B A, over 1, 8 and 32 connections that each send their next request
when the last is answered. That loop hides stalls, and is right for what is asked here: what a request costs. Server
and client are pinned to a core each where there are two. Reported is the ratio of medians with a bootstrap interval of
95 %, and the CPU time of the server's process per request, by its own clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from gateway.answer import Answer, ItemAnswer, Status, new_answer_id
from gateway.http.asgi import AsgiApp
from gateway.http.handler import Handler, HttpExchange, HttpLimits
from gateway.http.listener import HttpListener
from gateway.http.oip import oip_endpoints
from gateway.request import Request, TensorInputs
from gateway.security import Authenticator, SecurityOptions
from loadtests.ratios import ratio, spread
from tests.unit.gateway.scripted import ScriptedService

RESULTS = Path(__file__).parent / "results" / "http_edge.json"
SIDES = ("own", "uvicorn")
CONNECTIONS = (1, 8, 32)
_INFER = json.dumps(
    {"inputs": [{"name": "FP32", "datatype": "FP32", "shape": [1, 16], "data": [0.5] * 16}]}, separators=(",", ":")
).encode()
SHOTS = {
    "live": b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "infer": b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nUser-Agent: loadtest\r\nAccept: */*\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_INFER), _INFER),
}
_LENGTH = re.compile(rb"content-length: ([0-9]+)\r\n")


# --- the servers ---


class _Echo(ScriptedService):
    """Echoes one item, and keeps nothing."""

    async def decide(self, request: Request) -> Answer:
        assert isinstance(request.payload, TensorInputs)
        item = ItemAnswer(Status.FINAL, "fast", None, request.payload.tensors, 0.9, "model:fast", None)
        return Answer(new_answer_id(), request.caller.tenant, request.route, 1.0, (item,))


class _Nobody:
    def on_http(self, exchange: HttpExchange) -> None:
        pass


async def serve(side: str) -> None:
    """Serve until standard input ends; every line there is answered with the CPU seconds used so far."""
    handler = Handler(oip_endpoints(_Echo(), HttpLimits()), Authenticator(SecurityOptions()), _Nobody())
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def asked() -> None:
        if sys.stdin.readline():
            print(time.process_time(), flush=True)
        else:
            ended.set()

    loop.add_reader(sys.stdin, asked)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        print(bound.getsockname()[1], flush=True)
        if side == "own":
            async with HttpListener(handler, bound, 1.0):
                await ended.wait()
            return
        options = uvicorn.Config(
            AsgiApp(handler), http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(options)
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        await ended.wait()
        server.should_exit = True
        await serving


# --- the client ---


class _Caller(asyncio.Protocol):
    """One connection that asks again whenever it is answered."""

    def __init__(self, shot: bytes, latencies: list[float]) -> None:
        self._shot = shot
        self._latencies = latencies
        self._received = b""
        self.running = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        self._asked = time.perf_counter()
        self.transport.write(self._shot)

    def data_received(self, data: bytes) -> None:
        received = self._received + data
        end = received.find(b"\r\n\r\n")
        found = _LENGTH.search(received) if end >= 0 else None
        if found is None or len(received) < end + 4 + int(found[1]):
            self._received = received
            return
        if not received.startswith(b"HTTP/1.1 200"):
            raise AssertionError(received)
        self._received = b""
        if self.running:
            self._latencies.append(time.perf_counter() - self._asked)
            self.ask()


async def load(port: int, connections: int, seconds: float, shot: str) -> dict[str, float]:
    """Ask over *connections* for *seconds*: how many were answered, in which time, and how long one took."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(lambda: _Caller(SHOTS[shot], latencies), "127.0.0.1", port)
        callers.append(caller)
    started = time.perf_counter()
    for caller in callers:
        caller.ask()
    await asyncio.sleep(seconds)
    took_s = time.perf_counter() - started
    for caller in callers:
        caller.running = False
    await asyncio.sleep(0.01)  # for the last replies
    for caller in callers:
        caller.transport.close()
    latencies.sort()
    count = len(latencies)
    return {
        "requests": count,
        "rate": count / took_s,
        "p50_us": 1e6 * latencies[count // 2],
        "p99_us": 1e6 * latencies[count * 99 // 100],
    }


def load_as_told() -> None:
    """Run `load` with the arguments of each line of standard input."""
    for line in sys.stdin:
        print(json.dumps(uvloop.run(load(**json.loads(line)))), flush=True)


# --- the comparison ---


class _Child:
    """This module in a process of its own, which answers lines."""

    def __init__(self, core: int | None, *arguments: str) -> None:
        pin = [] if core is None else ["taskset", "-c", str(core)]
        self._process = subprocess.Popen(  # noqa: S603 - nobody else's words are in it
            [*pin, sys.executable, "-m", "loadtests.http_edge", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def told(self) -> Any:  # Any: JSON
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self.told()


def compare(rounds: int, seconds: float) -> dict[str, Any]:
    """Both sides, over every number of connections and both requests."""
    cores = sorted(os.sched_getaffinity(0))
    here, there = (cores[0], cores[-1]) if len(cores) > 1 else (None, None)
    runs: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        servers = {side: stack.enter_context(_Child(here, "--serve", side)) for side in SIDES}
        ports = {side: server.told() for side, server in servers.items()}
        client = stack.enter_context(_Child(there, "--load"))
        cells = [(shot, connections) for shot in SHOTS for connections in CONNECTIONS]

        def run(shot: str, connections: int, side: str, seconds: float) -> dict[str, float]:
            before = servers[side].ask("cpu")
            told = {"port": ports[side], "connections": connections, "seconds": seconds, "shot": shot}
            found: dict[str, float] = client.ask(json.dumps(told))
            found["cpu_us"] = 1e6 * (servers[side].ask("cpu") - before) / found["requests"]
            return found

        for shot, connections in cells:
            for side in SIDES:
                run(shot, connections, side, 0.1)  # not counted: everything is loaded and warm then
        for _ in range(rounds):
            for shot, connections in cells:
                for side in (*SIDES, *reversed(SIDES)):
                    runs.setdefault((shot, connections, side), []).append(run(shot, connections, side, seconds))
    return {
        "what": "own transport over uvicorn, one handler: ratios of medians, 95 % bootstrap interval",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "pinned": here is not None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("uvloop", "httptools", "uvicorn")},
        "rounds": rounds,
        "seconds_a_run": seconds,
        "cells": [_cell(shot, connections, runs) for shot, connections in cells],
    }


def _cell(shot: str, connections: int, runs: dict[tuple[str, int, str], list[dict[str, float]]]) -> dict[str, Any]:
    own, other = (runs[shot, connections, side] for side in SIDES)
    cell: dict[str, Any] = {"request": shot, "connections": connections}
    for figure in ("rate", "p50_us", "p99_us", "cpu_us"):
        values = [[run[figure] for run in side] for side in (own, other)]
        cell[figure] = {side: asdict(spread(found)) for side, found in zip(SIDES, values, strict=True)}
        cell[figure]["ratio"] = asdict(ratio(*values))
    return cell


def main() -> None:
    """Compare, or be one of the processes that takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments.serve))
    elif arguments.load:
        load_as_told()
    else:
        found = compare(arguments.rounds, arguments.seconds)
        for cell in found["cells"]:
            figures = ", ".join(f"{name} {cell[name]['ratio']['median']}" for name in ("rate", "p50_us", "cpu_us"))
            print(f"{cell['request']:6} {cell['connections']:3} connections: own / uvicorn: {figures}")
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
