"""`kill -9` at any moment loses nothing that was acknowledged, and leaves nothing half-written.

`POINTSMAN_KILLS` sets how many processes are killed; 20 without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from contextlib import aclosing, closing
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3
import pytest

from gateway.store import StoreOptions, open_store
from tests.faults.defer_until_killed import ITEMS

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("POINTSMAN_KILLS", "20"))


def kill_again_and_again(path: Path, kills: int, processes: int, seed: int) -> tuple[list[str], dict[str, str]]:
    """The answers whose deferral, and the reviews whose label, was acknowledged before the kills."""
    acknowledged = path.with_suffix(".acknowledged")
    with acknowledged.open("wb") as output:
        subprocess.run(
            [sys.executable, "-m", "tests.faults.defer_until_killed", path, *map(str, (kills, processes, seed))],
            cwd=ROOT,
            stdout=output,
            check=True,
            timeout=60 + 5 * kills,
        )
    deferred, decided = [], {}
    for line in acknowledged.read_text().splitlines():
        event, id_, *label = line.split()
        if event == "deferred":
            deferred.append(id_)
        else:
            assert id_ not in decided, f"review {id_} was decided twice"
            decided[id_] = label[0]
    return deferred, decided


@pytest.mark.timeout(120 + 6 * KILLS)
@pytest.mark.parametrize("processes", [1, 2])
async def test_nothing_acknowledged_is_lost_and_nothing_half_written(tmp_path: Path, processes: int) -> None:
    path = tmp_path / "store.db"

    deferred, decided = kill_again_and_again(path, KILLS // 2, processes, seed=processes)

    async with aclosing(await open_store(StoreOptions(path))) as store:
        assert await store.verify_log() == []
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute
        assert rows("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert rows("PRAGMA foreign_key_check").fetchall() == []
        answers = [id_ for (id_,) in rows("SELECT id FROM answers")]
        items = Counter(id_ for (id_,) in rows("SELECT answer_id FROM answer_items"))
        logged = Counter(id_ for (id_,) in rows("SELECT answer_id FROM decision_log WHERE event <> 'decide'"))
        reviews = Counter(id_ for (id_,) in rows("SELECT answer_id FROM reviews"))
        keys = [(key, id_) for key, id_ in rows("SELECT key, answer_id FROM idempotency_keys WHERE state = 'done'")]
        labels = dict(rows("SELECT id, label FROM reviews WHERE state = 'decided'").fetchall())
        rulings = rows("SELECT count(*) FROM decision_log WHERE event = 'decide'").fetchone()[0]
        claimed = rows("SELECT count(*) FROM reviews WHERE state = 'claimed'").fetchone()[0]
        feedback = rows("SELECT count(*) FROM feedback").fetchone()[0]

    assert len(deferred) == len(set(deferred)) > 0
    assert set(deferred) <= set(answers)
    assert decided.items() <= labels.items()
    # Whole or not at all, acknowledged or not: every answer has its items and log rows, every deferral its reviews.
    assert items == logged == Counter(dict.fromkeys(answers, ITEMS))
    assert reviews == Counter(dict.fromkeys(dict(keys), ITEMS))
    assert all(key == answer_id for key, answer_id in keys)
    assert len(labels) == rulings == feedback
    assert claimed == 0
