"""How long a batch of b items takes: the curve that policies plan with, and what routing sees as `latency_s`.

`LatencyCurve` learns it online for one model and shape bucket, as a line times a spread: least squares through the
recent batches gives intercept and slope, and the quantiles of what they took over what the line says give the rest.
Whoever routes asks for the median, what one more item should expect; a policy asks for a high quantile, since one that
plans with the middle misses every deadline that the tail decides. A mean was rejected: it serves neither. The spread
is a factor, not seconds: a batch of 64 strays further than a batch of one.

**What one size cannot teach.** Batches of one size say nothing of another, and a model may see but one size for hours.
So each fit is held, by a tenth of two observations' weight, to the line before it, raised to what batches take now: the
shape is kept as long as nothing speaks against it, the height follows at once. Before anything is known the line is
taken to go through zero: too steep for an accelerator, which costs a few batches that could have been larger, and those
teach it.

Errors count relative to what a batch took, or the largest would decide alone.

**It forgets.** A request that the estimate says cannot make it is not sent, so an estimate that only a new batch can
correct would, after one slow batch (a cold start, a pause), keep every later one away and never recover. Hence what is
older than some seconds does not count but for the shape, and where nothing counts, nothing stands in the way of asking
again. A model that is slower than this memory is long pays with an attempt now and then that cannot make it. For the
same reason nothing is predicted before the second batch: the first may have been a cold start. Where the second shows
that it was, the first is dropped: among few batches one such is the 95th percentile, and nobody would seem safe.

**It samples.** Of batches that follow each other within a millisecond, one counts: of so fast a model there is nothing
to plan, and learning would cost more than the batch.

**It notices.** After `_STREAK` batches in a row that all took much longer, or all much less, than the median, what came
before them is another regime's (throttled, moved, loaded by a neighbour) and is dropped at once, not one by one.

Sources: Clockwork (OSDI 2020) and Orloj (2022) on predictability and distributions; BentoML's dispatcher fits a line
too, and plans with it as if nothing strayed.

No clock here: the time is passed in, always by the same clock.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

_WINDOW: Final = 64  # batches
_MEMORY_S: Final = 10.0
_ENOUGH: Final = 2  # of them; one may have been a cold start
_TYPICAL: Final = 0.5
_CAUTIOUS: Final = 0.95
_STREAK: Final = 8
_COLD: Final = 2.0  # times what the next batch says, at the least: a first batch that took so long was a cold start
_STRAYS: Final = 1.25  # times the median, or less than the median over it
_HOLD: Final = 0.1  # the weight of what was known before, at either end of the line
_EAGER_FITS: Final = 16  # until so many batches are known each is fitted at once, later every `_FIT_EVERY`th
_FIT_EVERY: Final = 8
_MOST_KINDS: Final = 64
_SPACING_S: Final = 0.001  # of the batches that count, once the window is full
_SHORTEST_S: Final = 1e-9  # what a batch counts as that took no time


class Latency(Protocol):
    """An estimate that learns from the batches it is shown."""

    def observe(self, size: int, infer_s: float, now: float) -> None:
        """Learn that a batch of *size* items, answered at *now*, took *infer_s* seconds."""
        ...

    def typical_s(self, size: int, now: float) -> float:
        """Seconds that a batch of *size* items is expected to take; 0.0 where nothing is known."""
        ...

    def cautious_s(self, size: int, now: float) -> float:
        """Seconds that hardly any batch of *size* items exceeds; 0.0 where nothing is known."""
        ...

    def largest_within(self, left_s: float, most: int, now: float) -> int:
        """The most items, up to *most*, that hardly ever take longer than *left_s*; *most* where nothing is known."""
        ...

    def line(self, now: float) -> Line | None:
        """What is typical, by size; None where nothing is known."""
        ...

    @property
    def largest(self) -> int:
        """Items of the largest batch that it has ever seen; 1 before the first."""
        ...

    @property
    def has_shape(self) -> bool:
        """Whether it has ever seen batches of different sizes, so that its slope is more than a guess."""
        ...


class Forecast(NamedTuple):
    """What a new item has to expect.

    Attributes:
        wait_s: seconds that it would queue.
        latency_s: seconds that a batch of it alone should take then (the median); 0.0 where nothing recent is known.
    """

    wait_s: float
    latency_s: float


class Line(NamedTuple):
    """Seconds that a batch takes, by its size."""

    intercept_s: float
    slope_s: float

    def at(self, size: int) -> float:
        """Seconds for *size* items, more than none."""
        return max(self.intercept_s + self.slope_s * size, _SHORTEST_S)

    def times(self, factor: float) -> Line:
        """The same shape at another height."""
        return Line(self.intercept_s * factor, self.slope_s * factor)


class LatencyCurve:
    """The median and the 95th percentile by batch size, from the last 64 batches, at most 10 seconds old."""

    __slots__ = (
        "_cautious",
        "_fresh",
        "_is_warm",
        "_largest",
        "_line",
        "_next_s",
        "_ratios",
        "_recent",
        "_smallest",
        "_streak",
        "_typical",
    )

    def __init__(self) -> None:
        self._line: Line | None = None
        self._recent: deque[tuple[float, int, float, float]] = deque()  # (answered at, size, took, took / line)
        self._ratios: list[float] = []  # those of the recent batches, in order
        self._typical: Line | None = None  # the quantiles of these, times the line
        self._cautious: Line | None = None
        self._largest = 1
        self._smallest = sys.maxsize
        self._is_warm = False  # whether a cold start was dropped, so that none can be among the recent batches
        self._fresh = 0  # batches since the last fit
        self._streak = 0  # how many in a row were much slower (positive) or faster (negative) than the median
        self._next_s = -math.inf

    @property
    def largest(self) -> int:
        """Items of the largest batch so far; 1 before the first."""
        return self._largest

    @property
    def has_shape(self) -> bool:
        """Whether batches of different sizes have come."""
        return self._smallest < self._largest

    def observe(self, size: int, infer_s: float, now: float) -> None:
        """Learn that a batch of *size* items, answered at *now*, took *infer_s* seconds."""
        if now < self._next_s and len(self._recent) == _WINDOW:
            return
        self._next_s = now + _SPACING_S
        self._forget(now)
        if self._line is None:
            self._line = Line(0.0, infer_s / size)
        ratio = infer_s / self._line.at(size)
        self._follow_streak(ratio)
        self._remember(now, size, infer_s, ratio)
        if len(self._recent) == _ENOUGH and self._began_cold():
            self._forget_oldest()
            self._is_warm = True
        if len(self._recent) > _WINDOW:
            self._forget_oldest()
        if self._streak in (_STREAK, -_STREAK):
            self._drop_all_but(_STREAK)
        self._largest = max(self._largest, size)
        self._smallest = min(self._smallest, size)
        self._fresh += 1
        if self._fresh >= _FIT_EVERY or len(self._recent) <= _EAGER_FITS:
            self._fit()
        self._settle()

    def typical_s(self, size: int, now: float) -> float:
        """The median for *size* items; 0.0 where nothing recent is known."""
        if self._recent and self._recent[0][0] < now - _MEMORY_S:
            self._forget(now)
        return self._typical.at(size) if self._typical is not None else 0.0

    def cautious_s(self, size: int, now: float) -> float:
        """The 95th percentile for *size* items; 0.0 where nothing recent is known."""
        self._forget(now)
        return self._cautious.at(size) if self._cautious is not None else 0.0

    def line(self, now: float) -> Line | None:
        """The medians, as a line; None where nothing recent is known."""
        self._forget(now)
        return self._typical

    def largest_within(self, left_s: float, most: int, now: float) -> int:
        """The most items, up to *most*, of which a batch hardly ever takes longer than *left_s*; 0: not even one's."""
        self._forget(now)
        if self._cautious is None or left_s >= self._cautious.at(most):
            return most
        intercept_s, slope_s = self._cautious
        return max(0, math.floor((left_s - intercept_s) / slope_s)) if slope_s > 0.0 else 0

    def curve(self, sizes: Iterable[int], now: float) -> list[tuple[int, float, float]]:
        """(size, median, 95th percentile), in seconds, for each of *sizes*; empty where nothing recent is known."""
        if self.line(now) is None:
            return []
        return [(size, self.typical_s(size, now), self.cautious_s(size, now)) for size in sizes]

    def _forget(self, now: float) -> None:
        """Drop what is too old."""
        if self._recent and self._recent[0][0] < now - _MEMORY_S:
            while self._recent and self._recent[0][0] < now - _MEMORY_S:
                self._forget_oldest()
            self._is_warm = self._is_warm and bool(self._recent)
            self._settle()

    def _settle(self) -> None:
        """Note what follows from the recent batches: it is asked for with every request."""
        if self._line is None or len(self._ratios) < (1 if self._is_warm else _ENOUGH):
            self._typical = self._cautious = None
            return
        self._typical = self._line.times(self._ratios[_rank(_TYPICAL, len(self._ratios))])
        self._cautious = self._line.times(self._ratios[_rank(_CAUTIOUS, len(self._ratios))])

    def _remember(self, at_s: float, size: int, infer_s: float, ratio: float) -> None:
        self._recent.append((at_s, size, infer_s, ratio))
        insort(self._ratios, ratio)

    def _forget_oldest(self) -> None:
        ratio = self._recent.popleft()[3]
        del self._ratios[bisect_left(self._ratios, ratio)]

    def _began_cold(self) -> bool:
        """Whether the first of two batches took much longer than it could have, even in proportion to its size."""
        (_, first, first_s, _), (_, second, second_s, _) = self._recent
        return first_s > _COLD * second_s * max(1.0, first / second)

    def _drop_all_but(self, latest: int) -> None:
        while len(self._recent) > latest:
            self._forget_oldest()
        self._streak = 0
        self._fresh = _FIT_EVERY

    def _follow_streak(self, ratio: float) -> None:
        """Count how many batches in a row strayed to the same side of the median."""
        if not self._ratios:
            self._streak = 0
            return
        median = self._ratios[_rank(_TYPICAL, len(self._ratios))]
        if ratio > median * _STRAYS:
            self._streak = max(self._streak, 0) + 1
        elif ratio * _STRAYS < median:
            self._streak = min(self._streak, 0) - 1
        else:
            self._streak = 0

    def _fit(self) -> None:
        """Draw the line anew, and measure what is recent against it."""
        assert self._line is not None, "a curve was fitted that has seen nothing. This is a bug."
        self._fresh = 0
        raised = self._line.times(self._ratios[_rank(_TYPICAL, len(self._ratios))])
        points = [(size, infer_s, 1.0 / max(infer_s, _SHORTEST_S) ** 2) for _, size, infer_s, _ in self._recent]
        mean_s = sum([infer_s for _, infer_s, _ in points]) / len(points)
        held = [(size, raised.at(size)) for size in (1, self._largest)]
        points += [(size, held_s, _HOLD / max(held_s, mean_s) ** 2) for size, held_s in held]
        self._line = _least_squares(points)
        batches, self._recent, self._ratios = self._recent, deque(), []
        for at_s, size, infer_s, _ in batches:
            self._remember(at_s, size, infer_s, infer_s / self._line.at(size))


