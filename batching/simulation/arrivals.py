"""When requests come: seeded traces of single items, all with the same time to their deadline."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from backends.contract import record
from batching.simulation.simulator import Request

Trace = tuple[Request, ...]


@record
class Bursts:
    """A two-state Markov-modulated Poisson process: calm, and now and then a burst.

    Attributes:
        peak: arrival rate in a burst, over the mean rate.
        duty: part of the time that is bursts; `peak * duty` must not exceed 1.
        burst_s: mean length of a burst.

    Raises:
        ValueError: bursts alone would bring more than the mean rate.
    """

    peak: float = 3.0
    duty: float = 0.25
    burst_s: float = 0.2

    def __post_init__(self) -> None:
        if not (0.0 < self.duty < 1.0 and 0.0 < self.peak * self.duty <= 1.0 and self.burst_s > 0.0):
            raise ValueError(
                f"bursts of {self.peak} times the mean rate for {self.duty} of the time are no mixture of it"
            )


def poisson(rate_per_s: float, count: int, within_s: float, seed: int) -> Trace:
    """*count* requests at independent moments."""
    return _trace(_poisson(rate_per_s, random.Random(seed)), count, within_s)


def bursts(rate_per_s: float, count: int, within_s: float, seed: int, shape: Bursts | None = None) -> Trace:
    """*count* requests, calm and bursts by turns, at *rate_per_s* on average."""
    return _trace(_bursts(rate_per_s, shape or Bursts(), random.Random(seed)), count, within_s)


def diurnal(rate_per_s: float, count: int, within_s: float, seed: int, *, swing: float = 0.8) -> Trace:
    """*count* requests whose rate follows one sine over the trace, between 1 - *swing* and 1 + *swing* times the mean.

    Source: thinning, Lewis and Shedler (1979).
    """
    day_s = count / rate_per_s
    rng = random.Random(seed)
    candidates = _poisson(rate_per_s * (1.0 + swing), rng)
    kept = (
        at_s
        for at_s in candidates
        if rng.random() * (1.0 + swing) <= 1.0 + swing * math.sin(2.0 * math.pi * at_s / day_s)
    )
    return _trace(kept, count, within_s)


def replayed(file: Path, within_s: float, rate_per_s: float | None = None) -> Trace:
    """The moments of *file*, one number of seconds a line, in order of time.

    Args:
        rate_per_s: the mean rate to which the trace is stretched; None: as it was.

    Raises:
        ValueError: a line is no number, or there are fewer than two; names the line.
    """
    moments = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            at_s = float(line)
        except ValueError:
            raise ValueError(f"{file}:{number}: {line[:40]!r} is no number of seconds") from None
        if not math.isfinite(at_s):
            raise ValueError(f"{file}:{number}: {line[:40]!r} is no finite number of seconds")
        moments.append(at_s)
    moments.sort()
    if len(moments) < 2 or moments[0] == moments[-1]:
        raise ValueError(f"{file}: a trace needs at least two requests at different moments")
    trace = tuple([Request(at_s - moments[0], within_s) for at_s in moments])
    return trace if rate_per_s is None else stretched(trace, rate_per_s)


def stretched(trace: Sequence[Request], rate_per_s: float) -> Trace:
    """*trace* from time 0 on, at a mean rate of exactly *rate_per_s*; its requests' deadlines stay as far away.

    A trace of a dozen bursts is far off the mean that it was drawn for, and what is measured on it at one load would
    belong to another.
    """
    stretch = mean_rate_per_s(trace) / rate_per_s
    return tuple([replace(request, at_s=(request.at_s - trace[0].at_s) * stretch) for request in trace])


def mean_rate_per_s(trace: Sequence[Request]) -> float:
    """Requests a second, from the first to the last."""
    return (len(trace) - 1) / (trace[-1].at_s - trace[0].at_s)


def _trace(moments: Iterator[float], count: int, within_s: float) -> Trace:
    return tuple([Request(next(moments), within_s) for _ in range(count)])


def _poisson(rate_per_s: float, rng: random.Random) -> Iterator[float]:
    now = 0.0
    while True:
        now += rng.expovariate(rate_per_s)
        yield now


def _bursts(rate_per_s: float, shape: Bursts, rng: random.Random) -> Iterator[float]:
    rates = {True: rate_per_s * shape.peak, False: rate_per_s * (1.0 - shape.peak * shape.duty) / (1.0 - shape.duty)}
    stays_s = {True: shape.burst_s, False: shape.burst_s * (1.0 - shape.duty) / shape.duty}
    now, is_burst = 0.0, False
    changes_s = rng.expovariate(1.0 / stays_s[is_burst])
    while True:
        comes_s = now + rng.expovariate(rates[is_burst]) if rates[is_burst] > 0.0 else math.inf
        if comes_s < changes_s:
            now = comes_s
            yield now
        else:  # what would have come after the change is drawn anew: the process has no memory
            now, is_burst = changes_s, not is_burst
            changes_s = now + rng.expovariate(1.0 / stays_s[is_burst])
