"""What a comparison says of the goals: throughput kept, and latency added beside what a hop adds."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from loadtests.front.sides import SMALL, Width
from loadtests.peers.goals import LEAST_ROUNDS, Cell, Verdict
from loadtests.peers.servers import Form
from loadtests.ratios import Spread, ratio

_KEPT = 0.95
_KEPT_IN_SHARED_MEMORY = 0.98
_ADDED = {"p50_ms": 2.0, "p99_ms": 3.0}


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that was asked for.

    Attributes:
        what: in words.
        bound: the least, or the most if *at_most*.
    """

    width: str
    form: Form
    clients: int
    what: str
    found: Spread
    bound: float
    at_most: bool
    verdict: Verdict

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        found = f"{self.found.median:g} ({self.found.low:g} to {self.found.high:g})"
        where = f"{self.width}, {self.form}, {self.clients} clients"
        return f"{self.verdict:5} {where}: {self.what} {sign} {self.bound:g}: {found}"


def goals(width: Width, cells: Sequence[Cell]) -> list[Goal]:
    """Goal 2 for every way through the gateway, at every number of clients of the closed loop."""
    closed = [cell for cell in cells if cell.clients is not None and {"triton", "hop"} <= cell.samples.keys()]
    return list(chain.from_iterable(_goals(width, cell, name) for cell in closed for name in cell.samples))


def _goals(width: Width, cell: Cell, name: str) -> Iterator[Goal]:
    if not name.startswith("gateway"):
        return
    clients = cell.clients or 0
    if name == "gateway-regions":
        if "regions" in cell.samples:
            own, direct = ([s.rate for s in cell.samples[side]] for side in (name, "regions"))
            what = f"rate of {name} / regions"
            yield _goal(width, cell, what, ratio(own, direct), _KEPT_IN_SHARED_MEMORY, at_most=False)
        return
    ours, alone, hop = (cell.samples[each] for each in (name, "triton", "hop"))
    least = 1.0 if width is SMALL and clients > 1 else _KEPT_IN_SHARED_MEMORY if name == "gateway-shm" else _KEPT
    kept = ratio([s.rate for s in ours], [s.rate for s in alone])
    yield _goal(width, cell, f"rate of {name} / triton", kept, least, at_most=False)
    for figure, bound in _ADDED.items():
        added = added_ratio(*([float(getattr(s, figure)) for s in side] for side in (ours, hop, alone)))
        what = f"{figure.removesuffix('_ms')} that {name} adds / that a hop adds"
        yield _goal(width, cell, what, added, bound, at_most=True)


def _goal(width: Width, cell: Cell, what: str, found: Spread, bound: float, *, at_most: bool) -> Goal:
    rounds = min(map(len, cell.samples.values()))
    holds = found.high <= bound if at_most else found.low >= bound
    fails = found.low > bound if at_most else found.high < bound
    verdict = Verdict.OPEN
    if rounds >= LEAST_ROUNDS and (holds or fails):
        verdict = Verdict.HOLDS if holds else Verdict.FAILS
    return Goal(width.name, cell.form, cell.clients or 0, what, found, bound, at_most, verdict)


def added_ratio(ours: Sequence[float], hop: Sequence[float], alone: Sequence[float]) -> Spread:
    """(ours - alone) / (hop - alone), of medians, with a bootstrap interval of 95 %; the same for the same values.

    Where the hop adds nothing that can be told from 0, the ratio is that over 1 us.
    """
    rng = random.Random(0)

    def of(a: Sequence[float], b: Sequence[float], c: Sequence[float]) -> float:
        base = statistics.median(c)
        return (statistics.median(a) - base) / max(statistics.median(b) - base, 0.001)

    drawn = sorted(of(*(rng.choices(side, k=len(side)) for side in (ours, hop, alone))) for _ in range(1000))
    return Spread(round(drawn[25], 3), round(of(ours, hop, alone), 3), round(drawn[975], 3))
