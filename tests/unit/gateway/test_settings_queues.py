"""Queues, their chains and hours, what people are asked for, and who may review: as options, or as every fault."""

# ruff: noqa: E501 (a fault stands on one line here, as it does where it is told)

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.people.hours import ALWAYS, WorkingHours
from gateway.people.options import QueueOptions, scope_of, steps_of
from gateway.people.scope import UNSKILLED, QueueRole, Scope
from gateway.settings import Settings, SettingsError, load_api_keys, load_settings, settings_schema
from gateway.settings.units import day_span, weekdays
from gateway.store.contract import Step
from router.contract import HumanPolicy, WhenOverloaded

DIGEST = hashlib.sha256(b"key").hexdigest()

WHOLE = f"""\
models: {{m: {{backend: echo, labels: [a, b]}}}}
routes:
  mail:
    input: {{x: {{datatype: FP32, shape: [2]}}}}
    cascade: [m]
    accept: {{min_confidence: 0.5}}
    human: {{queue: tickets, due: 4h, priority: 2, callers_priority: true, skills: [german, law, german], when_overloaded: refuse, max_wait: 2h}}
  desk:
    input: {{x: {{datatype: FP32, shape: [2]}}}}
    cascade: []
    human: {{queue: desk, form: text}}
queues:
  tickets:
    escalate_to: leads
    skills: [german]
    hours: {{zone: Europe/Berlin, week: {{mon-thu: ["08:00-12:00", "13:00-17:00"], fri: "08:00-24:00"}}}}
  leads: {{due: 30m, escalate_to: boss}}
  boss:
security:
  api_keys:
    - {{name: anna, sha256: {DIGEST}, roles: [reviewer], queues: [tickets, desk], skills: [german]}}
"""


def load(folder: Path, text: str) -> Settings:
    file = folder / "pointsman.yaml"
    file.write_text(text)
    return load_settings(file)


def faults_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(folder, text)
    return [str(fault).removeprefix(f"{folder / 'pointsman.yaml'}:") for fault in caught.value.faults]


def test_queues_come_to_their_options_with_those_that_only_routes_name(tmp_path: Path) -> None:
    queues = load(tmp_path, WHOLE).queues

    day = ((8 * 60, 12 * 60), (13 * 60, 17 * 60))
    hours = WorkingHours((day, day, day, day, ((8 * 60, 24 * 60),), (), ()), "Europe/Berlin")
    assert queues == {
        "tickets": QueueOptions("leads", 86_400.0, frozenset({"german"}), hours),
        "leads": QueueOptions("boss", 1800.0),
        "boss": QueueOptions(),
        "desk": QueueOptions(None, 86_400.0, frozenset(), ALWAYS),
    }
    assert steps_of(queues) == {"tickets": Step("leads", 1800.0), "leads": Step("boss", 86_400.0)}


def test_what_a_route_asks_of_people_comes_to_its_policy(tmp_path: Path) -> None:
    routes = load(tmp_path, WHOLE).routes

    assert routes["mail"].human == HumanPolicy(
        queue="tickets",
        due_s=4 * 3600.0,
        labels=("a", "b"),
        priority=2,
        callers_priority=True,
        skills=("german", "law"),
        when_overloaded=WhenOverloaded.REFUSE,
        max_wait_s=7200.0,
    )
    assert routes["mail"].human.longest_s == 7200.0
    assert routes["desk"].human == HumanPolicy("desk", 86_400.0)
    assert routes["desk"].human.longest_s == 86_400.0


def test_a_key_says_where_its_owner_reviews_and_what_they_know(tmp_path: Path) -> None:
    (anna,) = load(tmp_path, WHOLE).security.api_keys

    assert anna.scope == Scope(frozenset({"tickets", "desk"}), frozenset(), frozenset({"german"}), frozenset())


QUEUES = {"a": QueueOptions(), "b": QueueOptions(skills=frozenset({"law"}))}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", Scope(None, frozenset({"b"}), frozenset(), frozenset())),
        ("queues: [a]", Scope(frozenset("a"), frozenset("b"), frozenset(), frozenset())),
        ("queues: []", Scope(frozenset(), frozenset("b"), frozenset(), frozenset())),
        ("queues: {a: lead, b: reviewer}, skills: [law]", Scope(frozenset("ab"), frozenset(), frozenset({"law"}), frozenset("a"))),
        ("queues: ['*'], skills: [law]", Scope(None, frozenset(), frozenset({"law"}), frozenset())),
        ("queues: {'*': lead, a: reviewer}", Scope(None, frozenset("b"), frozenset(), None)),
    ],
)  # fmt: skip
def test_what_a_key_may_review(tmp_path: Path, written: str, expected: Scope) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {{name: k, sha256: {DIGEST}, roles: [reviewer]{', ' if written else ''}{written}}}\n")

    (key,) = load_api_keys(file, QUEUES).api_keys

    assert key.scope == expected
    assert key.caller.scope == expected


def test_without_anything_said_a_reviewer_reviews_what_needs_no_skill() -> None:
    assert scope_of(None, (), {"a": QueueOptions()}) == UNSKILLED
    assert scope_of({"*": QueueRole.LEAD}, (), {}).is_lead("whatever")


