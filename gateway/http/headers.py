"""Request headers that mean something here, parsed strictly; everything is by lower-case name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.errors import InvalidInput, UnsupportedMedia
from backends.quoting import shorten

_TIMEOUT = "pointsman-timeout-ms"
_MEDIA = re.compile(r"([a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+*-]+)((?:\s*;[^;]*)*)")
_MEDIA_PARAMETER = re.compile(r'\s*;\s*(?:([a-z0-9_-]+)=(?:"([^"\\]*)"|([^\s";]*)))?\s*', re.IGNORECASE)
_WAIT = re.compile(r"""(?:^|,)\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=,|;|$)""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MediaType:
    """A Content-Type.

    Attributes:
        name: lower-case, without parameters; "" where there was no header.
        parameters: by lower-case name.
    """

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


_USUAL = {name: MediaType(name) for name in ("", "application/json", "application/octet-stream")}


def content_type(headers: Mapping[str, str]) -> MediaType:
    """What the body says it is.

    Raises:
        UnsupportedMedia: the header is not a media type.
    """
    value = headers.get("content-type", "")
    if usual := _USUAL.get(value):
        return usual
    value = value.strip()
    if not value:
        return MediaType("")
    found = _MEDIA.fullmatch(value.lower())
    if found is None:
        raise UnsupportedMedia(f"Content-Type {shorten(value)} is not a media type")
    parameters: dict[str, str] = {}
    rest = value[len(found[1]) :]
    while rest:
        part = _MEDIA_PARAMETER.match(rest)
        if part is None or part.end() == 0:
            raise UnsupportedMedia(f"Content-Type {shorten(value)} has a malformed parameter")
        if part[1]:
            parameters[part[1].lower()] = part[2] if part[2] is not None else part[3]
        rest = rest[part.end() :]
    return MediaType(found[1], parameters)


def timeout_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Pointsman-Timeout-Ms` allows; None where it is not there.

    Raises:
        InvalidInput: it is not a positive whole number.
    """
    value = headers.get(_TIMEOUT)
    if value is None:
        return None
    if not re.fullmatch(r"0*[1-9][0-9]{0,11}", value):
        raise InvalidInput(f"Pointsman-Timeout-Ms is {shorten(value)}; it is a positive whole number of milliseconds")
    return int(value) / 1000


def wait_s(headers: Mapping[str, str]) -> int | None:
    """Seconds that `Prefer: wait=N` asks for; None where it does not (a preference that is malformed is ignored).

    Source:
        RFC 7240, 2 and 4.3.
    """
    found = _WAIT.search(headers.get("prefer", ""))
    return int(found[1]) if found else None
