"""A backup is a whole store of one moment; restoring takes the place of another, and nobody's claim comes back."""

from __future__ import annotations

import asyncio
import stat
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from backends.errors import Conflict
from gateway.answer import Status
from gateway.store import CannotOpenStore, StoreOptions, back_up, open_store, restore, verify_log_of
from gateway.store.contract import ReviewState
from tests.unit.gateway.store.samples import TENANT, accepted, deferred
from tests.unit.gateway.store.test_beside import execute


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backup.db"


def _size_and_mode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, stat.S_IMODE(found.st_mode)


async def _filled(options: StoreOptions) -> None:
    """Three rows of the decision log."""
    async with aclosing(await open_store(options)) as store:
        await store.commit(accepted(items=3), [])


async def test_a_store_in_use_is_copied_as_it_was(options: StoreOptions, target: Path) -> None:
    async with aclosing(await open_store(options)) as store:
        answer, tasks = deferred(items=2)
        await store.commit(answer, tasks)
        size = await asyncio.to_thread(back_up, options, target)
        await store.commit(accepted(), [])

    assert _size_and_mode(target) == (size, 0o600)
    copied = replace(options, place=target)
    assert await verify_log_of(copied) == []
    async with aclosing(await open_store(copied)) as store:
        found = await store.answer(TENANT, answer.id)
        assert found is not None
        assert found.status is Status.PROVISIONAL
        assert len(await store.reviews(TENANT)) == 2


async def test_a_store_that_is_written_to_meanwhile_is_copied_whole(options: StoreOptions, tmp_path: Path) -> None:
    async with aclosing(await open_store(options)) as store:
        for number in range(5):
            target = tmp_path / f"{number}.db"
            copying = asyncio.ensure_future(asyncio.to_thread(back_up, options, target))
            while not copying.done():
                await store.commit(accepted(), [])
            await copying
            assert await verify_log_of(replace(options, place=target)) == []


def test_a_backup_replaces_nothing(options: StoreOptions, target: Path) -> None:
    asyncio.run(_filled(options))
    target.write_bytes(b"something else")

    with pytest.raises(CannotOpenStore, match="is there already; give the backup a name of its own"):
        back_up(options, target)

    assert target.read_bytes() == b"something else"


def test_a_damaged_store_gives_no_backup(options: StoreOptions, target: Path) -> None:
    asyncio.run(_filled(options))
    execute(options.path, "UPDATE decision_log SET label = 'owl' WHERE seq = 2")

    with pytest.raises(CannotOpenStore, match="row 2 was altered"):
        back_up(options, target)

    assert {path.name for path in target.parent.iterdir()} == {"store.db", "store.db-key", "store.db-writer-0"}


def test_a_store_that_is_not_there_gives_no_backup(options: StoreOptions, target: Path) -> None:
    with pytest.raises(CannotOpenStore, match="No such file"):
        back_up(options, target)

    assert list(target.parent.iterdir()) == []


async def test_a_backup_is_restored_and_what_was_there_is_kept(options: StoreOptions, target: Path) -> None:
    async with aclosing(await open_store(options)) as store:
        kept, tasks = deferred()
        await store.commit(kept, tasks)
    back_up(options, target)
    async with aclosing(await open_store(options)) as store:
        later = accepted()
        await store.commit(later, [])

    former = restore(options, target)

    assert former is not None
    async with aclosing(await open_store(options)) as store:
        assert await store.answer(TENANT, kept.id) is not None
        assert await store.answer(TENANT, later.id) is None
        await store.commit(accepted(), [])
        assert await store.verify_log() == []
    async with aclosing(await open_store(replace(options, place=former))) as store:
        assert await store.answer(TENANT, later.id) is not None


async def test_no_claim_outlives_a_restore(options: StoreOptions, target: Path) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.commit(*deferred())
        (review,) = await store.reviews(TENANT)
        before = await store.claim(TENANT, review.id, "anna", 600.0)
        await asyncio.to_thread(back_up, options, target)
        await store.release(TENANT, review.id, "anna", before.fence)
        gone = [(await store.claim(TENANT, review.id, "bert", 600.0)).fence]

    restore(options, target)

    async with aclosing(await open_store(options)) as store:
        (review,) = await store.reviews(TENANT)
        assert review.state is ReviewState.OPEN
        claimed = await store.claim(TENANT, review.id, "bert", 600.0)
        assert claimed.fence > max([before.fence, *gone])
        for fence in (before.fence, *gone):
            with pytest.raises(Conflict):
                await store.decide(TENANT, review.id, "bert", fence, "cat")
        await store.decide(TENANT, review.id, "bert", claimed.fence, "cat")


async def test_a_store_is_restored_where_none_was(options: StoreOptions, target: Path, tmp_path: Path) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.commit(accepted(), [])
    back_up(options, target)

    elsewhere = replace(options, place=tmp_path / "new" / "store.db")

    assert restore(elsewhere, target) is None
    assert await verify_log_of(elsewhere) == []


async def test_nothing_is_restored_under_a_gateway(options: StoreOptions, target: Path) -> None:
    async with aclosing(await open_store(options)) as store:
        await asyncio.to_thread(back_up, options, target)
        answer = accepted()
        await store.commit(answer, [])

        with pytest.raises(CannotOpenStore, match="a gateway has it open; stop it first"):
            restore(options, target)

        assert await store.answer(TENANT, answer.id) is not None


def test_what_is_no_whole_store_is_not_restored(options: StoreOptions, target: Path) -> None:
    asyncio.run(_filled(options))
    back_up(options, target)
    execute(target, "DELETE FROM decision_log WHERE seq = 2")
    before = options.path.read_bytes()

    with pytest.raises(CannotOpenStore, match="damaged: chain 0: rows 2 to 2 are missing; use another backup"):
        restore(options, target)
    target.write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(CannotOpenStore, match="not a database"):
        restore(options, target)

    assert options.path.read_bytes() == before
