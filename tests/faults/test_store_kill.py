"""`kill -9` at any moment loses nothing that was acknowledged, and leaves nothing half-written; on either database.

`POINTSMAN_KILLS` sets how many processes are killed on each; 14 without it. The figure that is promised is of 200, in
which more than 10,000 answers are handed to people: `POINTSMAN_KILLS=200 pytest -s tests/faults/test_store_kill.py`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite3
import pytest
from sqlalchemy import Connection, text

from gateway.answer import AnswerId, Status
from gateway.store import Postgres, SqlStore, StoreOptions, open_store
from gateway.store.contract import Done, Fresh, OutboxState, RequestKey
from gateway.store.places import read_beside
from tests.faults.defer_until_killed import BODY, ITEMS, ON_POSTGRES, announce
from tests.unit.gateway.store.samples import LABELS, TENANT, deferred

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("POINTSMAN_KILLS", "14"))
FULL = 200


@dataclass(slots=True)
class Told:
    """What the killed processes said: the answers they began to record or to hand over, those whose deferral was
    acknowledged, and labels.
    """

    recorded: set[str] = field(default_factory=set)
    submitted: set[str] = field(default_factory=set)
    deferred: list[str] = field(default_factory=list)
    decided: dict[str, str] = field(default_factory=dict)


def run_until_killed(program: str, store: str, lines: Path, *numbers: int, timeout_s: float) -> list[list[str]]:
    """What *program* of this folder told, line by line, each as its words; *lines* is a file for that."""
    with lines.open("wb") as output:
        subprocess.run(
            [sys.executable, "-m", f"tests.faults.{program}", store, *map(str, numbers)],
            cwd=ROOT,
            stdout=output,
            check=True,
            timeout=timeout_s,
        )
    return [line.split() for line in lines.read_text().splitlines()]


def kill_again_and_again(store: str, lines: Path, kills: int, processes: int, seed: int) -> Told:
    """Have *processes* work on *store* at a time until *kills* were killed."""
    told = Told()
    for event, id_, *label in run_until_killed(
        "defer_until_killed", store, lines, kills, processes, seed, timeout_s=60 + 5 * kills
    ):
        if event == "recorded":
            told.recorded.add(id_)
        elif event == "submitted":
            told.submitted.add(id_)
        elif event == "deferred":
            told.deferred.append(id_)
        else:
            assert id_ not in told.decided, f"review {id_} was decided twice"
            told.decided[id_] = label[0]
    return told


async def drain(store: SqlStore) -> None:
    """Have people decide all that is left, and deliver every message."""

    async def work_off(reviewer: str) -> None:
        while (held := await store.claim_next(TENANT, "pets", reviewer, 600.0)) is not None:
            await store.decide(TENANT, held.id, reviewer, held.fence, LABELS[0])

    async with asyncio.timeout(120 + 8 * KILLS):
        while any(depth.open + depth.claimed for depth in (await store.queue_depths()).values()):
            await store.maintain()
            await asyncio.gather(*(work_off(f"reviewer-{i}") for i in range(32)))
        while deliveries := await store.take_messages({"crm": 1000}, 600.0):
            for delivery in deliveries:
                await store.end_message(delivery.message.id, OutboxState.DELIVERED, "200")


async def ask_again(store: SqlStore, told: Told) -> set[str]:
    """Ask anew, with its key, for all that callers have no acknowledgement of; what was not there."""
    anew = set()
    for id_ in sorted(told.submitted - set(told.deferred)):
        key = RequestKey(TENANT, "pets", id_)
        claim = await store.claim_key(key, BODY)
        if isinstance(claim, Fresh):
            answer, tasks = deferred(items=ITEMS)
            await store.commit(replace(answer, id=AnswerId(id_)), tasks, key, claim.fence)
            anew.add(id_)
        else:
            assert claim == Done(AnswerId(id_))
    return anew


def rows(options: StoreOptions, statement: str) -> Sequence[tuple[Any, ...]]:  # Any: a row's columns
    """What *statement* finds."""

    def query(connection: Connection) -> Sequence[tuple[Any, ...]]:
        return [tuple(row) for row in connection.execute(text(statement))]

    return read_beside(options, query)


def count(options: StoreOptions, statement: str) -> Counter[object]:
    """How often *statement* finds what."""
    return Counter(value for (value,) in rows(options, statement))


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path | Postgres:
    """An empty store on either database; what died on it is dead at once."""
    if request.param == "sqlite":
        return tmp_path / "store.db"
    place = request.getfixturevalue("postgres")
    assert isinstance(place, Postgres)
    monkeypatch.setattr("gateway.store.postgres.GRACE_S", 0.0)
    return place


def name_of(place: Path | Postgres) -> str:
    """*place*, as the programs of this folder take it."""
    return str(place) if isinstance(place, Path) else f"{ON_POSTGRES}{place.url_file}"


def check_file(place: Path | Postgres) -> None:
    """Assert that a file of SQLite's is sound, and rows belong to each other."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@pytest.mark.timeout(240 + 14 * KILLS)