def changed(old: str, new: str) -> str:
    assert WHOLE.count(old) == 1, f"{old!r} stands {WHOLE.count(old)} times"
    return WHOLE.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("escalate_to: leads", "escalate_to: lead", "14:18: queues.tickets.escalate_to: there is no queue 'lead'; did you mean leads?"),
        ("escalate_to: boss", "escalate_to: tickets", "14:18: queues.tickets.escalate_to: comes back to where it began: tickets -> leads -> tickets; let one of them escalate to another, or to none"),
        ("escalate_to: boss", "escalate_to: leads", "17:34: queues.leads.escalate_to: comes back to where it began: leads -> leads; let one of them escalate to another, or to none"),
        ("due: 30m", "due: 0", "17:16: queues.leads.due: is 0; use something above 0"),
        ("due: 30m", "dew: 30m", "17:11: queues.leads.dew: is an unknown key; did you mean due?"),
        ("zone: Europe/Berlin", "zone: Berlin", "16:19: queues.tickets.hours.zone: there is no time zone 'Berlin'; write one like Europe/Berlin; where this machine knows none, pip install tzdata"),
        ("mon-thu", "mon-thur", "16:40: queues.tickets.hours.week: has 'mon-thur', which is no day; write mon, tue, wed, thu, fri, sat or sun, or mon-fri"),
        ('fri: "08:00-24:00"', 'tue: "11:00-12:30"', "16:87: queues.tickets.hours.week.tue: has hours that overlap others of the same day; join them"),
        ('"08:00-24:00"', '"24:00-08:00"', "16:87: queues.tickets.hours.week.fri[0]: is '24:00-08:00'; write a later time behind the earlier one, up to 24:00; hours over midnight belong to both days"),
        ('"08:00-24:00"', '"8-17"', "16:87: queues.tickets.hours.week.fri[0]: is '8-17', which is no time of the day; write it like 08:00-17:00"),
        ("  boss:\n", "  boss:\n  .x: {}\n", "19:3: queues..x: is no name; use 1 to 128 letters, digits, '_', '-' and '.', not beginning with '.'"),
        ("priority: 2", "priority: 10", "7:48: routes.mail.human.priority: is 10; use at most 9"),
        ("when_overloaded: refuse, ", "", "7:106: routes.mail.human.max_wait: says when people count as overloaded, and nothing follows; add when_overloaded, or remove it"),
        ("when_overloaded: refuse", "when_overloaded: shrug", "7:123: routes.mail.human.when_overloaded: is \"shrug\"; use 'wait', 'provisional', 'stronger' or 'refuse'"),
        ("form: text", "form: text, when_overloaded: stronger", "11:55: routes.desk.human.when_overloaded: is 'stronger', and there is no model to answer instead; use wait or refuse"),
        ("queues: [tickets, desk]", "queues: [tickets, dask]", "21:121: security.api_keys[0].queues: names a queue that is none (it is not shown); known: boss, desk, leads, tickets"),
        ("roles: [reviewer]", "roles: [caller]", "21:111: security.api_keys[0].queues: is for reviewers; add reviewer to its `roles`, or remove it"),
        ("queues: [tickets, desk]", "queues: {tickets: boss}", "security.api_keys[0].queues.tickets: is not what belongs here (its value is not shown); correct it"),
    ],
)  # fmt: skip
def test_a_fault_of_people_is_told_with_its_place_and_remedy(tmp_path: Path, old: str, new: str, told: str) -> None:
    faults = faults_of(tmp_path, changed(old, new))

    assert any(fault.endswith(told) for fault in faults), faults
    assert len({fault.split(": ")[1] for fault in faults}) <= 2


def test_hours_that_are_none_are_told(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, changed('{mon-thu: ["08:00-12:00", "13:00-17:00"], fri: "08:00-24:00"}', "{mon: []}"))

    assert any("has no hours at all; name some, or leave `hours` out" in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("text", "days"),
    [("mon", (0,)), ("mon-fri", (0, 1, 2, 3, 4)), ("fri-mon", (4, 5, 6, 0)), ("sun", (6,)), ("sat-sat", (5,))],
)
def test_days_are_read_as_they_are_said(text: str, days: tuple[int, ...]) -> None:
    assert weekdays(text) == days


@pytest.mark.parametrize("text", ["Mon", "mon-", "-fri", "monday", "mon-fri-sun", "", "mon - fri"])
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="which is no day"):
        weekdays(text)


@pytest.mark.parametrize(("text", "span"), [("8:05-17:00", (485, 1020)), ("00:00 - 24:00", (0, 1440))])
def test_spans_are_read_in_minutes(text: str, span: tuple[int, int]) -> None:
    assert day_span(text) == span


@pytest.mark.parametrize("text", ["08:60-09:00", "08:00-08:00", "09:00-08:00", "08:00-24:01", "25:00-26:00", "8h-9h", 8, None, "٠8:00-09:00"])  # fmt: skip
def test_what_is_no_span_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is "):
        day_span(text)


def test_the_schema_knows_queues() -> None:
    schema = settings_schema()

    assert set(schema["$defs"]["QueueSection"]["properties"]) == {"escalate_to", "due", "skills", "hours"}
    assert schema["properties"]["queues"]["additionalProperties"] == {"$ref": "#/$defs/QueueSection"}
    assert {"type": "array", "items": {"type": "string"}} in schema["$defs"]["ApiKeySection"]["properties"]["queues"][
        "anyOf"
    ]
