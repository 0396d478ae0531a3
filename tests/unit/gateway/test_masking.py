"""Masks: what a caller sends reaches the model, and nothing that lasts, nor anybody's eyes."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import sqlite3
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Datatype, Tensor
from backends.errors import InvalidInput, PointsmanError
from gateway.compose import compose
from gateway.masking import MASKED, NO_MASKS, JsonPath, Mask, MaskOptions, Masks
from gateway.request import Caller, JsonInputs, Protocol, RawBody, Request
from gateway.settings import load_settings
from gateway.store import StoreOptions, open_store, read_answer_log
from gateway.store.contract import RequestKey
from gateway.store.key import open_key
from gateway.telemetry import configure_logging
from tests.integration.process import CONFIG
from tests.unit.gateway.store.samples import TENANT, accepted, deferred
from tests.unit.gateway.store.test_erasure import everything

CANARY = "canary-5ecre7"


def path(text: str, by: str = MASKED) -> MaskOptions:
    return MaskOptions(path=JsonPath.parse(text), by=by)


def pattern(text: str, by: str = MASKED) -> MaskOptions:
    return MaskOptions(pattern=re.compile(text), by=by)


@pytest.mark.parametrize(
    ("where", "value", "left"),
    [
        ("$.a", {"a": 1, "b": 2}, {"a": "X", "b": 2}),
        ("$.a.b", {"a": {"b": [1], "c": 2}}, {"a": {"b": "X", "c": 2}}),
        ("$.a[1]", {"a": [1, 2, 3]}, {"a": [1, "X", 3]}),
        ("$.a[*].b", {"a": [{"b": 1}, {"c": 2}, 3]}, {"a": [{"b": "X"}, {"c": 2}, 3]}),
        ("$.*", {"a": 1, "b": [2]}, {"a": "X", "b": "X"}),
        ("$[0]", [1, 2], ["X", 2]),
        ("$..a", {"a": 1, "b": [{"a": {"a": 2}}, {"c": {"a": 3}}]}, {"a": "X", "b": [{"a": "X"}, {"c": {"a": "X"}}]}),
        ("$..a.b", {"x": [{"a": {"b": 1, "c": 2}}]}, {"x": [{"a": {"b": "X", "c": 2}}]}),
        ("$['a b'].c", {"a b": {"c": 1}}, {"a b": {"c": "X"}}),
        ("$.nothing", {"a": 1}, {"a": 1}),
        ("$.a.b", {"a": "text"}, {"a": "text"}),
    ],
)
def test_a_path_names_places(where: str, value: Any, left: Any) -> None:
    assert JsonPath.parse(where).replaced(value, "X") == left


@pytest.mark.parametrize("text", ["", "$", "a.b", "$.", "$..", "$[", "$[x]", "$.a b", "$.a[-1]", "$['']", "$.a."])
def test_what_is_no_path_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="no place in JSON; write it like"):
        JsonPath.parse(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
)


@given(_JSON)
def test_nothing_below_a_name_is_left_wherever_it_stands(value: Any) -> None:
    def names_of(found: Any) -> list[Any]:
        if isinstance(found, dict):
            return [inner for key, inner in found.items() if key == "a"] + [
                name for inner in found.values() for name in names_of(inner)
            ]
        return [name for inner in found for name in names_of(inner)] if isinstance(found, list) else []

    assert set(map(repr, names_of(JsonPath.parse("$..a").replaced(value, "X")))) <= {"'X'"}


def test_a_text_that_is_a_document_has_places_and_patterns() -> None:
    mask = Mask((path("$.customer.name"), pattern(r"\bDE\d{20}\b", "[IBAN]")))
    document = {"customer": {"name": "Anna", "since": 2019}, "note": "pay to DE" + "1" * 20}

    left = json.loads(mask.payload(json.dumps(document).encode(), "text/plain; charset=utf-8"))

    assert left == {"customer": {"name": MASKED, "since": 2019}, "note": "pay to [IBAN]"}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Anna"',
        '  [{"name": "Anna"}',
        '{"name": "Anna"} trailing',
        '{"name": "Anna", "x": NaN}',
        "{'name': 'Anna'}",
    ],
)
def test_what_looks_like_a_document_and_cannot_be_read_is_withheld(text: str) -> None:
    assert b"Anna" not in Mask((path("$.name"),)).payload(text.encode(), "text/plain")
    assert Mask((pattern("Anna"),)).payload(text.encode(), "text/plain") == text.replace("Anna", MASKED).encode()


def test_a_text_in_brackets_is_no_document() -> None:
    assert Mask((path("$.name"),)).payload(b"[urgent] call {Anna}", "text/plain") == b"[urgent] call {Anna}"


def test_a_pattern_finds_what_a_document_spells_otherwise() -> None:
    assert b"6e" not in Mask((pattern("Anna"),)).payload(b'{"name": "An\\u006ea"}', "text/plain")


def test_the_same_name_twice_hides_nothing() -> None:
    masked = Mask((path("$.name"),)).payload(b'{"name": "Anna", "name": "Bert"}', "text/plain")
    assert (b"Anna" in masked, b"Bert" in masked) == (False, False)


def test_inputs_by_name_have_places_and_so_have_the_documents_among_them() -> None:
    mask = Mask((path("$.customer"), path("$.name")))
    shown = orjson.dumps({"customer": ["Anna"], "amount": [3.5], "form": ['{"name": "Bert", "kind": "x"}']})

    left = json.loads(mask.payload(shown, "application/json"))

    assert left == {"customer": MASKED, "amount": [3.5], "form": [f'{{"name":"{MASKED}","kind":"x"}}']}


def test_pictures_are_as_they_were_and_other_bytes_have_patterns_on() -> None:
    mask = Mask((pattern("Anna", "*"),))
    picture = b"\x89PNG\r\n\x1a\nAnna"
    assert mask.payload(picture, "image/png") == picture
    assert mask.payload(b"\xff\xfeAnna\x80", "application/octet-stream") == b"\xff\xfe*\x80"


def test_a_replacement_means_what_it_says() -> None:
    assert Mask((pattern("(A)nna", r"\1 \g<0>"),)).text("Anna") == r"\1 \g<0>"


def test_parameters_are_masked_by_name_and_pattern() -> None:
    mask = Mask((MaskOptions(parameter="customer", by="?"), pattern("Anna")))
    assert mask.parameters({"customer": 4711, "note": "for Anna", "urgent": True}) == {
        "customer": "?",
        "note": f"for {MASKED}",
        "urgent": True,
    }


def test_a_route_has_its_own_masks_and_those_of_all() -> None:
    masks = Masks([pattern("a"), MaskOptions(pattern=re.compile("b"), routes=frozenset({"one"}))])
    one, other = masks.of("one"), masks.of("other")
    assert one is not None
    assert other is not None
    assert (one.text("ab"), other.text("ab")) == (MASKED * 2, f"{MASKED}b")
    assert Masks([MaskOptions(pattern=re.compile("b"), routes=frozenset({"one"}))]).of("other") is None
    assert NO_MASKS.of("one") is None
    assert not NO_MASKS


def test_masks_can_be_given_to_another_process() -> None:
    given_on = pickle.loads(pickle.dumps((path("$.a[*]"), pattern("x+"))))
    assert Mask(given_on).payload(b'{"a": ["Anna"], "b": "xx"}', "text/plain") == (
        f'{{"a":["{MASKED}"],"b":"{MASKED}"}}'.encode()
    )


def test_texts_among_outputs_are_masked_and_numbers_are_not() -> None:
    texts = np.empty((1, 2), object)
    texts[0] = [b"for Anna", b"\xff"]
    outputs = {"text": Tensor(Datatype.BYTES, (1, 2), texts), "score": Tensor.of(np.ones((1, 2), np.float32))}
    kept = Mask((pattern("Anna"),)).answer(accepted(label="Anna", outputs=outputs)).items[0]

    assert kept.label == MASKED
    assert [record.label for record in kept.trail] == [MASKED]
    assert kept.outputs is not None
    assert kept.outputs["text"].numpy().tolist() == [[f"for {MASKED}".encode(), b"\xff"]]
    assert kept.outputs["score"] is outputs["score"]
    assert texts[0, 0] == b"for Anna"


ECHOING = """
  echoing:
    backend: python
    target: tests.unit.gateway.test_masking:echo
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: label, datatype: BYTES, shape: [1]}, {name: probabilities, datatype: FP32, shape: [2]}]
    max_batch: 4