@pytest.mark.parametrize("processes", [1, 2])
async def test_nothing_acknowledged_is_lost_and_nothing_half_written(
    place: Path | Postgres, tmp_path: Path, processes: int
) -> None:
    options = StoreOptions(place, undo_s=0.0)

    told = await asyncio.to_thread(
        kill_again_and_again, name_of(place), tmp_path / "told", KILLS // 2, processes, seed=processes
    )

    async with aclosing(await open_store(options, announce=announce)) as store:
        assert await store.verify_log() == []
    check_file(place)
    labels: dict[str, str] = dict(rows(options, "SELECT id, label FROM reviews WHERE state = 'decided'"))
    answers = {id_ for (id_,) in rows(options, "SELECT id FROM answers")}
    assert len(told.deferred) == len(set(told.deferred)) > 0
    assert set(told.deferred) <= answers <= told.submitted | told.recorded
    assert told.decided.items() <= labels.items()

    async with aclosing(await open_store(options, announce=announce)) as store:
        asked_again = await ask_again(store, told)
        answers |= asked_again
        await drain(store)
        assert await store.verify_log() == []
    items = count(options, "SELECT answer_id FROM answer_items")
    logged = count(options, "SELECT answer_id FROM decision_log WHERE event <> 'decide'")
    reviews = count(options, "SELECT answer_id FROM reviews")
    keys: dict[str, str] = dict(rows(options, "SELECT key, answer_id FROM idempotency_keys WHERE state = 'done'"))
    # Whole or not at all, acknowledged or not: every answer has its items and log rows, every deferral its reviews.
    assert items == logged == Counter(dict.fromkeys(answers, ITEMS))
    assert reviews == Counter(dict.fromkeys(keys, ITEMS))
    assert all(key == answer_id for key, answer_id in keys.items())
    # Everything that was handed over has come to its one end: one label, one log row, one message an answer.
    handed_over = sorted(keys)
    assert KILLS < FULL or len(handed_over) >= 5000
    assert rows(options, "SELECT count(*) FROM reviews WHERE state <> 'decided'") == [(0,)]
    assert dict(rows(options, "SELECT id, label FROM reviews")).items() >= labels.items()
    rulings = count(options, "SELECT answer_id || ' ' || item FROM decision_log WHERE event = 'decide'")
    said = count(options, "SELECT answer_id || ' ' || item FROM feedback")
    assert rulings == said == Counter(f"{id_} {item}" for id_ in handed_over for item in range(ITEMS))
    assert count(options, "SELECT status FROM answer_items") == {Status.FINAL: ITEMS * len(answers)}
    messages = count(options, "SELECT answer_id FROM outbox WHERE state = 'delivered'")
    assert messages == Counter(handed_over)
    print(
        f"\n{type(place).__name__}, {processes} at a time: {KILLS // 2} killed; {len(told.deferred)} deferrals and"
        f" {len(told.decided)} labels acknowledged, {len(handed_over)} handed over, {len(asked_again)} of these when"
        f" asked again, {len(answers)} answers; 0 lost, 0 unexpected, 0 twice"
    )


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("processes", [1, 2])
async def test_no_change_that_was_acknowledged_is_lost_and_each_is_whole(
    place: Path | Postgres, tmp_path: Path, processes: int
) -> None:
    options = StoreOptions(place)

    acknowledged: dict[str, int] = {}
    for _, id_, revision in await asyncio.to_thread(
        run_until_killed, "change_until_killed", name_of(place), tmp_path / "told", KILLS // 2, processes, processes,
        timeout_s=60 + 5 * KILLS,
    ):  # fmt: skip
        acknowledged[id_] = max(acknowledged.get(id_, 0), int(revision))

    async with aclosing(await open_store(options)) as store:
        await store.maintain()
        assert await store.verify_log() == []
    check_file(place)
    revisions: dict[str, int] = dict(rows(options, "SELECT id, revision FROM answers"))
    changes = rows(options, "SELECT answer_id, item, revision, at_s, event FROM answer_revisions")
    logged = rows(options, "SELECT answer_id, item, at_s, event FROM decision_log WHERE event <> 'defer'")
    ends = rows(
        options,
        "SELECT i.status, r.state, i.label = r.label, f.label = r.label FROM answer_items i JOIN reviews r"
        " ON r.answer_id = i.answer_id AND r.item = i.item LEFT JOIN feedback f ON f.answer_id = i.answer_id"
        " AND f.item = i.item",
    )
    closed: dict[str, bool] = dict(rows(options, "SELECT id, closed_s IS NOT NULL FROM answers"))
    undecided = {id_ for (id_,) in rows(options, "SELECT answer_id FROM reviews WHERE state = 'open'")}
    messages = Counter(rows(options, "SELECT answer_id, CAST(body AS INTEGER) FROM outbox WHERE state = 'waiting'"))

    assert acknowledged
    assert all(revisions[id_] >= revision for id_, revision in acknowledged.items())
    # Whole or not at all: each change has its revision, its log row and its feedback, and review and item agree.
    numbers: dict[str, set[int]] = {}
    for id_, _, revision, _, _ in changes:
        numbers.setdefault(id_, set()).add(revision)
    assert {id_: sorted(found) for id_, found in numbers.items()} == {
        id_: list(range(2, revision + 1)) for id_, revision in revisions.items() if revision > 1
    }
    assert Counter((id_, item, at_s, event) for id_, item, _, at_s, event in changes) == Counter(logged)
    assert set(ends) <= {
        ("final", "decided", 1, 1),
        ("provisional", "open", None, None),
        ("cancelled", "cancelled", None, None),
    }
    assert {id_ for id_, is_closed in closed.items() if not is_closed} == undecided
    # One message for each that is closed, about what it is now: nothing was sent meanwhile.
    assert messages == Counter((id_, revisions[id_]) for id_, is_closed in closed.items() if is_closed)


