"""Reviews go to other tools and come back decided, by the commands an operator uses."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from gateway.answer import Status
from gateway.cli import main
from gateway.labelling.formats import Format, read
from gateway.store import SqlStore, StoreOptions, list_messages, open_store
from gateway.store.contract import Review, ReviewState
from router.contract import LabelQuality
from tests.unit.gateway.store.samples import LABELS, TENANT, deferred

_R = TypeVar("_R")

CONFIG = """
models:
  fast: {backend: echo, labels: [cat, dog, owl], expose: true}
routes:
  pets:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: []
    human: {queue: pets, form: text}
store: {path: store.db}
webhooks:
  crm: {url: "https://crm.example.org/", secret_env: CRM, tenant: acme}
"""
TEXT, PICTURE = "naïve — ja".encode(), b"\x89PNG not really"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose store has an open review of a text, and one of a picture."""
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG)

    async def fill(store: SqlStore) -> None:
        answer, tasks = deferred(items=2)
        shown = ((TEXT, "text/plain"), (PICTURE, "image/png"))
        tasks = [replace(t, payload=p, content_type=m) for t, (p, m) in zip(tasks, shown, strict=True)]
        await store.commit(answer, tasks)

    in_store(path, fill)
    return path


def in_store(config: Path, work: Callable[[SqlStore], Awaitable[_R]]) -> _R:
    async def run() -> _R:
        async with aclosing(await open_store(StoreOptions(config.with_name("store.db")))) as store:
            return await work(store)

    return asyncio.run(run())


def reviews_of(config: Path) -> dict[str, Review]:
    async def all_of(store: SqlStore) -> dict[str, Review]:
        return {review.task.content_type: review for review in await store.reviews(TENANT, state=None)}

    return in_store(config, all_of)


def pointsman(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["reviews", *(os.fspath(argument) for argument in arguments)])


def exported(config: Path, form: str) -> Any:
    result = pointsman("export", config, "--tenant", TENANT, "--format", form)
    assert (result.exit_code, result.stderr) == (0, "2 reviews\n")
    return json.loads(result.stdout) if form != "jsonl" else [json.loads(line) for line in result.stdout.splitlines()]


def imported(config: Path, form: str, content: Any) -> Result:
    file = config.with_name("decisions")
    lines = content if form == "jsonl" else [content]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return pointsman("import", config, file, "--tenant", TENANT, "--format", form)


def as_label_studio_exports(tasks: list[dict[str, Any]], *choices: str) -> list[dict[str, Any]]:
    """As its JSON export has tasks that one person has annotated."""
    return [
        {
            "id": number,
            **task,
            "annotations": [
                {
                    "id": 10 + number,
                    "completed_by": {"id": 1, "email": "anna@example.org"},
                    "was_cancelled": False,
                    "lead_time": 2.5,
                    "result": [
                        {
                            "from_name": "label",
                            "to_name": "item",
                            "type": "choices",
                            "value": {"choices": [choice]},
                            "origin": "manual",
                        }
                    ],
                }
            ],
        }
        for number, (task, choice) in enumerate(zip(tasks, choices, strict=True), start=1)
    ]


def test_label_studio_gets_what_is_to_be_seen_and_what_models_say(config: Path) -> None:
    text, picture = sorted(exported(config, "label-studio"), key=lambda task: "image" in task["data"])

    assert text["data"] == {"text": TEXT.decode()}
    assert picture["data"]["image"] == f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    assert text["meta"]["pointsman_review"] == reviews_of(config)["text/plain"].id
    (proposed,) = [prediction for prediction in text["predictions"] if prediction["model_version"] == "fast"]
    assert proposed["score"] == 0.4
    assert proposed["result"] == [
        {"from_name": "label", "to_name": "item", "type": "choices", "value": {"choices": ["cat"]}}
    ]


def test_what_label_studio_decided_is_decided_here_and_told(config: Path) -> None:
    tasks = sorted(exported(config, "label-studio"), key=lambda task: "image" in task["data"])

    result = imported(config, "label-studio", as_label_studio_exports(tasks, "dog", "owl"))

    assert result.output == "2 decided, 0 known before, 0 refused\n"
    found = reviews_of(config)
    assert {kind: (r.state, r.label, r.reviewer) for kind, r in found.items()} == {
        "text/plain": (ReviewState.DECIDED, "dog", "label-studio:anna@example.org"),
        "image/png": (ReviewState.DECIDED, "owl", "label-studio:anna@example.org"),
    }
    answer_id = found["text/plain"].answer_id
    answer = in_store(config, lambda store: store.answer(TENANT, answer_id))
    assert answer is not None
    assert answer.status is Status.FINAL
    (told,) = asyncio.run(list_messages(StoreOptions(config.with_name("store.db")), None, 10))
    assert (told.message.webhook, told.answer_id) == ("crm", answer_id)