def _rank(fraction: float, count: int) -> int:
    """Where in *count* ordered values the quantile *fraction* stands."""
    return math.ceil(fraction * count) - 1


def _least_squares(points: Iterable[tuple[int, float, float]]) -> Line:
    """The line nearest to (size, seconds, weight), neither of its numbers below zero."""
    w = wx = wy = wxx = wxy = 0.0
    for x, y, weight in points:
        w += weight
        wx += weight * x
        wy += weight * y
        wxx += weight * x * x
        wxy += weight * x * y
    spread = w * wxx - wx * wx
    slope_s = (w * wxy - wx * wy) / spread if spread > 1e-9 * w * wxx else wxy / wxx
    if slope_s < 0.0:
        return Line(wy / w, 0.0)
    intercept_s = (wy - slope_s * wx) / w
    return Line(intercept_s, slope_s) if intercept_s >= 0.0 else Line(0.0, wxy / wxx)


class Arrivals:
    """How fast items come: over the last 16 arrivals, and slower the longer none comes."""

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=16)

    def observe(self, size: int, now: float) -> None:
        """*size* items have come."""
        self._recent.append((now, size))

    def below_at_s(self, per_s: float) -> float:
        """When the rate will have fallen to *per_s*, if nothing comes; the past where it has."""
        if len(self._recent) < 2:
            return -math.inf
        items = sum([size for _, size in self._recent]) - self._recent[0][1]
        return self._recent[0][0] + items / per_s

    def per_s(self, now: float) -> float:
        """Items a second; 0.0 where there is no telling."""
        if len(self._recent) < 2 or now <= self._recent[0][0]:
            return 0.0
        items = sum(size for _, size in self._recent) - self._recent[0][1]
        return items / (now - self._recent[0][0])


