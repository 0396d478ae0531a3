"""What an operator can say about the store, and the error that stops a start."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path

from backends.errors import Unavailable

_ADDRESS_LIMIT_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Postgres:
    """A PostgreSQL database, by where its address is: that may hold a password, and is in no option, message or `repr`.

    Attributes:
        url_env, url_file: one of the two: a variable, or a file that is read anew for every connection. Either holds a
            connection string of libpq: `postgresql://USER:PASSWORD@HOST/DATABASE`, or `host=... dbname=...`.
    """

    url_env: str | None = None
    url_file: Path | None = None

    def __str__(self) -> str:
        return f"PostgreSQL ({self._source})"

    @property
    def _source(self) -> str:
        return f"${self.url_env}" if self.url_file is None else str(self.url_file)

    def address(self) -> str:
        """The connection string, at this moment.

        Raises:
            CannotOpenStore: there is none.
        """
        if self.url_file is None:
            found = os.environ.get(self.url_env or "", "")
        else:
            try:
                with self.url_file.open("rb") as content:
                    found = content.read(_ADDRESS_LIMIT_BYTES).decode()
            except (OSError, UnicodeDecodeError) as error:
                raise CannotOpenStore(f"the store's address cannot be read: {error}") from error
        if not found.strip():
            raise CannotOpenStore(
                f"{self._source} is empty; put the store's address there, postgresql://USER:PASSWORD@HOST/DATABASE"
            )
        return found.strip()


def why_not_postgres() -> str | None:
    """What a store on PostgreSQL lacks here, and the remedy; None: nothing."""
    if importlib.util.find_spec("psycopg") is None:
        return "needs its extra: pip install 'pointsman[postgres]'"
    return None


KEYS_S = 24 * 3600.0
"""Seconds that an idempotency key is kept after its answer is final, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long the store keeps what is no answer; in seconds, None where a limit is not set.

    Attributes:
        payloads_s: of what people were shown, after their answer is final; None: as long as the answer.
        decisions_s: of rows of the decision log; None: while there is room (see `gateway.store.retention`).
        feedback_s: of callers' labels; None: for good.
        messages_s: of messages that were delivered, or are dead; None: as answers.
        keys_s: of idempotency keys, after their answer is final.
    """

    payloads_s: float | None = None
    decisions_s: float | None = None
    feedback_s: float | None = None
    messages_s: float | None = None
    keys_s: float = KEYS_S

    def faults(self, answers_s: float) -> list[tuple[str, str]]:
        """What contradicts *answers_s*, how long answers are kept, or itself: names of attributes, and why."""
        found = [
            (name, "is longer than answers are kept; make it shorter, or keep answers as long")
            for name, kept_s in (("payloads_s", self.payloads_s), ("messages_s", self.messages_s))
            if kept_s is not None and kept_s > answers_s
        ]
        if self.keys_s > max(answers_s, KEYS_S):
            found.append(("keys_s", "is longer than answers are kept, which a key leads to; keep these as long"))
        if self.decisions_s is not None and self.decisions_s < answers_s:
            found.append(("decisions_s", "is shorter than answers are kept, whose decisions it tells; keep it as long"))
        if self.feedback_s is not None and (self.decisions_s is None or self.feedback_s < self.decisions_s):
            found.append(
                ("feedback_s", "is shorter than decisions are kept, and certificates need the labels of those; "
                 "keep it as long, or say how long decisions are")
            )  # fmt: skip
        return found


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Where the store is, and how much it may keep.

    Attributes:
        place: a SQLite file, whose folder is made where it is missing, on a local disk: SQLite's locks do not work on
            network file systems. Or a PostgreSQL database, which gateways on several hosts may share.
        retention_s: seconds that an answer is kept after nothing about it can change any more.
        limit_bytes: what the store may take on disk (see `gateway.store.retention`).
        undo_s: seconds in which people can take a decision back, and webhooks are not told of it; 0: they cannot.
        busy_timeout_s: seconds that a write waits for another process's.
        group_units: most durable writes that share a transaction; 1: each has one, and a flush of the disk, of its own.
        kept: how long it keeps everything else.
        key_env, key_file: where its key is (see `gateway.store.key`), one of the two, or neither: then a file beside
            the store, made when the store is.
    """

    place: Path | Postgres
    retention_s: float = 30 * 86_400.0
    limit_bytes: int = 10 * 2**30
    busy_timeout_s: float = 5.0
    group_units: int = 64
    undo_s: float = 10.0
    kept: Retention = field(default_factory=Retention)
    key_env: str | None = None
    key_file: Path | None = None

    @property
    def path(self) -> Path:
        """The SQLite file; only where there is one."""
        assert isinstance(self.place, Path), f"{self.place} has no path. This is a bug."
        return self.place

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"store file {self.place}" if isinstance(self.place, Path) else f"store on {self.place}"


class CannotOpenStore(Unavailable):
    """The store cannot be used; the message says why, and what to do."""
