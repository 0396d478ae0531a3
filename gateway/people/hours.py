"""When people work: spans of the week in a time zone, and time counted in them alone.

A span is of wall-clock times, so that it means the same hours of the day in summer and winter. On the day that clocks
change, a span has as many seconds as really pass between its ends: one hour that is skipped counts for nothing, and an
end within it is the moment of the change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias
from zoneinfo import ZoneInfo

Span: TypeAlias = tuple[int, int]
"""Minutes of the day, from 0 to 1440; the second is the greater."""

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

DAY_S = 86_400.0

LONGEST_S = 366 * DAY_S
"""What is further away than this is told as being this far."""

_ALL_DAY: tuple[Span, ...] = ((0, 1440),)


@dataclass(frozen=True, slots=True)
class WorkingHours:
    """When people work. Moments are Unix times, in seconds.

    Attributes:
        week: of Monday to Sunday, the spans of each day, ascending and apart.
        zone: an IANA name that `zoneinfo` knows.
    """

    week: tuple[tuple[Span, ...], ...] = (_ALL_DAY,) * 7
    zone: str = "UTC"

    @property
    def is_always(self) -> bool:
        """Whether they work day and night."""
        return self.week == (_ALL_DAY,) * 7

    def worked_s(self, start_s: float, end_s: float) -> float:
        """How much of the time from *start_s* to *end_s* is worked, in seconds; 0.0 where it ends before it starts."""
        if end_s <= start_s:
            return 0.0
        if self.is_always:
            return end_s - start_s
        total = 0.0
        for opens_s, closes_s in self._spans(start_s):
            if opens_s >= end_s:
                break
            total += max(0.0, min(closes_s, end_s) - max(opens_s, start_s))
        return total

    def moment_after(self, start_s: float, worked_s: float) -> float:
        """The moment at which *worked_s* seconds have been worked since *start_s*; at most `LONGEST_S` later."""
        if self.is_always:
            return start_s + min(worked_s, LONGEST_S)
        left_s = worked_s
        for opens_s, closes_s in self._spans(start_s):
            if opens_s >= start_s + LONGEST_S:
                break
            begins_s = max(opens_s, start_s)
            if left_s <= closes_s - begins_s:
                return begins_s + left_s
            left_s -= max(0.0, closes_s - begins_s)
        return start_s + LONGEST_S

    def _spans(self, start_s: float) -> Iterator[tuple[float, float]]:
        """What is worked, from the span that *start_s* lies in or comes before, without end."""
        day = datetime.fromtimestamp(start_s, _zone(self.zone)).date().toordinal()
        while True:
            for opens_s, closes_s in _moments(self, day):
                if closes_s > start_s:
                    yield opens_s, closes_s
            day += 1


def disjoint(spans: Iterable[Span]) -> bool:
    """Whether no two of *spans* overlap."""
    ordered = sorted(spans)
    return all(before[1] <= after[0] for before, after in pairwise(ordered))


@lru_cache(maxsize=4096)
def _moments(hours: WorkingHours, day: int) -> tuple[tuple[float, float], ...]:
    """The spans of *day* (a proleptic Gregorian ordinal) as moments."""
    that = date.fromordinal(day)
    return tuple(
        (_moment(that, opens, hours.zone), _moment(that, closes, hours.zone))
        for opens, closes in hours.week[that.weekday()]
    )


def _moment(day: date, minute: int, zone: str) -> float:
    if minute == 1440:
        day, minute = day + timedelta(days=1), 0
    read = datetime.combine(day, time(minute // 60, minute % 60), _zone(zone))
    # By the offset before a change, and by the one after it (PEP 495). A reading that is skipped comes later by the
    # former; of one that comes twice the first is meant.
    before_s, after_s = read.timestamp(), read.replace(fold=1).timestamp()
    return before_s if before_s <= after_s else _change(int(after_s), int(before_s), _zone(zone))


def _change(from_s: int, to_s: int, zone: ZoneInfo) -> float:
    """The one moment after *from_s*, and not after *to_s*, at which the clocks of *zone* change."""
    changed = datetime.fromtimestamp(to_s, zone).utcoffset()
    while to_s - from_s > 1:
        middle_s = (from_s + to_s) // 2
        if datetime.fromtimestamp(middle_s, zone).utcoffset() == changed:
            to_s = middle_s
        else:
            from_s = middle_s
    return float(to_s)


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


ALWAYS = WorkingHours()
"""Day and night."""


def why_no_zone(name: str) -> str | None:
    """What keeps *name* from being a time zone here, and the remedy; None: nothing."""
    try:
        datetime.now(UTC).astimezone(ZoneInfo(name))
    except (ValueError, OSError, LookupError):  # ZoneInfoNotFoundError is a LookupError
        remedy = "write one like Europe/Berlin; where this machine knows none, pip install tzdata"
        return f"there is no time zone {name!r}; {remedy}"
    return None
