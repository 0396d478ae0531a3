"""Chance that nobody can try again: whether something is drawn follows from a secret and from what it is.

A retry, a restart or another process draws the same, and who does not know the secret cannot tell what is drawn.
"""

from __future__ import annotations

import hashlib
import hmac

_ALL = 1 << 64


def is_drawn(secret: bytes, share: float, *names: str) -> bool:
    """Whether a sample that takes *share* of all things takes the one that *names* tell from all others.

    The first of *names* says what is drawn for, so that two samples of the same things know nothing of each other.

    Args:
        secret: the same for ever.
        share: in [0, 1]; what a smaller share draws, a larger one draws too.
    """
    parts = (name.encode("utf-8", "surrogatepass") for name in names)
    told = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return int.from_bytes(hmac.digest(secret, told, hashlib.sha256)[:8]) < share * _ALL