class Kind:
    """What is known of the batches of one shape bucket.

    Attributes:
        latency: what they take.
        arrivals: how fast their items come.
    """

    __slots__ = ("arrivals", "latency")

    def __init__(self, latency: Latency) -> None:
        self.latency = latency
        self.arrivals = Arrivals()


class _Bucket:
    """The curve of one bucket, and while that knows nothing recent, that of all of them."""

    __slots__ = ("_all", "_own")

    def __init__(self, everything: LatencyCurve) -> None:
        self._own = LatencyCurve()
        self._all = everything

    @property
    def largest(self) -> int:
        return self._own.largest

    @property
    def has_shape(self) -> bool:
        return self._own.has_shape

    def observe(self, size: int, infer_s: float, now: float) -> None:
        self._own.observe(size, infer_s, now)
        self._all.observe(size, infer_s, now)

    def typical_s(self, size: int, now: float) -> float:
        return self._own.typical_s(size, now) or self._all.typical_s(size, now)

    def cautious_s(self, size: int, now: float) -> float:
        return self._own.cautious_s(size, now) or self._all.cautious_s(size, now)

    def largest_within(self, left_s: float, most: int, now: float) -> int:
        known = self._own if self._own.line(now) else self._all
        return known.largest_within(left_s, most, now)

    def line(self, now: float) -> Line | None:
        return self._own.line(now) or self._all.line(now)

    def curve(self, sizes: Iterable[int], now: float) -> list[tuple[int, float, float]]:
        return self._own.curve(sizes, now)


