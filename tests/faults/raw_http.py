"""HTTP/1.1 over a plain socket, for requests that no HTTP library lets one send."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RawReply:
    """All that came back on a connection.

    Attributes:
        statuses: of every reply, in order.
        body: of the last one.
        closed: the server ended the connection.
    """

    statuses: tuple[int, ...]
    body: bytes
    closed: bool

    @property
    def message(self) -> str:
        """What the last reply says of the error; the whole body where it is no JSON."""
        try:
            found: Any = json.loads(self.body)
        except ValueError:
            return self.body.decode(errors="replace")
        return str(found.get("error", ""))


def connect(url: str, timeout_s: float = 10.0) -> socket.socket:
    """A connection to the server at *url*."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=timeout_s)


def exchange(url: str, *parts: bytes, replies: int = 1, quiet_s: float = 0.05) -> RawReply:
    """Send *parts*, and read *replies* replies and whatever follows them within *quiet_s*."""
    with connect(url) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # a server may answer, and close, before it has read all
            for part in parts:
                connection.sendall(part)
        return read(connection, replies, quiet_s)


def read(connection: socket.socket, replies: int = 1, quiet_s: float = 0.05) -> RawReply:
    """Read as `exchange` does."""
    received = b""
    while True:
        statuses, body, rest = _parsed(received)
        if len(statuses) >= replies:
            connection.settimeout(quiet_s)
        try:
            more = connection.recv(1 << 20)
        except TimeoutError:
            assert len(statuses) >= replies, f"{len(statuses)} replies instead of {replies}, and then {rest[:200]!r}"
            return RawReply(statuses, body, closed=False)
        except ConnectionResetError:
            more = b""
        if not more:
            return RawReply(statuses, body, closed=True)
        received += more


def _parsed(received: bytes) -> tuple[tuple[int, ...], bytes, bytes]:
    """Statuses of the whole replies in *received*, the last one's body, and what is left."""
    statuses: list[int] = []
    body = b""
    while (end := received.find(b"\r\n\r\n")) >= 0:
        first, *fields = received[:end].decode("latin-1").split("\r\n")
        length = int(_field(fields, "content-length"))
        if len(received) < end + 4 + length:
            break
        statuses.append(int(first.split()[1]))
        body, received = received[end + 4 : end + 4 + length], received[end + 4 + length :]
    return tuple(statuses), body, received


def _field(fields: Iterable[str], name: str) -> str:
    return next((value.strip() for key, _, value in (field.partition(":") for field in fields) if key == name), "0")


def post(path: str, body: bytes, media: str = "application/json", *headers: str) -> bytes:
    """A well-formed POST, but for what *headers* and *body* say."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {media}", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, *headers, "", "")).encode("latin-1") + body


def post_chunks(path: str, chunks: bytes, media: str = "text/plain") -> bytes:
    """A POST whose body, chunked transfer coding included, is *chunks*."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + chunks