@pytest.mark.timeout(300)
async def test_a_kill_at_any_statement_or_commit_leaves_all_or_nothing_and_asking_again_is_safe(
    place: Path | Postgres, tmp_path: Path
) -> None:
    options = StoreOptions(place, undo_s=0.0)

    lines = await asyncio.to_thread(
        run_until_killed, "die_at_a_statement", name_of(place), tmp_path / "told", timeout_s=240
    )

    deaths = {key: what[0] for event, key, *what in lines if event == "died"}
    told = {event: {key for said, key, *_ in lines if said == event} for event in ("claimed", "deferred", "decided")}
    everything = {*deaths, f"moment-{len(deaths) + 1}"}
    assert {"INSERT", "UPDATE", "COMMIT", "ACKNOWLEDGEMENT"} <= set(deaths.values())
    assert len(told["decided"]) < len(told["deferred"]) < len(told["claimed"]) < len(everything)
    check_file(place)
    async with aclosing(await open_store(options, announce=announce)) as store:
        await store.maintain()
        assert await store.verify_log() == []
        done: dict[str, str] = dict(rows(options, "SELECT key, answer_id FROM idempotency_keys WHERE state = 'done'"))
        reviews = count(options, "SELECT answer_id FROM reviews")
        decided = count(options, "SELECT queue FROM reviews WHERE state = 'decided'")
        assert told["deferred"] <= done.keys() <= told["claimed"]
        assert count(options, "SELECT answer_id FROM answer_items") == reviews
        assert reviews == Counter(dict.fromkeys(done.values(), ITEMS))
        assert decided.keys() >= told["decided"]
        assert set(decided.values()) == {1}

        for key in sorted(everything):
            name = RequestKey(TENANT, "pets", key)
            claim = await store.claim_key(name, BODY)
            assert isinstance(claim, Fresh) == (key not in done)
            if isinstance(claim, Fresh):
                await store.commit(*deferred(items=ITEMS, queue=key), name, claim.fence)
            else:
                assert claim == Done(AnswerId(done[key]))
            for _ in range(ITEMS - decided[key]):
                held = await store.claim_next(TENANT, key, "ben", 600.0)
                assert held is not None, f"{key}, which died before {deaths.get(key)}: its claim was not given back"
                await store.decide(TENANT, held.id, "ben", held.fence, LABELS[0])
            assert await store.claim_next(TENANT, key, "ben", 600.0) is None
        assert await store.verify_log() == []
    keys: dict[str, str] = dict(rows(options, "SELECT key, answer_id FROM idempotency_keys WHERE state = 'done'"))
    assert keys.keys() == everything
    assert keys.items() >= done.items()
    each = Counter(dict.fromkeys(keys.values(), ITEMS))
    assert count(options, "SELECT answer_id FROM answer_items WHERE status = 'final'") == each
    assert count(options, "SELECT answer_id FROM reviews WHERE state = 'decided'") == each
    assert count(options, "SELECT answer_id FROM decision_log WHERE event = 'decide'") == each
    assert count(options, "SELECT answer_id FROM outbox") == Counter(keys.values())
