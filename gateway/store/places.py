"""Which database a store is in: it is opened there as a writer, or read and written to beside those that are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gateway.store import migrations, sqlite
from gateway.store.database import Database
from gateway.store.options import CannotOpenStore, StoreOptions, why_not_postgres
from gateway.store.ownership import enrol
from gateway.store.transaction import Identity

_R = TypeVar("_R")


def open_database(options: StoreOptions) -> tuple[Database, Identity]:
    """The database, with the newest schema, and a place among its writers.

    Raises:
        CannotOpenStore: it cannot be used.
    """
    if isinstance(options.place, Path):
        return _prepared(sqlite.SqliteDatabase(options), options, sqlite.cannot_use)
    _check_postgres(options)
    from gateway.store import postgres

    return _prepared(postgres.PostgresDatabase(options), options, postgres.cannot_use)


def read_beside(options: StoreOptions, query: Callable[[Connection], _R]) -> _R:
    """What *query* finds in a snapshot of the store, which is neither written to nor locked against writers.

    Raises:
        CannotOpenStore: it cannot be read.
    """
    if isinstance(options.place, Path):
        return sqlite.read_untouched(options, query)
    _check_postgres(options)
    from gateway.store import postgres

    return postgres.read_beside(options, query)


def write_beside(options: StoreOptions, work: Callable[[Connection], _R]) -> _R:
    """What *work* does in one durable transaction, by a writer without a slot.

    Raises:
        CannotOpenStore: the store cannot be written; nothing was done.
    """
    if isinstance(options.place, Path):
        return sqlite.write_beside(options, work)
    _check_postgres(options)
    from gateway.store import postgres

    return postgres.write_beside(options, work)


def overwrite_beside(options: StoreOptions) -> bool:
    """Write the store's file anew, so that nothing that was deleted stands in it; whether that was done.

    Raises:
        CannotOpenStore: there is no such file, or it cannot be written.
    """
    if isinstance(options.place, Path):
        return sqlite.overwrite_beside(options)
    raise CannotOpenStore(f"{options.name} writes its own files; have its owner run VACUUM FULL there")


def is_made(options: StoreOptions) -> bool:
    """Whether a gateway, or anybody, has made the store.

    Raises:
        CannotOpenStore: that cannot be told.
    """
    if isinstance(options.place, Path):
        return options.place.exists()
    return read_beside(options, migrations.current_revision) is not None


def _prepared(
    database: Database, options: StoreOptions, cannot_use: Callable[[StoreOptions, DBAPIError], CannotOpenStore]
) -> tuple[Database, Identity]:
    try:
        with database.writer.begin():
            migrations.upgrade(database.writer)
        with database.writer.begin():
            return database, enrol(database, database.writer)
    except DBAPIError as exc:
        database.close()
        raise cannot_use(options, exc) from exc
    except BaseException:
        database.close()
        raise


def _check_postgres(options: StoreOptions) -> None:
    if (why := why_not_postgres()) is not None:
        raise CannotOpenStore(f"{options.name} {why}")
