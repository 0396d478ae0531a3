"""Request bodies that arrive compressed, unpacked within limits.

A bomb is refused while it unpacks: output is produced a chunk at a time, and it ends at the limit on bodies or at the
limit on the ratio, whichever comes first. One coding is undone; a list of codings is refused, since no client needs it
and every layer multiplies the ratio.
"""

from __future__ import annotations

import zlib

from backends.errors import InvalidInput, TooLarge, UnsupportedMedia
from backends.quoting import shorten
from gateway.http.messages import Body

MAX_RATIO = 200
"""Most bytes out of one byte in; text and tensors of zeros aside, nothing real comes near."""

_FREE_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 18
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def decoded(body: Body, coding: str, limit_bytes: int) -> Body:
    """*body* without its Content-Encoding *coding* ("" or `identity`: as it is).

    Raises:
        UnsupportedMedia: an unknown coding, or several.
        InvalidInput: *body* is not of that coding, or ends too early.
        TooLarge: it unpacks to more than *limit_bytes*, or to more than `MAX_RATIO` times its size.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOW_BITS:
        raise UnsupportedMedia(f"Content-Encoding {shorten(coding)} is not read here; use gzip, deflate or none")
    limit_bytes = min(limit_bytes, max(_FREE_BYTES, MAX_RATIO * len(body)))
    unpacker = zlib.decompressobj(_WINDOW_BITS[coding])
    parts: list[bytes] = []
    size = 0
    rest: Body = body
    try:
        while not unpacker.eof:
            part = unpacker.decompress(rest, _CHUNK_BYTES)
            rest = unpacker.unconsumed_tail
            size += len(part)
            if size > limit_bytes:
                raise TooLarge(f"the body unpacks to more than {limit_bytes} bytes; send less, or send it uncompressed")
            if not part and not rest and not unpacker.eof:
                raise InvalidInput(f"the {coding} body ends too early")
            parts.append(part)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {coding}, as its Content-Encoding says") from error
    if unpacker.unused_data:
        raise InvalidInput(f"the {coding} body has {len(unpacker.unused_data)} bytes after its end")
    return b"".join(parts)
