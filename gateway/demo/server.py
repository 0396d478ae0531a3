"""The gateway as a child process: the very command that an operator would start, and its end under all circumstances.

It gets a session of its own, so that Ctrl-C in a terminal reaches the demo alone, which then ends it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_READY_S = 180.0
_STOP_S = 15.0
_LOG_LINES = 12
_READY = "pointsman ready "


ALONE = ("serve",)
"""Starts a gateway that is one process."""


def on_a_cluster(replicas: int, folder: Path) -> Sequence[str]:
    """Starts so many on a Ray Serve of their own, which keeps what it runs by in *folder*."""
    return ("cluster", "up", "--replicas", str(replicas), "--folder", str(folder))


class GatewayEnded(Exception):
    """The gateway ended though nobody told it to; the message has what it said last."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the gateway listens: `http` and `control` as URLs, `grpc` as host:port."""

    http: str
    grpc: str
    control: str


@dataclass(frozen=True, slots=True)
class Listening:
    """Where it is told to listen; port 0 means any that is free."""

    host: str
    http_port: int
    grpc_port: int
    control_port: int

    def arguments(self) -> list[str]:
        """As options of `pointsman serve`."""
        return [
            *("--host", self.host),
            *("--http-port", str(self.http_port)),
            *("--grpc-port", str(self.grpc_port)),
            *("--control-port", str(self.control_port)),
        ]


class Server:
    """A gateway that is ready."""

    def __init__(self, process: asyncio.subprocess.Process, addresses: Addresses, log: Path) -> None:
        self.addresses = addresses
        self._process = process
        self._log = log

    async def wait_ended(self) -> GatewayEnded:
        """Return, once it has ended, why."""
        return _ended(await self._process.wait(), self._log)


@contextlib.asynccontextmanager
async def serving(config: Path, listening: Listening, log: Path, start: Sequence[str] = ALONE) -> AsyncIterator[Server]:
    """A gateway that serves *config* and writes what it has to say to *log*; ended on leaving.

    Args:
        start: the words of the command that starts it.

    Raises:
        GatewayEnded: it cannot start, or is not ready in time.
    """
    command = [sys.executable, "-m", "gateway.cli", *start, str(config), *listening.arguments()]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Server(process, await _addresses(process, log), log)
    finally:
        await _stop(process)


async def _addresses(process: asyncio.subprocess.Process, log: Path) -> Addresses:
    """What the line says that the gateway prints when it is ready."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_READY_S):
            while line := (await process.stdout.readline()).decode(errors="replace"):
                if line.startswith(_READY):
                    return parse_ready(line)
            ended = _ended(await process.wait(), log)
            raise GatewayEnded(f"{ended}\nIf a port is in use: --http-port, --grpc-port, --control-port; 0 is any.")
    except TimeoutError as error:
        raise GatewayEnded(f"the gateway was not ready within {_READY_S:.0f} s:\n{_tail(log)}") from error


def parse_ready(line: str) -> Addresses:
    """The addresses in the line `pointsman ready http=... grpc=... control=... routes=...`."""
    told = dict(word.split("=", 1) for word in line.removeprefix(_READY).split())
    return Addresses(told["http"], told["grpc"], told["control"])


def _ended(status: int, log: Path) -> GatewayEnded:
    return GatewayEnded(f"the gateway ended with status {status}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:]) or "(it said nothing)"


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End it in order, and by force where that takes too long or another Ctrl-C says not to wait."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
