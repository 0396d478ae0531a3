"""A store file from outside: verified and certified from by another process than the gateway's, beside it or later.

Such a process is no gateway. It makes and upgrades nothing, enrols as no writer, reopens and purges nothing, and locks
nobody out: it reads through `gateway.store.sqlite.read_untouched`. So it refuses a schema of another version, which
`open_store` would upgrade under a gateway that serves. What it writes are certificates, and looks at labels, alone.
They need neither a chain of the decision log nor a lease, so no place among the writers: each goes in by a short
transaction of its own, and that and the gateway's wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from gateway.store import certificates, labels, log, migrations
from gateway.store.contract import CertificationStore, LabelledItem
from gateway.store.options import StoreOptions
from gateway.store.sqlite import read_untouched, write_beside
from router.certificate import Certificate

_R = TypeVar("_R")


async def verify_log_file(options: StoreOptions) -> Sequence[str]:
    """Where the hash chains of the decision log in a store file are broken: one line a fault; none when it is whole.

    The file stays as it is, and a gateway may be using it meanwhile: what it had committed when this began is verified.

    Raises:
        CannotOpenStore: there is no such file, it is no store, its schema is another version's, or it cannot be read.
    """
    return await _read(options, log.verify)


@asynccontextmanager
async def open_beside(options: StoreOptions) -> AsyncIterator[CertificationStore]:
    """The store in a file, to certify from and into, whether or not a gateway is using it.

    Nothing is held open: every call sees what was committed when it began.

    Raises:
        CannotOpenStore: here and by every method: there is no such file, it is no store, its schema is another
            version's, or it cannot be read, or written.
    """
    await _read(options, lambda _: None)
    yield StoreBeside(options)


class StoreBeside:
    """`gateway.store.contract.CertificationStore` over a store file; made by `open_beside`."""

    def __init__(self, options: StoreOptions) -> None:
        self._options = options

    def __repr__(self) -> str:
        return f"<StoreBeside {self._options.path}>"

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
    return await asyncio.to_thread(read_untouched, options, _checked(options, query))


def _checked(options: StoreOptions, work: Callable[[Connection], _R]) -> Callable[[Connection], _R]:
    """*work*, done on a schema that it knows or not at all."""

    def checked(connection: Connection) -> _R:
        migrations.check(connection, options.path)
        return work(connection)

    return checked
