"""How long a model stays unused between two uses, and what follows for when to have it in memory.

**Source.** Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), the hybrid histogram policy: a histogram of idle
times per application; load just before the 5th percentile, keep until the 99th, with a margin of 10 % on either side;
where the histogram says too little, keep for a fixed time and load nothing ahead.

**Where we differ.**
- Bins are geometric, each 5 % wider than the one before, from one second to two days. The paper's are a minute wide
  and end after four hours, and applications whose idle times are mostly longer get an ARIMA model. Geometric bins
  err by the same share everywhere (less than the margin), reach two days in 250 bins, and make that model needless.
- A model lingers for a minute after every use, and percentiles are those of idle times longer than that. The paper's
  are of all idle times: whoever sends five requests every hour is then kept all the time, since most idle times are
  short.
- Whether a histogram can be relied on: `LEAST_SAMPLES`, and not more than half of them beyond the last bin. The paper
  asks for a coefficient of variation of the bin counts as well; in bins of unequal width that tells little.
- Old idle times fade: all counts are halved whenever they reach `FULL`. The paper keeps a histogram a day and drops
  it after two weeks, which needs a calendar.
- What a model is worth that competes for memory (`IdleTimes.uses_per_s`) is not in the paper, which has a machine's
  worth of memory for every application: see there.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np

from backends.contract import HostArray, record

_GROWTH: Final = 1.05
_LONGEST_S: Final = 48 * 3600.0
_BINS: Final = 2 + math.ceil(math.log(_LONGEST_S) / math.log(_GROWTH))
_EDGES_S: Final = [0.0, *(_GROWTH**i for i in range(_BINS))]  # bin i is from edge i up to edge i + 1
_LOWER_S: Final[HostArray] = np.array(_EDGES_S[:-1])
_UPPER_S: Final[HostArray] = np.array(_EDGES_S[1:])
_MIDDLE_S: Final[HostArray] = (_LOWER_S + _UPPER_S) / 2

LEAST_SAMPLES: Final = 5
"""Idle times below which a histogram says nothing."""

FULL: Final = 2048.0
"""The weight at which old idle times begin to fade."""

_SHORTEST_S: Final = 1.0  # what is shorter is one use: nothing could be decided in between
_MOST_BEYOND: Final = 0.5
_NEWS: Final = 0.05  # share of new idle times at which a window is cut anew


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """How windows are cut from histograms.

    Attributes:
        head: share of idle times that may end before the model is there again.
        tail: share of idle times for whose ends it is kept.
        margin: share by which the window is widened on either side.
        linger_s: seconds for which a model is kept after every use.
        fallback_s: the same for one whose histogram says too little.
        least_gap_s: seconds that a model must be away for unloading to be worth its while.
    """

    head: float = 0.05
    tail: float = 0.99
    margin: float = 0.1
    linger_s: float = 60.0
    fallback_s: float = 600.0
    least_gap_s: float = 120.0


@record
class Window:
    """When to have a model in memory, in seconds after its last use ended: until *linger_s*, and from *start_s* until
    *end_s*.

    Attributes:
        is_known: it is cut from idle times, so that a model that is not there may be loaded ahead.
    """

    linger_s: float
    start_s: float
    end_s: float
    is_known: bool = True


class IdleTimes:
    """The idle times of one model, as a histogram."""

    __slots__ = ("_answer", "_asked", "_beyond", "_counts", "_cut_at", "_total", "_version", "_window")

    def __init__(self) -> None:
        self._counts = [0.0] * _BINS
        self._beyond = 0.0
        self._total = 0.0
        self._version = 0
        self._window: tuple[KeepAlive, Window] | None = None
        self._cut_at = 0.0  # the version at which the window is out of date
        self._asked: tuple[int, int] | None = None  # the version and bin that `_answer` is about
        self._answer = 0.0

    def __repr__(self) -> str:
        return f"<IdleTimes of weight {self._total:g}, {self._beyond:g} of it beyond {_LONGEST_S:g} s>"

    def observe(self, idle_s: float) -> None:
        """It was unused for *idle_s* seconds, and is used again."""
        if idle_s < _SHORTEST_S:
            return
        index = _bin(idle_s)
        if index < _BINS:
            self._counts[index] += 1.0
        else:
            self._beyond += 1.0
        self._total += 1.0
        self._version += 1
        if self._total >= FULL:
            self._counts = [count / 2 for count in self._counts]
            self._beyond /= 2
            self._total /= 2

    def window(self, rule: KeepAlive) -> Window:
        """When to have the model in memory after a use; the fallback where too little is known."""
        if self._window is None or self._version >= self._cut_at or self._window[0] is not rule:
            self._window = (rule, self._cut(rule))
            self._cut_at = self._version + max(1.0, _NEWS * self._total)
        return self._window[1]

    def _cut(self, rule: KeepAlive) -> Window:
        first = _bin(rule.linger_s)
        weight = sum(self._counts[first:]) + self._beyond
        if weight < LEAST_SAMPLES or self._beyond > _MOST_BEYOND * weight:
            return Window(rule.fallback_s, 0.0, rule.fallback_s, is_known=False)
        start_s = _EDGES_S[self._bin_of(rule.head * weight, first)] * (1.0 - rule.margin)
        last = min(self._bin_of(rule.tail * weight, first), _BINS - 1)
        end_s = _EDGES_S[last + 1] * (1.0 + rule.margin)
        return Window(rule.linger_s, 0.0 if start_s < rule.linger_s + rule.least_gap_s else start_s, end_s)

    def _bin_of(self, weight: float, first: int) -> int:
        """The bin, from *first* on, up to which *weight* has come together; `_BINS` where the last is not enough."""
        seen = 0.0
        for index in range(first, _BINS):
            seen += self._counts[index]
            if seen >= weight and self._counts[index] > 0.0:
                return index
        return _BINS

    def uses_per_s(self, idle_s: float) -> float:
        """How many uses a second of holding the model buys, if it is held for as long as pays best.

        Held until s, a model that has been idle for t is used with probability P(T <= s | T > t), and takes memory for
        E[min(T, s) - t | T > t] seconds. The best ratio over all s is the Gittins index of holding it: among models of
        one size and one load time, keeping those of the highest index is right as long as they are independent
        (Gittins 1979). Percentiles cannot rank models; a least-recently-used order is the special case of idle times
        that are alike and whose hazard falls.

        Where too little is known, the longer something has not been used, the longer it will not be: Lindy's law,
        1 / idle time.
        """
        if self._total < LEAST_SAMPLES:
            return 1.0 / (idle_s + _SHORTEST_S)
        index = min(_bin(idle_s), _BINS - 1)
        if self._asked != (self._version, index):
            self._asked, self._answer = (self._version, index), self._index(index)
        return self._answer

    def _index(self, index: int) -> float:
        counts: HostArray = np.asarray(self._counts[index:])
        since_s = float(_LOWER_S[index])
        uses = np.cumsum(counts)
        survivors = float(uses[-1]) + self._beyond
        if uses[-1] <= 0.0:  # idle for longer than ever before: a use that is one of all that were seen
            return 1.0 / (float(_UPPER_S[index]) * (self._total + 1.0))
        held_s = np.cumsum(counts * (_MIDDLE_S[index:] - since_s)) + (survivors - uses) * (_UPPER_S[index:] - since_s)
        return float(np.max(uses / held_s))


def _bin(idle_s: float) -> int:
    return min(bisect_right(_EDGES_S, max(idle_s, 0.0)) - 1, _BINS)