def test_importing_again_changes_nothing(config: Path) -> None:
    tasks = as_label_studio_exports(exported(config, "label-studio"), "dog", "owl")
    imported(config, "label-studio", tasks)
    before = reviews_of(config)

    result = imported(config, "label-studio", tasks)

    assert (result.exit_code, result.output) == (0, "0 decided, 2 known before, 0 refused\n")
    assert reviews_of(config) == before


def test_each_decision_that_cannot_be_made_is_told_and_the_others_are_made(config: Path) -> None:
    first, second = exported(config, "label-studio")
    disputed = as_label_studio_exports([first], "dog")[0]
    disputed["annotations"] += as_label_studio_exports([first], "owl")[0]["annotations"]
    unknown = as_label_studio_exports([{**first, "meta": {"pointsman_review": "0" * 32}}], "dog")[0]
    wrong = as_label_studio_exports([first], "horse")[0]
    foreign = as_label_studio_exports([{**first, "meta": {}}], "dog")[0]
    skipped = as_label_studio_exports([first], "dog")[0]
    skipped["annotations"][0]["was_cancelled"] = True
    good = as_label_studio_exports([second], "dog")[0]

    result = imported(config, "label-studio", [disputed, unknown, wrong, foreign, skipped, good])

    assert result.exit_code == 1
    assert result.stdout == "1 decided, 0 known before, 4 refused\n"
    review_id = first["meta"]["pointsman_review"]
    assert result.stderr.splitlines() == [
        f"{review_id}: those who decided it do not agree: dog, owl",
        f"{'0' * 32}: review '{'0' * 32}' is unknown, or no longer kept",
        f"{review_id}: label 'horse' is not a choice of this review; one of {list(LABELS)} is",
        "a decision without a review: review '' is unknown, or no longer kept",
    ]
    left = {review.id: review.state for review in reviews_of(config).values()}
    assert left[review_id] is ReviewState.OPEN


def test_argilla_gets_records_and_gives_them_back(config: Path) -> None:
    records = sorted(exported(config, "argilla"), key=lambda record: "image" in record["fields"])
    assert records[0]["fields"] == {"text": TEXT.decode()}
    assert records[0]["suggestions"] == {"label": {"value": "cat", "score": 0.4, "agent": "fast"}}
    person = str(uuid.uuid4())
    for record in records:
        record["responses"] = {"label": [{"value": "owl", "user_id": person}]}
        record["status"] = "completed"
        record["_server_id"] = str(uuid.uuid4())

    result = imported(config, "argilla", records)

    assert result.output == "2 decided, 0 known before, 0 refused\n"
    assert {review.reviewer for review in reviews_of(config).values()} == {f"argilla:{person}"}


def decided_by(config: Path, *reviewers: str) -> None:
    """Decide the open reviews, by media type: the picture as owl, the text as dog."""

    async def decide(store: SqlStore) -> None:
        found = sorted(await store.reviews(TENANT, state=None), key=lambda review: review.task.content_type)
        for review, reviewer, label in zip(found, reviewers, ("owl", "dog"), strict=True):
            claimed = await store.claim(TENANT, review.id, reviewer, 60.0)
            await store.decide(TENANT, review.id, reviewer, claimed.fence, label)

    in_store(config, decide)


def exported_decided(config: Path, form: str) -> list[dict[str, Any]]:
    """The picture, and the text."""
    result = pointsman("export", config, "--tenant", TENANT, "--format", form, "--state", "decided")
    assert result.stderr == "2 reviews\n"
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return sorted(found, key=lambda entry: "text" in (entry["data"] if "data" in entry else entry["fields"]))


