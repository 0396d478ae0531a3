"""Requests for `auto` are classified: detectors are asked as rules need them, and what is in doubt goes to a person."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.contract import Deadline, Tensor
from backends.errors import InvalidInput, NotFound
from gateway.answer import Answer, ItemAnswer, Status
from gateway.compose import Gateway, check_models, compose, explain
from gateway.oip.render import render
from gateway.request import JsonInputs, Payload, Protocol, RawBody, Request, TensorInputs
from gateway.settings import Settings, load_settings
from gateway.status import AwaitsPerson
from router.contract import Reason
from tests.integration.process import CONFIG
from tests.unit.gateway.scripted import text_tensor

DETECTING = (
    CONFIG[: CONFIG.index("classify:")].replace(
        "routes:\n",
        """  tongue:
    backend: python
    target: tests.integration.models:tongue
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    labels: [en, fr, de]
  content: {backend: magika}
detectors:
  language: {model: tongue, decode: utf8, min_confidence: 0.6, timeout: 200ms}
  content_type: {model: content, min_confidence: 0.5}
routes:
  desk:
    input: {content: {datatype: BYTES, shape: [1]}}
    cascade: []
    human: {queue: desk, form: text}
""",
        1,
    )
    + """
classify:
  - when: {parameters: {direct: true}}
    route: words
  - name: foreign text
    when: {content_type: "text/*", traits: {language: {none_of: en, confidence: 90%}}}
    route: desk
    to: human
  - when: {content_type: "text/*", traits: {language: en}}
    route: words
  - unsure: {route: desk, to: human}
  - otherwise: none
