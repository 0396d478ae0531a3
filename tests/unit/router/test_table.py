"""Which route a request takes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import ParameterValue
from router.contract import Reason, Traits
from router.table import (
    Accepted,
    Conditions,
    Glob,
    ParameterTest,
    Picked,
    Range,
    Refused,
    RouteTable,
    Rule,
    Target,
    Unknown,
    explain,
    faults,
    route,
)

ROUTES = frozenset({"digits", "feedback"})
IMAGES = Conditions(content_types=(Glob("image/*"),))


def test_a_named_route_is_taken_whatever_the_rules_for_auto_say() -> None:
    table = RouteTable(ROUTES, (Rule(Conditions(), "feedback"),))

    assert route(table, Traits("digits")) == Picked("digits")


def test_a_rule_for_a_named_route_refines_it() -> None:
    small = Conditions(routes=(Glob("digits"),), size=Range(high=10))
    table = RouteTable(ROUTES, (Rule(small, "feedback", to_person=True),))

    assert route(table, Traits("digits", size_bytes=10)) == Picked("feedback", to_person=True, rule=0)
    assert route(table, Traits("digits", size_bytes=11)) == Picked("digits")


def test_an_unknown_name_is_unknown_even_where_a_rule_would_take_any_name() -> None:
    table = RouteTable(ROUTES, (Rule(Conditions(routes=(Glob("*"),)), "digits"),), Target("digits"))

    assert route(table, Traits("digit")) == Unknown("digit")


def test_auto_takes_the_default_where_no_rule_matches() -> None:
    table = RouteTable(ROUTES, (Rule(IMAGES, "digits"),), Target("feedback", to_person=True))

    assert route(table, Traits("auto", content_type="text/plain")) == Picked("feedback", to_person=True)


def test_auto_is_refused_where_no_rule_matches_and_there_is_no_default() -> None:
    table = RouteTable(ROUTES, (Rule(IMAGES, "digits"),))

    assert route(table, Traits("auto")) == Refused(Reason.NO_RULE_MATCHED)


@pytest.mark.parametrize(
    ("accepted", "value", "admitted"),
    [
        ("billing", "billing", True),
        ("billing", "Billing", False),
        (Glob("bill*"), "billing", True),
        (Glob("bill*"), 7, False),
        (Glob("a[b]"), "a[b]", True),
        (3, 3.0, True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        ("1", 1, False),
        (Range(1, 3), 3, True),
        (Range(1, 3, high_open=True), 3, False),
        (Range(1, 3), "2", False),
        (Range(0, 3), True, False),
        (Range(), float("nan"), False),
        ("x", None, False),
    ],
)
def test_a_parameter_is_compared_by_type_and_value(
    accepted: Accepted, value: ParameterValue | None, admitted: bool
) -> None:
    assert ParameterTest("team", (accepted,)).admits(value) is admitted


def test_any_of_several_accepted_values_admits() -> None:
    test = ParameterTest("team", ("billing", Glob("legal-*")))

    assert [test.admits(value) for value in ("billing", "legal-eu", "it")] == [True, True, False]


def test_explain_tells_why_each_earlier_rule_did_not_match() -> None:
    rules = (
        Rule(IMAGES, "digits"),
        Rule(Conditions(size=Range(high=5)), "digits"),
        Rule(Conditions(tenants=(Glob("acme"), Glob("b*"))), "digits"),
        Rule(Conditions(parameters=(ParameterTest("team", ("billing", Range(low=3))),)), "digits"),
        Rule(Conditions(routes=(Glob("digits"),)), "digits"),
        Rule(Conditions(), "feedback"),
    )
    traits = Traits("auto", "text/plain", 9, parameters={"team": "it"})

    told = [considered.why_not for considered in explain(RouteTable(ROUTES, rules), traits)]

    assert told == [
        "content_type is 'text/plain', not image/*",
        "size 9 is not <= 5",
        "tenant is 'default', not acme or b*",
        "parameter 'team' is 'it', not 'billing' or >= 3",
        "route is 'auto', not digits",
        None,
    ]


def test_explain_tells_of_a_parameter_that_was_not_given() -> None:
    table = RouteTable(ROUTES, (Rule(Conditions(parameters=(ParameterTest("team", ("it",)),)), "digits"),))

    assert explain(table, Traits("auto"))[0].why_not == "parameter 'team' was not given; expected 'it'"


def test_a_table_without_faults_has_none() -> None:
    assert faults(RouteTable(ROUTES, (Rule(IMAGES, "digits"),), Target("feedback"))) == ()


def test_all_faults_of_a_table_are_found_at_once() -> None:
    rules = (
        Rule(IMAGES, "digit"),
        Rule(IMAGES, "auto"),
        Rule(Conditions(routes=(Glob("digit"),)), "digits"),
        Rule(Conditions(size=Range(5, 2)), "digits"),
        Rule(Conditions(), "digits"),
        Rule(Conditions(tenants=(Glob("a"),)), "feedback"),
    )

    found = [(f.rule, f.field, f.message) for f in faults(RouteTable(ROUTES, rules, Target("auto")))]

    assert found == [
        (0, "route", "there is no route 'digit'; known: digits, feedback"),
        (1, "route", "'auto' would ask these rules again; name a route"),
        (None, "otherwise", "'auto' would ask these rules again; name a route"),
        (2, "when.route", "no route matches 'digit'; known: digits, feedback"),
        (3, "when.size", "no size is >= 5, <= 2; swap or widen the ends"),
        (1, "when", "rule 0 takes every such request first; reorder or remove it"),
        (5, "when", "rule 4 takes every such request first; reorder or remove it"),
    ]


def test_a_long_parameter_cannot_stall_a_glob() -> None:
    glob = Glob("*a*a*a*a*a*a*b")
    begun = time.perf_counter()

    assert not glob.matches("a" * 20_000)
    assert time.perf_counter() - begun < 5.0


TYPES = st.sampled_from(["", "image/png", "image/tiff", "text/plain"])
GLOBS = st.sampled_from(["*", "image/*", "image/png", "text/?lain"]).map(Glob)
TRAITS = st.builds(
    Traits,
    route=st.sampled_from(["auto", "digits", "feedback", "other"]),
    content_type=TYPES,
    size_bytes=st.integers(0, 4),
    tenant=st.sampled_from(["default", "acme"]),
    parameters=st.dictionaries(st.sampled_from(["team", "rank"]), st.sampled_from(["it", 1, True, 2.5])),
)
CONDITIONS = st.builds(
    Conditions,
    routes=st.lists(st.sampled_from(["auto", "digits", "*"]).map(Glob), min_size=1, max_size=2).map(tuple),
    content_types=st.lists(GLOBS, max_size=2).map(tuple),
    size=st.none() | st.builds(Range, low=st.integers(0, 2), high=st.integers(0, 4)),
    tenants=st.lists(st.sampled_from(["acme", "*"]).map(Glob), max_size=1).map(tuple),
    parameters=st.lists(
        st.builds(ParameterTest, st.sampled_from(["team", "rank"]), st.sampled_from([("it",), (1,), (Range(1, 3),)])),
        max_size=1,
    ).map(tuple),
)
RULES = st.lists(st.builds(Rule, CONDITIONS, st.sampled_from(sorted(ROUTES)), st.booleans()), max_size=5).map(tuple)
DEFAULTS = st.none() | st.builds(Target, st.sampled_from(sorted(ROUTES)), st.booleans())


@given(RULES, DEFAULTS, TRAITS)
def test_the_first_rule_that_matches_alone_is_the_one_that_decides(
    rules: tuple[Rule, ...], default: Target | None, traits: Traits
) -> None:
    alone = [isinstance(c := route(RouteTable(ROUTES, (rule,)), traits), Picked) and c.rule == 0 for rule in rules]

    choice = route(RouteTable(ROUTES, rules, default), traits)

    if traits.route == "other":
        assert choice == Unknown("other")
    elif any(alone):
        first = alone.index(True)
        assert choice == Picked(rules[first].route, rules[first].to_person, first)
    elif traits.route != "auto":
        assert choice == Picked(traits.route)
    else:
        assert choice == (Refused() if default is None else Picked(default.route, default.to_person))


@given(RULES, DEFAULTS, TRAITS)
def test_explain_agrees_with_route(rules: tuple[Rule, ...], default: Target | None, traits: Traits) -> None:
    table = RouteTable(ROUTES, rules, default)
    choice = route(table, traits)

    considered = explain(table, traits)

    decided = choice.rule if isinstance(choice, Picked) else None
    if traits.route != "other":
        assert [c.rule for c in considered if c.why_not is None] == ([] if decided is None else [decided])
        assert len(considered) == (len(rules) if decided is None else decided + 1)


@given(st.permutations(["image/png", "image/tiff", "text/plain"]), TYPES)
def test_disjoint_rules_may_stand_in_any_order(order: list[str], content_type: str) -> None:
    targets = {"image/png": "digits", "image/tiff": "feedback", "text/plain": "feedback"}
    rules = tuple(Rule(Conditions(content_types=(Glob(one),)), targets[one]) for one in order)

    choice = route(RouteTable(ROUTES, rules, Target("digits")), Traits("auto", content_type))

    assert isinstance(choice, Picked)
    assert choice.route == targets.get(content_type, "digits")
