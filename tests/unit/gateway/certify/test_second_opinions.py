"""What second opinions do to a certificate: never a weaker proof, and a word on how far its labels can be relied on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from gateway.answer import AnswerId, StageRecord
from gateway.certify.commands import CertifyOptions, certify_route
from gateway.certify.files import ScoresError
from gateway.certify.labels import Evidence, Missing, disagreement_of, evidence_of
from gateway.cli import main
from gateway.compose import Gateway
from gateway.store.contract import GoldItem, LabelledItem, SecondLabel
from router.binomial import upper_bound
from router.certificate import Disagreement
from router.certification import Budget, select_threshold
from router.contract import Decision, Reason
from tests.unit.gateway.test_certificates import CERTIFIED, decide, serving, settings_of

TWICE = CERTIFIED.replace("human: {queue: words", "human: {second_opinion: 100%, gold: 50%, queue: words")
SUBJECT = "s" * 32


def item(
    number: int, confidence: float, *, right: bool = True, label: str | None = "b", second: SecondLabel
) -> LabelledItem:
    record = StageRecord("fast", "1", "b" if right else "c", confidence, Decision.DEFER, Reason.NO_CERTIFICATE, SUBJECT)
    return LabelledItem(
        AnswerId(f"{number}"), 0, float(number), "t", (record,), label, False, label is not None, second
    )


def evidence(items: Sequence[LabelledItem], *, twice_only: bool = False, missing: Missing = Missing.WRONG) -> Evidence:
    return evidence_of(items, ("fast",), SUBJECT, missing, twice_only=twice_only)


items_of = st.lists(
    st.builds(
        item,
        st.integers(0, 99),
        st.sampled_from([0.5, 0.7, 0.9]),
        right=st.booleans(),
        label=st.sampled_from(["b", None]),
        second=st.sampled_from(SecondLabel),
    ),
    min_size=1,
    max_size=40,
)


@given(items=items_of, missing=st.sampled_from([Missing.HOLD, Missing.WRONG]))
def test_second_opinions_never_make_an_item_right(items: list[LabelledItem], missing: Missing) -> None:
    without = evidence([replace(one, second=SecondLabel.NONE) for one in items], missing=missing)
    with_them = evidence(items, missing=missing)
    assert with_them.scores is not None and without.scores is not None  # noqa: PT018
    assert with_them.scores.items == without.scores.items
    np.testing.assert_array_equal(with_them.scores.confidence, without.scores.confidence)
    assert (with_them.scores.right <= without.scores.right).all()


@given(items=items_of)
def test_of_items_labelled_twice_only_those_count_on_which_two_agree(items: list[LabelledItem]) -> None:
    found = evidence(items, twice_only=True)
    drawn = [one for one in items if one.second is not SecondLabel.NONE]
    assert found.used == len(drawn)
    if found.scores is None:
        assert not drawn
        return
    agreed = [
        one.label == "b" and one.trail[0].label == "b" and one.second in (SecondLabel.AGREED, SecondLabel.UPHELD)
        for one in drawn
    ]
    assert found.scores.right[0].tolist() == agreed


@pytest.mark.parametrize(
    ("second", "is_right"),
    [
        (SecondLabel.NONE, True),
        (SecondLabel.ASKED, True),
        (SecondLabel.AGREED, True),
        (SecondLabel.DIFFERED, False),
        (SecondLabel.UPHELD, True),
        (SecondLabel.OVERRULED, False),
    ],
)
def test_an_item_in_doubt_is_wrong_and_holds_up_nothing(second: SecondLabel, is_right: bool) -> None:
    found = evidence([item(0, 0.9, second=second), item(1, 0.9, second=SecondLabel.NONE)], missing=Missing.HOLD)
    assert found.scores is not None
    assert found.scores.right[0].tolist() == [is_right, True]


def test_a_missing_second_opinion_is_a_missing_label_where_both_are_asked_for() -> None:
    items = [item(n, 0.9, second=SecondLabel.ASKED if n == 2 else SecondLabel.AGREED) for n in range(5)]
    for missing, right in (
        (Missing.HOLD, [True, True, False]),
        (Missing.WRONG, [True, True, False, True, True]),
        (Missing.DROP, [True] * 4),
    ):
        found = evidence(items, twice_only=True, missing=missing)
        assert found.scores is not None
        assert found.scores.right[0].tolist() == right
        assert found.unlabelled == 1


def test_disagreement_is_counted_among_what_is_accepted() -> None:
    seconds = [SecondLabel.AGREED] * 6 + [SecondLabel.DIFFERED, SecondLabel.UPHELD, SecondLabel.ASKED, SecondLabel.NONE]
    sure = [item(n, 0.9, second=second) for n, second in enumerate(seconds)]
    unsure = [item(100 + n, 0.2, second=SecondLabel.DIFFERED) for n in range(5)]

    found = disagreement_of(evidence([*sure, *unsure]), 0.9, 0.95)

    assert found == Disagreement(8, 2, upper_bound(2, 8, 0.95), is_proven=False)
    assert disagreement_of(evidence([item(0, 0.9, second=SecondLabel.NONE)]), 0.9, 0.95) is None
    assert disagreement_of(evidence([]), 0.9, 0.95) is None


@pytest.mark.no_cover
def test_a_bound_on_two_labels_keeps_its_promise_where_labels_are_wrong() -> None:
    """People err on 2 % of items, models on 1 % of those they accept; certified against two people, 5 % is kept."""
    rng = np.random.default_rng(11)
    broken = certified = 0
    for _ in range(100):
        truth_missed = rng.random(1500) < 0.01
        first_wrong, second_wrong = rng.random(1500) < 0.02, rng.random(1500) < 0.02
        confidence = rng.random(1500)
        # The less confident half of the items is as bad as it looks.
        truth_missed |= (confidence < 0.5) & (rng.random(1500) < 0.3)
        items = [
            item(
                n,
                float(confidence[n]),
                right=not truth_missed[n] and not first_wrong[n],  # of three labels or more, two wrong ones differ
                second=SecondLabel.DIFFERED if first_wrong[n] != second_wrong[n] else SecondLabel.AGREED,
            )
            for n in range(1500)
        ]
        found = evidence(items, twice_only=True)
        assert found.scores is not None
        selection = select_threshold(found.scores, Budget(0.08, 0.9))
        if selection.threshold is not None:
            certified += 1
            share_low = max(0.0, 0.5 - selection.threshold) / (1.0 - selection.threshold)
            broken += 0.01 + share_low * 0.3 * 0.99 > 0.08
    assert certified >= 80
    assert broken <= 16  # 10 % are allowed; 16 of 100 or fewer in 97.9 % of trials


# --- out of a store ---


async def label_twice(gateway: Gateway, count: int, *, differ: int) -> None:
    """*count* items that both stages are sure and right of, labelled by anna, and by ben, who differs on some."""
    await gateway.store.add_gold([GoldItem("default", "words", "b", bytes([n]), "text/plain") for n in range(20)])
    for number in range(count):
        sure = 0.9 + 0.09 * (number + 1) / count
        await decide(gateway, f"fast={sure:.6f}:b strong={sure:.6f}:b")
    await work(gateway, "anna", lambda _: "b")
    given_ = iter(range(10**6))
    await work(gateway, "ben", lambda blind: "c" if blind and next(given_) < differ else "b")


async def work(gateway: Gateway, reviewer: str, label: Callable[[bool], str]) -> None:
    while (review := await gateway.store.claim_next("default", "words", reviewer, 60.0)) is not None:
        is_second = review.panel.purpose == "second"
        await gateway.store.decide("default", review.id, reviewer, review.fence, label(is_second))


@pytest.mark.no_cover
async def test_a_certificate_says_how_far_its_labels_can_be_relied_on(tmp_path: Path) -> None:
    async with serving(tmp_path, TWICE) as gateway:
        await label_twice(gateway, 200, differ=4)
        labelled = await gateway.store.labelled(None, "words")

    report = await certify_route(settings_of(tmp_path, TWICE), "words", None, CertifyOptions())

    assert len(labelled) == 200  # gold is no evidence, and a second opinion is no item
    assert report.certificate is not None
    found = report.certificate.disagreement
    assert found is not None
    assert (found.is_proven, found.limit) == (False, upper_bound(found.differing, found.items, 0.95))
    assert report.certificate.bound_with_labels == report.certificate.bound + found.limit
    assert report.selection.wrong == found.differing
    assert "labelled by a second person, 4 of these differently" in report.certificate.evidence
    assert f"labels: of {found.items} accepted ones that a second person labelled, {found.differing} differ" in (
        report.text()
    )
    assert "against what both would say, its upper limit there is" in report.text()


@pytest.mark.no_cover
async def test_labelled_twice_takes_what_two_people_said(tmp_path: Path) -> None:
    async with serving(tmp_path, TWICE) as gateway:
        await label_twice(gateway, 200, differ=1)

    report = await certify_route(settings_of(tmp_path, TWICE), "words", None, CertifyOptions(twice_only=True))

    assert report.certificate is not None
    found = report.certificate.disagreement
    assert found is not None
    assert found.is_proven
    assert report.certificate.bound_with_labels == report.certificate.bound
    assert "all drawn to be labelled twice" in report.certificate.evidence
    assert "an item is wrong where the two differ" in report.text()


@pytest.mark.no_cover
async def test_labels_that_nobody_has_checked_are_told_to_be_so(tmp_path: Path) -> None:
    plain = CERTIFIED
    async with serving(tmp_path, plain) as gateway:
        for number in range(150):
            await decide(gateway, f"fast={0.9 + number / 2000:.6f}:b strong=0.99:b")
        await work(gateway, "anna", lambda _: "b")

    report = await certify_route(settings_of(tmp_path, plain), "words", None, CertifyOptions())

    assert report.certificate is not None
    assert report.certificate.disagreement is None
    assert "labels: no accepted item was labelled by a second person" in report.text()
    with pytest.raises(ScoresError, match="no item of route 'words' was drawn to be labelled by a second person"):
        await certify_route(settings_of(tmp_path, plain), "words", None, CertifyOptions(twice_only=True))


def test_labelled_twice_is_about_the_store() -> None:
    result = CliRunner().invoke(main, ["certify", "none.csv", "--max-error", "1%", "--labelled-twice"])
    assert "--labelled-twice is about the store; leave it out" in result.output
