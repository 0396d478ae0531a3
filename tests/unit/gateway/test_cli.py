"""What the command `pointsman` says, and how it ends."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing, closing
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3
import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.store import StoreOptions, open_store
from tests.unit.gateway.store.samples import deferred


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose store is not there yet."""
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {echo: {backend: echo, expose: true}}\nstore: {path: store.db}\n")
    return path


@pytest.fixture
def store_file(config: Path) -> Path:
    """The store of *config*, with three rows in its decision log."""
    path = config.with_name("store.db")

    async def fill() -> None:
        async with aclosing(await open_store(StoreOptions(path))) as store:
            await store.commit(*deferred(items=3))

    asyncio.run(fill())
    return path


def verify_log(config: Path) -> Result:
    return CliRunner().invoke(main, ["verify-log", os.fspath(config)])


def test_a_whole_log_is_said_to_be_whole(config: Path, store_file: Path) -> None:
    before = sorted(store_file.parent.iterdir())
    result = verify_log(config)
    assert (result.exit_code, result.output) == (0, "the decision log is whole\n")
    assert sorted(store_file.parent.iterdir()) == before


def test_a_tampered_row_is_told(config: Path, store_file: Path) -> None:
    with closing(sqlite3.connect(os.fspath(store_file), isolation_level=None)) as connection:
        connection.execute("UPDATE decision_log SET label = 'owl' WHERE seq = 2")
    result = verify_log(config)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "chain 0: row 2 was altered, or the one before it",
        "Error: the decision log is broken in 1 places",
    ]


def test_a_store_that_is_not_there_is_told_and_not_made(config: Path) -> None:
    result = verify_log(config)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: store file {config.with_name('store.db')}: No such file or directory; check `path` of `store`\n"
    )
    assert list(config.parent.iterdir()) == [config]
