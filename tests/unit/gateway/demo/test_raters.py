"""People of the demo say what was recorded, recognise items by content, and put back what they do not know."""

from __future__ import annotations

import base64
from collections import Counter

import pytest

from gateway.demo.data import FEEDBACK_LABELS, Snippet
from gateway.demo.items import Item, payload_key
from gateway.demo.raters import RATERS, TYPING_ERROR, key_of_review, opinion, opinions


def _message(number: int, votes: tuple[str, ...]) -> Item:
    return Item("feedback", "text/plain", f"message {number}".encode(), "neutral", votes)


def _digit(number: int) -> Item:
    return Item("digits", "image/png", f"picture {number}".encode(), "7")


def test_a_recorded_person_says_what_was_recorded() -> None:
    assert opinion(_message(1, ("negative",) * 20)) == "negative"
    said = Counter(opinion(_message(number, ("negative", "positive", "positive"))) for number in range(2000))

    assert said.keys() == {"negative", "positive"}
    assert said["positive"] / 2000 == pytest.approx(2 / 3, abs=0.04)


def test_recorded_people_agree_with_the_mean_as_often_as_the_data_says(snippets: tuple[Snippet, ...]) -> None:
    items = [
        Item(
            "feedback",
            "text/plain",
            snippet.text.encode(),
            FEEDBACK_LABELS[snippet.label],
            tuple(FEEDBACK_LABELS[0 if r < 0 else 2 if r > 0 else 1] for r in snippet.ratings),
        )
        for snippet in snippets
    ]

    assert sum(opinion(item) == item.truth for item in items) / len(items) == pytest.approx(0.83, abs=0.01)


def test_the_simulated_typist_errs_in_one_of_a_hundred() -> None:
    said = [opinion(_digit(number)) for number in range(5000)]

    assert 1 - said.count("7") / 5000 == pytest.approx(TYPING_ERROR, abs=0.005)
    assert set(said) <= set("0123456789")


def test_an_opinion_is_the_same_in_every_run() -> None:
    items = [_message(number, FEEDBACK_LABELS) for number in range(50)]

    assert opinions(items) == opinions(reversed(items))


def test_an_item_is_recognised_in_a_review_of_text_and_of_bytes() -> None:
    text, picture = "naïve — yes", b"\x89PNG"

    assert key_of_review({"payload": text}) == payload_key(text.encode())
    assert key_of_review({"payload_b64": base64.b64encode(picture).decode()}) == payload_key(picture)


def test_every_queue_has_raters_and_the_simulated_ones_are_named_so() -> None:
    assert {rater.queue for rater in RATERS} == {"digits", "feedback", "pages", "intake"}
    assert all(rater.name.startswith("simulated-") for rater in RATERS if rater.queue != "feedback")
    assert len({rater.name for rater in RATERS}) == len(RATERS)
