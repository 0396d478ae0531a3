"""A store file is verified and certified from outside, beside whoever uses it, and otherwise stays as it is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import pysqlite3.dbapi2 as sqlite3
import pytest
from sqlalchemy import Connection

from gateway.store import CannotOpenStore, StoreOptions, open_beside, open_store, overwrite_beside, verify_log_of
from gateway.store.beside import StoreBeside
from gateway.store.migrations import newest_revision
from gateway.store.sqlite import read_untouched
from tests.unit.gateway.store.conformance import decide_all
from tests.unit.gateway.store.samples import LABELS, TENANT, accepted, certificate, deferred, observed, uncertified

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
    assert await verify_log_of(options) == []
    assert contents(options.path.parent) == before

    execute(options.path, TAMPER)
    before = contents(options.path.parent)
    assert await verify_log_of(options) == [FAULT]
    assert contents(options.path.parent) == before


async def test_a_store_in_use_is_verified_with_its_last_commit_and_stays_as_it_is(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.commit(*deferred(items=3))
        before = contents(options.path.parent)
        assert await verify_log_of(options) == []
        execute(options.path, TAMPER)
        assert await verify_log_of(options) == [FAULT]
        # It took no writer's place, and the gateway goes on.
        assert contents(options.path.parent).keys() == before.keys()
        await store.commit(*deferred())


async def test_verifying_goes_on_beside_writes(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        for _ in range(5):
            verifying = asyncio.ensure_future(verify_log_of(options))
            while not verifying.done():
                await store.commit(accepted(), [])
            assert await verifying == []


@contextmanager
def process(options: StoreOptions, script: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs *script* on the store's path, and has come to an end afterwards."""
    command = [sys.executable, "-c", script, os.fspath(options.path)]
    root = Path(__file__).parents[4]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def says(stream: IO[str] | None) -> str:
    """The next line of a process's output."""
    assert stream is not None
    return stream.readline().rstrip()


def fill_and_die(options: StoreOptions) -> None:
    """Leave what a gateway leaves that was killed."""
    script = """if True:
        import asyncio, sys
        from pathlib import Path
        from gateway.store import StoreOptions, open_store
        from tests.unit.gateway.store.samples import uncertified

        async def main():
            store = await open_store(StoreOptions(Path(sys.argv[1])))
            await store.commit(*uncertified(items=3))
            print("committed", flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """
    with process(options, script) as gateway:
        assert says(gateway.stdout) == "committed"
        gateway.send_signal(signal.SIGKILL)


def test_what_a_killed_process_left_is_verified_and_kept(options: StoreOptions) -> None:
    fill_and_die(options)
    before = contents(options.path.parent)
    assert before["store.db-wal"][0]

    assert asyncio.run(verify_log_of(options)) == []

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


async def open_and_close(options: StoreOptions) -> None:
    async with open_beside(options):
        pass


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
        (make_text, "{path}: file is not a database; free or restore it, or check `path` of `store`"),
        (make_empty, "{path} is a database, and no store of Pointsman; check where it is"),
        (make_other_database, "{path} is a database, and no store of Pointsman; check where it is"),
    ],
)
async def test_what_is_no_store_is_refused_and_nothing_is_made(
    options: StoreOptions, make: Callable[[Path], None], reason: str
) -> None:
    make(options.path)
    before = sorted(options.path.parent.iterdir())
    store = StoreBeside(options)  # what became of its file since it was opened

    for work in (
        verify_log_of(options),
        open_and_close(options),
        store.labelled(None, "pets"),
        store.add_certificate(certificate()),
    ):
        with pytest.raises(CannotOpenStore) as refused:
            await work

        assert str(refused.value) == "store file " + reason.format(path=options.path)
        assert sorted(options.path.parent.iterdir()) == before


async def test_another_version_s_schema_is_refused_and_not_upgraded(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)):
        pass
    execute(options.path, "UPDATE alembic_version SET version_num = '0000'")
    before = contents(options.path.parent)
    store = StoreBeside(options)

    for work in (
        verify_log_of(options),
        open_and_close(options),
        store.certificates(),
        store.add_certificate(certificate()),
    ):
        with pytest.raises(CannotOpenStore) as refused:
            await work

        assert str(refused.value) == (
            f"store file {options.path} has schema '0000', and this version of Pointsman works with"
            f" '{newest_revision()}'; use the version that wrote it, or serve it with this one, which upgrades it"
        )
        assert contents(options.path.parent) == before


