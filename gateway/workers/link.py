"""How supervisor and worker talk: what they say, and the frames that carry it.

A **link** lasts as long as its worker: a socket pair whose one end is the worker's standard input. Its end tells either
side that the other is gone. A **question** has a connection of its own, to a Unix socket in a folder that only this
user can open; who takes a question back closes the connection, and whatever works on it is cancelled.

Both carry pickles, each behind its length: settings hold options of any backend's own class, and both ends are the same
program. Nothing but the two ever writes there. Whoever could (this user, by the folder's mode) could do as much to the
processes themselves.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TypeAlias

from backends.errors import InvalidInput
from gateway.control.overview import Overview
from gateway.http.messages import HttpRequest, HttpResponse
from gateway.settings import Settings
from gateway.workers.metrics import Family

_LENGTH = struct.Struct(">Q")

log = logging.getLogger("pointsman.workers")


@dataclass(frozen=True, slots=True)
class Start:
    """A worker's first message from its supervisor.

    Attributes:
        settings: with the ports that are held for it.
        questions: the socket that it is to answer on.
        log_level: as the supervisor's.
        halted: canaries that a worker has halted, and why; see `gateway.traffic`.
    """

    number: int
    settings: Settings
    questions: Path
    log_level: str
    halted: Mapping[str, str]


class Order(Enum):
    """What a worker is told later."""

    DRAIN = auto()
    """End, when what was accepted is done; as SIGTERM says it."""
    HURRY = auto()
    """Wait no longer; as a second signal says it."""


@dataclass(frozen=True, slots=True)
class Report:
    """A worker at one moment; its last one comes over the link, unasked.

    Attributes:
        halted: canaries that it has halted, and why.
    """

    families: tuple[Family, ...]
    overview: Overview
    halted: Mapping[str, str]


class Ready:
    """A worker listens."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker cannot start, for a reason that an operator can read."""

    message: str


@dataclass(frozen=True, slots=True)
class Tell:
    """The question for a `Report`; tells of canaries that a worker has halted, and why."""

    halted: Mapping[str, str]


Question: TypeAlias = Tell | HttpRequest
Reply: TypeAlias = Report | HttpResponse


def check_sendable(settings: Settings) -> None:
    """Find out whether a process can be given *settings*.

    Raises:
        InvalidInput: it cannot; says why.
    """
    try:
        pickle.dumps(settings)
    except Exception as error:  # whatever a backend's options have for pickling
        raise InvalidInput(
            f"workers cannot be given this configuration: {error}; have the options of the backend it comes from "
            "support pickle, or set workers: 1"
        ) from error


async def send(writer: asyncio.StreamWriter, message: object) -> None:
    """Write *message*; a peer that is gone is found out by reading."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    with suppress(OSError):
        writer.write(_LENGTH.pack(len(data)) + data)
        await writer.drain()


async def receive(reader: asyncio.StreamReader) -> object | None:
    """The next message; None where the peer is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        message: object = pickle.loads(await reader.readexactly(length))  # noqa: S301  # see above
        return message
    except (OSError, asyncio.IncompleteReadError):
        return None


async def ask(path: Path, question: Question) -> object | None:
    """The reply of whoever answers at *path*; None where nobody does, or it is gone before it has."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return None
    try:
        await send(writer, question)
        return await receive(reader)
    finally:
        writer.close()


@asynccontextmanager
async def answering(path: Path, answer: Callable[[object], Awaitable[Reply]]) -> AsyncIterator[None]:
    """Answer questions at *path*; those that are open at the end are cancelled."""
    talking: set[asyncio.Task[None]] = set()

    def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(_converse(reader, writer, answer))
        talking.add(task)
        task.add_done_callback(talking.discard)

    server = await asyncio.start_unix_server(join, str(path))
    try:
        yield
    finally:
        server.close()
        for task in tuple(talking):
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[object], Awaitable[Reply]]
) -> None:
    try:
        if (question := await receive(reader)) is None:
            return
        working = asyncio.ensure_future(answer(question))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await send(writer, working.result())
        finally:
            working.cancel()
            leaving.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
    except Exception:  # a bug: who asks learns by the end of the connection
        log.exception("a question of the supervisor was not answered")
    finally:
        writer.close()
