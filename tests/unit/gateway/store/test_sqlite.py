"""SQLite as the database: sound builds only, one file, living and dead writers."""

from __future__ import annotations

import stat
import sys
from contextlib import aclosing
from pathlib import Path
from types import ModuleType

import pytest

from gateway.store import CannotOpenStore, StoreOptions, open_store
from gateway.store.contract import InProgress, ReviewState
from gateway.store.sqlite import SqliteDatabase, find_module, is_sound
from tests.unit.gateway.store.conformance import BODY, KEY, LEASE_S, assert_claimed_anew, end_as_a_kill_does
from tests.unit.gateway.store.samples import TENANT, deferred


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 0), False),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
        ((4, 0, 0), True),
    ],
)
def test_builds_that_can_lose_commits_are_known(version: tuple[int, int, int], sound: bool) -> None:
    assert is_sound(version) is sound


def test_the_module_found_is_sound() -> None:
    assert is_sound(find_module().sqlite_version_info)


def test_without_a_sound_build_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("sqlite3.dbapi2")
    old.sqlite_version_info, old.sqlite_version = (3, 40, 1), "3.40.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pysqlite3.dbapi2", None)
    monkeypatch.setitem(sys.modules, "sqlite3.dbapi2", old)

    with pytest.raises(CannotOpenStore) as refused:
        find_module()

    assert str(refused.value) == (
        "no SQLite here is safe to keep answers in (sqlite3 has 3.40.1): versions before 3.51.3 can lose commits;"
        " install pysqlite3>=0.6.1"
    )


def test_the_file_is_durable_and_for_its_owner_s_eyes(tmp_path: Path) -> None:
    options = StoreOptions(tmp_path / "new folder" / "store.db")
    database = SqliteDatabase(options)
    with database.writer.begin():
        found = {
            name: database.writer.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "auto_vacuum", "busy_timeout", "secure_delete")
        }
    lasting = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "auto_vacuum": 2}
    assert found == lasting | {"busy_timeout": 5000, "secure_delete": 2}
    assert stat.S_IMODE(options.path.stat().st_mode) == 0o600
    database.close()


async def test_a_file_that_is_no_store_is_refused_and_left_alone(options: StoreOptions) -> None:
    options.path.write_text("a diary, and no database at all; " * 40)
    with pytest.raises(CannotOpenStore, match="file is not a database; free or restore it, or use another"):
        await open_store(options)
    assert options.path.read_text().startswith("a diary")


async def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file" / "store.db", "File exists|Not a directory"), (tmp_path, "Is a directory")):
        with pytest.raises(CannotOpenStore, match=f"store file {path}: ({reason}); give `path` a file to write"):
            await open_store(StoreOptions(path))


def test_each_writer_has_a_slot_of_its_own_and_the_dead_s_is_taken_over(options: StoreOptions) -> None:
    first, second, third = (SqliteDatabase(options) for _ in range(3))
    assert (first.acquire_slot(), second.acquire_slot()) == (0, 1)
    assert not third.is_dead(0)
    first.close()
    assert third.is_dead(0)
    assert third.acquire_slot() == 0
    assert not third.is_dead(0)
    second.close()
    third.close()


async def test_the_keys_of_a_dead_process_wait_for_no_upkeep(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as living:
        dying = await open_store(options)
        claim = await dying.claim_key(KEY, BODY)
        assert await living.claim_key(KEY, BODY) == InProgress()
        await end_as_a_kill_does(dying)

        await assert_claimed_anew(living, claim)


async def test_upkeep_reopens_what_a_dead_process_held(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as living:
        dying = await open_store(options)
        await living.commit(*deferred())
        held = await dying.claim_next(TENANT, "pets", "anna", LEASE_S)
        claim = await dying.claim_key(KEY, BODY)
        assert held is not None
        await end_as_a_kill_does(dying)
        review = await living.review(TENANT, held.id)
        assert review is not None
        assert review.state is ReviewState.CLAIMED

        upkeep = await living.maintain()

        assert upkeep.leases_reopened == 1
        await assert_claimed_anew(living, claim)
