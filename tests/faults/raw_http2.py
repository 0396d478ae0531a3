"""HTTP/2 frames by hand, for what no gRPC library lets one send; hpack reads the headers of replies."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import hpack

from tests.faults.raw_http import connect

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = struct.pack(">I", 8)
MAX_FRAME_BYTES = 16_384
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header as HPACK has it without a table, and without Huffman's code."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    """The length of *text* as HPACK writes integers, with a prefix of seven bits."""
    if (left := len(text)) < 127:
        return bytes([left])
    left -= 127
    found = b"\x7f"
    while left >= 128:
        found += bytes([left % 128 + 128])
        left //= 128
    return found + bytes([left])


def call_headers(path: str, changes: Mapping[str, str | bytes | None] | None = None) -> bytes:
    """The header block of a call; a change of None leaves a header out, a new name adds one."""
    fields: dict[str, str | bytes | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **(changes or {}),
    }
    return b"".join(
        literal(name.encode(), value.encode() if isinstance(value, str) else value)
        for name, value in fields.items()
        if value is not None
    )


def message(data: bytes) -> bytes:
    """*data* behind the five bytes that gRPC puts before it."""
    return struct.pack(">BI", 0, len(data)) + data


@dataclass(slots=True)
class Stream:
    """What came back on one stream.

    Attributes:
        headers: those before and those behind the data, in one.
        reset: the error code of RST_STREAM.
    """

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more will come."""
        return self.ended or self.reset is not None

    @property
    def status(self) -> int | None:
        """grpc-status, where one came."""
        found = self.headers.get("grpc-status")
        return None if found is None else int(found)


class Http2:
    """A connection whose client does as it is told, and no more than is needed for that: it opens no windows.

    It takes the server's settings over, and stays within its windows in what `call` and `send_body` send.
    """

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        self.socket = connect(f"http://{address}", timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams: dict[int, Stream] = {}
        self.goaway: int | None = None
        self.closed = False
        self.acks = 0
        self._windows = {0: 65_535}
        self._first_window = 65_535
        self._decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self._received = b""
        self._block: tuple[int, int, bytes] | None = None
        self.send(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def is_over(self) -> bool:
        """The server has ended the connection, or said that it will."""
        return self.closed or self.goaway is not None

    def send(self, *parts: bytes) -> bool:
        """Whether all of *parts* went out; False where the server has closed."""
        try:
            for part in parts:
                self.socket.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
            return False
        return True

    def call(self, path: str, data: bytes, stream: int = 1, **changes: str | bytes | None) -> Stream:
        """A whole call with *data* as its body, and all that comes back for it."""
        headers = {name.replace("_", "-"): value for name, value in changes.items()}
        self.send(frame(HEADERS, END_HEADERS, stream, call_headers(path, headers)))
        self.send_body(stream, data)
        self.read_until(lambda: self.stream(stream).is_over or self.is_over)
        return self.stream(stream)

    def send_body(self, stream: int, data: bytes, *, ends: bool = True) -> int:
        """Send *data* as the server makes room for it; how much went out before the call was over."""
        if not data:
            self.send(frame(DATA, END_STREAM if ends else 0, stream))
        sent = 0
        while sent < len(data) and not self.is_over and not self.stream(stream).is_over:
            room = min(self._windows[0], self._windows.setdefault(stream, self._first_window), MAX_FRAME_BYTES)
            if room <= 0:
                self.read_until(lambda: self._has_room(stream) or self.stream(stream).is_over or self.is_over)
                continue
            part = data[sent : sent + room]
            sent += len(part)
            self._windows[0] -= len(part)
            self._windows[stream] -= len(part)
            self.send(frame(DATA, END_STREAM if ends and sent == len(data) else 0, stream, part))
        return sent

    def _has_room(self, stream: int) -> bool:
        return self._windows[0] > 0 and self._windows[stream] > 0

    def stream(self, number: int) -> Stream:
        """What came back on it so far."""
        return self.streams.setdefault(number, Stream())

    def read_until(self, condition: Callable[[], bool]) -> None:
        """Read until *condition* holds or the server has closed.

        Raises:
            TimeoutError: nothing came for the timeout.
        """
        while not condition() and not self.closed:
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            self.closed = not more
            self._received += more
            self._take_frames()

    def take_what_came(self) -> None:
        """Read what has come, and wait for nothing."""
        waits = self.socket.gettimeout()
        self.socket.settimeout(0.0)
        try:
            self.read_until(lambda: False)
        except (BlockingIOError, TimeoutError):
            pass
        finally:
            self.socket.settimeout(waits)

    def _take_frames(self) -> None:
        while len(self._received) >= 9:
            length = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + length:
                return
            kind, flags, number = struct.unpack(">BBI", self._received[3:9])
            payload, self._received = self._received[9 : 9 + length], self._received[9 + length :]
            self._take(kind, flags, number & 0x7FFFFFFF, payload)

    def _take_settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == INITIAL_WINDOW_SIZE:
                for stream in self._windows.keys() - {0}:
                    self._windows[stream] += value - self._first_window
                self._first_window = value

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        match kind:
            case 1 | 9:
                _, first, before = self._block or (number, flags, b"")
                self._block = (number, first, before + payload)
                if flags & END_HEADERS:
                    self._block = None
                    found = self._decoder.decode(before + payload)
                    self.stream(number).headers |= {str(name): str(value) for name, value in found}
                    self.stream(number).ended |= bool(first & END_STREAM)
            case 0:
                self.stream(number).data += payload
                self.stream(number).ended |= bool(flags & END_STREAM)
            case 3:
                self.stream(number).reset = int.from_bytes(payload, "big")
            case 4 | 6:
                self.acks += flags & ACK
                if kind == SETTINGS and not flags & ACK:
                    self._take_settings(payload)
                    self.send(frame(SETTINGS, ACK, 0))
            case 8:
                self._windows[number] = self._windows.get(number, self._first_window) + int.from_bytes(payload, "big")
            case 7:
                self.goaway = int.from_bytes(payload[4:8], "big")
            case _:
                pass
