"""`pointsman gold` and `pointsman reviewers`, as they are typed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import GoldCount, Proposal, Purpose, Review
from router.contract import LabelQuality
from tests.unit.gateway.store.samples import TENANT, deferred

_R = TypeVar("_R")

CONFIG = """
models:
  fast: {backend: echo, labels: [cat, dog, owl]}
routes:
  pets:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [fast]
    accept: {min_confidence: 0.9}
    human: {queue: pets, form: labels, gold: 2%}
  notes:
    input: {text: {datatype: BYTES, shape: [1]}}
    cascade: []
    human: {queue: notes, form: text, second_opinion: 5%}
store: {path: store.db}
"""
PICTURE = b"\x89PNG\r\n\x1a\n not really"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG)
    return path


def in_store(config: Path, work: Callable[[SqlStore], Awaitable[_R]]) -> _R:
    async def run() -> _R:
        async with aclosing(await open_store(StoreOptions(config.with_name("store.db")))) as store:
            return await work(store)

    return asyncio.run(run())


def pointsman(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [os.fspath(argument) for argument in arguments])


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def woven(config: Path) -> list[Review]:
    """Reviews of gold items, with payloads, after many tasks of their queue."""

    async def ask(store: SqlStore) -> list[Review]:
        for _ in range(8):
            answer, tasks = deferred()
            await store.commit(answer, [replace(task, quality=LabelQuality(gold=1.0)) for task in tasks])
        listed = [r for r in await store.reviews(TENANT, limit=200) if r.panel.purpose is Purpose.GOLD]
        found = [await store.review(TENANT, review.id) for review in listed]
        return [review for review in found if review is not None]

    return in_store(config, ask)


def test_items_of_every_kind_are_added_and_asked(config: Path, tmp_path: Path) -> None:
    (tmp_path / "seven.png").write_bytes(PICTURE)
    proposals = [{"stage": "fast", "label": "owl", "confidence": 0.5}]
    one = write(
        tmp_path / "one.jsonl",
        {"label": "cat", "text": "meow — ja"},
        "",
        {"label": "dog", "file": "seven.png", "proposals": proposals},
    )
    two = write(
        tmp_path / "two.jsonl", {"label": "owl", "payload_b64": base64.b64encode(b"\0\1").decode(), "id": "a review's"}
    )

    added = pointsman("gold", "add", config, "pets", one, two, "--tenant", TENANT)
    again = pointsman("gold", "add", config, "pets", one, "--tenant", TENANT)

    assert added.exit_code == 0, added.output
    assert added.stdout == "3 added, 0 known before\n"
    assert "2 have no proposals of models and are shown without, which tells them from real ones" in added.stderr
    assert again.stdout == "0 added, 2 known before\n"
    shown = {review.task.payload: review.task for review in woven(config)}
    assert {payload: task.content_type for payload, task in shown.items()} == {
        "meow — ja".encode(): "text/plain; charset=utf-8",
        PICTURE: "image/png",
        b"\0\1": "application/octet-stream",
    }
    assert shown[PICTURE].proposals == (Proposal("fast", "owl", 0.5),)
    assert pointsman("gold", "list", config, "--tenant", TENANT).output == "pets: 3 items, 0 labels of reviewers\n"
    assert pointsman("gold", "remove", config, "pets", "--tenant", TENANT).output == "3 removed\n"
    assert in_store(config, lambda store: store.gold(TENANT)) == {}


def test_exported_reviews_are_gold_items_as_they_stand(config: Path, tmp_path: Path) -> None:
    async def decide(store: SqlStore) -> None:
        answer, tasks = deferred()
        await store.commit(answer, [replace(task, payload=PICTURE) for task in tasks])
        review = await store.claim_next(TENANT, "pets", "anna", 60.0)
        assert review is not None
        await store.decide(TENANT, review.id, "anna", review.fence, "dog")

    in_store(config, decide)
    out = tmp_path / "decided.jsonl"
    pointsman("reviews", "export", config, "--tenant", TENANT, "--state", "decided", "--out", out)

    added = pointsman("gold", "add", config, "pets", out, "--tenant", TENANT)

    assert (added.stdout, added.stderr) == ("1 added, 0 known before\n", "")
    (asked,) = woven(config)
    assert (asked.task.payload, len(asked.task.proposals)) == (PICTURE, 2)


def test_where_nothing_is_asked_for_or_looks_alike_a_note_says_so(config: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "gold.jsonl", {"label": "any text", "text": "read me"})
    added = pointsman("gold", "add", config, "notes", file)
    assert added.stderr == "note: no route of queue 'notes' asks for gold items yet; set `gold: 2%` of its `human`\n"
    assert in_store(config, lambda store: store.gold("default")) == {"notes": GoldCount(1, 0)}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"text": "meow"}, "gold.jsonl, line 1 is no item: label: Field required"),
        ({"label": 3, "text": "meow"}, "line 1 is no item: label: Input should be a valid string"),
        ({"label": "", "text": "meow"}, "line 1: `label` must be a text of 1 to 10000 characters"),
        ("{", "line 1 is no JSON"),
        ({"label": "cat"}, "line 1 has nothing to look at; give one of text, file, payload or payload_b64"),
        ({"label": "cat", "text": "a", "file": "b"}, "line 1 has text and file; give one of"),
        ({"label": "cat", "payload_b64": "!"}, "line 1: payload_b64 is no base64"),
        ({"label": "cat", "file": "none.png"}, "none.png cannot be read (No such file or directory)"),
        ({"label": "cow", "text": "moo"}, "'cow' is no label of queue 'pets'; its labels are cat, dog, owl"),
        (
            {"label": "cat", "text": "a", "proposals": [{"stage": "f", "confidence": 2}]},
            "line 1 is no item: proposals.0.confidence: Input should be less than or equal to 1",
        ),
    ],
)
def test_a_line_that_is_no_item_is_told_and_nothing_is_added(
    config: Path, tmp_path: Path, line: object, told: str
) -> None:
    file = write(tmp_path / "gold.jsonl", line, {"label": "cat", "text": "fine"})
    added = pointsman("gold", "add", config, "pets", file)
    assert added.exit_code == 1
    assert told in added.output
    assert pointsman("gold", "list", config).output == ""


def test_a_queue_or_file_that_there_is_not_is_told(config: Path, tmp_path: Path) -> None:
    nowhere = pointsman("gold", "add", config, "nowhere", write(tmp_path / "gold.jsonl", {"label": "a", "text": "b"}))
    missing = pointsman("gold", "add", config, "pets", tmp_path / "none.jsonl")
    assert "no route has the queue 'nowhere'; known: notes, pets" in nowhere.output
    assert "none.jsonl cannot be read" in missing.output
    assert (nowhere.exit_code, missing.exit_code) == (1, 1)


def test_reviewers_are_told_as_a_table_and_as_json(config: Path) -> None:
    async def fill(store: SqlStore) -> None:
        for number in range(4):
            answer, tasks = deferred()
            await store.commit(answer, [replace(task, quality=LabelQuality(needed=2, of=2)) for task in tasks])
            for reviewer in ("anna", "ben"):
                review = await store.claim_next(TENANT, "pets", reviewer, 60.0)
                assert review is not None
                await store.decide(TENANT, review.id, reviewer, review.fence, "dog" if number % 2 else "owl")

    in_store(config, fill)

    table = pointsman("reviewers", config, "--tenant", TENANT)
    told = json.loads(pointsman("reviewers", config, "--tenant", TENANT, "--json").output)
    elsewhere = pointsman("reviewers", config, "--tenant", TENANT, "--queue", "notes")
    later = pointsman("reviewers", config, "--tenant", TENANT, "--since", "2999-01-01")

    assert table.exit_code == 0, table.output
    assert "anna and ben  4      100.0% of 4" in table.output
    assert "Krippendorff's alpha over 4 items: 1.000 [" in table.output
    assert [row["accuracy"]["value"] for row in told["reviewers"]] == [1.0, 1.0]
    assert "no item was labelled by two people" in elsewhere.output
    assert "no item was labelled by two people" in later.output
