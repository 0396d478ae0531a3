"""HTTP/1.1 without I/O: bytes become requests, responses become bytes. What listens is `gateway.http.listener`.

httptools reads heads. Bodies are cut off here: httptools can neither stop after a request nor say where it stopped,
so with it a client that pipelines would decide how much is read ahead, and every body would be copied once more.

A long body with tensors in it is put where it will stay: into memory that is asked for when its length is known, and
taken from the system page by page as it fills, so that a client which only promises costs nothing. What follows its
JSON begins at an address that NumPy and models can work on, or every tensor would have to be moved.

Two readers that could split a stream of bytes differently are how requests are smuggled past a proxy. So whatever has
two readings is refused, and ends its connection: what `_checked` refuses before httptools sees the head, what httptools
refuses, and what `_Head` and `_Chunks` refuse after it. Nothing lenient is ever set.

Measured on a head of 200 bytes: 3.4 us with a new httptools parser for every request, which can never be out of step
with what is cut off here, 2.7 us with one that is kept. A regular expression for the whole head takes 3.4 us too. So
what is read once is kept (`Heads`): clients send the same few heads again and again, and equal bytes read alike.

Source:
    RFC 9112; RFC 9110, 10.1.1 (Expect).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import httptools
import numpy as np

from backends.errors import HeadersTooLarge, InvalidInput, TooLarge, UnmetExpectation
from gateway.http.messages import Body, HttpRequest, HttpResponse

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Asks for the body; also told to a client that has ended its side, to learn whether it is still there."""

