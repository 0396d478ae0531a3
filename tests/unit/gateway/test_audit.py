"""What `pointsman audit` and `pointsman store` say: an answer's path, the log as JSON Lines, copies of the store."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.answer import Answer
from gateway.audit import _HAPPENED
from gateway.cli import main
from gateway.store import StoreOptions, open_store
from gateway.store.log import GENESIS, Event, row_hash
from tests.unit.gateway.store.conformance import decide_all
from tests.unit.gateway.store.samples import TENANT, accepted, deferred


@pytest.fixture
def decided(config: Path) -> Answer:
    """An answer that a person decided, in the store of *config*, beside one that a model gave."""

    async def fill() -> Answer:
        async with aclosing(await open_store(StoreOptions(config.with_name("store.db")))) as store:
            answer, tasks = deferred()
            await store.commit(answer, tasks)
            await decide_all(store)
            await store.commit(accepted(tenant="other"), [])
            return answer

    return asyncio.run(fill())


def pointsman(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [os.fspath(argument) for argument in arguments])


def test_the_path_of_an_answer_is_told_in_order(config: Path, decided: Answer) -> None:
    result = pointsman("audit", "show", config, decided.id)

    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[0] == f"answer {decided.id}, route pets, tenant {TENANT}"
    assert lines[2] == "item 0"
    assert lines[3] == "fast version 3 said cat (0.4000): escalate, low_confidence"
    assert lines[4] == "strong: defer, stage_failed"
    assert "handed to people: cat (confidence 0.4000, low_confidence)  [chain 0, row 1]" in lines[5]
    assert lines[6].startswith("outputs, SHA-256: ")
    assert "decided by person:anna: cat" in lines[7]
    assert lines[8].startswith("a person's time: ")


def test_what_happened_after_a_decision_is_told_too(config: Path) -> None:
    async def fill() -> Answer:
        async with aclosing(await open_store(StoreOptions(config.with_name("store.db")))) as store:
            answer, tasks = deferred(items=2)
            await store.commit(answer, tasks)
            review = await store.claim_next(TENANT, "pets", "anna", 60.0)
            assert review is not None
            await store.decide(TENANT, review.id, "anna", review.fence, "cat")
            again = await store.undo(TENANT, review.id, "anna", review.fence)
            await store.decide(TENANT, review.id, "anna", again.fence, "owl")
            await store.correct(TENANT, review.id, "anna", "dog", "nothing that the log would tell")
            return await store.cancel(TENANT, answer.id, "app")

    answer = asyncio.run(fill())
    result = pointsman("audit", "show", config, answer.id)

    told = [line.split("Z  ")[1].split("  [")[0] for line in result.stdout.splitlines() if "Z  " in line]
    assert sorted(told) == sorted(
        [
            *["handed to people: cat (confidence 0.4000, low_confidence)"] * 2,
            "decided by person:anna: cat",
            "taken back by person:anna",
            "decided by person:anna: owl",
            "corrected by person:anna: dog",
            "cancelled by caller:app",
        ]
    )
    assert "nothing that the log would tell" not in result.stdout
    assert set(_HAPPENED) == set(Event)


def test_an_answer_that_nobody_gave_is_told_with_the_remedy(config: Path, decided: Answer) -> None:
    result = pointsman("audit", "show", config, "0" * 32)

    assert result.exit_code == 1
    assert result.output == f"Error: the decision log has no answer '{'0' * 32}'; check its id, and `store`\n"


def test_an_exported_chain_can_be_verified_without_the_store(config: Path, decided: Answer) -> None:
    result = pointsman("audit", "export", config)

    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["event"] for row in rows] == ["defer", "decide", "accept"]
    assert result.stderr == "3 rows\n"
    previous = GENESIS
    for row in rows:
        row["trail"] = json.dumps(row["trail"], separators=(",", ":"), ensure_ascii=False)
        for name in ("outputs_sha256", "payload_sha256"):
            row[name] = None if row[name] is None else bytes.fromhex(row[name])
        stored = bytes.fromhex(row.pop("hash"))
        previous = row_hash(previous, row.values())
        assert previous == stored


def test_an_export_takes_what_was_asked_for(config: Path, decided: Answer, tmp_path: Path) -> None:
    out = tmp_path / "log.jsonl"

    def rows(*options: str) -> list[dict[str, object]]:
        assert pointsman("audit", "export", config, "--out", out, *options).exit_code == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    assert len(rows("--tenant", "other")) == 1
    assert len(rows("--route", "pets", "--since", "2020-01-01")) == 3
    assert rows("--since", "2999-01-01T00:00:00Z") == []
    assert rows("--until", "2020-01-01") == []
    told = pointsman("audit", "export", config, "--since", "yesterday")
    assert told.exit_code == 2
    assert "'yesterday' is no moment; write 2026-11-26, or 2026-11-26T10:00:00Z" in told.output


def test_a_store_is_backed_up_and_restored(config: Path, decided: Answer, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"

    made = pointsman("store", "backup", config, copy)
    config.with_name("store.db").unlink()
    back = pointsman("store", "restore", config, copy)

    assert made.output == f"{copy}: {copy.stat().st_size:,} bytes, whole\n"
    assert back.output == f"{config.with_name('store.db')}: restored from {copy}\n"
    assert pointsman("audit", "verify", config).output == "the decision log is whole\n"
    assert pointsman("store", "restore", config, tmp_path / "nothing.db").exit_code == 1