class Kinds:
    """One `Kind` a shape bucket, the 64 that were last wanted; callers choose shapes, so there may be any number.

    Args:
        has_buckets: whether batches differ in shape at all; where they do not, one curve is all there is.

    Attributes:
        latency: of all batches, whatever their shape.
    """

    __slots__ = ("_has_buckets", "_kinds", "latency")

    def __init__(self, *, has_buckets: bool) -> None:
        self.latency = LatencyCurve()
        self._has_buckets = has_buckets
        self._kinds: OrderedDict[Hashable, Kind] = OrderedDict()

    def of(self, key: Hashable) -> Kind:
        """What is known of *key*."""
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(_Bucket(self.latency) if self._has_buckets else self.latency)
            if len(self._kinds) > _MOST_KINDS:
                self._kinds.popitem(last=False)
        elif self._has_buckets:
            self._kinds.move_to_end(key)
        return kind

    def arrivals_per_s(self, now: float) -> float:
        """Items a second, of all kinds."""
        return sum([kind.arrivals.per_s(now) for kind in self._kinds.values()])

    def curves(self, sizes: Sequence[int], now: float) -> Iterator[tuple[Hashable, list[tuple[int, float, float]]]]:
        """The curve of every key of which something recent is known; see `LatencyCurve.curve`."""
        for key, kind in self._kinds.items():
            if isinstance(kind.latency, _Bucket) and (found := kind.latency.curve(sizes, now)):
                yield key, found
