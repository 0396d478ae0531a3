"""The store's key: with it, what the store knows by digest alone cannot be guessed from the store.

A digest of something short (a name, a number, "yes") tells as much as the thing itself, to whoever tries them all. So
the digests of subjects and of inputs are HMACs under a key that is not in the store: in a file of its own, or in the
environment. Whoever has both can show that an input was the one that was decided; whoever has the store alone, or a
backup of it, can show nothing, which is why the digests may stay when what they are of is erased.

    subject   HMAC-SHA256(key, "subject" 0 tenant 0 subject)
    input     HMAC-SHA256(key, SHA-256(input)), so that large inputs are hashed without Python's lock
    sessions  HMAC-SHA256(key, "sessions"), which the inbox signs cookies with (`gateway.control.session`)

All who share a store need the same key. Where it is lost, subjects are not found again, though answers are by their
ids, and digests show nothing any more, and whoever reviews logs in again; nothing else needs it.

Rejected: a salt beside each digest (it would lie in the store), and a slow hash (it is taken for every request).
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from gateway.store.options import CannotOpenStore, StoreOptions

_BYTES = 32
_SHARED = "all who share a store need the same key, which `pointsman store key` makes"


@dataclass(frozen=True, slots=True)
class StoreKey:
    """What digests are keyed with, 32 bytes; never printed."""

    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> StoreKey:
        """The key that *text* writes in hexadecimal.

        Raises:
            ValueError: it is none; the message does not repeat it.
        """
        try:
            key = binascii.unhexlify(text.strip())
        except ValueError as error:
            raise ValueError(f"it is not {2 * _BYTES} hexadecimal digits") from error
        if len(key) != _BYTES:
            raise ValueError(f"it is not {2 * _BYTES} hexadecimal digits")
        return cls(key)

    @classmethod
    def new(cls) -> StoreKey:
        """One that nobody has."""
        return cls(secrets.token_bytes(_BYTES))

    def text(self) -> str:
        """As `parse` reads it."""
        return self.key.hex()

    def of_subject(self, tenant: str, subject: str) -> bytes:
        """By what the store knows *subject*, whom an answer of *tenant* is about; 32 bytes."""
        return hmac.digest(self.key, b"subject\0%b\0%b" % (tenant.encode(), subject.encode()), "sha256")

    def of_sessions(self) -> bytes:
        """What sessions of the inbox are signed with; 32 bytes."""
        return hmac.digest(self.key, b"sessions", "sha256")

    def of_input(self, *parts: bytes | memoryview) -> bytes:
        """The digest of an item's input, which is *parts* one after the other; 32 bytes."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return hmac.digest(self.key, digest.digest(), "sha256")


def key_place(options: StoreOptions) -> Path:
    """The file that holds the key of a store, where it is in one: beside its file, or the file that has its address.

    Raises:
        CannotOpenStore: there is no such file, and nobody says where the key is.
    """
    if options.key_file is not None:
        return options.key_file
    beside = options.place if isinstance(options.place, Path) else options.place.url_file
    if beside is None:
        raise CannotOpenStore(f"{options.name} needs `key_env` or `key_file`: {_SHARED}")
    return beside.with_name(f"{beside.name}-key")


def open_key(options: StoreOptions) -> StoreKey:
    """The key of the store that *options* describe; made where it should lie beside the store, and does not yet.

    Raises:
        CannotOpenStore: it is not there, or is none.
    """
    try:
        if options.key_env is not None:
            return StoreKey.parse(os.environ.get(options.key_env, ""))
        place = key_place(options)
        if options.key_file is None and isinstance(options.place, Path) and not place.exists():
            _make(place)
        return StoreKey.parse(place.read_text())
    except OSError as error:
        why = f"the store's key {error.filename} cannot be read or made: {error.strerror}"
        raise CannotOpenStore(why if isinstance(options.place, Path) else f"{why}; {_SHARED}") from error
    except ValueError as error:
        where = f"the environment's {options.key_env}" if options.key_env is not None else key_place(options)
        raise CannotOpenStore(
            f"the store's key in {where} cannot be used: {error}; `pointsman store key` makes one"
        ) from error


def _make(place: Path) -> None:
    """Write a new key to *place*, unless another process does so first: a file with that name is a whole key."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f"{place.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(StoreKey.new().text() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(partial, place)
    finally:
        partial.unlink()
