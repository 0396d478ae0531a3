"""What the gateway and a worker process tell each other: one JSON object a packet, over a Unix socket pair.

    gateway                                              worker
    {"name", "target", "outputs", "path", ...}      ->
                                                    <-   {"ready": true} | {"refused": code, "why"}
    {"call": n, "inputs", "start", "capacity"}      ->   (with the region's descriptor, if it is a new one)
                                                    <-   {"call": n, "outputs"} | {"call": n, "room": nbytes}
                                                         | {"call": n, "raised", "frames", "said"}
                                                         | {"call": n, "broke"}
    {"write": n, "start", "capacity"}               ->   (after "room": with the descriptor of a larger region)
                                                    <-   {"call": n, "outputs"}

Each call has a number of its own, its fence, which its reply repeats: a late, second or invented reply can never pass
for the answer to another call. The socket is of type SEQPACKET, so that packets keep their borders whatever is sent.

The gateway trusts nothing here: `parse` takes plain JSON, checks every field of it, and unpickles nothing. Anything
else is `Malformed`, after which a worker is not listened to any more.

Rejected: `multiprocessing`'s connections and queues, which unpickle what they receive, and so let a worker run code in
the gateway; a binary framing, since encoding and decoding this takes 2 us of the 100 that a call takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson

from backends.contract import Tensors
from backends.errors import Code
from backends.process.memory import MOST_BYTES, Malformed, windows_of

MOST_PACKET_BYTES: Final = 1 << 18
"""More than a socket's buffer takes by default, and so than a packet can have."""

_TEXT: Final = 4096
_REFUSALS: Final = {code.value: code for code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.BACKEND_FAILED)}


@dataclass(frozen=True, slots=True)
class Ready:
    """The function is imported."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The function cannot be served, and why."""

    code: Code
    why: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The outputs of call *call*, as windows of the region."""

    call: int
    outputs: Tensors


@dataclass(frozen=True, slots=True)
class NeedsRoom:
    """The outputs of call *call* take *nbytes*, more than the region has left."""

    call: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised: the exception's type, where, and what it said."""

    call: int
    kind: str
    frames: str
    said: str


@dataclass(frozen=True, slots=True)
class Broke:
    """The function returned what it must not, and what that was."""

    call: int
    why: str


Reply: TypeAlias = Ready | Refused | Answered | NeedsRoom | Raised | Broke


def parse(packet: bytes | memoryview, capacity: int) -> Reply:
    """What a worker says.

    Args:
        packet: as it arrived.
        capacity: bytes of the region that it may speak of.

    Raises:
        Malformed: it is nothing that a worker may say.
    """
    try:
        said = orjson.loads(packet)
    except orjson.JSONDecodeError:
        raise Malformed("it sent what is not JSON") from None
    match said:
        case {"ready": True}:
            return Ready()
        case {"refused": str() as code, "why": str() as why} if code in _REFUSALS:
            return Refused(_REFUSALS[code], why[:_TEXT])
        case {"call": call} if type(call) is int:
            return _parse_reply(call, said, capacity)
        case _:
            raise Malformed("it sent what is no message")


def _parse_reply(call: int, said: Mapping[str, Any], capacity: int) -> Reply:  # Any: JSON that nobody has looked at
    match said:
        case {"outputs": dict() as outputs}:
            return Answered(call, windows_of(outputs, capacity))
        case {"room": nbytes} if type(nbytes) is int and nbytes > 0:
            return NeedsRoom(call, min(nbytes, MOST_BYTES + 1))
        case {"raised": str() as kind, "frames": str() as frames, "said": str() as text}:
            return Raised(call, kind[:_TEXT], frames[:_TEXT], text[:_TEXT])
        case {"broke": str() as why}:
            return Broke(call, why[:_TEXT])
        case _:
            raise Malformed("it sent a reply that is none")


def packed(message: Mapping[str, Any]) -> bytes:  # Any: JSON
    """*message* as a packet."""
    return orjson.dumps(message)


def plain(text: str) -> str:
    """*text*, which may be anybody's, cut and made fit for a packet."""
    return text[:_TEXT].encode("utf-8", "backslashreplace").decode()
