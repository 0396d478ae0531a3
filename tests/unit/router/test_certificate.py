"""Certificates: what reads back, what does not, and what they cover."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.certificate import Certificate, Disagreement, StageSubject, Subject, issue
from router.certification import Budget, Scores, select_threshold

DAY_S = 86_400.0
NOW_S = 1_760_000_000.0

FAST = StageSubject("fast", "1", "a" * 64, "b" * 64)
STRONG = StageSubject("strong", "7", "", "")
SUBJECT = Subject("digits", (FAST, STRONG))

CERTIFICATE = Certificate(
    SUBJECT, 0.02, 0.95, 0.93, 1_000, 700, 4, 0.0161, NOW_S, NOW_S + 30 * DAY_S, "labels.csv, sha256 c0ffee"
)

texts = st.text(max_size=8)
shares = st.floats(0.001, 0.999)
subjects = st.builds(
    Subject,
    texts,
    st.lists(st.builds(StageSubject, texts, texts, texts, texts), min_size=1, max_size=3).map(tuple),
    st.lists(texts, min_size=1, max_size=2).map(tuple),
)


@st.composite
def disagreements(draw: st.DrawFn) -> Disagreement:
    items = draw(st.integers(1, 10**6))
    return Disagreement(items, draw(st.integers(0, items)), draw(shares), draw(st.booleans()))


@st.composite
def certificates(draw: st.DrawFn) -> Certificate:
    items = draw(st.integers(1, 10**6))
    accepted = draw(st.integers(1, items))
    wrong = draw(st.integers(0, accepted))
    created_s, lifetime_s = draw(st.integers(0, 2**33)), draw(st.floats(1.0, 1e9))
    return Certificate(
        subject=draw(subjects),
        max_error=draw(shares),
        confidence=draw(shares),
        threshold=draw(shares),
        items=items,
        accepted=accepted,
        wrong=wrong,
        bound=draw(shares),
        created_s=created_s,
        valid_until_s=created_s + lifetime_s,
        evidence=draw(texts),
        disagreement=draw(st.none() | disagreements()),
    )


@given(certificates())
def test_a_certificate_reads_back_from_json_as_it_was(certificate: Certificate) -> None:
    read = Certificate.from_dict(json.loads(json.dumps(certificate.to_dict())))

    assert read == certificate
    assert read.id == certificate.id


def test_a_certificate_reads_back_without_json() -> None:
    assert Certificate.from_dict(CERTIFICATE.to_dict()) == CERTIFICATE


def test_the_id_is_the_same_everywhere_and_for_ever() -> None:
    """Stores and files name certificates by it; a change of the content's form needs another format."""
    assert CERTIFICATE.id == "db7b0e5b4d5fd2953af756602d8f6aa83de029493069fd01e6de5152d462849d"


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.5},
        {"max_error": 0.01},
        {"valid_until_s": NOW_S + 9_999 * DAY_S},
        {"evidence": "other labels"},
        {"wrong": 0},
    ],
)
def test_what_was_altered_does_not_read(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not that of its content, which was altered; .* certify the route again"):
        Certificate.from_dict({**CERTIFICATE.to_dict(), **change})


def test_what_was_altered_inside_does_not_read() -> None:
    data = json.loads(json.dumps(CERTIFICATE.to_dict()))
    data["subject"]["stages"][1]["version"] = "8"

    with pytest.raises(ValueError, match="altered"):
        Certificate.from_dict(data)


def without(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for name in path[:-1]:
            place = place[name]
        del place[path[-1]]

    return change


def having(value: object, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (having("other/1", "format"), "not a certificate"),
        (without("threshold"), "certificate field threshold is missing; certify the route again"),
        (without("id"), "certificate field id is missing"),
        (having(1, "surprise"), "certificate field surprise is unknown"),
        (without("subject", "route"), r"certificate field subject\.route is missing"),
        (having(1, "subject", "stages", 0, "extra"), r"certificate field stages\.extra is unknown"),
        (having([], "subject", "stages"), "certificate stages is .*, not at least one stage"),
        (having("x", "subject", "stages"), "certificate stages is 'x', not a list"),
        (having([1], "subject", "tenants"), r"certificate tenants is \[1\], not texts"),
        (having(None, "subject"), "certificate subject is None, not an object"),
        (having("0.9", "threshold"), "certificate threshold is '0.9', not a number"),
        (having(True, "threshold"), "certificate threshold is True, not a number"),
        (having(float("nan"), "threshold"), "certificate threshold is nan, not a number"),
        (having(10**400, "threshold"), "certificate threshold is 1000.*, not a number"),
        (having(1.5, "threshold"), r"certificate threshold is 1.5, not in \[0, 1\]"),
        (having(0, "max_error"), "certificate max_error is 0.0, not between 0 and 1"),
        (having(1, "confidence"), "certificate confidence is 1.0, not between 0 and 1"),
        (having(-0.1, "bound"), r"certificate bound is -0.1, not in \[0, 1\]"),
        (having(1.0, "items"), "certificate items is 1.0, not a whole number"),
        (having(0, "accepted"), "certificate accepted is 0, not from 1 to 1000, its items"),
        (having(701, "wrong"), "certificate wrong is 701, not from 0 to 700, its accepted"),
        (having(NOW_S, "valid_until_s"), "certificate valid_until_s is .*, not later than"),
        (having(-1, "created_s"), "certificate created_s is -1.0, not a time since 1970"),
        (having(7, "evidence"), "certificate evidence is 7, not a text"),
    ],
)
def test_what_is_malformed_is_refused_by_name(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = json.loads(json.dumps(CERTIFICATE.to_dict()))
    change(data)

    with pytest.raises(ValueError, match=message):
        Certificate.from_dict(data)


CHECKED = replace(CERTIFICATE, disagreement=Disagreement(50, 2, 0.12, is_proven=False))


def test_a_certificate_that_tells_of_disagreement_has_another_form_and_the_others_keep_theirs() -> None:
    assert CERTIFICATE.to_dict()["format"] == "pointsman-certificate/1"
    assert "disagreement" not in CERTIFICATE.to_dict()
    assert CHECKED.to_dict()["format"] == "pointsman-certificate/2"
    assert CHECKED.id != CERTIFICATE.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("disagreement"), "certificate field disagreement is missing"),
        (having(None, "disagreement"), "certificate disagreement is None, not an object"),
        (without("disagreement", "limit"), r"certificate field disagreement\.limit is missing"),
        (having(0, "disagreement", "items"), r"certificate disagreement\.items is 0, not at least 1"),
        (having(51, "disagreement", "differing"), r"certificate disagreement\.differing is 51, not from 0 to 50"),
        (having(1.5, "disagreement", "limit"), r"certificate disagreement\.limit is 1\.5, not in \[0, 1\]"),
        (having(1, "disagreement", "is_proven"), r"certificate disagreement\.is_proven is 1, not true or false"),
        (having(True, "disagreement", "is_proven"), "is not that of its content, which was altered"),
        (having("pointsman-certificate/1", "format"), "certificate field disagreement is unknown"),
    ],
)
def test_a_disagreement_that_is_malformed_or_altered_is_refused(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = json.loads(json.dumps(CHECKED.to_dict()))
    change(data)

    with pytest.raises(ValueError, match=message):
        Certificate.from_dict(data)


def test_what_labels_may_be_wrong_by_is_added_to_the_bound_unless_it_is_within() -> None:
    assert CERTIFICATE.bound_with_labels is None
    assert CHECKED.bound_with_labels == CERTIFICATE.bound + 0.12
    assert replace(CHECKED, bound=0.95).bound_with_labels == 1.0
    proven = replace(CERTIFICATE, disagreement=Disagreement(50, 2, 0.12, is_proven=True))
    assert proven.bound_with_labels == CERTIFICATE.bound


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_what_is_no_object_is_no_certificate(data: object) -> None:
    with pytest.raises(ValueError, match="not a certificate"):
        Certificate.from_dict(data)


def test_it_covers_what_it_is_about_until_it_expires() -> None:
    assert CERTIFICATE.covers(SUBJECT, NOW_S) is None
    assert CERTIFICATE.covers(SUBJECT, CERTIFICATE.valid_until_s - 1.0) is None


def test_it_covers_nothing_from_its_end_on() -> None:
    why = CERTIFICATE.covers(SUBJECT, CERTIFICATE.valid_until_s)

    assert why == "the certificate expired on 2025-11-08 08:53 UTC; certify the route again"


@pytest.mark.parametrize(
    ("loaded", "why"),
    [
        (replace(SUBJECT, route="letters"), "it certifies route digits, and loaded is letters"),
        (replace(SUBJECT, stages=(FAST,)), "it certifies stages fast, strong, and loaded is fast"),
        (replace(SUBJECT, stages=(STRONG, FAST)), "it certifies stages fast, strong, and loaded is strong, fast"),
        (replace(SUBJECT, tenants=("acme",)), "it certifies tenants *, and loaded is acme"),
        (replace(SUBJECT, classes=("form-7",)), "it certifies classes *, and loaded is form-7"),
        (
            replace(SUBJECT, stages=(FAST, replace(STRONG, version="8"))),
            "version of model strong differs: certified 7, loaded 8",
        ),
        (
            replace(SUBJECT, stages=(FAST, replace(STRONG, preprocessing="d" * 64))),
            f"preprocessing of model strong differs: certified none, loaded {'d' * 64}",
        ),
        (
            replace(SUBJECT, stages=(replace(FAST, calibration=""), STRONG)),
            f"calibration of model fast differs: certified {'b' * 64}, loaded none",
        ),
    ],
)
def test_it_does_not_cover_what_is_loaded_otherwise_and_says_why(loaded: Subject, why: str) -> None:
    assert CERTIFICATE.covers(loaded, NOW_S) == f"{why}; certify the route again"


def test_tenants_and_classes_have_no_order() -> None:
    pooled = replace(CERTIFICATE, subject=replace(SUBJECT, tenants=("a", "b")))

    assert pooled.covers(replace(SUBJECT, tenants=("b", "a")), NOW_S) is None


def test_a_selected_threshold_is_certified_with_what_was_seen() -> None:
    budget = Budget(0.1, 0.95)
    selection = select_threshold(Scores(np.full((1, 100), 0.9), np.ones((1, 100), dtype=bool)), budget)

    certificate = issue(selection, SUBJECT, budget, NOW_S, DAY_S, "labels")

    assert (certificate.threshold, certificate.items, certificate.accepted, certificate.wrong) == (0.9, 100, 100, 0)
    assert (certificate.max_error, certificate.confidence, certificate.bound) == (0.1, 0.95, selection.bound)
    assert (certificate.created_s, certificate.valid_until_s) == (NOW_S, NOW_S + DAY_S)
    assert certificate.covers(SUBJECT, NOW_S) is None


def test_where_nothing_is_proven_nothing_is_certified() -> None:
    budget = Budget(0.1, 0.95)
    selection = select_threshold(Scores(np.full((1, 3), 0.9), np.ones((1, 3), dtype=bool)), budget)

    with pytest.raises(ValueError, match="nothing is proven"):
        issue(selection, SUBJECT, budget, NOW_S, DAY_S, "labels")


def test_a_certificate_that_never_holds_is_not_issued() -> None:
    with pytest.raises(ValueError, match="valid_until_s"):
        replace(CERTIFICATE, valid_until_s=NOW_S)
