"""How long an attempt may take, and what is waited before the next.

A replica that is silent must not use up a call's whole deadline, or there is nothing to try again with; one that is
merely slow must not be cut off, or the same work is done three times and thrown away each time. So, with a deadline:

1. The last attempt gets all that is left.
2. An earlier one gets its part, what is left divided by the attempts left, yet no more than `patience`: with a
   deadline of a minute nobody need wait 20 s to see that a replica which answers in 5 ms hangs.
3. It always gets `enough`: where a deadline leaves time for one good attempt, one is made, and not three hopeless ones.

`enough` is twice the 99th percentile of what answers take, `patience` ten times that and at least a second. While
nothing is known, enough is half of what is left, and patience has no end.

Without a deadline every attempt gets `attempt_timeout_s`.

An attempt that ran out counts against its replica, unless it was cut off by the caller's own deadline in less than
`enough` (a second, while nothing is known): then the caller gave too little time.

Rejected: cutting at a fixed timeout (a guess by the operator, wrong for one model or the other); learning from
attempts that were cut off (they would teach `enough` to grow until silence counts as normal).
"""

from __future__ import annotations

import math
import random
from typing import Final

FEWEST_ANSWERS: Final = 10
"""Answers from which on quantiles count as known."""

_PATIENCE: Final = 10.0
_FEWEST_PATIENCE_S: Final = 1.0
_ENOUGH: Final = 2.0
_UNKNOWN_ENOUGH_S: Final = 1.0
_BACKOFF_S: Final = 0.05
_MOST_BACKOFF_S: Final = 1.0


def attempt_s(left_s: float, attempts_left: int, p99_s: float | None, timeout_s: float) -> float:
    """What an attempt may take, in seconds.

    Args:
        left_s: until the caller's deadline; infinite where there is none.
        attempts_left: this one included.
        p99_s: of what answers take; None while that is unknown.
        timeout_s: of an attempt without a deadline.
    """
    if math.isinf(left_s):
        return timeout_s
    if attempts_left <= 1:
        return left_s
    enough_s = left_s / 2.0 if p99_s is None else _ENOUGH * p99_s
    return min(left_s, max(enough_s, min(left_s / attempts_left, patience_s(p99_s))))


def patience_s(p99_s: float | None) -> float:
    """From when on a replica that is silent counts as one that hangs, however much time is left, in seconds."""
    return math.inf if p99_s is None else max(_FEWEST_PATIENCE_S, _PATIENCE * p99_s)


def was_enough(took_s: float, p99_s: float | None) -> bool:
    """Whether a replica that is well would have answered in *took_s* seconds."""
    return took_s >= (_UNKNOWN_ENOUGH_S if p99_s is None else _ENOUGH * p99_s)


def backoff_s(retry: int, rng: random.Random) -> float:
    """What to wait before retry number *retry*, from 0: rand(0, min(1 s, 50 ms x 2^retry)).

    Source: "full jitter", Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
    """
    return rng.uniform(0.0, min(_MOST_BACKOFF_S, _BACKOFF_S * 2.0 ** min(retry, 16)))
