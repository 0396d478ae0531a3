"""What detectors say becomes traits that rules can rely on."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classify import Signal, Signals, Silence, classify
from router.contract import Reason, Trait, Traits
from router.table import (
    Conditions,
    Glob,
    Needs,
    Picked,
    Range,
    Refused,
    RouteTable,
    Rule,
    Target,
    TraitTest,
    explain,
    faults,
    route,
)

UNCLEAR = Reason.UNCLEAR_CLASSIFICATION
CONTRADICTORY = Reason.CONTRADICTORY_CLASSIFICATION
ROUTES = frozenset({"digits", "feedback", "desk"})
FAILED = Silence("the detector failed", failed=True)
NOTHING = Silence("the request has no one text", failed=False)


def language(*signals: Signal, floor: float = 0.0) -> Trait:
    return classify(Traits("auto"), {"language": signals}, {"language": floor}).detected["language"]


def content(stated: str, *signals: Signal, floor: float = 0.0) -> Trait:
    return classify(Traits("auto", stated), {"content_type": signals}, {"content_type": floor}).detected["content_type"]


def test_a_trait_has_the_confidence_of_the_item_that_is_least_sure() -> None:
    assert language(Signal("en", 0.9), Signal("en", 0.7)) == Trait("en", 0.7)


def test_items_that_differ_are_in_doubt() -> None:
    trait = language(Signal("en", 0.9), Signal("fr", 0.9))

    assert (trait.value, trait.doubt) == (None, CONTRADICTORY)
    assert trait.detail == "language differs between items: en, fr; send them apart"


@pytest.mark.parametrize("confidence", [math.nan, -0.1, 1.5, math.inf])
def test_what_is_no_confidence_is_in_doubt(confidence: float) -> None:
    trait = language(Signal("en", 0.9), Signal("en", confidence))

    assert (trait.value, trait.confidence, trait.doubt) == ("en", None, UNCLEAR)


def test_a_trait_below_the_detectors_floor_is_in_doubt_and_keeps_its_value() -> None:
    trait = language(Signal("en", 0.59), floor=0.6)

    assert (trait.value, trait.confidence, trait.doubt) == ("en", 0.59, UNCLEAR)
    assert trait.detail == "language 'en' has confidence 0.59; 0.60 is needed"


def test_a_detector_that_failed_is_a_doubt_and_one_that_had_nothing_to_look_at_is_none() -> None:
    failed, nothing = (
        classify(Traits("auto"), {"language": silence}, {}).detected["language"] for silence in (FAILED, NOTHING)
    )

    assert (failed.value, failed.doubt, failed.detail) == (None, UNCLEAR, "language: the detector failed")
    assert (nothing.value, nothing.doubt) == (None, None)


@pytest.mark.parametrize(
    ("stated", "found", "value", "doubt"),
    [
        pytest.param("", "image/png", "image/png", None, id="nothing stated"),
        pytest.param("application/octet-stream", "image/png", "image/png", None, id="bytes stated"),
        pytest.param("application/json", "text/plain", "text/plain", None, id="the envelope stated"),
        pytest.param("image/png", "image/jpeg", "image/jpeg", None, id="another picture format"),
        pytest.param("text/plain", "text/x-python", "text/plain", None, id="a message like source code"),
        pytest.param("text/plain", "application/javascript", "text/plain", None, id="text outside of text/"),
        pytest.param("text/plain", "application/vnd.api+json", "text/plain", None, id="a suffix that is text"),
        pytest.param("text/plain", "message/rfc822", "text/plain", None, id="a mail"),
        pytest.param("image/png", "text/html", None, CONTRADICTORY, id="text that says it is a picture"),
        pytest.param("text/plain", "application/zip", None, CONTRADICTORY, id="an archive that says it is text"),
        pytest.param("image/png", "application/pdf", None, CONTRADICTORY, id="a document that says it is a picture"),
    ],
)
def test_what_is_stated_and_what_is_detected_come_together(
    stated: str, found: str, value: str | None, doubt: Reason | None
) -> None:
    trait = content(stated, Signal(found, 0.95))

    assert (trait.value, trait.doubt) == (value, doubt)


def test_a_specific_statement_stands_where_the_detector_is_not_sure() -> None:
    assert content("text/plain", Signal("application/zip", 0.3), floor=0.5) == Trait("text/plain")
    assert content("", Signal("application/zip", 0.3), floor=0.5).doubt is UNCLEAR


def test_a_detector_that_failed_is_in_doubt_whatever_is_stated() -> None:
    traits = classify(Traits("auto", "text/plain"), {"content_type": FAILED}, {})

    assert traits.detected["content_type"].doubt is UNCLEAR


def test_a_long_statement_is_not_repeated_whole() -> None:
    assert len(content("image/" + "x" * 5_000_000, Signal("text/html", 1.0)).detail) < 200


def test_every_type_that_magika_calls_text_is_of_the_family_of_texts() -> None:
    package = importlib.util.find_spec("magika")
    assert package is not None
    assert package.origin is not None
    known = json.loads((Path(package.origin).parent / "config" / "content_types_kb.min.json").read_text())
    texts = {kind["mime_type"] for kind in known.values() if kind["is_text"] and kind["mime_type"]}

    contradicted = {found for found in texts if content("text/plain", Signal(found, 1.0)).doubt}

    # Some pictures and designs are written as text; a sender who calls them that is not believed.
    assert contradicted == {"image/svg+xml", "image/vnd.dxf", "application/octet-stream"}


def test_a_statement_stands_where_there_was_nothing_to_detect() -> None:
    traits = classify(Traits("auto", "application/json"), {"content_type": NOTHING}, {})

    assert traits.detected["content_type"] == Trait("application/json")


# --- rules on traits ---

FOREIGN = Rule(
    Conditions(traits=(TraitTest("language", excluded=(Glob("en"),), floor=0.9),)), "desk", True, "foreign text"
)
IMAGES = Rule(Conditions(content_types=(Glob("image/*"),)), "digits")
TEXTS = Rule(Conditions(content_types=(Glob("text/*"),)), "feedback")
TABLE = RouteTable(
    ROUTES,
    (IMAGES, FOREIGN, TEXTS),
    default=Target("desk", to_person=True),
    unsure=Target("desk", to_person=True),
    detectors=frozenset({"content_type", "language"}),
)


def traits(stated: str = "text/plain", **detected: Trait) -> Traits:
    return Traits("auto", stated, detected=detected)


def test_a_detector_is_asked_for_only_when_a_rule_needs_it() -> None:
    assert route(TABLE, traits()) == Needs("content_type")
    assert route(TABLE, traits(content_type=Trait("image/png", 1.0))) == Picked("digits", rule=0)
    assert route(TABLE, traits(content_type=Trait("text/plain", 1.0))) == Needs("language")


def test_a_rule_whose_stated_conditions_fail_asks_no_detector() -> None:
    small = Conditions(size=Range(high=0), traits=(TraitTest("language", (Glob("fr"),)),))
    table = RouteTable(ROUTES, (Rule(small, "digits"),), Target("feedback"), detectors=frozenset({"language"}))

    assert route(table, Traits("auto", size_bytes=9)) == Picked("feedback")


def test_a_request_that_names_its_route_asks_no_detector() -> None:
    assert route(TABLE, Traits("digits")) == Picked("digits")


def test_who_goes_to_a_person_is_told_why() -> None:
    choice = route(TABLE, traits(content_type=Trait("text/plain", 1.0), language=Trait("fr", 0.98)))

    assert choice == Picked("desk", to_person=True, rule=1)
    assert isinstance(choice, Picked)
    assert (choice.reason, choice.detail) == (Reason.ROUTED_TO_PERSON, "foreign text: language is 'fr' (0.98)")


@pytest.mark.parametrize(
    ("trait", "expected"),
    [
        (Trait("fr", 0.9), Picked("desk", True, 1)),
        (Trait("fr", 0.89), Picked("feedback", rule=2)),
        (Trait("en", 0.99), Picked("feedback", rule=2)),
        (Trait("fr", 0.95, UNCLEAR), Picked("desk", True, 1)),
        (Trait("und", None, UNCLEAR), Picked("feedback", rule=2)),
        (Trait(None, None, UNCLEAR), Picked("desk", True, doubt=UNCLEAR)),
        (Trait(None, None, CONTRADICTORY), Picked("desk", True, doubt=CONTRADICTORY)),
        (Trait(None), Picked("feedback", rule=2)),
    ],
)
def test_a_condition_with_a_floor_of_its_own_decides_how_sure_is_sure(trait: Trait, expected: Picked) -> None:
    assert route(TABLE, traits(content_type=Trait("text/plain", 1.0), language=trait)) == expected


def test_a_doubt_stops_the_rules_and_goes_where_the_table_says_with_its_reason() -> None:
    doubtful = Trait(None, None, CONTRADICTORY, "it says one thing and is another")

    choice = route(TABLE, traits(content_type=doubtful))

    assert isinstance(choice, Picked)
    assert (choice.route, choice.to_person, choice.reason) == ("desk", True, CONTRADICTORY)
    assert choice.detail == doubtful.detail


def test_a_doubt_without_anywhere_to_go_is_refused_with_its_reason() -> None:
    table = RouteTable(ROUTES, (IMAGES,), detectors=frozenset({"content_type"}))

    choice = route(table, traits(content_type=Trait(None, None, UNCLEAR, "it failed")))

    assert choice == Refused(UNCLEAR, "it failed")


def test_a_rule_in_doubt_leaves_a_request_alone_that_names_its_route() -> None:
    refine = Rule(Conditions((Glob("digits"),), traits=(TraitTest("language", (Glob("fr"),)),)), "desk")
    table = RouteTable(ROUTES, (refine,), detectors=frozenset({"language"}))
    named = Traits("digits", detected={"language": Trait(None, None, UNCLEAR)})

    assert route(table, named) == Picked("digits", doubt=UNCLEAR)


def test_conditions_are_looked_at_in_order_and_the_first_that_is_not_met_decides() -> None:
    both = Rule(Conditions(traits=(TraitTest("language", (Glob("en"),)), TraitTest("topic", (Glob("x"),)))), "digits")
    table = RouteTable(ROUTES, (both,), Target("feedback"), Target("desk", True), frozenset({"language", "topic"}))
    doubt, other, english = Trait(None, None, UNCLEAR), Trait("y", 1.0), Trait("en", 1.0)

    assert route(table, traits(language=doubt, topic=other)) == Picked("desk", True, doubt=UNCLEAR)
    assert route(table, traits(language=other, topic=doubt)) == Picked("feedback")
    assert route(table, traits(language=english)) == Needs("topic")


def test_explain_tells_of_traits_floors_and_doubts() -> None:
    sure = traits(content_type=Trait("text/plain", 1.0), language=Trait("fr", 0.5))
    unsure = traits(content_type=Trait(None, None, CONTRADICTORY, "it is no picture"))

    assert [c.why_not for c in explain(TABLE, sure)] == [
        "content_type is 'text/plain' (1.00), not image/*",
        "language is 'fr' (0.50), not anything except en at 0.90 or more",
        None,
    ]
    assert [c.why_not for c in explain(TABLE, unsure)] == ["in doubt: it is no picture"]
    assert [c.why_not for c in explain(TABLE, traits())] == ["needs a detector of content_type"]


def test_a_trait_that_nothing_detects_is_a_fault() -> None:
    table = RouteTable(ROUTES, (FOREIGN,), Target("desk"), detectors=frozenset({"content_type"}))

    (fault,) = faults(table)

    assert (fault.rule, fault.field) == (0, "when.traits.language")
    assert fault.message == "nothing detects 'language'; known: content_type; add it to `detectors`"


NAMES = ("content_type", "language")
SIGNALS: st.SearchStrategy[Sequence[Signal] | Silence] = st.one_of(
    st.sampled_from([FAILED, NOTHING]),
    st.lists(
        st.builds(
            Signal,
            st.sampled_from(["en", "fr", "text/plain", "image/png"]),
            st.sampled_from([0.0, 0.5, 0.95, 1.0, math.nan]),
        ),
        min_size=1,
        max_size=3,
    ),
)


@given(
    st.permutations([IMAGES, FOREIGN, TEXTS]),
    st.fixed_dictionaries(dict.fromkeys(NAMES, SIGNALS)),
    st.sampled_from(["", "text/plain", "image/png"]),
    st.fixed_dictionaries({name: st.sampled_from([0.0, 0.6]) for name in NAMES}),
)
def test_asking_detectors_only_as_needed_decides_as_asking_all_at_once_does(
    rules: list[Rule], signals: Mapping[str, Signals], stated: str, floors: Mapping[str, float]
) -> None:
    table = RouteTable(ROUTES, tuple(rules), TABLE.default, TABLE.unsure, TABLE.detectors)
    told = Traits("auto", stated)
    asked: list[str] = []
    while isinstance(choice := route(table, told), Needs):
        assert choice.trait not in asked
        asked.append(choice.trait)
        told = classify(told, {choice.trait: signals[choice.trait]}, floors)

    at_once = route(table, classify(Traits("auto", stated), signals, floors))

    assert choice == at_once
    assert isinstance(choice, Picked)
    if choice.doubt is not None:
        assert choice.route == "desk"
        assert choice.detail
