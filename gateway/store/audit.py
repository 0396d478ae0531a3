"""Verifying a store file from outside: by another process than the gateway's, beside it or long after it.

Who verifies must not change what is verified: nothing is made, upgraded, enrolled, reopened or locked against writers
(`gateway.store.sqlite.read_untouched`). So a schema of another version is refused, whereas `open_store` upgrades it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy import Connection

from gateway.store import log, migrations
from gateway.store.options import CannotOpenStore, StoreOptions
from gateway.store.sqlite import read_untouched


async def verify_log_file(options: StoreOptions) -> Sequence[str]:
    """Where the hash chains of the decision log in a store file are broken: one line a fault; none when it is whole.

    The file stays as it is, and a gateway may be using it meanwhile: what it had committed when this began is verified.

    Raises:
        CannotOpenStore: there is no such file, it is no store, its schema is another version's, or it cannot be read.
    """

    def verify(connection: Connection) -> list[str]:
        _check_schema(connection, options)
        return log.verify(connection)

    return await asyncio.to_thread(read_untouched, options, verify)


def _check_schema(connection: Connection, options: StoreOptions) -> None:
    found, known = migrations.current_revision(connection), migrations.newest_revision()
    if found is None:
        raise CannotOpenStore(f"store file {options.path} is a database, and no store of Pointsman; check its path")
    if found != known:
        raise CannotOpenStore(
            f"store file {options.path} has schema {found!r}, and this version of Pointsman verifies {known!r}; verify"
            " it with the version that wrote it",
        )
