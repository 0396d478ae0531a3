"""The decision log's chains: what is altered, removed or slipped in is found."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace

import pysqlite3.dbapi2 as sqlite3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store import StoreOptions, open_store
from gateway.store.bulk import Row
from gateway.store.log import GENESIS, Event, Head, LogEntry, chain_rows, row_hash
from gateway.store.schema import DECISION_LOG
from tests.unit.gateway.store.conformance import decide_all
from tests.unit.gateway.store.samples import TENANT, accepted, deferred

values = st.none() | st.integers(0, 2**62) | st.floats(allow_nan=False) | st.text() | st.binary()
rows = st.lists(values.filter(lambda v: not isinstance(v, str) or v.isprintable()), max_size=6).map(tuple)


@contextmanager
def edited(options: StoreOptions) -> Iterator[Callable[[str], object]]:
    """Statements on the file, past the store."""
    with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as connection:
        yield connection.execute


async def fill(options: StoreOptions) -> None:
    """Six rows: two deferrals, two decisions on them, two accepted answers."""
    async with aclosing(await open_store(options)) as store:
        for _ in range(2):
            await store.commit(*deferred())
        await decide_all(store)
        await store.commit(accepted(items=2), [])
        assert await store.verify_log() == []


@given(rows, rows)
def test_different_rows_have_different_hashes(one: Row, other: Row) -> None:
    same = [(type(v), v) for v in one] == [(type(v), v) for v in other]
    zeros = any(isinstance(v, float) and v == 0 for v in one + other)  # 0.0 == -0.0, and they hash apart
    assert zeros or (row_hash(GENESIS, one) == row_hash(GENESIS, other)) == same


def test_a_chain_goes_on_where_it_ended() -> None:
    entries = [LogEntry(1.0, TENANT, f"{i}", 0, "pets", Event.ACCEPT, None, None, None, None, "[]") for i in range(5)]
    together, head = chain_rows(0, Head(0, GENESIS), entries)
    first, middle = chain_rows(0, Head(0, GENESIS), entries[:2])
    second, end = chain_rows(0, middle, entries[2:])
    assert (first + second, end) == (together, head)
    assert head.seq == 5


async def test_the_log_says_what_happened_and_no_more(options: StoreOptions) -> None:
    await fill(options)
    with edited(options) as execute:
        rows = list(
            execute("SELECT event, actor, label, reason, outputs_sha256 IS NULL FROM decision_log ORDER BY seq")
        )  # type: ignore[call-overload]
    assert rows == [
        *[("defer", None, "cat", "low_confidence", 0)] * 2,
        *[("decide", "person:anna", "cat", None, 1)] * 2,
        *[("accept", "model:fast", "cat", None, 1)] * 2,
    ]


@pytest.mark.parametrize(
    "column",
    [column.name for column in DECISION_LOG.columns if column.name not in ("chain", "seq", "event")],
)
async def test_an_altered_column_is_found(options: StoreOptions, column: str) -> None:
    await fill(options)
    with edited(options) as execute:
        execute(f"UPDATE decision_log SET {column} = 'x' || coalesce({column}, '') WHERE seq = 3")
    async with aclosing(await open_store(options)) as store:
        faults = await store.verify_log()
    assert re.fullmatch(
        "chain 0: (row 3 was altered, or the one before it|a row behind row [0-2] cannot be read.*)", faults[0]
    )


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        ("DELETE FROM decision_log WHERE seq IN (3, 4)", "chain 0: rows 3 to 4 are missing"),
        ("DELETE FROM decision_log WHERE seq = 1", "chain 0: rows 1 to 1 are missing"),
        ("DELETE FROM decision_log WHERE seq > 4", "chain 0: it ends at row 4; 6 were written"),
        ("DELETE FROM decision_log", "chain 0: it ends at row 0; 6 were written"),
        ("UPDATE decision_log SET chain = 9", "chain 9: no writer owns it"),
        ("UPDATE writers SET head_hash = base_hash", "chain 0: its last row, 6, is not the one that was written"),
    ],
)
async def test_removed_and_moved_rows_are_found(options: StoreOptions, edit: str, fault: str) -> None:
    await fill(options)
    with edited(options) as execute:
        execute(edit)
    async with aclosing(await open_store(options)) as store:
        assert fault in await store.verify_log()


async def test_numbers_that_databases_change_do_not_break_the_chain(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        for confidence in (math.nan, math.inf, -0.0, 0, 1, None, 5e-324):
            answer = accepted()
            item = replace(answer.items[0], confidence=confidence)
            await store.commit(replace(answer, items=(item,), created_s=1_700_000_000), [])
        assert await store.verify_log() == []


async def test_every_opening_goes_on_with_the_same_chain(options: StoreOptions) -> None:
    for _ in range(3):
        async with aclosing(await open_store(options)) as store:
            await store.record(accepted())
    async with aclosing(await open_store(options)) as store:
        assert await store.verify_log() == []
    with edited(options) as execute:
        assert list(execute("SELECT chain, count(*) FROM decision_log GROUP BY chain")) == [(0, 3)]  # type: ignore[call-overload]
