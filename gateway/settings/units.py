"""Numbers with units as people write them: durations, sizes, shares, ranges of sizes or numbers, and working hours.

A bare number is refused where a unit is needed (`2` of what?), except 0, which needs none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TypeAlias

from gateway.people.hours import WEEKDAYS, Span
from router.table import Range

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-zµ%]*)", re.ASCII)
_DAY_SPAN = re.compile(r"([0-9]{1,2}):([0-9]{2}) ?- ?([0-9]{1,2}):([0-9]{2})", re.ASCII)
_COMPARISON = re.compile(r"(<=|>=|<|>) ?([^<>,]+)")

DURATIONS: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES: Mapping[str, int] = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)},
    "KB": 1000,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}

Reader: TypeAlias = Callable[[object], float]


def duration_s(value: object) -> float:
    """Seconds of `250ms`, `4h` or 0.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    return _quantity(value, DURATIONS, "a duration", "250ms, 20s, 1m, 4h or 30d")


def size_bytes(value: object) -> int:
    """Bytes of `16MiB`, `2GB` or 0.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    return int(_quantity(value, SIZES, "a size", "512B, 64KiB, 16MiB or 2GB"))


def share(value: object) -> float:
    """`2%` or 0.02 as 0.02; strictly between 0 and 1.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    number = _part(value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"is {value!r}; use a share between 0% and 100%, such as 2%")
    return number


def portion(value: object) -> float:
    """`2%` or 0.02 as 0.02; from 0 (none) to 1 (all).

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    number = _part(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"is {value!r}; use a share from 0% to 100%, such as 2%")
    return number


def share_or_all(value: object) -> float:
    """As `share`, or `100%` for 1.0: above 0, up to 1.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    number = _part(value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"is {value!r}; use a share above 0%, up to 100%, such as 5%")
    return number


def unix_time_s(value: object) -> float:
    """Unix time in seconds of `2026-11-26T10:00:00Z`, in any zone that is stated.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"is {value!r}, which is no moment; write it with its zone, like 2026-11-26T10:00:00Z")
    return moment.timestamp()


def day_span(value: object) -> Span:
    """`08:00-17:00` as minutes of the day; 24:00 is its end.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    match = _DAY_SPAN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"is {value!r}, which is no time of the day; write it like 08:00-17:00")
    opens, closes = (int(match[i]) * 60 + int(match[i + 1]) for i in (1, 3))
    if max(int(match[2]), int(match[4])) > 59 or not opens < closes <= 1440:
        remedy = "write a later time behind the earlier one, up to 24:00; hours over midnight belong to both days"
        raise ValueError(f"is {value!r}; {remedy}")
    return opens, closes


def weekdays(value: object) -> tuple[int, ...]:
    """`mon`, or `mon-fri`, as days from 0 (Monday) to 6; a range may go over the end of the week.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    first, dash, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    last = last if dash else first
    if first not in WEEKDAYS or last not in WEEKDAYS:
        raise ValueError(f"has {value!r}, which is no day; write mon, tue, wed, thu, fri, sat or sun, or mon-fri")
    start = WEEKDAYS.index(first)
    return tuple((start + i) % 7 for i in range((WEEKDAYS.index(last) - start) % 7 + 1))


def _part(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    number = _quantity(value, {"%": 1.0, "": 1.0}, "a share", "2% or 0.02")
    return number / 100.0 if str(value).endswith("%") else number  # not times 0.01, which makes 95% more than 0.95


def _quantity(value: object, units: Mapping[str, float], what: str, examples: str) -> float:
    if value in (0, "0") and not isinstance(value, bool):
        return 0.0
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"is {value!r}, which is not {what}; write it like {examples}")
    return float(match[1]) * units[match[2]]


def size_range(value: object) -> Range:
    """`<= 1MiB`, or two ends such as `>= 1KiB, < 1MiB`.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    return _range(value, size_bytes, "'<= 1MiB' or '>= 1KiB, < 1MiB'")


def number_range(value: object) -> Range:
    """`>= 3`, or two ends such as `> 0, <= 1.5`.

    Raises:
        ValueError: *value* is something else; says how to write it.
    """
    return _range(value, _number, "'>= 3' or '> 0, <= 1.5'")


def _number(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"is {value!r}, which is not a number; write it like 3 or 1.5")
    return number


def _range(value: object, read: Reader, examples: str) -> Range:
    ends = [_COMPARISON.fullmatch(part.strip()) for part in value.split(",")] if isinstance(value, str) else [None]
    result = Range()
    for end in ends:
        if end is None:
            raise ValueError(f"is {value!r}, which compares nothing; write it like {examples}")
        operator, bound, is_open = end[1], read(end[2].strip()), len(end[1]) == 1
        if operator[0] == "<":
            result = replace(result, high=bound, high_open=is_open)
        else:
            result = replace(result, low=bound, low_open=is_open)
    return result