_END = b"\r\n\r\n"
_INVALID = "Invalid HTTP request: "
_CONTROLS = bytes(set(range(0x20)) - set(b"\t\r\n")) + b"\x7f"
_AMBIGUOUS = re.compile(rb"[%s]|\r(?=[^\n])|(?<!\r)\n|\n[ \t]" % re.escape(_CONTROLS))
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_TARGET = re.compile(rb"/[!-\"$-~]*")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[\t -~\x80-\xff]*)?\r\n")
_CHUNK_LINE_BYTES = 256
_TRAILER_BYTES = 8 * 1024
_MOST_PARTS = 1024
_ALIGNMENT = 64
_JSON_BYTES = "inference-header-content-length"
_KNOWN_HEADS = 256
_KNOWN_BYTES = 1024  # longer heads are read every time


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What the head of a request, and the framing of its body, may take.

    Attributes:
        head_bytes: of request line and headers.
        headers: how many.
        chunks: that a body may come in, and one more for every `CHUNK_BYTES` of it: tiny ones are what takes time.
        placed_bytes: length from which on a body with tensors in it is put where these will stay.
    """

    head_bytes: int = 64 * 1024
    headers: int = 256
    chunks: int = 8_192
    placed_bytes: int = 256 * 1024


CHUNK_BYTES: Final = 256
"""Chunks of this size or more can be as many as there is room for."""


class RequestReader:
    """Cuts what a connection receives into requests, one at a time. Useless once it has raised.

    Attributes:
        is_1_1: whether the request that was returned last is HTTP/1.1, and not 1.0.
        keep_alive: whether the connection may go on after the request that was returned last.
        wants_continue: the client waits to be told to send its body; whoever tells it sets this to False.
    """

    __slots__ = ("_at", "_body_bytes", "_chunks", "_head", "_heads", "_held", "_limits", "_missing", "_parts",
                 "_placed", "_seen", "is_1_1", "keep_alive", "wants_continue")  # fmt: skip

    def __init__(self, limits: WireLimits, body_bytes: int, heads: Heads | None = None) -> None:
        """Read requests with bodies of up to *body_bytes*; *heads* of the same *limits* may serve many connections."""
        self._limits = limits
        self._body_bytes = body_bytes
        self._heads = Heads(limits) if heads is None else heads
        self._held = b""  # not yet read, from _at on; up to _seen nothing is wrong with it, and no head ends
        self._at = 0
        self._seen = 0
        self._parts: list[bytes] = []
        self._placed: _Placed | None = None
        self._missing = 0
        self._chunks: _Chunks | None = None
        self._head: _Head | None = None
        self.is_1_1 = True
        self.keep_alive = True
        self.wants_continue = False

    @property
    def head(self) -> HttpRequest | None:
        """The request whose body is being read, as far as it is known; None between requests."""
        return None if self._head is None else self._head.request()

    @property
    def held_bytes(self) -> int:
        """How much is here that no request has been made of."""
        return len(self._held) - self._at

    @property
    def is_between_requests(self) -> bool:
        """Nothing of a request is here."""
        return self._head is None and self._at == len(self._held)

    def hold(self, data: bytes) -> None:
        """Keep *data* for later, between requests."""
        if self._at == len(self._held):
            self._held, self._at, self._seen = data, 0, 0
        else:
            self._held = self._held[self._at :] + data
            self._seen = max(0, self._seen - self._at)
            self._at = 0

    def read(self, data: bytes) -> HttpRequest | None:
        """The next request that is whole with *data* (b"": with what is already here); None where none is.

        Raises:
            InvalidInput: this is no request, or one that could be read in two ways.
            TooLarge: the body is, or declares to be, longer than the limit, or comes in too many chunks.
            HeadersTooLarge: the head is.
            UnmetExpectation: the request expects what is not done here.
        """
        if self._head is not None:
            return self._body(data, 0)
        self.hold(data)
        held, at = self._held, self._at
        if held.startswith(b"\r\n", at):  # after a body, from clients of old (RFC 9112, 2.2); one such line, no more
            at += 2
        end = held.find(_END, max(at, self._seen - 3))
        if end < 0:
            self._check_beginning(at)
            return None
        self._begin(held[at : end + 4])
        self._held, self._at, self._seen = b"", 0, 0
        return self._body(held, end + 4)

    def _check_beginning(self, at: int) -> None:
        """Refuse a head that has not ended, as soon as it can no longer become a good one."""
        held = self._held
        if len(held) - at > self._limits.head_bytes:
            raise HeadersTooLarge(f"the headers are longer than {self._limits.head_bytes} bytes, the most that is read")
        if _AMBIGUOUS.search(held, max(at, self._seen - 1)):
            raise InvalidInput(f"{_INVALID}there is a byte in its head that has no place there")
        self._seen = len(held)

    def _begin(self, data: bytes) -> None:
        head = self._heads.read(data)
        self.is_1_1 = head.is_1_1
        self.keep_alive = head.keep_alive
        self._missing = head.length
        self._chunks = _Chunks(self._limits.chunks, self._body_bytes) if head.is_chunked else None
        self._head = head
        if head.expected:
            if head.expected.lower() != "100-continue":
                raise UnmetExpectation("Expect is not 100-continue, which is all that is understood; leave it out")
            self.wants_continue = head.is_1_1
        if head.length > self._body_bytes:
            raise TooLarge(f"the body has {head.length} bytes; at most {self._body_bytes} are read")
        if head.length >= self._limits.placed_bytes and head.json_bytes is not None:
            self._placed = _Placed(head.length, head.json_bytes)

    def _body(self, data: bytes, at: int) -> HttpRequest | None:
        """Read the body on, which goes on in *data* at *at*; the request, if that is the end of it."""
        here = len(data) - at
        if here:
            self.wants_continue = False
        if self._chunks is not None:
            rest = self._chunks.read(data, at)
            if rest is None:
                return None
            body = self._chunks.body
            self._chunks = None
            return self._whole(body, *rest)
        missing = self._missing
        if self._placed is not None:
            part = memoryview(data)[at : at + missing]
            self._placed.add(part)
            self._missing -= len(part)
            if self._missing:
                return None
            placed, self._placed = self._placed.body, None
            return self._whole(placed, data, at + missing)
        if here < missing:
            if here:
                _append(self._parts, data[at:])
                self._missing -= here
            return None
        body = data[at : at + missing] if missing else b""
        if self._parts:
            self._parts.append(body)
            body = b"".join(self._parts)
            self._parts = []
        return self._whole(body, data, at + missing)

    def _whole(self, body: Body, data: bytes, at: int) -> HttpRequest:
        """The request with its *body*; what follows it in *data* from *at* on is kept."""
        head, self._head = self._head, None
        assert head is not None
        if at < len(data):
            self._held, self._at = data, at
        self.wants_continue = False
        return head.request(body)


class _Placed:
    """A long body as it fills."""

    __slots__ = ("_at", "_room", "body")

    def __init__(self, length: int, json_bytes: int) -> None:
        """Room for *length* bytes, of which those behind *json_bytes* are aligned."""
        whole = np.empty(length + _ALIGNMENT, np.uint8)
        start = -(whole.ctypes.data + json_bytes) % _ALIGNMENT
        self._room = whole.data[start : start + length]
        self._at = 0
        self.body = self._room.toreadonly()

    def add(self, part: memoryview) -> None:
        """Put *part* behind what is here."""
        self._room[self._at : self._at + len(part)] = part
        self._at += len(part)


def _append(parts: list[bytes], part: bytes) -> None:
    """Add *part*; a body that drips in must not become an object for every few bytes."""
    parts.append(part)
    if len(parts) >= _MOST_PARTS:
        parts[:] = [b"".join(parts)]


def _checked(head: bytes, limits: WireLimits) -> bytes:
    """*head*, in which every line ends with CRLF, no line is folded, and nothing is out of place.

    Raises:
        InvalidInput: or it is not so.
        HeadersTooLarge: it is too long, or has too many lines.
    """
    if len(head) > limits.head_bytes:
        raise HeadersTooLarge(f"the headers are longer than {limits.head_bytes} bytes, the most that is read")
    lines = head.count(b"\r\n")
    if not lines == head.count(b"\n") == head.count(b"\r"):
        raise InvalidInput(f"{_INVALID}a CR or an LF stands alone")
    if len(head.translate(None, _CONTROLS)) != len(head):
        raise InvalidInput(f"{_INVALID}there is a control character in its head")
    if b"\n " in head or b"\n\t" in head:
        raise InvalidInput(f"{_INVALID}a header is folded")
    if lines - 2 > limits.headers:
        raise HeadersTooLarge(f"the request has {lines - 2} headers; at most {limits.headers} are read")
    return head


class Heads:
    """Reads heads, and knows the last few different ones: a client's requests differ in their bodies alone.

    Only what has been read without fault is known, under all of its bytes.
    """

    __slots__ = ("_known", "_limits")

    def __init__(self, limits: WireLimits) -> None:
        """Read heads within *limits*."""
        self._limits = limits
        self._known: dict[bytes, _Head] = {}

    def read(self, data: bytes) -> _Head:
        """The head that *data* is, up to and with its empty line.

        Raises:
            InvalidInput: it has no reading, or more than one.
            HeadersTooLarge: it is too long, or has too many lines.
        """
        head = self._known.get(data)
        if head is not None:
            return head
        head = _Head(_checked(data, self._limits))
        if len(data) <= _KNOWN_BYTES:
            if len(self._known) >= _KNOWN_HEADS:
                del self._known[next(iter(self._known))]
            self._known[data] = head
        return head


class _Head:
    """A head that has one reading, by httptools, which calls `on_url` and `on_header`; never changed afterwards."""

    __slots__ = ("_hosts", "_target", "expected", "headers", "is_1_1", "is_chunked", "keep_alive", "length", "method",
                 "path", "query")  # fmt: skip

    def __init__(self, head: bytes) -> None:
        """Read *head*, which `_checked` has passed.

        Raises:
            InvalidInput: it has no reading, or more than one.
        """
        self.headers: dict[str, str] = {}
        self._hosts = 0
        self._target = b""
        method, _, rest = head.partition(b" ")
        try:
            _parse(self, head)
        except httptools.HttpParserInvalidMethodError as error:
            if not _METHOD.fullmatch(method):
                raise InvalidInput(f"{_INVALID}its method is no token") from error
            _parse(self, b"GET " + rest)  # a method that httptools has not heard of; the path says what it may be
        self.method = method.decode("ascii")
        if not _TARGET.fullmatch(self._target):
            raise InvalidInput(f"{_INVALID}its target is no path that begins with /")
        self.path, _, self.query = self._target.decode("ascii").partition("?")
        first = head.find(b"\r\n")
        self.is_1_1 = head.startswith(b" HTTP/1.1", first - 9)
        if not self.is_1_1 and not head.startswith(b" HTTP/1.0", first - 9):
            raise InvalidInput(f"{_INVALID}it is neither HTTP/1.1 nor HTTP/1.0")
        if first != len(method) + len(self._target) + 10:  # httptools passes over spaces behind the target
            raise InvalidInput(f"{_INVALID}there is more than a method, a target and a version in its first line")
        if self._hosts != 1 and (self.is_1_1 or self._hosts):
            raise InvalidInput(f"the request has {self._hosts} Host headers; HTTP/1.1 needs exactly one")
        connection = self.headers.get("connection")
        self.keep_alive = self.is_1_1 and not (connection and "close" in _tokens(connection))
        self.expected = self.headers.get("expect", "")
        self.is_chunked = self._is_chunked()
        self.length = self._length()

    @property
    def json_bytes(self) -> int | None:
        """How much JSON is said to come before tensors; None where nothing is, or nothing that makes sense."""
        stated = self.headers.get(_JSON_BYTES, "")
        return int(stated) if len(stated) <= 18 and stated.isascii() and stated.isdigit() else None

    def request(self, body: Body = b"") -> HttpRequest:
        """The request that this is the head of."""
        return HttpRequest(self.method, self.path, self.query, self.headers, body)

    def on_url(self, part: bytes) -> None:
        """httptools: the target, or a part of it."""
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header."""
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        if key == "host":
            self._hosts += 1
        if key in self.headers:
            text = f"{self.headers[key]}, {text}"
        self.headers[key] = text

    def _is_chunked(self) -> bool:
        coding = self.headers.get("transfer-encoding")
        if coding is None:
            return False
        if coding.lower() != "chunked":
            raise InvalidInput(f"{_INVALID}its transfer coding is not chunked, the only one")
        if "content-length" in self.headers or not self.is_1_1:
            raise InvalidInput(f"{_INVALID}it has a transfer coding where it may have none")
        return True

    def _length(self) -> int:
        length = self.headers.get("content-length")
        if length is None:
            return 0
        if not (length.isascii() and length.isdigit()):
            raise InvalidInput(f"{_INVALID}its Content-Length is not one number of bytes")
        return int(length)  # of 20 digits at most: httptools refuses what does not fit into 64 bits