SERVE = """if True:
    import asyncio, sys
    from contextlib import aclosing
    from pathlib import Path
    from gateway.store import StoreOptions, open_store
    from tests.unit.gateway.store.conformance import BODY, KEY, decide_all
    from tests.unit.gateway.store.samples import TENANT, deferred, uncertified

    async def main():
        async with aclosing(await open_store(StoreOptions(Path(sys.argv[1])))) as store:
            await store.commit(*uncertified(items=5, at_s=1.0))
            await decide_all(store)
            await store.commit(*deferred())
            held = await store.claim_next(TENANT, "pets", "anna", 600.0)
            key = await store.claim_key(KEY, BODY)
            print("serving", flush=True)
            served, version = 0, await store.certificates_version()
            while (now := await store.certificates_version()) == version:
                await store.commit(*uncertified(at_s=2.0 + served))
                served += 1
            print(served, [one.id for one in await store.certificates("pets")], flush=True)
            # What it holds is its own still.
            assert (await store.review(TENANT, held.id)).fence == held.fence
            await store.decide(TENANT, held.id, "anna", held.fence, "cat")
            assert await store.renew_key(KEY, key.fence)
            assert await store.verify_log() == []
            print("whole", flush=True)
            sys.stdin.readline()

    asyncio.run(main())
"""


async def test_another_process_certifies_while_the_gateway_serves(options: StoreOptions) -> None:
    one = certificate()
    with process(options, SERVE) as gateway:
        assert says(gateway.stdout) == "serving"
        files = {path.name for path in options.path.parent.iterdir()}
        # The gateway never pauses between its writes: whoever gives up soon may not get between them.
        async with open_beside(replace(options, busy_timeout_s=30.0)) as store:
            for _ in range(5):
                found = await store.labelled(TENANT, "pets")
                assert [item.label for item in found] == [LABELS[0]] * 5 + [None] * (len(found) - 5)
                assert [item.at_s for item in found[5:]] == [2.0 + i for i in range(len(found) - 5)]
            await store.add_certificate(one)
            await store.add_certificate(one)
            served, ids = says(gateway.stdout).split(" ", 1)
            assert ids == str([one.id])
            assert says(gateway.stdout) == "whole"
            assert len(await store.labelled(None, "pets")) == 5 + int(served)
            assert await store.certificates() == [one]
        # No writer came, no log of the tool's own stayed.
        assert {path.name for path in options.path.parent.iterdir()} == files
        gateway.communicate("end\n", timeout=30.0)
        assert gateway.returncode == 0
    assert await verify_log_of(options) == []


async def test_two_processes_add_the_same_certificate_once(options: StoreOptions) -> None:
    script = """if True:
        import asyncio, sys
        from pathlib import Path
        from gateway.store import StoreOptions, open_beside
        from tests.unit.gateway.store.samples import certificate

        async def main():
            async with open_beside(StoreOptions(Path(sys.argv[1]))) as store:
                print("ready", flush=True)
                sys.stdin.readline()
                for created_s in range(10):
                    await store.add_certificate(certificate(created_s=float(created_s)))

        asyncio.run(main())
    """
    async with aclosing(await open_store(options)):
        pass
    with process(options, script) as one, process(options, script) as other:
        for tool in (one, other):
            assert says(tool.stdout) == "ready"
        for tool in (one, other):
            assert tool.stdin is not None
            tool.stdin.write("go\n")
            tool.stdin.flush()
        for tool in (one, other):
            tool.communicate(timeout=30.0)
            assert tool.returncode == 0
    async with open_beside(options) as store:
        assert await store.certificates() == [certificate(created_s=float(s)) for s in range(9, -1, -1)]


async def test_without_a_gateway_reading_changes_nothing_and_a_certificate_is_kept(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as gateway:
        await gateway.commit(*uncertified())
        await decide_all(gateway)
        await gateway.commit(observed(at_s=1_800_000_000.0), [])
    before = contents(options.path.parent)

    async with open_beside(options) as store:
        assert [item.label for item in await store.labelled(None, "pets")] == [LABELS[0], None]
        assert await store.certificates() == []
        assert contents(options.path.parent) == before

        await store.add_certificate(certificate())
        assert contents(options.path.parent).keys() == before.keys()
    async with aclosing(await open_store(options)) as gateway:
        assert await gateway.certificates() == [certificate()]


async def test_a_certificate_is_added_to_what_a_killed_gateway_left(options: StoreOptions) -> None:
    fill_and_die(options)
    async with open_beside(options) as store:
        await store.add_certificate(certificate())
        assert await store.certificates() == [certificate()]
        assert len(await store.labelled(None, "pets")) == 3
    assert await verify_log_of(options) == []


async def test_a_certificate_that_cannot_be_written_is_not_acknowledged(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as gateway, open_beside(options) as store:
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                CannotOpenStore, match=f"store file {options.path}: database is locked; free or restore"
            ):
                await store.add_certificate(certificate())
            assert await store.certificates() == []
            other.execute("ROLLBACK")
        await store.add_certificate(certificate())
        assert await gateway.certificates() == [certificate()]


async def test_a_file_that_is_locked_is_not_written_anew_and_says_why(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)):
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                CannotOpenStore, match=f"store file {options.path}: database is locked; free or restore"
            ):
                overwrite_beside(options)


def test_its_repr_tells_where_it_is(options: StoreOptions) -> None:
    assert repr(StoreBeside(options)) == f"<StoreBeside {options.path}>"
