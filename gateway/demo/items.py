"""The held-out items that the demo sends, and what is known of them: one JSON object a line."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from gateway.demo.packages import write_atomically


@dataclass(frozen=True, slots=True)
class Item:
    """Something that a caller sends, with its true label.

    Attributes:
        route: the route that it belongs to.
        content_type: media type of the payload.
        payload: a PNG or JPEG file, or a text in UTF-8.
        truth: the label that is right.
        votes: the label that each recorded person gave; empty where nobody's is recorded.
    """

    route: str
    content_type: str
    payload: bytes
    truth: str
    votes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What a rater recognises the item by."""
        return payload_key(self.payload)


def payload_key(payload: bytes) -> str:
    """The key of an item with this *payload*: its SHA-256 in hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


def write_items(place: Path, items: Iterable[Item]) -> None:
    """Write *items* to *place*, in order."""
    lines = (
        orjson.dumps(
            {
                "route": item.route,
                "content_type": item.content_type,
                "payload_b64": base64.b64encode(item.payload).decode(),
                "truth": item.truth,
                "votes": item.votes,
            }
        )
        for item in items
    )
    write_atomically(place, b"\n".join(lines) + b"\n")


def read_items(place: Path) -> tuple[Item, ...]:
    """Read what `write_items` wrote."""
    rows = (orjson.loads(line) for line in place.read_bytes().splitlines())
    return tuple(
        Item(
            row["route"],
            row["content_type"],
            base64.b64decode(row["payload_b64"]),
            row["truth"],
            tuple(row["votes"]),
        )
        for row in rows
    )
