"""Who is right how often, and who agrees with whom, from what was said."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.reviewers.figures import figures_of, settled_label
from gateway.store.contract import Opinion, OpinionKind
from router.agreement import Estimate, cohen_kappa, rate

PANEL, FIRST, SECOND = OpinionKind.PANEL, OpinionKind.FIRST, OpinionKind.SECOND
ADJUDICATION, GOLD = OpinionKind.ADJUDICATION, OpinionKind.GOLD


def opinion(
    subject: str, reviewer: str, label: str, number: int | None, kind: OpinionKind = PANEL, *, settles: bool = True
) -> Opinion:
    truth = "dog" if kind is GOLD else None
    return Opinion(subject, 0, reviewer, number, kind, "acme", "pets", "pets", label, truth, settles, 1.0)


def panel(subject: str, *said: tuple[str, str], settles: bool = True) -> list[Opinion]:
    return [opinion(subject, *one, number, settles=settles) for number, one in enumerate(said, start=1)]


def pair(subject: str, first: tuple[str, str], second: tuple[str, str], *, settles: bool) -> list[Opinion]:
    return [opinion(subject, *first, 1, FIRST, settles=settles), opinion(subject, *second, 2, SECOND, settles=settles)]


def test_gold_items_tell_how_often_somebody_knows_the_answer() -> None:
    said = [opinion(f"g{n}", "anna", "dog" if n < 8 else "owl", None, GOLD) for n in range(10)]
    (row,) = figures_of(said).reviewers
    assert (row.reviewer, row.opinions, row.gold) == ("anna", 10, rate(8, 10))
    assert row.accuracy == row.agreement == rate(0, 0)


def test_the_majority_and_whoever_adjudicates_settle_what_is_true() -> None:
    said = [
        *panel("a", ("anna", "dog"), ("ben", "owl"), ("cleo", "dog")),
        *panel("b", ("anna", "dog"), ("ben", "owl"), ("cleo", "cat")),
        opinion("b", "dora", "owl", 4, ADJUDICATION),
        *panel("c", ("anna", "dog"), ("ben", "dog")),
    ]
    found = figures_of(said)
    by_name = {row.reviewer: row for row in found.reviewers}
    assert by_name["anna"].accuracy == rate(2, 3)
    assert by_name["ben"].accuracy == rate(2, 3)
    # A third opinion is asked for where the first two differ: it would make whoever gives it look worse.
    assert by_name["cleo"].accuracy == by_name["cleo"].agreement == rate(0, 0)
    assert by_name["dora"].accuracy == rate(0, 0)
    assert found.pending == 0


def test_a_difference_that_nobody_decides_makes_nobody_wrong_and_an_agreement_nobody_right() -> None:
    said = [
        *pair("a", ("anna", "dog"), ("ben", "owl"), settles=False),
        *pair("b", ("anna", "dog"), ("ben", "dog"), settles=False),
    ]
    found = figures_of(said)
    assert [row.accuracy for row in found.reviewers] == [rate(0, 0)] * 2
    assert [row.agreement for row in found.reviewers] == [rate(1, 2)] * 2
    assert found.pending == 0


def test_a_difference_that_waits_to_be_decided_is_pending() -> None:
    found = figures_of(pair("a", ("anna", "dog"), ("ben", "owl"), settles=True))
    assert found.pending == 1
    assert [row.accuracy for row in found.reviewers] == [rate(0, 0)] * 2


def test_a_first_opinion_alone_says_nothing_yet() -> None:
    found = figures_of([opinion("a", "anna", "dog", 1, FIRST)])
    assert (found.pairs, found.pending, found.alpha.items) == ((), 0, 0)


def test_pairs_are_counted_whoever_came_first() -> None:
    said = [
        *panel("a", ("ben", "owl"), ("anna", "dog")),
        *panel("b", ("anna", "dog"), ("ben", "dog")),
        *panel("c", ("anna", "cat"), ("cleo", "cat")),
    ]
    found = figures_of(said)
    assert [row.reviewers for row in found.pairs] == [("anna", "ben"), ("anna", "cleo")]
    assert found.pairs[0].kappa == cohen_kappa([("dog", "owl"), ("dog", "dog")])
    assert found.pairs[1].agreement == rate(1, 1)
    assert found.alpha.items == 3


def test_nothing_said_is_told_as_what_would_make_somebody_say_something() -> None:
    assert "see `opinions`, `second_opinion` and `gold`" in figures_of([]).text()


def test_the_table_has_every_reviewer_and_pair_with_intervals() -> None:
    said = list(
        itertools.chain.from_iterable(
            panel(f"{n}", ("anna", "dog" if n % 2 else "cat"), ("ben", "dog" if n % 3 else "cat")) for n in range(30)
        )
    )
    lines = figures_of(said).text().splitlines()
    assert lines[0].split() == ["reviewer", "opinions", "gold", "accuracy", "agreement"]
    assert lines[1].startswith("anna      30        -     100.0% of 15 [78.2%, 100.0%]  50.0% of 30 [31.3%, 68.7%]")
    assert lines[5].startswith("anna and ben  30     50.0% of 30 [31.3%, 68.7%]")
    assert lines[-2] == "15 items on which opinions differ wait for somebody to decide"
    json.dumps(figures_of(said).to_dict(), allow_nan=False)


@given(
    votes=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), max_size=20),
    settles=st.booleans(),
)
def test_what_is_settled_is_what_most_have_said(votes: list[list[str]], settles: bool) -> None:
    for number, labels in enumerate(votes):
        said = panel(f"{number}", *((f"r{n}", label) for n, label in enumerate(labels)), settles=settles)
        found = settled_label(said)
        most = max(labels.count(label) for label in labels)
        winners = {label for label in labels if labels.count(label) == most}
        assert found == (winners.pop() if settles and most > 1 and len(winners) == 1 else None)


def test_figures_of_the_same_opinions_are_the_same() -> None:
    said = [*panel("a", ("anna", "dog"), ("ben", "owl")), *panel("b", ("anna", "owl"), ("ben", "owl"))]
    assert figures_of(said) == figures_of(reversed(said))
    assert isinstance(figures_of(said).alpha, Estimate)


@pytest.mark.parametrize("kind", [ADJUDICATION, PANEL])
def test_who_adjudicates_has_the_last_word(kind: OpinionKind) -> None:
    said = [*panel("a", ("anna", "dog"), ("ben", "dog")), opinion("a", "cleo", "owl", 3, kind)]
    assert settled_label(said) == ("owl" if kind is ADJUDICATION else "dog")
