"""A store file is verified from outside, beside whoever uses it, and stays as it is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3
import pytest
from sqlalchemy import Connection

from gateway.store import CannotOpenStore, StoreOptions, open_store, verify_log_file
from gateway.store.migrations import newest_revision
from gateway.store.sqlite import read_untouched
from tests.unit.gateway.store.samples import accepted, deferred

TAMPER = "UPDATE decision_log SET label = 'owl' WHERE seq = 1"
FAULT = "chain 0: row 1 was altered, or the one before it"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(os.fspath(path), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


async def test_a_store_that_nobody_uses_is_verified_and_stays_as_it_is(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.commit(*deferred(items=3))
    before = contents(options.path.parent)
    assert await verify_log_file(options) == []
    assert contents(options.path.parent) == before

    execute(options.path, TAMPER)
    before = contents(options.path.parent)
    assert await verify_log_file(options) == [FAULT]
    assert contents(options.path.parent) == before


async def test_a_store_in_use_is_verified_with_its_last_commit_and_stays_as_it_is(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.commit(*deferred(items=3))
        before = contents(options.path.parent)
        assert await verify_log_file(options) == []
        execute(options.path, TAMPER)
        assert await verify_log_file(options) == [FAULT]
        # It took no writer's place, and the gateway goes on.
        assert contents(options.path.parent).keys() == before.keys()
        await store.commit(*deferred())


async def test_verifying_goes_on_beside_writes(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        for _ in range(5):
            verifying = asyncio.ensure_future(verify_log_file(options))
            while not verifying.done():
                await store.commit(accepted(), [])
            assert await verifying == []


def test_what_a_killed_process_left_is_verified_and_kept(options: StoreOptions) -> None:
    script = """if True:
        import asyncio, sys
        from pathlib import Path
        from gateway.store import StoreOptions, open_store
        from tests.unit.gateway.store.samples import deferred

        async def main():
            store = await open_store(StoreOptions(Path(sys.argv[1])))
            await store.commit(*deferred(items=3))
            print("committed", flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, options.path], cwd=Path(__file__).parents[4], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"committed\n"
        process.send_signal(signal.SIGKILL)
    before = contents(options.path.parent)
    assert before["store.db-wal"][0]

    assert asyncio.run(verify_log_file(options)) == []

    after = contents(options.path.parent)
    for name in before.keys() - {"store.db-shm"}:  # the log's index, which SQLite builds anew
        assert after[name] == before[name]
    assert after.keys() == before.keys()


async def test_what_changes_while_it_is_read_unlocked_is_read_again(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.commit(accepted(), [])

    counts: list[int] = []

    def count(connection: Connection) -> int:
        if not counts:
            execute(options.path, "DELETE FROM decision_log")
        counts.append(connection.exec_driver_sql("SELECT count(*) FROM decision_log").scalar_one())
        return counts[-1]

    assert await asyncio.to_thread(read_untouched, options, count) == 0
    assert len(counts) == 2


async def test_what_it_reads_by_cannot_write(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)):
        for _ in range(2):
            with pytest.raises(CannotOpenStore, match="attempt to write a readonly database"):
                await asyncio.to_thread(
                    read_untouched, options, lambda connection: connection.exec_driver_sql("DELETE FROM answers")
                )


def make_nothing(_: Path) -> None:
    """The path is mistyped."""


def make_folder(path: Path) -> None:
    path.mkdir()


def make_text(path: Path) -> None:
    path.write_text("a diary, and no database at all; " * 40)


def make_empty(path: Path) -> None:
    path.touch()


def make_other_database(path: Path) -> None:
    execute(path, "CREATE TABLE bookmarks (url TEXT)")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_nothing, "{path}: No such file or directory; check `path` of `store`"),
        (make_folder, "{path} is no file; check `path` of `store`"),
        (make_text, "{path}: file is not a database; restore it, or check `path` of `store`"),
        (make_empty, "{path} is a database, and no store of Pointsman; check its path"),
        (make_other_database, "{path} is a database, and no store of Pointsman; check its path"),
    ],
)
async def test_what_is_no_store_is_refused_and_nothing_is_made(
    options: StoreOptions, make: Callable[[Path], None], reason: str
) -> None:
    make(options.path)
    before = sorted(options.path.parent.iterdir())

    with pytest.raises(CannotOpenStore) as refused:
        await verify_log_file(options)

    assert str(refused.value) == "store file " + reason.format(path=options.path)
    assert sorted(options.path.parent.iterdir()) == before


async def test_another_version_s_schema_is_refused_and_not_upgraded(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)):
        pass
    execute(options.path, "UPDATE alembic_version SET version_num = '0000'")
    before = contents(options.path.parent)

    with pytest.raises(CannotOpenStore) as refused:
        await verify_log_file(options)

    assert str(refused.value) == (
        f"store file {options.path} has schema '0000', and this version of Pointsman verifies '{newest_revision()}';"
        " verify it with the version that wrote it"
    )
    assert contents(options.path.parent) == before
