"""Working hours: what is worked between two moments, and when so much has been, over nights and clock changes."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.people.hours import ALWAYS, DAY_S, LONGEST_S, WorkingHours, disjoint, why_no_zone

HOUR_S = 3600.0
NINE_TO_FIVE = ((9 * 60, 12 * 60), (13 * 60, 17 * 60))
OFFICE = WorkingHours((*((NINE_TO_FIVE,) * 5), (), ()), "Europe/Berlin")
NIGHT = WorkingHours((((0, 6 * 60), (22 * 60, 1440)),) * 7, "America/New_York")


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("start", "end", "hours"),
    [
        ("2026-11-26T10:00", "2026-11-26T11:30", 1.5),  # a Thursday
        ("2026-11-26T11:00", "2026-11-26T14:00", 2.0),  # over the break
        ("2026-11-26T16:00", "2026-11-27T10:00", 2.0),  # over the night
        ("2026-11-27T16:00", "2026-11-30T10:00", 2.0),  # over the weekend
        ("2026-11-28T08:00", "2026-11-29T20:00", 0.0),  # a weekend
        ("2026-11-26T12:00", "2026-11-26T13:00", 0.0),
        ("2026-11-26T11:00", "2026-11-26T10:00", 0.0),  # backwards
        ("2026-11-23T00:00", "2026-11-30T00:00", 35.0),  # a week
    ],
)
def test_only_working_hours_count(start: str, end: str, hours: float) -> None:
    assert OFFICE.worked_s(at(start), at(end)) == hours * HOUR_S


@pytest.mark.parametrize(
    ("start", "hours", "end"),
    [
        ("2026-11-26T10:00", 1.0, "2026-11-26T11:00"),
        ("2026-11-26T11:30", 1.0, "2026-11-26T13:30"),
        ("2026-11-27T16:30", 1.0, "2026-11-30T09:30"),
        ("2026-11-29T03:00", 0.5, "2026-11-30T09:30"),
        ("2026-11-27T10:00", 35.0, "2026-12-04T10:00"),
    ],
)
def test_so_much_has_been_worked_at_that_moment(start: str, hours: float, end: str) -> None:
    assert OFFICE.moment_after(at(start), hours * HOUR_S) == at(end)


def test_a_span_has_the_seconds_that_pass_when_clocks_change() -> None:
    whole = WorkingHours((((0, 1439),),) * 7, "Europe/Berlin")
    spring = whole.worked_s(at("2026-03-29T00:00"), at("2026-03-29T23:59"))
    autumn = whole.worked_s(at("2026-10-25T00:00"), at("2026-10-25T23:59"))
    usual = whole.worked_s(at("2026-10-26T00:00"), at("2026-10-26T23:59"))
    assert (usual - spring, autumn - usual) == (HOUR_S, HOUR_S)
    skipped = WorkingHours((((2 * 60, 3 * 60),),) * 7, "Europe/Berlin")
    assert skipped.worked_s(at("2026-03-29T00:00"), at("2026-03-29T23:59")) == 0.0


def minutes(*spans: tuple[str, str]) -> tuple[tuple[int, int], ...]:
    def minute(text: str) -> int:
        hours, _, rest = text.partition(":")
        return 60 * int(hours) + int(rest)

    return tuple((minute(opens), minute(closes)) for opens, closes in spans)


@pytest.mark.parametrize(
    ("zone", "day", "spans", "worked_min"),
    [
        ("Europe/Berlin", "2026-03-29", [("02:00", "02:30")], 0),
        ("Europe/Berlin", "2026-03-29", [("02:10", "02:50")], 0),
        ("Europe/Berlin", "2026-03-29", [("01:00", "02:30")], 60),
        ("Europe/Berlin", "2026-03-29", [("02:30", "04:00")], 60),
        ("Europe/Berlin", "2026-03-29", [("01:30", "03:30")], 60),
        ("Europe/Berlin", "2026-03-29", [("02:00", "02:30"), ("03:00", "04:00")], 60),
        ("Europe/Berlin", "2026-03-29", [("02:00", "02:30"), ("02:30", "03:00"), ("03:00", "03:10")], 10),
        ("Europe/Berlin", "2026-10-25", [("02:00", "02:30")], 30),  # of the two the first
        ("America/Sao_Paulo", "2018-11-04", [("00:00", "00:30"), ("01:00", "02:00")], 60),  # skipped from midnight
        ("Australia/Lord_Howe", "2026-10-04", [("02:00", "02:40")], 10),  # half an hour is skipped
        ("Pacific/Apia", "2011-12-30", [("00:00", "24:00")], 0),  # a whole day was
    ],
)
def test_what_clocks_skip_is_worked_by_nobody(
    zone: str, day: str, spans: list[tuple[str, str]], worked_min: int
) -> None:
    that = datetime.fromisoformat(day)
    week = tuple(minutes(*spans) if weekday == that.weekday() else () for weekday in range(7))
    hours = WorkingHours(week, zone)

    worked_s = hours.worked_s(at(day, zone) - HOUR_S, at(day, zone) + 1.5 * DAY_S)

    assert worked_s == 60.0 * worked_min


@given(
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut"]),
    st.integers(0, 1438),
    st.integers(1, 1440),
    st.integers(0, 365),
)
def test_spans_that_touch_are_worked_as_the_one_that_they_make(zone: str, opens: int, length: int, day: int) -> None:
    closes = min(1440, opens + length)
    start_s = at("2026-01-01", zone) + day * DAY_S
    whole = WorkingHours((((opens, closes),),) * 7, zone).worked_s(start_s, start_s + DAY_S)
    split = [(minute, min(closes, minute + 7)) for minute in range(opens, closes, 7)]

    assert WorkingHours((tuple(split),) * 7, zone).worked_s(start_s, start_s + DAY_S) == pytest.approx(whole, abs=1e-3)


def test_always_is_always() -> None:
    assert ALWAYS.is_always
    assert ALWAYS.worked_s(5.0, 7.5) == 2.5
    assert ALWAYS.moment_after(5.0, 7.5) == 12.5
    assert ALWAYS.moment_after(5.0, 1e12) == 5.0 + LONGEST_S


def test_what_is_very_far_away_is_told_as_a_year() -> None:
    assert OFFICE.moment_after(at("2026-11-26T10:00"), 1e9) == at("2026-11-26T10:00") + LONGEST_S


MOMENTS = st.floats(1.7e9, 1.9e9)


@given(st.sampled_from([OFFICE, NIGHT, ALWAYS]), MOMENTS, st.floats(0.0, 20 * DAY_S), st.floats(0.0, 20 * DAY_S))
def test_worked_time_adds_up(hours: WorkingHours, start_s: float, first_s: float, second_s: float) -> None:
    middle_s, end_s = start_s + first_s, start_s + first_s + second_s

    whole_s = hours.worked_s(start_s, end_s)

    assert whole_s == pytest.approx(hours.worked_s(start_s, middle_s) + hours.worked_s(middle_s, end_s), abs=1e-3)
    assert 0.0 <= whole_s <= end_s - start_s + 1e-6


@given(st.sampled_from([OFFICE, NIGHT, ALWAYS]), MOMENTS, st.floats(1.0, 30 * HOUR_S))
def test_the_moment_after_is_the_first_at_which_so_much_was_worked(
    hours: WorkingHours, start_s: float, worked_s: float
) -> None:
    end_s = hours.moment_after(start_s, worked_s)

    assert hours.worked_s(start_s, end_s) == pytest.approx(worked_s, abs=1e-3)
    assert hours.worked_s(start_s, end_s - 0.5) < worked_s


def test_spans_that_touch_do_not_overlap() -> None:
    assert disjoint([(60, 120), (0, 60)])
    assert not disjoint([(60, 120), (0, 61)])


@pytest.mark.parametrize("name", ["Europe/Berlinn", "", "../etc/passwd", "/etc/localtime", "a\0b"])
def test_a_zone_that_is_none_is_told_with_the_remedy(name: str) -> None:
    why = why_no_zone(name)

    assert why is not None
    assert why.startswith(f"there is no time zone {name!r}; write one like Europe/Berlin")
    assert why_no_zone("Europe/Berlin") is None
