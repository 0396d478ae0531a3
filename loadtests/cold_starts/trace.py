"""Days of traffic over many models in the shape of the Azure Functions trace of 2019.

Source of the shape: Shahrad et al., "Serverless in the Wild: Characterizing and Optimizing the Serverless Workload at a
Large Cloud Provider" (USENIX ATC 2020), sections 3.2 to 3.4. What is taken over, by application:

- popularity: 45 % are called once an hour or less on average, 81 % once a minute or less; the few others make nearly
  all calls;
- 13 % are called by timers alone, and 16 % by timers and by others; periods are minutes to a day, and calls come on
  the second, give or take a little;
- 40 % have inter-arrival times with a coefficient of variation above 1: they come in bursts, as do those called by a
  timer and by others; what is left lies between the timer's 0 and 1, which is memoryless;
- a rhythm of days and weeks in one half of the calls, and none in the other;
- memory, where models differ: 170 MB in the middle, 400 MB for one in ten.

Not the trace itself, which cannot be had offline: how often each kind occurs is drawn from the distributions above, by
a seed. Rates end at `MOST_PER_S`: what is called more often is warm under every policy, and would only take time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

DAY_S = 86_400.0
MOST_PER_S = 3 / 60
_TIMERS_S = (300.0, 600.0, 900.0, 900.0, 1800.0, 1800.0, 3600.0, 3600.0, 3600.0, 6 * 3600.0, DAY_S)


class Kind(StrEnum):
    """What calls a model."""

    TIMER = "timer"
    TIMER_AND_PEOPLE = "timer and people"
    STEADY = "steady"
    BURSTS = "bursts"


_SHARES = {Kind.TIMER: 0.13, Kind.TIMER_AND_PEOPLE: 0.16, Kind.STEADY: 0.31, Kind.BURSTS: 0.40}


@dataclass(frozen=True, slots=True)
class Traffic:
    """The calls of one model.

    Attributes:
        arrivals_s: ascending, in seconds from the start.
        per_s: their mean rate as it was drawn.
        nbytes: memory that the model takes.
        load_s: seconds that loading it takes.
    """

    kind: Kind
    arrivals_s: tuple[float, ...]
    per_s: float
    nbytes: int
    load_s: float


def traffic(models: int, days: float, seed: int, *, alike: bool = True) -> Sequence[Traffic]:
    """The calls of so many models over so many days.

    Args:
        alike: whether all models take the same memory and time to load; else both are log-normal.
    """
    rng = random.Random(seed)
    kinds = rng.choices(list(_SHARES), list(_SHARES.values()), k=models)
    return [_one(kind, days * DAY_S, rng, alike=alike) for kind in kinds]


def _one(kind: Kind, end_s: float, rng: random.Random, *, alike: bool) -> Traffic:
    per_s = _rate_per_s(rng)
    phase_s = rng.gauss(0.0, 2 * 3600.0)
    period_s = rng.choice(_TIMERS_S)
    if kind in (Kind.TIMER, Kind.TIMER_AND_PEOPLE):
        times = list(_timer(period_s, end_s, rng))
        if kind is Kind.TIMER_AND_PEOPLE:
            times += _memoryless(min(per_s, 1 / 1800), end_s, phase_s, rng)
        per_s = len(times) / end_s
    elif kind is Kind.STEADY:
        times = list(_steady(per_s, end_s, phase_s, rng))
    else:
        times = list(_bursts(per_s, end_s, phase_s, rng))
    megabytes = 200.0 if alike else min(max(rng.lognormvariate(math.log(170), 0.67), 10.0), 4000.0)
    load_s = 4.0 if alike else min(max(megabytes / 50 * rng.lognormvariate(0.0, 0.5), 0.3), 90.0)
    return Traffic(kind, tuple(sorted(times)), per_s, int(megabytes * 1e6), load_s)


def _rate_per_s(rng: random.Random) -> float:
    """A mean rate: log-uniform between the quantiles that the paper names."""
    place = rng.random()
    if place < 0.45:
        low, high = 1 / (2 * DAY_S), 1 / 3600
    elif place < 0.81:
        low, high = 1 / 3600, 1 / 60
    else:
        low, high = 1 / 60, MOST_PER_S
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _timer(period_s: float, end_s: float, rng: random.Random) -> Iterator[float]:
    jitter_s = rng.choice((0.05, 0.5, 5.0))
    due_s = rng.uniform(0.0, period_s)
    while due_s < end_s:
        yield due_s + abs(rng.gauss(0.0, jitter_s))
        due_s += period_s


def _memoryless(per_s: float, end_s: float, phase_s: float, rng: random.Random) -> Iterator[float]:
    """A Poisson process whose rate follows the day, by thinning (Lewis and Shedler 1979)."""
    now_s, peak_per_s = 0.0, per_s * 2.0
    while (now_s := now_s + rng.expovariate(peak_per_s)) < end_s:
        if rng.random() < _rhythm(now_s + phase_s) / 2.0:
            yield now_s


def _steady(per_s: float, end_s: float, phase_s: float, rng: random.Random) -> Iterator[float]:
    """Gamma-distributed gaps with a coefficient of variation between 0.2 and 1; their mean follows the day."""
    shape = 1.0 / rng.uniform(0.2, 1.0) ** 2
    now_s = rng.uniform(0.0, 1.0 / per_s)
    while now_s < end_s:
        yield now_s
        now_s += rng.gammavariate(shape, 1.0 / (shape * per_s * _rhythm(now_s + phase_s)))


def _bursts(per_s: float, end_s: float, phase_s: float, rng: random.Random) -> Iterator[float]:
    """Bursts that come as a Poisson process, of a geometric number of calls some seconds to minutes apart."""
    calls = rng.choice((3, 10, 30))
    gap_s = math.exp(rng.uniform(math.log(2.0), math.log(180.0)))
    for start_s in _memoryless(per_s / calls, end_s, phase_s, rng):
        now_s = start_s
        while now_s < end_s:
            yield now_s
            if rng.random() < 1.0 / calls:
                break
            now_s += rng.expovariate(1.0 / gap_s)


def _rhythm(now_s: float) -> float:
    """The rate at an hour of the week, relative to its mean, 2.0 at most: half of it is there day and night."""
    day = int(now_s // DAY_S) % 7
    people = 1.0 + math.sin(2 * math.pi * (now_s / DAY_S - 0.25))
    return 0.5 + people * (0.5 if day < 5 else 0.3)
