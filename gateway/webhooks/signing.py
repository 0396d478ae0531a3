"""Signatures as Standard Webhooks has them, symmetric: HMAC-SHA256 over id, time and body.

Source: Standard Webhooks 1.0.0, "Verifying webhook authenticity".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

_PREFIX = "whsec_"
_SHORTEST, _LONGEST, _USUAL = 24, 64, 32


@dataclass(frozen=True, slots=True)
class Secret:
    """What sender and receiver share, 24 to 64 bytes; never printed."""

    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Secret:
        """The secret that *text* writes: `whsec_` and base64.

        Raises:
            ValueError: it is none; the message does not repeat it.
        """
        try:
            key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        except binascii.Error as error:
            raise ValueError("it is not whsec_ and base64") from error
        if not text.startswith(_PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
            raise ValueError(f"it is not whsec_ and the base64 of {_SHORTEST} to {_LONGEST} bytes")
        return cls(key)

    @classmethod
    def new(cls) -> Secret:
        """One that nobody has."""
        return cls(secrets.token_bytes(_USUAL))

    def text(self) -> str:
        """As `parse` reads it."""
        return _PREFIX + base64.b64encode(self.key).decode()

    def sign(self, message_id: str, timestamp_s: int, body: bytes) -> str:
        """The signature of *body*, sent as *message_id* at a Unix time in seconds."""
        signed = b"%b.%d.%b" % (message_id.encode(), timestamp_s, body)
        return "v1," + base64.b64encode(hmac.digest(self.key, signed, hashlib.sha256)).decode()


def headers(message_id: str, timestamp_s: int, body: bytes, keys: Iterable[Secret]) -> dict[str, str]:
    """The headers by which a receiver knows *body*; it is signed with every one of *keys*."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(key.sign(message_id, timestamp_s, body) for key in keys),
    }
