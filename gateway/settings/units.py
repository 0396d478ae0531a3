"""Numbers with units as people write them: durations, sizes, shares, and ranges of sizes or numbers.

A bare number is refused where a unit is needed (`2` of what?), except 0, which needs none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from router.table import Range

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-zµ%]*)", re.ASCII)
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
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        number = _quantity(value, {"%": 1.0, "": 1.0}, "a share", "2% or 0.02")
        if str(value).endswith("%"):
            number /= 100.0  # and not times 0.01, which makes 95% more than 0.95
    if not 0.0 < number < 1.0:
        raise ValueError(f"is {value!r}; use a share between 0% and 100%, such as 2%")
    return number


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