_NAMES = {
    name.encode(): name.lower()
    for usual in ("Host", "User-Agent", "Accept", "Accept-Encoding", "Connection", "Content-Type", "Content-Length",
                  "Inference-Header-Content-Length", "Authorization", "Traceparent", "Idempotency-Key")
    for name in (usual, usual.lower())
}  # fmt: skip


def _parse(head: _Head, data: bytes) -> None:
    head._target = b""
    head.headers.clear()
    head._hosts = 0
    try:
        httptools.HttpRequestParser(head).feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # to a protocol that is not spoken here: the request is answered as if it had not asked (RFC 9110, 7.8)
    except httptools.HttpParserInvalidMethodError:
        raise
    except httptools.HttpParserError as error:
        raise InvalidInput(f"{_INVALID}its head cannot be read") from error


def _tokens(value: str) -> list[str]:
    return [token.strip() for token in value.lower().split(",")]


class _Chunks:
    """A body in chunked transfer coding; extensions and trailers are read and dropped."""

    __slots__ = ("_bytes", "_held", "_left", "_limit", "_missing", "_parts", "_trailing")

    def __init__(self, chunks: int, limit_bytes: int) -> None:
        """Read up to *chunks* chunks, and one more for every `CHUNK_BYTES`, of *limit_bytes* together."""
        self._left = chunks
        self._limit = limit_bytes
        self._bytes = 0
        self._missing = 0
        self._held = b""
        self._parts: list[bytes] = []
        self._trailing = False

    @property
    def body(self) -> bytes:
        """What was in the chunks."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def read(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """Go on in *data* at *at*; bytes, and where in them the body has ended, or None where more of it must come.

        Raises:
            InvalidInput: this is no chunked coding.
            TooLarge: there are too many bytes, or too many chunks.
        """
        if self._held:
            data, self._held, at = self._held + data[at:], b"", 0
        while not self._trailing:
            if self._missing:
                at, complete = self._chunk(data, at)
                if not complete:
                    return None
            found = _CHUNK.match(data, at, at + _CHUNK_LINE_BYTES)
            if found is None:
                self._hold_line(data, at)
                return None
            self._start(int(found[1], 16))
            at = found.end()
        return self._trailer(data, at)

    def _start(self, size: int) -> None:
        if size == 0:
            self._trailing = True
            return
        self._bytes += size
        self._left -= 1
        if self._bytes > self._limit:
            raise TooLarge(f"the body is longer than {self._limit} bytes, the most that is read")
        if self._left + self._bytes // CHUNK_BYTES < 0:
            raise TooLarge("the body comes in too many chunks; send larger ones, or its Content-Length")
        self._missing = size + 2

    def _chunk(self, data: bytes, at: int) -> tuple[int, bool]:
        """Take what *data* has of the chunk from *at* on; where it ends, and whether it is whole, with its CRLF."""
        here = len(data) - at
        if here >= self._missing:
            end = at + self._missing
            if data[end - 2 : end] != b"\r\n":
                raise InvalidInput(f"{_INVALID}a chunk does not end where its size says")
            if self._missing > 2:
                _append(self._parts, data[at : end - 2])
            self._missing = 0
            return end, True
        taken = min(here, self._missing - 2)
        if taken:
            _append(self._parts, data[at : at + taken])
            self._missing -= taken
        self._held = data[at + taken :]
        return len(data), False

    def _hold_line(self, data: bytes, at: int) -> None:
        line = data[at : at + _CHUNK_LINE_BYTES]
        # Whole (then it does not fit the grammar), too long, or no longer to be completed.
        if b"\n" in line or len(line) == _CHUNK_LINE_BYTES or not _CHUNK_START.fullmatch(line):
            raise InvalidInput(f"{_INVALID}a chunk's size is not a hexadecimal number on a line of its own")
        self._held = line

    def _trailer(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        if data.startswith(b"\r\n", at):
            return data, at + 2
        end = data.find(_END, at)
        lines = data[at : end + 2 if end >= 0 else len(data)]
        most = _TRAILER_BYTES if end >= 0 else _TRAILER_BYTES + 1  # behind the last line, its end may have begun
        if len(lines) > most or _AMBIGUOUS.search(lines):
            raise InvalidInput(f"{_INVALID}there is something behind its chunks that is no trailer")
        if end < 0:
            self._held = lines
            return None
        if not _TRAILER.fullmatch(lines):
            raise InvalidInput(f"{_INVALID}there is something behind its chunks that is no trailer")
        return data, end + 4


_CHUNK_START = re.compile(rb"(?:[0-9a-fA-F]{1,16}(?:;[\t -~\x80-\xff]*)?\r?)?")
_TRAILER = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n)+")


# --- responses ---

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_BREAKS = re.compile(r"[\r\n\0]")
_WITHOUT_LENGTH = frozenset({204, 304})


class Dates:
    """The Date header, made once a second."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Tell the time of *clock*, in seconds since 1970."""
        self._clock = clock
        self._second = -1
        self._line = b""

    def line(self) -> bytes:
        """The header, with its CRLF."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._line = f"date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line


LAST_CHUNK = b"0\r\n\r\n"
"""What ends a body in chunks."""


def encode_chunk(part: bytes) -> bytes:
    """*part*, which is not empty, as a chunk."""
    return b"%x\r\n%b\r\n" % (len(part), part)


def encode_head(response: HttpResponse, date: bytes, *, close: bool, chunked: bool = False) -> bytes:
    """Status line and headers of *response*, with *date*, its length, and whether the connection is closed after it.

    Args:
        response: what is answered.
        date: the header, with its CRLF.
        close: whether the connection is closed after it.
        chunked: its body follows in chunks; a body that is made while it is sent, and not in chunks, ends with the
            connection.

    Raises:
        ValueError: a header would break its line.
    """
    status = response.status
    beginning = _beginning(status, tuple(response.headers))
    if response.parts is not None:
        length = b"transfer-encoding: chunked\r\n" if chunked else b""
    else:
        length = b"" if status in _WITHOUT_LENGTH else b"content-length: %d\r\n" % len(response.body)
    return b"%b%b%b%b" % (beginning, length, date, b"connection: close\r\n\r\n" if close else b"\r\n")


@lru_cache(128)
def _beginning(status: int, fields: tuple[tuple[str, str], ...]) -> bytes:
    lines = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
    return b"".join([*lines, *[_line(*field) for field in fields]])


def _line(name: str, value: str) -> bytes:
    if name == "connection":
        return b""  # the transport's own
    if _BREAKS.search(value) or _BREAKS.search(name):
        raise ValueError(f"the value of {name!r} would end its line; this is a bug")
    return f"{name}: {value}\r\n".encode("latin-1")


def is_last(response: HttpResponse) -> bool:
    """Whether *response* itself asks for the end of its connection."""
    fields: Any = response.headers
    return ("connection", "close") in fields