SOMEBODY = str(uuid.UUID(int=7))


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
@pytest.mark.parametrize(
    "reviewers",
    [
        ("anna", "bert: the other"),
        ("label-studio:anna@example.org", "label-studio:7"),
        (f"argilla:{SOMEBODY}", "x" * 64),
    ],
)
def test_what_is_decided_goes_out_with_its_label_and_comes_back_known(
    config: Path, form: str, reviewers: tuple[str, str]
) -> None:
    decided_by(config, *reviewers)
    before = reviews_of(config)

    result = imported(config, form, exported_decided(config, form))

    assert result.output == "0 decided, 2 known before, 0 refused\n"
    assert reviews_of(config) == before


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
def test_what_was_decided_in_another_store_is_decided_alike_in_this_one(
    config: Path, form: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    elsewhere = tmp_path / "other" / config.name
    elsewhere.write_text(CONFIG)
    with sqlite3.connect(config.with_name("store.db")) as ours, sqlite3.connect(elsewhere.with_name("store.db")) as new:
        ours.backup(new)
    decided_by(config, "anna", "bert")

    result = imported(elsewhere, form, exported_decided(config, form))

    assert result.output == "2 decided, 0 known before, 0 refused\n"
    assert {kind: (review.reviewer, review.label) for kind, review in reviews_of(elsewhere).items()} == {
        "image/png": (f"{form}:anna", "owl"),
        "text/plain": (f"{form}:bert", "dog"),
    }


def test_label_studio_gets_annotations_under_the_names_that_it_knows(config: Path) -> None:
    decided_by(config, "label-studio:anna@example.org", "bert")

    picture, text = exported_decided(config, "label-studio")

    result = [{"from_name": "label", "to_name": "item", "type": "choices", "value": {"choices": ["owl"]}}]
    assert picture["annotations"] == [{"result": result, "completed_by": {"email": "anna@example.org"}}]
    assert text["annotations"][0].keys() == {"result"}  # it refuses people who are no members
    assert text["meta"]["reviewer"] == "bert"


def test_argilla_gets_responses_with_a_number_for_everybody(config: Path) -> None:
    decided_by(config, f"argilla:{SOMEBODY}", "bert")

    picture, text = exported_decided(config, "argilla")

    assert picture["responses"] == {"label": [{"value": "owl", "user_id": SOMEBODY, "status": "submitted"}]}
    (said,) = text["responses"]["label"]
    assert uuid.UUID(said["user_id"])
    assert (said["value"], text["metadata"]["reviewer"]) == ("dog", "bert")


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
def test_what_is_open_has_no_label_there(config: Path, form: str) -> None:
    for entry in exported(config, form):
        assert not entry.get("annotations")
        assert not entry.get("responses")


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
@pytest.mark.parametrize(
    ("media", "why"),
    [
        ("application/octet-stream", "its input, application/octet-stream, is neither text nor a picture"),
        ("text/plain", "its input, text/plain, is no text in UTF-8"),
    ],
)
def test_what_these_tools_cannot_show_is_left_out_and_told(config: Path, form: str, media: str, why: str) -> None:
    async def fill(store: SqlStore) -> str:
        answer, (task,) = deferred()
        await store.commit(answer, [replace(task, payload=b"\xff\xfe\x00sound", content_type=media)])
        return next(r.id for r in await store.reviews(TENANT, state=None) if r.answer_id == answer.id)

    review_id = in_store(config, fill)

    result = pointsman("export", config, "--tenant", TENANT, "--format", form)

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [f"{review_id}: {why}, and was left out; --format jsonl has it", "2 reviews"]
    assert len(json.loads(result.stdout)) == 2
    assert "\ufffd" not in result.stdout
    assert pointsman("export", config, "--tenant", TENANT).stderr == "3 reviews\n"


def test_json_lines_come_back_with_a_label_or_stay_open(config: Path) -> None:
    one, other = exported(config, "jsonl")

    result = imported(config, "jsonl", [{"id": one["id"], "label": "dog", "reviewer": "bert"}, other])

    assert result.output == "1 decided, 0 known before, 0 refused\n"
    states = {review.id: (review.state, review.reviewer) for review in reviews_of(config).values()}
    assert states == {one["id"]: (ReviewState.DECIDED, "bert"), other["id"]: (ReviewState.OPEN, None)}
    assert pointsman("export", config, "--tenant", TENANT).stderr == "1 reviews\n"
    assert pointsman("export", config, "--tenant", TENANT, "--state", "decided").stderr == "1 reviews\n"
    assert pointsman("export", config, "--tenant", TENANT, "--format", "argilla", "--queue", "none").stdout == "[]\n"


def test_a_blind_review_does_not_tell_which_answer_it_is_of(config: Path) -> None:
    async def decide(store: SqlStore, reviewer: str) -> None:
        claimed = await store.claim_next(TENANT, "several", reviewer, 60.0)
        assert claimed is not None
        await store.decide(TENANT, claimed.id, reviewer, claimed.fence, "dog")

    async def ask_a_second(store: SqlStore) -> str:
        answer, tasks = deferred(queue="several")
        await store.commit(answer, [replace(t, quality=LabelQuality(second_opinion=1.0)) for t in tasks])
        await decide(store, "anna")
        return answer.id

    def lines(state: str) -> list[dict[str, Any]]:
        result = pointsman("export", config, "--tenant", TENANT, "--queue", "several", "--state", state)
        return [json.loads(line) for line in result.stdout.splitlines()]

    answer_id = in_store(config, ask_a_second)
    (asked,), (decided,) = lines("open"), lines("decided")
    in_store(config, lambda store: decide(store, "ben"))
    said = next(line for line in lines("decided") if line["id"] == asked["id"])

    assert (asked["blind"], asked["answer_id"], asked["label"], asked["proposals"]) == (True, None, None, [])
    assert (said["blind"], said["answer_id"], said["label"]) == (True, None, "dog")
    assert (decided["blind"], decided["answer_id"], decided["label"]) == (False, answer_id, "dog")


def test_several_opinions_come_back_one_by_one_and_again_without_harm(config: Path) -> None:
    async def ask_several(store: SqlStore) -> None:
        answer, tasks = deferred(queue="several")
        await store.commit(answer, [replace(t, quality=LabelQuality(needed=2, of=3)) for t in tasks])

    in_store(config, ask_several)
    listed = pointsman("export", config, "--tenant", TENANT, "--queue", "several").stdout
    review_id = json.loads(listed)["id"]
    said = [{"id": review_id, "label": "dog", "reviewer": name} for name in ("bert", "cleo")]

    first = imported(config, "jsonl", said[:1])
    again = imported(config, "jsonl", said[:1])
    other = imported(config, "jsonl", [{**said[0], "label": "owl"}])
    second = imported(config, "jsonl", said)

    assert first.output == "1 decided, 0 known before, 0 refused\n"
    assert again.output == "0 decided, 1 known before, 0 refused\n"
    assert "0 decided, 0 known before, 1 refused" in other.output
    assert second.output == "1 decided, 1 known before, 0 refused\n"


def test_masks_are_on_labels_that_come_back_and_importing_again_changes_nothing(config: Path) -> None:
    config.write_text(CONFIG + "mask: [{text: 'Anna', by: Somebody}]\n")

    async def ask(store: SqlStore) -> None:
        answer, tasks = deferred(queue="free")
        await store.commit(answer, [replace(task, labels=()) for task in tasks])

    in_store(config, ask)
    listed = pointsman("export", config, "--tenant", TENANT, "--queue", "free").stdout
    said = [{"id": json.loads(listed)["id"], "label": "it is Anna's", "reviewer": "bert"}]

    first, again = imported(config, "jsonl", said), imported(config, "jsonl", said)

    assert first.output == "1 decided, 0 known before, 0 refused\n"
    assert again.output == "0 decided, 1 known before, 0 refused\n"
    assert "it is Somebody's" in {review.label for review in reviews_of(config).values()}


@pytest.mark.parametrize(
    ("form", "content", "told"),
    [
        ("jsonl", '{"id": "1"}\nnonsense', "line 2 is no JSON"),
        ("jsonl", "[]", "line 1 is not as it should be: Input should be a valid dictionary"),
        ("label-studio", "{}", "the file is no list of tasks"),
        ("argilla", '[{"responses": 1}]', "entry 1 is not as it should be: responses: Input should be a valid dict"),
        ("argilla", "", "the file is no JSON"),
    ],
)
def test_a_file_of_another_kind_is_told_with_its_place(config: Path, form: str, content: str, told: str) -> None:
    file = config.with_name("decisions")
    file.write_text(content)

    result = pointsman("import", config, file, "--format", form)

    assert result.exit_code == 1
    assert f"Error: {file}: {told}" in result.output


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "label", "meta", "annotations", "result", "responses", "value", "choices", "from_name"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from(list(Format)))
def test_any_json_whatever_is_decisions_or_a_fault(value: Any, form: Format) -> None:
    try:
        for decision in read(json.dumps(value), form):
            assert isinstance(decision.review_id, str)
    except ValueError:
        pass


def test_the_interface_for_label_studio_fits_the_route(config: Path) -> None:
    assert pointsman("label-config", config, "pets").output == (
        '<View><Text name="item" value="$text"/><TextArea name="label" toName="item" maxSubmissions="1"/></View>\n'
    )
    assert pointsman("label-config", config, "nowhere").exit_code == 1
