"""SQLite as the store's database: which build of it, how it is opened, who writes, how large it is.

**Which SQLite.** Releases before 3.51.3 have a race in WAL mode that can lose a commit (fixed there, and in the
backports 3.50.7 and 3.44.6). `pysqlite3` bundles a sound one; the standard library's is used only where it is sound.

**Durability.** WAL with `synchronous=FULL`: when COMMIT returns, the change survives power loss. `BEGIN IMMEDIATE`
takes the write lock at once, so that a transaction never fails half-way for another process's sake.

**Writers.** Several processes of one host may open the same file. Each takes the lowest free *slot*, by a lock
(`flock`) on the file `NAME-writer-SLOT`, which the kernel frees when the process ends, however it ends. So whoever
holds a slot's lock knows that the slot's former holder is dead, and with it every lease it gave: they are reopened
when a store is opened, and by `maintain`. Rejected: process ids (reused), heartbeats (a stopped process is not dead,
and they cost writes), boot ids (a lease of an earlier boot has a dead owner anyway).

**Leases** run on `time.monotonic()`, one clock for all processes since the host booted, which wall-clock jumps do not
touch. It stands still while the host sleeps, so that leases outlast a closed lid; fences keep that harmless. Processes
in different time namespaces must not share a store.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from types import ModuleType
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from gateway.store.database import Clocks, Turn
from gateway.store.options import CannotOpenStore, StoreOptions
from gateway.store.transaction import Identity

_WAL_LIMIT_BYTES = 16 * 2**20
_READERS = 2
_MEASURED_EVERY_S = 0.100
_CHECKPOINT_MS, _CHECKPOINTS = 250, 20

_R = TypeVar("_R")

_LOGGER = logging.getLogger(__name__)


def is_sound(version: tuple[int, ...]) -> bool:
    """Whether SQLite *version* is without the WAL race that can lose commits."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def find_module() -> ModuleType:
    """The DB-API module of a sound SQLite: `pysqlite3`'s, else the standard library's.

    Raises:
        CannotOpenStore: neither is sound.
    """
    found = []
    for name in ("pysqlite3.dbapi2", "sqlite3.dbapi2"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if is_sound(module.sqlite_version_info):
            return module
        found.append(f"{name.partition('.')[0]} has {module.sqlite_version}")
    raise CannotOpenStore(
        f"no SQLite here is safe to keep answers in ({', '.join(found) or 'none found'}): versions before 3.51.3 can"
        " lose commits; install pysqlite3>=0.6.1",
    )


class SqliteDatabase:
    """`gateway.store.database.Database` over one SQLite file."""

    def __init__(self, options: StoreOptions) -> None:
        """Open the file, or make it.

        Raises:
            CannotOpenStore: it cannot be read and written, or is no SQLite file.
        """
        self.readers = _READERS
        self.measured_every_s = _MEASURED_EVERY_S
        self._path = options.path.absolute()
        self._module = module = find_module()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # It holds what callers sent: for its owner's eyes. SQLite gives its side files the same mode.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as exc:
            raise CannotOpenStore(f"store file {self._path}: {exc.strerror}; give `path` a file to write") from exc
        url = URL.create("sqlite", database=str(self._path))
        self._writing = _engine(module, url, options, NullPool, "BEGIN IMMEDIATE")
        self.reading = _engine(module, url, options, QueuePool, "BEGIN", size=_READERS)
        event.listen(self.reading, "connect", _forbid_writing)
        try:
            # auto_vacuum is heeded only before the first table, and neither works inside a transaction.
            self._outside("PRAGMA auto_vacuum=INCREMENTAL", "PRAGMA journal_mode=WAL")
            self._writer = self._writing.connect()
        except (module.Error, DBAPIError) as exc:
            raise CannotOpenStore(f"store file {self._path}: {exc}; free or restore it, or use another") from exc
        self._slots: dict[int, int] = {}

    @property
    def writer(self) -> Connection:
        """See `Database.writer`."""
        return self._writer

    def acquire_slot(self) -> int:
        """See `Database.acquire_slot`."""
        slot = 0
        while not self._lock(slot):
            slot += 1
        return slot

    def is_dead(self, slot: int) -> bool:
        """See `Database.is_dead`; who takes the slot waits for the transaction's write lock."""
        if slot in self._slots:
            return False
        descriptor = _locked(self._path, slot)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def take_turn(self, identity: Identity) -> Turn:
        """See `Database.take_turn`: *identity*'s slot is locked for as long as this process lives."""
        return Turn(Clocks(time.monotonic(), time.time()), None)

    def clocks(self, connection: Connection) -> Clocks:
        """See `Database.clocks`."""
        return Clocks(time.monotonic(), time.time())

    def used_bytes(self, connection: Connection) -> int:
        """See `Database.used_bytes`: the pages in use."""
        pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
        return pages * _pragma(connection, "page_size")

    def size_bytes(self, connection: Connection) -> int:
        """See `Database.size_bytes`: pages in use, and the write-ahead log."""
        return self.used_bytes(connection) + Path(f"{self._path}-wal").stat().st_size

    def give_back(self, connection: Connection, pages: int) -> None:
        """See `Database.give_back`."""
        # It frees a page a step, and steps by rows without columns, which SQLAlchemy would not fetch.
        with contextlib.closing(connection.connection.cursor()) as cursor:
            cursor.execute(f"PRAGMA incremental_vacuum({pages:d})")
            cursor.fetchall()

    def shrink_log(self) -> None:
        """See `Database.shrink_log`: it is moved into the file and truncated, as far as readers allow."""
        # It holds the write lock while it waits for readers, so it must not wait long.
        with contextlib.suppress(self._module.Error):
            self._outside("PRAGMA busy_timeout=50", "PRAGMA wal_checkpoint(TRUNCATE)")

    def overwrite(self) -> bool:
        """Write the file anew, so that no page of it or of its log holds anything that was deleted; whether none does.

        Nothing can be written meanwhile, by whichever process; readers go on. It takes as much room again.
        """
        try:
            self._outside("VACUUM")
            return _is_checkpointed(self._outside, _CHECKPOINTS)
        except self._module.Error as error:
            _LOGGER.warning("the store's file could not be written anew: %s", error)
            return False

    def close(self) -> None:
        """See `Database.close`."""
        self.reading.dispose()
        self._writer.close()
        self._writing.dispose()
        while self._slots:
            os.close(self._slots.popitem()[1])

    def _outside(self, *pragmas: str) -> Sequence[Any]:
        """Run *pragmas* outside any transaction; the last one's row (Any: whatever it tells)."""
        told: Sequence[Any] = ()
        with (
            contextlib.closing(self._writing.raw_connection()) as connection,
            contextlib.closing(connection.cursor()) as cursor,
        ):
            for pragma in pragmas:
                cursor.execute(pragma)
                told = next(iter(cursor.fetchall()), ())
        return told

    def _lock(self, slot: int) -> bool:
        descriptor = _locked(self._path, slot)
        if descriptor is None:
            return False
        self._slots[slot] = descriptor
        return True


def _locked(path: Path, slot: int) -> int | None:
    """The descriptor that holds *slot* of the store file *path*; None where a living process does."""
    descriptor = os.open(f"{path}-writer-{slot}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def all_slots(path: Path) -> Iterator[None]:
    """Hold every slot that the store file *path* ever had: nobody writes to it inside, unless one comes anew.

    Raises:
        CannotOpenStore: a living process holds one.
    """
    with contextlib.ExitStack() as held:
        for file in path.parent.glob(f"{glob.escape(path.name)}-writer-*"):
            descriptor = _locked(path, int(file.name.rpartition("-")[2]))
            if descriptor is None:
                raise CannotOpenStore(f"store file {path}: a gateway has it open; stop it first")
            held.callback(os.close, descriptor)
        yield


def read_untouched(options: StoreOptions, query: Callable[[Connection], _R]) -> _R:
    """What *query* finds in a snapshot of the store file, which is neither written to nor locked against writers.

    A file that somebody has open has a write-ahead log; it is read beside them, by their locks. One without is read as
    immutable: SQLite would make a log for any other reader, and leave it there. Locks do not hold in that case, so what
    was found counts only if nobody has touched the file meanwhile; else it is read again.

    Nothing is left beside the file, except where its log has lost its index (`-shm`, a copy may lack it): SQLite reads
    no log without one, and makes it.

    Raises:
        CannotOpenStore: there is no file, or it cannot be read; nothing was made.
    """
    module, path = find_module(), options.path.absolute()
    while True:
        before = _look(path)
        access = {"mode": "ro"} if before.has_log else {"mode": "ro", "immutable": "1"}
        url = URL.create("sqlite", database=path.as_uri(), query={"uri": "true"} | access)
        engine = _engine(module, url, options, NullPool, "BEGIN")
        event.listen(engine, "connect", _forbid_writing)
        found: _R | Exception
        try:
            with engine.connect() as connection:
                found = query(connection)
        except (module.Error, DBAPIError) as exc:
            found = exc
        if not before.has_log and _look(path) != before:
            continue
        if isinstance(found, Exception):
            raise _cannot_use(path, found) from found
        return found


def write_beside(options: StoreOptions, work: Callable[[Connection], _R]) -> _R:
    """What *work* does in one durable transaction on a store file, waiting for other writers as they wait for this one.

    A writer without a slot: *work* gives no lease, and logs no decision. No file is made where none is.

    Raises:
        CannotOpenStore: there is no file, or it cannot be written; nothing was done.
    """
    module, path = find_module(), options.path.absolute()
    _look(path)
    url = URL.create("sqlite", database=path.as_uri(), query={"uri": "true", "mode": "rw"})
    try:
        with _engine(module, url, options, NullPool, "BEGIN IMMEDIATE").begin() as connection:
            return work(connection)
    except (module.Error, DBAPIError) as exc:
        raise _cannot_use(path, exc) from exc


def cannot_use(options: StoreOptions, exc: DBAPIError) -> CannotOpenStore:
    """*exc*, told to whoever starts something."""
    return CannotOpenStore(f"store file {options.path}: {exc.orig}; free or restore it, or use another")


def overwrite_beside(options: StoreOptions) -> bool:
    """As `SqliteDatabase.overwrite`, of a store file that others may be using, who wait for it as long as they wait.

    Raises:
        CannotOpenStore: there is no file, or it cannot be written.
    """
    module, path = find_module(), options.path.absolute()
    _look(path)
    url = URL.create("sqlite", database=path.as_uri(), query={"uri": "true", "mode": "rw"})
    engine = _engine(module, url, options, NullPool, "BEGIN IMMEDIATE")

    def outside(*pragmas: str) -> Sequence[Any]:
        with contextlib.closing(engine.raw_connection()) as connection:
            return [connection.cursor().execute(pragma).fetchone() for pragma in pragmas][-1] or ()

    try:
        outside("VACUUM")
        return _is_checkpointed(outside, _CHECKPOINTS)
    except (module.Error, DBAPIError) as exc:
        raise _cannot_use(path, exc) from exc


def _is_checkpointed(outside: Callable[..., Sequence[Any]], attempts: int) -> bool:
    """Move the write-ahead log into its file and truncate it; whether that was done. Readers may have to end first."""
    for _ in range(attempts):
        busy, *_rest = outside(f"PRAGMA busy_timeout={_CHECKPOINT_MS}", "PRAGMA wal_checkpoint(TRUNCATE)")
        if not busy:
            return True
    return False


def _cannot_use(path: Path, exc: Exception) -> CannotOpenStore:
    reason = exc.orig if isinstance(exc, DBAPIError) else exc
    return CannotOpenStore(f"store file {path}: {reason}; free or restore it, or check `path` of `store`")


@dataclass(frozen=True, slots=True)
class _Look:
    """What changes when a file is written to, and whether it has a write-ahead log."""

    inode: int
    size_bytes: int
    modified_ns: int
    has_log: bool


def _look(path: Path) -> _Look:
    # Never by opening it: closing any descriptor of a file drops all the locks that this process has on it.
    try:
        stat = path.stat()
    except OSError as exc:
        raise CannotOpenStore(f"store file {path}: {exc.strerror}; check `path` of `store`") from exc
    if not S_ISREG(stat.st_mode):
        raise CannotOpenStore(f"store file {path} is no file; check `path` of `store`")
    return _Look(stat.st_ino, stat.st_size, stat.st_mtime_ns, Path(f"{path}-wal").exists())


def _engine(
    module: ModuleType,
    url: URL,
    options: StoreOptions,
    pool: type[NullPool] | type[QueuePool],
    begin: str,
    size: int | None = None,
) -> Engine:
    engine = create_engine(
        url,
        module=module,
        poolclass=pool,
        hide_parameters=True,  # they are what callers sent; errors are logged
        connect_args={"check_same_thread": False, "timeout": options.busy_timeout_s, "cached_statements": 256},
        **({} if size is None else {"pool_size": size, "max_overflow": 0}),
    )

    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not guessed by the driver
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=FAST")  # zeroes what is deleted, where that costs no page more
        connection.execute(f"PRAGMA journal_size_limit={_WAL_LIMIT_BYTES}")

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def _forbid_writing(connection: Any, _record: object) -> None:  # Any: the driver's own, untyped
    connection.execute("PRAGMA query_only=ON")


def _pragma(connection: Connection, name: str) -> int:
    return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