store: {path: store.db}
"""
)


def settings_of(folder: Path, text: str = DETECTING) -> Settings:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return load_settings(path)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Gateway]:
    async with compose(settings_of(folder)) as gateway:
        yield gateway


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with serving(tmp_path) as found:
        yield found


def ask(payload: Payload | str, route: str = "auto", **parameters: Any) -> Request:
    if isinstance(payload, str):
        payload = RawBody(payload.encode(), "text/plain")
    return Request(route, payload, Protocol.V1_HTTP, parameters=parameters)


async def item_for(gateway: Gateway, payload: Payload | str, route: str = "auto", **parameters: Any) -> ItemAnswer:
    answer = await gateway.pipeline.decide(ask(payload, route, **parameters))
    (item,) = answer.items
    return item


def asked(gateway: Gateway, trait: str) -> float:
    """How often the detector of *trait* was asked."""
    return registry_value(gateway, "pointsman_detector_duration_seconds_count", trait)


def registry_value(gateway: Gateway, name: str, trait: str) -> float:
    return gateway.telemetry.registry.get_sample_value(name, {"detector": trait}) or 0.0


async def test_a_foreign_text_goes_to_a_person_with_the_reason(gateway: Gateway) -> None:
    item = await item_for(gateway, "Guten Tag, tongue=0.95:c")

    assert (item.status, item.decided_by, item.reason) == (Status.PENDING, None, Reason.ROUTED_TO_PERSON)
    assert item.remarks == ("foreign text: language is 'de' (0.95)",)
    assert [record.stage for record in item.trail] == ["classify"]


async def test_what_is_known_is_answered_by_its_route(gateway: Gateway) -> None:
    item = await item_for(gateway, "fast=0.99:b and tongue=0.8:a")

    assert (item.status, item.label, item.remarks) == (Status.FINAL, "b", ())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tongue=0.5:a", "language 'en' has confidence 0.50; 0.60 is needed"),
        ("tongue=nan", "language: model 'tongue' gave no label"),
        ("tongue=fail", "language: model 'tongue' did not answer: "),
        ("tongue=slow", "language: model 'tongue' did not answer: "),
    ],
)
async def test_an_unsure_failed_or_late_detector_is_a_doubt_and_no_error(
    gateway: Gateway, text: str, told: str
) -> None:
    item = await item_for(gateway, text)

    assert (item.decided_by, item.reason) == (None, Reason.UNCLEAR_CLASSIFICATION)
    assert item.remarks[0].startswith(told)
    assert registry_value(gateway, "pointsman_detector_failures_total", "language") == float("model" in told)


async def test_content_that_contradicts_its_sender_goes_to_a_person(gateway: Gateway) -> None:
    item = await item_for(gateway, RawBody(gzip.compress(b"report\n" * 500), "text/plain"))

    assert (item.decided_by, item.reason) == (None, Reason.CONTRADICTORY_CLASSIFICATION)
    assert item.remarks == ("the request says content_type 'text/plain', and its content is 'application/gzip'",)


async def test_detectors_are_asked_only_where_a_rule_needs_them(gateway: Gateway) -> None:
    await item_for(gateway, "fast=0.99", route="words")
    await item_for(gateway, "fast=0.99", direct=True)
    assert (asked(gateway, "content_type"), asked(gateway, "language")) == (0, 0)

    with pytest.raises(InvalidInput, match="no rule"):
        await item_for(gateway, RawBody(gzip.compress(b"report\n" * 500), ""))
    assert (asked(gateway, "content_type"), asked(gateway, "language")) == (1, 0)


async def test_a_replay_asks_no_detector_again(gateway: Gateway) -> None:
    request = replace(ask("Bonjour, tongue=0.95:b"), idempotency_key="k", fingerprint=b"f" * 32)

    first, second = await gateway.pipeline.decide(request), await gateway.pipeline.decide(request)

    assert first.id == second.id
    assert asked(gateway, "language") == 1


async def test_tensors_and_json_are_classified_by_their_one_text(gateway: Gateway) -> None:
    text = b"Bonjour, tongue=0.95:b"
    for payload in (
        TensorInputs({"anything": text_tensor(text)}),
        JsonInputs({"anything": text.decode()}, len(text)),
    ):
        item = await item_for(gateway, payload)
        assert item.remarks == ("foreign text: language is 'fr' (0.95)",)


async def test_numbers_have_nothing_to_detect_and_meet_no_rule(gateway: Gateway) -> None:
    with pytest.raises(InvalidInput, match="no rule of `classify` matches"):
        await item_for(gateway, TensorInputs({"x": Tensor.of(np.ones((1, 3), np.float32))}))
    with pytest.raises(InvalidInput, match="no rule of `classify` matches"):
        await item_for(gateway, JsonInputs({"a": "text", "b": "text"}, 20))


async def test_items_that_differ_are_in_doubt_together(gateway: Gateway) -> None:
    both = TensorInputs({"text": text_tensor(b"hello, tongue=0.95:a", b"bonjour, tongue=0.95:b")})

    answer = await gateway.pipeline.decide(ask(both))

    assert {item.reason for item in answer.items} == {Reason.CONTRADICTORY_CLASSIFICATION}
    assert answer.items[0].remarks == ("language differs between items: en, fr; send them apart",)


async def test_a_detector_takes_no_longer_than_the_caller_allows(gateway: Gateway) -> None:
    late = replace(ask("hello"), deadline=Deadline(0.0))

    with pytest.raises(Exception, match="deadline"):
        await gateway.pipeline.decide(late)

    assert asked(gateway, "content_type") == 0


# --- a route of people alone ---


async def test_a_route_of_people_alone_is_decided_by_a_person(gateway: Gateway) -> None:
    answer = await gateway.pipeline.decide(ask("what is this?", route="desk"))

    assert (answer.items[0].status, answer.items[0].reason) == (Status.PENDING, Reason.ROUTED_TO_PERSON)
    assert gateway.pipeline.is_ready()
    assert gateway.pipeline.is_model_ready("desk")
    with pytest.raises(AwaitsPerson):
        render(answer)
    review = await gateway.store.claim_next("default", "desk", "ana", 60.0)
    assert review is not None
    assert (review.task.payload, review.task.content_type) == (b"what is this?", "text/plain; charset=utf-8")
    decided = await gateway.store.decide("default", review.id, "ana", review.fence, "a letter")
    assert final_label(decided) == "a letter"


def final_label(answer: Answer) -> str | None:
    assert answer.status is Status.FINAL
    return answer.items[0].label


async def test_bytes_that_are_no_text_are_handed_over_as_they_came(gateway: Gateway) -> None:
    content = b"\x89PNG\r\n\x1a\n" + bytes(16)

    await gateway.pipeline.decide(ask(RawBody(content, "application/octet-stream"), route="desk"))

    review = await gateway.store.claim_next("default", "desk", "ana", 60.0)
    assert review is not None
    assert (review.task.payload, review.task.content_type) == (content, "image/png")


# --- explain ---


async def test_explain_tells_signals_traits_rules_route_and_stages_and_does_nothing(gateway: Gateway) -> None:
    told = await gateway.pipeline.explain(ask("hello tongue=0.95:a"))

    assert told["signals"]["language"] == [{"value": "en", "confidence": pytest.approx(0.95, abs=1e-6)}]
    assert told["traits"]["content_type"]["value"] == "text/plain"
    assert [(rule["rule"], rule["matched"]) for rule in told["rules"]] == [(1, False), (2, False), (3, True)]
    assert told["rules"][0]["why_not"] == "parameter 'direct' was not given; expected True"
    assert told["rules"][1]["why_not"] == "language is 'en' (0.95), not anything except en at 0.90 or more"
    assert (told["route"], told["to_person"], told["reason"], told["queue"]) == ("words", False, None, "words")
    assert [(stage["model"], stage["runs"]) for stage in told["stages"]] == [("fast", True), ("strong", True)]
    assert " ms an item of " in told["stages"][0]["steps"]["postprocess"]
    assert told["accepts"] == "from confidence 0.9 on"
    assert gateway.store.statistics().rows == 0


async def test_explain_tells_of_people_doubts_and_refusals(gateway: Gateway) -> None:
    person = await gateway.pipeline.explain(ask("bonjour tongue=0.95:b"))
    doubt = await gateway.pipeline.explain(ask("hello tongue=fail"))
    refused = await gateway.pipeline.explain(ask(RawBody(b"\0\1\2" * 300, "application/octet-stream")))

    assert (person["route"], person["to_person"], person["detail"]) == (
        "desk",
        True,
        "foreign text: language is 'fr' (0.95)",
    )
    assert (doubt["route"], doubt["reason"]) == ("desk", "unclear_classification")
    assert doubt["signals"]["language"]["failed"] is True
    assert refused["route"] in (None, "desk")
    with pytest.raises(NotFound):
        await gateway.pipeline.explain(ask("hello", route="nowhere"))


async def test_explain_without_a_gateway_says_the_same_of_the_rules(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    request = ask("bonjour tongue=0.95:b")
    async with compose(settings) as gateway:
        there = await gateway.pipeline.explain(request)

    here = await explain(settings, request)

    for key in ("request", "signals", "traits", "rules", "route", "to_person", "reason", "detail", "queue"):
        assert here[key] == there[key]
    english = await explain(settings, ask("hello tongue=0.95:a"))
    assert [(stage["model"], stage["runs"]) for stage in english["stages"]] == [("fast", None), ("strong", None)]
    assert (await explain(settings, ask("x", route="nowhere")))["detail"] == "there is no route 'nowhere'"


# --- what does not fit ---


async def test_a_detector_without_labels_is_refused(tmp_path: Path) -> None:
    text = DETECTING.replace("labels: [en, fr, de]\n", "max_batch: 4\n")

    with pytest.raises(
        InvalidInput, match="detector 'language': model 'tongue' has no output 'label', one BYTES an item"
    ):
        await check_models(settings_of(tmp_path, text))


async def test_any_model_that_a_route_serves_can_detect_too(tmp_path: Path) -> None:
    text = DETECTING.replace("language: {model: tongue,", "language: {model: fast,").replace("one_of: en", "one_of: a")
    async with compose(settings_of(tmp_path, text)) as gateway:
        told = await gateway.pipeline.explain(ask("fast=0.8:b", caller=1))

    assert told["traits"]["language"]["value"] == "b"


async def test_a_model_that_is_fed_differently_by_a_route_and_a_detector_is_refused(tmp_path: Path) -> None:
    text = DETECTING.replace("language: {model: tongue, decode: utf8", "language: {model: fast, decode: image")

    with pytest.raises(InvalidInput, match=r"model 'fast' gets different inputs from .*detector 'language'"):
        await check_models(settings_of(tmp_path, text))


async def test_more_items_than_a_detector_can_look_at_are_a_doubt_and_not_a_way_around_it(gateway: Gateway) -> None:
    many = TensorInputs({"text": text_tensor(*[b"hello"] * 65)}, "text/plain")

    answer = await gateway.pipeline.decide(ask(many))

    assert {item.reason for item in answer.items} == {Reason.UNCLEAR_CLASSIFICATION}
    assert "at most 64 are classified at once" in answer.items[0].remarks[0]


async def test_a_slow_detector_leaves_time_for_what_comes_after_it(tmp_path: Path) -> None:
    """Detectors get half of what the fastest route allows, here 125 of 250 ms, whatever their own time-out says."""
    text = DETECTING.replace("timeout: 200ms", "timeout: 1m").replace(
        "route: words\n  - unsure", "route: alone\n  - unsure"
    )
    async with compose(settings_of(tmp_path, text)) as gateway:
        item = await item_for(gateway, RawBody(b"tongue=slow " + b"x" * 20_000, "text/plain"))

    assert (item.decided_by, item.reason) == (None, Reason.UNCLEAR_CLASSIFICATION)


async def test_explain_sends_a_route_of_people_alone_to_its_people(gateway: Gateway) -> None:
    told = await gateway.pipeline.explain(ask("what is this?", route="desk"))

    assert (told["to_person"], told["reason"]) == (True, "routed_to_person")


async def test_a_replay_of_a_route_that_is_gone_is_answered(tmp_path: Path) -> None:
    request = replace(ask("fast=0.99:b"), idempotency_key="k", fingerprint=b"f" * 32)
    async with serving(tmp_path) as gateway:
        first = await gateway.pipeline.decide(request)
    renamed = DETECTING.replace("  words:\n", "  letters:\n").replace("route: words", "route: letters")
    async with compose(settings_of(tmp_path, renamed)) as gateway:
        second = await gateway.pipeline.decide(request)

    assert (second.id, second.route) == (first.id, "words")
