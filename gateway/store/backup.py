"""Copies of a store file, made while it is used, and taken back into service. PostgreSQL has tools of its own.

**A backup** is a snapshot by SQLite's own online copy: everything that was committed when it began, nothing half. It is
checked, page by page and along the hash chains of its decision log, before it gets its name; so a file with that name
is a good one. It holds what callers sent, and is for its owner's eyes.

**Restoring** puts a backup in the store's place, while no gateway has the store open; what stood there is kept under
another name. Reviews that were claimed when the backup was made are open again, since whoever holds a claim holds it of
a time that is gone: fences go on from far above those that either time can have given.

Rejected: copying the file. Its newest commits lie in the log beside it, and a copy of both is of two moments.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection, update

from gateway.store import log, migrations
from gateway.store.options import CannotOpenStore, Postgres, StoreOptions
from gateway.store.schema import REVIEWS, WRITERS
from gateway.store.sqlite import all_slots, find_module, read_untouched, write_beside

_FAR = 1 << 20
_SIDE_FILES = ("-wal", "-shm")


def back_up(options: StoreOptions, target: Path) -> int:
    """Copy the store of *options* to the new file *target*; its size in bytes.

    Raises:
        CannotOpenStore: there is no such store, it is damaged, or *target* is there already or cannot be written.
    """
    if isinstance(options.place, Postgres):
        raise CannotOpenStore(
            f"{options.name} is copied by PostgreSQL's own tool, also while it is used:"
            f" pg_dump --format=custom --file={target} DATABASE",
        )
    read_untouched(options, lambda connection: migrations.check(connection, options.name))
    if target.exists():
        raise CannotOpenStore(f"{target} is there already; give the backup a name of its own")
    with _beside(target) as partial:
        _copy(options, partial)
        _check_whole(replace(options, place=partial))
        # Not a rename: that would replace what appeared there meanwhile.
        try:
            os.link(partial, target)
        except OSError as exc:
            raise CannotOpenStore(f"{target}: {exc.strerror}; give the backup a name of its own") from exc
    _sync_folder(target.parent)
    return target.stat().st_size


def restore(options: StoreOptions, source: Path) -> Path | None:
    """Put the backup *source* in the place of the store of *options*; where what stood there is now, None: nothing did.

    Raises:
        CannotOpenStore: *source* is no whole store of this version, or a gateway has the store open.
    """
    if isinstance(options.place, Postgres):
        raise CannotOpenStore(
            f"{options.name} is restored by PostgreSQL's own tool, while no gateway runs: pg_restore --clean"
            f" --if-exists --single-transaction --dbname=DATABASE {source}; the README says what comes after",
        )
    _check_whole(replace(options, place=source))
    place = options.path.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    with all_slots(place), _beside(place) as partial:
        _copy(replace(options, place=source), partial)
        write_beside(replace(options, place=partial), _start_anew)
        former = _put_aside(place)
        partial.rename(place)
        _sync_folder(place.parent)
    return former


def _copy(source: StoreOptions, target: Path) -> None:
    """Write a snapshot of *source* to the file *target*, which stands by itself: its log is part of it."""
    module = find_module()

    def copy(connection: Connection) -> None:
        with contextlib.closing(module.connect(os.fspath(target))) as writing:
            connection.connection.driver_connection.backup(writing)  # type: ignore[union-attr]
            writing.execute("PRAGMA journal_mode=DELETE")

    read_untouched(source, copy)
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _check_whole(options: StoreOptions) -> None:
    """Refuse a file that is damaged, or no store that this version works with."""
    faults = read_untouched(options, lambda connection: _faults(connection, options.name))
    if faults:
        raise CannotOpenStore(f"{options.name} is damaged: {faults[0]}; use another backup")


def _faults(connection: Connection, name: str) -> Sequence[str]:
    migrations.check(connection, name)
    pages = [row for row in connection.exec_driver_sql("PRAGMA integrity_check").scalars() if row != "ok"]
    return pages or log.verify(connection)


def _start_anew(connection: Connection) -> None:
    """Have whoever opens the store next give fences that nobody was ever given: a key's come from openings."""
    connection.execute(update(WRITERS).values(opening=WRITERS.c.opening + _FAR))
    connection.execute(update(REVIEWS).where(REVIEWS.c.state != "decided").values(fence=REVIEWS.c.fence + _FAR))


def _put_aside(place: Path) -> Path | None:
    """Give the store file *place* and what belongs to it another name."""
    if not place.exists():
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    former = place.with_name(f"{place.name}-before-{stamp}")
    for side in ("", *_SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{place}{side}").rename(f"{former}{side}")
    return former


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new file in *target*'s folder, gone afterwards unless it was renamed."""
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    except OSError as exc:
        raise CannotOpenStore(f"{target.parent}: {exc.strerror}; name a folder that can be written") from exc
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
    finally:
        for side in ("", *_SIDE_FILES):
            Path(f"{partial}{side}").unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
