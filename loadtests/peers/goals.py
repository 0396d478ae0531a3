"""What the samples of a run say: ratios between servers, and whether the goals hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from loadtests.peers.servers import Form
from loadtests.ratios import Spread, ratio

GATEWAYS = ("gateway", "gateway-2", "gateway-grpcio")
TENFOLD = ("kserve", "mlserver", "litserve", "bentoml")
"""Peers of which the gateway is to do ten times the requests, in each of their variants."""

LEAST_ROUNDS = 5
"""Fewer say nothing of how much rounds differ, and so nothing of a goal."""

FIGURES = ("rate", "p50_ms", "p99_ms", "server_cpu_us")


@dataclass(frozen=True, slots=True)
class Sample:
    """One server, asked in one way for some seconds.

    Attributes:
        rate: right replies a second.
        p50_ms, p99_ms: of right replies.
        server_cpu_us: of the process tree, per right reply.
        generator_busy: the generator's CPU time over the time that it took.
        errors: requests that ended in another way.
        is_late: open loop: the generator did not keep to its schedule.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float
    generator_busy: float
    errors: int = 0
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """Servers that were asked in the same way, in turns.

    Attributes:
        clients: of the closed loop; None: an open one.
        offered: requests a second of the open loop; None: a closed one.
        samples: by server.
    """

    form: Form
    clients: int | None
    offered: float | None
    samples: Mapping[str, Sequence[Sample]]


class Verdict(StrEnum):
    """What an interval says of a bound."""

    HOLDS = "holds"
    FAILS = "fails"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two servers in one cell: *ours* over *theirs*, of every figure that both have, over so many *rounds*."""

    form: Form
    clients: int | None
    offered: float | None
    ours: str
    theirs: str
    rounds: int
    figures: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio that was asked for.

    Attributes:
        bound: what it is to reach; the least, or the most if *at_most*.
    """

    ours: str
    theirs: str
    form: Form
    clients: int
    figure: str
    ratio: Spread
    bound: float
    at_most: bool
    rounds: int

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval is on the right side of the bound or on the wrong one; open if neither."""
        low, high = self.ratio.low, self.ratio.high
        if self.rounds < LEAST_ROUNDS:
            return Verdict.OPEN
        if (high <= self.bound) if self.at_most else (low >= self.bound):
            return Verdict.HOLDS
        if (low > self.bound) if self.at_most else (high < self.bound):
            return Verdict.FAILS
        return Verdict.OPEN

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        found = f"{self.ratio.median:g} ({self.ratio.low:g} to {self.ratio.high:g})"
        what = f"{self.figure} of {self.ours} / {self.theirs}, {self.form}, {self.clients} clients"
        return f"{self.verdict:5} {what} {sign} {self.bound:g}: {found}"


def ratios(cells: Sequence[Cell]) -> list[Ratio]:
    """Every gateway over every other server that it shared a cell with."""
    return [
        _ratio(cell, ours, theirs)
        for cell in cells
        for ours in GATEWAYS
        if ours in cell.samples
        for theirs in cell.samples
        if theirs != ours
    ]


def _ratio(cell: Cell, ours: str, theirs: str) -> Ratio:
    figures = {}
    for figure in FIGURES:
        own, other = ([float(getattr(s, figure)) for s in cell.samples[name]] for name in (ours, theirs))
        if min(other) > 0.0:  # CPU time is counted in hundredths of a second: of few requests there may be none
            figures[figure] = ratio(own, other)
    rounds = min(len(cell.samples[name]) for name in (ours, theirs))
    return Ratio(cell.form, cell.clients, cell.offered, ours, theirs, rounds, figures)


def goals(found: Sequence[Ratio]) -> list[Goal]:
    """Goal 1, as far as its servers were there.

    1. throughput at least Triton's, at every number of clients
    2. at least ten times that of each of `TENFOLD`
    3. gRPC: p50 of one client at most half of Triton's
    """
    return [goal for each in found if each.clients is not None for goal in _goals(each, each.clients)]


def _goals(found: Ratio, clients: int) -> Iterator[Goal]:
    def goal(figure: str, bound: float, at_most: bool = False) -> Goal:
        measured = found.figures[figure]
        return Goal(found.ours, found.theirs, found.form, clients, figure, measured, bound, at_most, found.rounds)

    if found.theirs == "triton":
        yield goal("rate", 1.0)
        if found.form is Form.GRPC and clients == 1:
            yield goal("p50_ms", 0.5, at_most=True)
    if found.theirs.partition("-")[0] in TENFOLD:
        yield goal("rate", 10.0)