routes:
  notes:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [echoing]
    accept: {min_confidence: 0.9}
    human: {queue: notes, form: text}
    slo: {deadline: 5s}
"""

SEEN: list[str] = []


def echo(inputs: dict[str, Any]) -> dict[str, Any]:
    """Says what it was sent, and is sure of it where that says so."""
    texts = [text.decode() for text in inputs["text"].reshape(-1)]
    SEEN.extend(texts)
    sure = [0.99 if "sure" in text.split("-") else 0.5 for text in texts]
    labels = np.array([text.encode() for text in texts], object).reshape(-1, 1)
    return {"label": labels, "probabilities": np.array([[p, 1 - p] for p in sure], np.float32)}


async def test_a_canary_reaches_the_model_and_its_caller_and_nothing_else(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG.replace("\nroutes:", ECHOING, 1) + f"mask: [{{text: '{CANARY}'}}]\n")
    settings = load_settings(config)
    SEEN.clear()
    log = io.StringIO()
    configure_logging("DEBUG")
    logging.getLogger().handlers[0].stream = log  # type: ignore[attr-defined]
    try:
        async with compose(settings) as gateway:

            async def decide(text: str, key: str | None = None) -> Any:
                body = RawBody(text.encode(), "text/plain")
                request = Request("notes", body, Protocol.V1_HTTP, idempotency_key=key, fingerprint=b"f" * 32)
                return await gateway.pipeline.decide(request)

            sure, unsure = await decide(f"sure-{CANARY}", "key-1"), await decide(CANARY)
            with pytest.raises(InvalidInput, match=CANARY):
                await gateway.pipeline.decide(
                    Request(
                        "notes",
                        JsonInputs({CANARY: "an input that the route does not have"}, 0),
                        Protocol.V1_HTTP,
                        idempotency_key="key-2",
                        fingerprint=b"f" * 32,
                    )
                )
            review = await gateway.store.claim_next("default", "notes", "anna", 60.0)
            assert review is not None
            said = await gateway.store.decide("default", review.id, "anna", review.fence, f"it is {CANARY}")
            corrected = await gateway.store.correct(
                "default", review.id, "anna", f"it is not {CANARY}", f"because of {CANARY}"
            )
            await gateway.store.correct("default", review.id, "anna", f"it is not {CANARY}", "again")
            await gateway.pipeline.feedback(Caller(), sure.id, 0, f"it was {CANARY}")
            again = await decide(f"sure-{CANARY}", "key-1")
            with pytest.raises(PointsmanError, match="why is not kept"):
                await gateway.pipeline._idempotency._replay(
                    RequestKey("default", "notes", "key-2"),
                    await gateway.store.claim_key(RequestKey("default", "notes", "key-2"), b"f" * 32),  # type: ignore[arg-type]
                )
            logging.getLogger("pointsman.test").error("it said %s", CANARY)
            metrics, _ = gateway.telemetry.exposition("")
            found = everything(settings.store)
    finally:
        configure_logging()

    assert [f"sure-{CANARY}", CANARY] == SEEN
    assert sure.items[0].label == f"sure-{CANARY}"
    assert again.items[0].label == f"sure-{MASKED}"
    assert (said.items[0].label, corrected.items[0].label) == (f"it is {MASKED}", f"it is not {MASKED}")
    assert review.task.payload == MASKED.encode()
    assert review.task.proposals[0].label == MASKED
    assert [name for name, content in found.items() if CANARY.encode() in content] == [config.name]  # the mask's own
    assert CANARY not in log.getvalue()
    assert f"it said {MASKED}" in log.getvalue()
    assert CANARY.encode() not in metrics
    async with aclosing(await open_store(settings.store)) as store:
        assert await store.verify_log() == []
        row, *later = await read_answer_log(settings.store, unsure.id)
        revisions = await store.revisions("default", unsure.id)
    assert [entry.label for entry in later] == [f"it is {MASKED}", f"it is not {MASKED}"]
    assert revisions[-1].reason == f"because of {MASKED}"
    assert row.payload_sha256 == open_key(settings.store).of_input(CANARY.encode())


async def test_choices_are_nobody_s_own_words_and_masks_of_another_route_are_not_on(tmp_path: Path) -> None:
    options = StoreOptions(tmp_path / "store.db")
    masks = Masks([MaskOptions(pattern=re.compile("dog|secret"), routes=frozenset({"pets"}))])
    async with aclosing(await open_store(options, hide=masks.words)) as store:
        answer, tasks = deferred(items=2)
        tasks[1] = replace(tasks[1], labels=())
        await store.commit(answer, tasks)
        elsewhere = replace(accepted(), route="letters")
        await store.record(elsewhere)
        for _ in tasks:
            review = await store.claim_next(TENANT, "pets", "anna", 60.0)
            assert review is not None
            said = "dog" if review.task.labels else "a dog"
            await store.decide(TENANT, review.id, "anna", review.fence, said)
            await store.decide(TENANT, review.id, "anna", review.fence, said)  # a repetition is known
        await store.add_feedback(TENANT, answer.id, 0, "a secret", "caller")
        await store.add_feedback(TENANT, elsewhere.id, 0, "a secret", "caller")
        found = await store.answer(TENANT, answer.id)

    assert found is not None
    assert [item.label for item in found.items] == ["dog", f"a {MASKED}"]
    with closing(sqlite3.connect(options.path)) as connection:
        labels = dict(connection.execute("SELECT route, label FROM feedback WHERE source = 'caller'").fetchall())
    assert labels == {"pets": f"a {MASKED}", "letters": "a secret"}
