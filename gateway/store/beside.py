"""A store from outside: verified and certified from by another process than the gateway's, beside it or later.

Such a process is no gateway. It makes and upgrades nothing, enrols as no writer, reopens and purges nothing, and locks
nobody out: it reads through `gateway.store.places.read_beside`. So it refuses a schema of another version, which
`open_store` would upgrade under a gateway that serves. What it writes are certificates, looks at labels, and that
messages are to be sent anew, alone. They need neither a chain of the decision log nor a lease, so no place among the
writers: each goes in by a short transaction of its own, and that and the gateway's wait for each other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import IO, TypeVar

import orjson
from sqlalchemy import Connection

from gateway.store import audit, certificates, configurations, labels, log, migrations, outbox
from gateway.store.audit import LogRow, Selection
from gateway.store.contract import CertificationStore, Configuration, Delivery, LabelledItem, OutboxState
from gateway.store.options import StoreOptions
from gateway.store.places import read_beside, write_beside
from router.certificate import Certificate

_R = TypeVar("_R")


async def verify_log_of(options: StoreOptions) -> Sequence[str]:
    """Where the hash chains of the decision log in a store are broken: one line a fault; none when it is whole.

    The store stays as it is, and gateways may be using it meanwhile: what was committed when this began is verified.

    Raises:
        CannotOpenStore: there is no such store, it is none, its schema is another version's, or it cannot be read.
    """
    return await _read(options, log.verify)


async def read_answer_log(options: StoreOptions, answer_id: str) -> Sequence[LogRow]:
    """What the decision log in a store says of *answer_id*; nothing where it knows no such answer.

    Raises:
        CannotOpenStore: as `verify_log_of`.
    """
    return await _read(options, partial(audit.rows_of, answer_id=answer_id))


async def export_log(options: StoreOptions, selection: Selection, out: IO[bytes]) -> int:
    """Write the rows of *selection* to the file *out*, one JSON object a line; how many there are.

    Raises:
        CannotOpenStore: as `verify_log_of`.
    """

    def write(connection: Connection) -> int:
        out.seek(0)  # this may be done again, see `gateway.store.sqlite.read_untouched`
        out.truncate()
        count = 0
        for row in audit.selected(connection, selection):
            out.write(orjson.dumps(row.to_dict(), option=orjson.OPT_APPEND_NEWLINE))
            count += 1
        return count

    return await _read(options, write)


async def list_messages(options: StoreOptions, state: OutboxState | None, limit: int) -> Sequence[Delivery]:
    """The newest messages for webhooks in a store, those in *state* where it is said.

    Raises:
        CannotOpenStore: as `verify_log_of`.
    """
    return await _read(options, partial(outbox.listed, state=state, limit=limit))


async def redeliver(options: StoreOptions, ids: Sequence[str] | None) -> int:
    """Have the messages *ids* delivered anew, or all that are dead; how many there are. Whoever serves delivers them.

    Raises:
        CannotOpenStore: as `verify_log_of`, or the store cannot be written.
    """
    work = _checked(options, partial(outbox.redeliver, ids=ids, now_s=time.time()))
    return await asyncio.to_thread(write_beside, options, work)


async def list_configurations(options: StoreOptions) -> Sequence[Configuration]:
    """The configurations that a store keeps, the newest first, their documents left out.

    Raises:
        CannotOpenStore: as `verify_log_of`.
    """
    return await _read(options, configurations.listed)


async def read_configuration(options: StoreOptions, version: int) -> Configuration:
    """One of them.

    Raises:
        CannotOpenStore: as `verify_log_of`.
        NotFound: there is no such version.
    """
    return await _read(options, partial(configurations.existing, version=version))


@asynccontextmanager
async def open_beside(options: StoreOptions) -> AsyncIterator[CertificationStore]:
    """A store to certify from and into, whether or not a gateway is using it.

    Nothing is held open: every call sees what was committed when it began.

    Raises:
        CannotOpenStore: here and by every method: there is no such store, it is none, its schema is another version's,
            or it cannot be read, or written.
    """
    await _read(options, lambda _: None)
    yield StoreBeside(options)


class StoreBeside:
    """`gateway.store.contract.CertificationStore` over a store; made by `open_beside`."""

    def __init__(self, options: StoreOptions) -> None:
        self._options = options

    def __repr__(self) -> str:
        return f"<StoreBeside {self._options.place}>"

    async def labelled(self, tenant: str | None, route: str) -> Sequence[LabelledItem]:
        """See `CertificationStore.labelled`."""
        return await _read(self._options, partial(labels.read_labelled, tenant=tenant, route=route))

    async def certificates(self, route: str | None = None) -> Sequence[Certificate]:
        """See `CertificationStore.certificates`."""
        return await _read(self._options, partial(certificates.read, route=route))

    async def add_look(self, route: str, subject: str, evidence: str) -> int:
        """See `CertificationStore.add_look`."""
        work = partial(certificates.add_look, route=route, subject=subject, evidence=evidence)
        return await asyncio.to_thread(write_beside, self._options, _checked(self._options, work))

    async def add_certificate(self, certificate: Certificate) -> None:
        """See `CertificationStore.add_certificate`."""
        work = _checked(self._options, partial(certificates.add, certificate=certificate))
        await asyncio.to_thread(write_beside, self._options, work)


async def _read(options: StoreOptions, query: Callable[[Connection], _R]) -> _R:
    return await asyncio.to_thread(read_beside, options, _checked(options, query))


def _checked(options: StoreOptions, work: Callable[[Connection], _R]) -> Callable[[Connection], _R]:
    """*work*, done on a schema that it knows or not at all."""

    def checked(connection: Connection) -> _R:
        migrations.check(connection, options.name)
        return work(connection)

    return checked
