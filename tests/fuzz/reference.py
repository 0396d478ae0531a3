"""A plain reader of HTTP/1.1 requests to hold `gateway.http.protocol.RequestReader` against.

It reads a stream that is whole, one regular expression a line, and cares for nothing but RFC 9112 and the limits. What
has two readings it refuses. The real reader may refuse more, and earlier; it must never read anything else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from gateway.http.protocol import CHUNK_BYTES, WireLimits

Read: TypeAlias = tuple[str, str, str, dict[str, str], bytes]
"""Method, path, query, headers and body."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_FIRST_LINE = re.compile(rb"(%b) (/[!-\"$-~]*) HTTP/1\.([01])" % _TOKEN)
_HEADER = re.compile(rb"(%b):(%b)" % (_TOKEN, _TEXT))
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(;%b)?" % _TEXT)


class Refused(Exception):
    """This is no request, or one that could be read in two ways, or too much of one."""


class Unfinished(Exception):
    """More has to come."""


@dataclass(slots=True)
class Reference:
    """What a stream holds.

    Attributes:
        requests: those that are whole.
        refused: what follows them cannot be a request.
        rest: what follows them, where it may become one.
    """

    requests: list[Read] = field(default_factory=list)
    refused: bool = False
    rest: bytes = b""


def read(sent: bytes, limits: WireLimits, body_bytes: int) -> Reference:
    """Read all of *sent*."""
    found = Reference(rest=sent)
    try:
        while found.rest:
            request, found.rest = _request(found.rest, limits, body_bytes)
            found.requests.append(request)
    except Unfinished:
        pass
    except Refused:
        found.refused = True
    return found


def _request(sent: bytes, limits: WireLimits, body_bytes: int) -> tuple[Read, bytes]:
    head, rest = _until(sent.removeprefix(b"\r\n"), b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    begun = _match(_FIRST_LINE, first)
    if len(head) + 4 > limits.head_bytes or len(lines) > limits.headers:
        raise Refused
    fields = [_match(_HEADER, line) for line in lines]
    named = [(name.decode().lower(), value.decode("latin-1").strip(" \t")) for name, value in fields]
    headers = {name: ", ".join(value for other, value in named if other == name) for name, _ in named}

    hosts = sum(name == "host" for name, _ in named)
    if hosts > 1 or (hosts == 0 and begun[2] == b"1"):
        raise Refused
    if (headers.get("expect") or "100-continue").lower() != "100-continue":  # a list, which may be empty
        raise Refused
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers or begun[2] == b"0":
            raise Refused
        body, rest = _chunks(rest, limits.chunks, body_bytes)
    else:
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]+", length) or int(length) > body_bytes:
            raise Refused
        if len(rest) < int(length):
            raise Unfinished
        body, rest = rest[: int(length)], rest[int(length) :]
    path, _, query = begun[1].decode().partition("?")
    return (begun[0].decode(), path, query, headers, body), rest


def _chunks(rest: bytes, most: int, body_bytes: int) -> tuple[bytes, bytes]:
    chunks: list[bytes] = []
    while True:
        line, rest = _until(rest, b"\r\n")
        size = int(_match(_SIZE_LINE, line)[0], 16)
        if len(line) + 2 > 256:
            raise Refused
        if size == 0:
            return b"".join(chunks), _trailer(rest)
        total = sum(map(len, chunks)) + size
        if len(chunks) >= most + total // CHUNK_BYTES or total > body_bytes:
            raise Refused
        if len(rest) < size + 2:
            raise Unfinished
        chunk, end, rest = rest[:size], rest[size : size + 2], rest[size + 2 :]
        if end != b"\r\n":
            raise Refused
        chunks.append(chunk)


def _trailer(rest: bytes) -> bytes:
    """What follows the trailer, which is read and dropped."""
    if rest.startswith(b"\r\n"):
        return rest[2:]
    lines, rest = _until(rest, b"\r\n\r\n")
    if len(lines) + 2 > 8192:
        raise Refused
    for line in lines.split(b"\r\n"):
        _match(_HEADER, line)
    return rest


def _until(sent: bytes, end: bytes) -> tuple[bytes, bytes]:
    before, found, after = sent.partition(end)
    if not found:
        raise Unfinished
    return before, after


def _match(pattern: re.Pattern[bytes], line: bytes) -> tuple[bytes, ...]:
    found = pattern.fullmatch(line)
    if found is None:
        raise Refused
    return found.groups()
