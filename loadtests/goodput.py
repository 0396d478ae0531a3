"""Goodput of batching policies in the simulator: how many requests each answers by their deadline, over load.

    python -m loadtests.goodput            about ten minutes on two cores
    python -m loadtests.goodput --quick    a minute, nothing is written

**What runs.** The production policy behind the production admission, on the production lanes and latency curve
(`batching.simulation`), and the rules of other servers, on the same traces: independent arrivals, bursts, a day, and
bursts in which 30 % of the requests are pressed and the others have ten times as long. Deadlines are 2, 3 and 5 times
what one item takes; loads are parts of the capacity, the most items a second that the slots answer with the batches
that pay best, whatever their deadlines.
Curves are *measured* on real models (`python -m loadtests.latency_curves`) or *stated*: there is no accelerator here,
and CPU curves are nearly lines through zero, where batching pays little for anybody.

**Fairness.** Triton's rule is tuned for every curve, deadline, trace and load by itself, over delays and preferred
sizes, on a trace of its own; once without and once with a queue timeout, which most deployments do not set. AIMD,
BentoML's rule, Nexus' and Symphony's are told the objective, of a mixed trace the one of the two that serves them
better. All know the curve from a warm-up at the start, if they want it. Traces are stretched to exactly their load: a
dozen bursts are up to three times off.

**The bound** knows every arrival, and that every batch takes the least that the noise allows: the more noise, the
further out of reach. "Bound, no noise" is what could be answered if batches took what is typical: no bound, but it
says what knowing the arrivals is worth. See `batching.simulation.clairvoyant`. There is none for several slots, nor for
mixed deadlines.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from batching.latency import Kinds
from batching.policy import ByDeadline, Policy
from batching.simulation.arrivals import Bursts, Trace, bursts, diurnal, poisson, stretched
from batching.simulation.baselines import Aimd, Cork, Deferred, Eager, EarlyDrop, TritonRule
from batching.simulation.clairvoyant import most_in_time
from batching.simulation.services import Curve, Noisy, Slowed
from batching.simulation.simulator import Request, simulate
from loadtests.peers.machine import machine
from loadtests.ratios import Spread, spread

RESULTS = Path(__file__).parent / "results"
OURS, BOUND, FORESIGHT = "ours", "bound", "bound, no noise"
MIXED = "mixed"
_PRESSED = 0.3  # of the requests of a mixed trace; the others have ten times as long
_PATIENCE = 10.0


def bursty(rate_per_s: float, count: int, within_s: float, seed: int) -> Trace:
    """Bursts of three times the mean rate, a quarter of the time, 100 ms each."""
    return bursts(rate_per_s, count, within_s, seed, _BURSTS)


def mixed(rate_per_s: float, count: int, within_s: float, seed: int) -> Trace:
    """Bursts of requests of which some have *within_s*, and most ten times as long."""
    rng = random.Random(seed)
    plain = bursty(rate_per_s, count, within_s, seed)
    return tuple([r if rng.random() < _PRESSED else Request(r.at_s, _PATIENCE * within_s) for r in plain])


TRACES: Mapping[str, Callable[[float, int, float, int], Trace]] = {
    "poisson": poisson,
    "bursts": bursty,
    "diurnal": diurnal,
    MIXED: mixed,
}
_BURSTS = Bursts(burst_s=0.1)
_OBJECTIVES = (2.0, 3.0, 5.0)  # times what one item takes
_LOADS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)
_SEEDS = (1, 2, 3)
_TUNING_SEED = 100
_SECONDS = 12.0  # of a trace: 30 bursts, where the number of requests allows
_FEWEST, _MOST, _TUNING = 1500, 8000, 2000  # requests
_WARM = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Model:
    """A curve to simulate.

    Attributes:
        origin: "measured" or "stated".
    """

    name: str
    origin: str
    points: tuple[tuple[int, float], ...]
    noise: float
    max_batch: int
    slots: int

    @property
    def curve(self) -> Curve:
        """Seconds by size."""
        return Curve(self.points)

    def least_s(self, size: int) -> float:
        """The least that a batch takes."""
        return (1.0 - self.noise) * self.curve.at(size)

    @property
    def capacity_per_s(self) -> float:
        """Items a second, at most, of all slots."""
        return self.slots * self.curve.capacity_per_s(self.max_batch)


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the sweep: a model under one load, with one objective."""

    model: Model
    trace: str
    objective: float
    load: float
    seeds: tuple[int, ...] = _SEEDS
    most: int = _MOST

    @property
    def within_s(self) -> float:
        """Seconds from arrival to deadline."""
        return self.objective * self.model.curve.at(1)

    def arrivals(self, seed: int, most: int | None = None) -> Trace:
        """Its requests, at exactly its load."""
        rate_per_s = self.load * self.model.capacity_per_s
        count = min(most or self.most, max(_FEWEST, round(_SECONDS * rate_per_s)))
        return stretched(TRACES[self.trace](rate_per_s, count, self.within_s, seed), rate_per_s)


def models(curves: Path = RESULTS / "latency_curves.json") -> list[Model]:
    """The stated accelerators, and every model that was measured."""
    stated = ((0, 0.010), (1, 0.0105))
    found = [Model("accelerator, 10 ms + 0.5 ms an item", "stated", stated, 0.05, 64, slots) for slots in (1, 4)]
    measured = json.loads(curves.read_text())["models"]
    return found + [
        Model(name, "measured", tuple((n, s) for n, s in of["points"]), min(of["noise"], 0.1), 32, 1)
        for name, of in measured.items()
    ]


def policies(cell: Cell, triton: TritonRule, triton_timeout: TritonRule) -> dict[str, list[Policy]]:
    """What is compared, each made anew: of those that are told one objective, one for each that there is."""
    most = cell.model.max_batch
    objectives_s = [cell.within_s, _PATIENCE * cell.within_s] if cell.trace == MIXED else [cell.within_s]
    return {
        OURS: [ByDeadline(most, cell.model.slots)],
        "eager": [Eager(most)],
        "triton, tuned": [triton],
        "triton, tuned, with timeout": [triton_timeout],
        "aimd (Clipper)": [Aimd(most, each) for each in objectives_s],
        "cork (BentoML)": [Cork(most, each) for each in objectives_s],
        "early drop (Nexus)": [EarlyDrop(most, each) for each in objectives_s],
        "deferred (Symphony)": [Deferred(most, each) for each in objectives_s],
    }


def share_in_time(cell: Cell, policy: Policy, trace: Trace, seed: int) -> float:
    """The part of *trace* that *policy* answers by the deadline."""
    model = cell.model
    kinds = Kinds(has_buckets=False)
    for size in _WARM:
        if size <= model.max_batch:
            kinds.latency.observe(size, model.curve.at(size), 0.0)
    told = getattr(policy, "told", None)
    service = Noisy(model.curve, model.noise, seed)
    result = simulate(
        trace,
        policy,
        service,
        slots=model.slots,
        max_batch=model.max_batch,
        kinds=kinds,
        admits=isinstance(policy, ByDeadline),
        told=told,
    )
    return result.share_in_time


def tuned(cell: Cell, timeouts: Sequence[float]) -> dict[str, Any]:
    """The best settings of Triton's rule on the tuning trace of *cell*; timeouts in parts of the objective."""
    trace = cell.arrivals(_TUNING_SEED, _TUNING)
    alone_s, most = cell.model.curve.at(1), cell.model.max_batch
    grid = product((0.0, 0.25, 0.5, 1.0), ((), (most // 8,), (most // 4,), (most // 2,)), timeouts)
    best = max(
        (share_in_time(cell, _rule(cell, delay * alone_s, preferred, timeout), trace, 0), -delay, preferred, timeout)
        for delay, preferred, timeout in grid
    )
    return {"delay_s": -best[1] * alone_s, "preferred": best[2], "timeout": best[3]}


def _rule(cell: Cell, delay_s: float, preferred: Sequence[int], timeout: float) -> TritonRule:
    return TritonRule(cell.model.max_batch, delay_s, preferred, timeout * cell.within_s)


def measure(cell: Cell) -> dict[str, Any]:
    """The share in time of every policy on every trace of *cell*."""
    plain = tuned(cell, [float("inf")])
    timeout = tuned(cell, [0.3, 0.5, 0.7, 0.9])
    shares: dict[str, list[float]] = {}
    for seed in cell.seeds:
        trace = cell.arrivals(seed)
        for name, made in policies(cell, *(_rule(cell, *of.values()) for of in (plain, timeout))).items():
            best = max(share_in_time(cell, policy, trace, seed) for policy in made)
            shares.setdefault(name, []).append(round(best, 4))
        if cell.model.slots == 1 and cell.trace != MIXED:
            most = most_in_time(trace, cell.model.least_s, cell.model.max_batch)
            shares.setdefault(BOUND, []).append(round(most / len(trace), 4))
            typical = most_in_time(trace, cell.model.curve.at, cell.model.max_batch)
            shares.setdefault(FORESIGHT, []).append(round(typical / len(trace), 4))
    of = {"model": cell.model.name, "slots": cell.model.slots, "origin": cell.model.origin, "trace": cell.trace}
    return {**of, "objective": cell.objective, "load": cell.load, "triton": plain, "timeout": timeout, "shares": shares}


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Spread]]:
    """Ours over each other one, by trace: quartiles over all points at which somebody serves half in time."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        middle = {name: statistics.median(shares) for name, shares in row["shares"].items()}
        if max(share for name, share in middle.items() if name not in (BOUND, FORESIGHT)) < 0.5:
            continue
        for name, share in middle.items():
            if name != OURS and share > 0.0:
                found.setdefault(row["trace"], {}).setdefault(name, []).append(middle[OURS] / share)
    return {trace: {name: spread(of, 3) for name, of in others.items()} for trace, others in found.items()}


def sustained(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The highest load at which each policy answers 99 % in time, by interpolation; *rows* of a line."""
    found = {}
    for name in rows[0]["shares"]:
        points = [(row["load"], statistics.median(row["shares"][name])) for row in rows]
        best = 0.0
        for (load, share), (after, worse) in zip(points, [*points[1:], (points[-1][0], 0.0)], strict=True):
            if share < 0.99:
                break
            best = load if worse >= 0.99 or after == load else load + (after - load) * (share - 0.99) / (share - worse)
        found[name] = round(best, 3)
    return found


def at_twice_the_capacity(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Goodput at the highest load over the best at any; *rows* of a line."""
    peaks: dict[str, list[float]] = {}
    for row in rows:
        for name, shares in row["shares"].items():
            peaks.setdefault(name, []).append(row["load"] * statistics.median(shares))
    return {name: round(goodput[-1] / max(goodput), 3) for name, goodput in peaks.items()}


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """*rows* by model, slots, trace and objective, each in the order of loads."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["load"]):
        found.setdefault((row["model"], row["slots"], row["trace"], row["objective"]), []).append(row)
    return list(found.values())


def shift(model: Model, seed: int = 1) -> int:
    """Batches after *model* became twice as slow until what is predicted for those that run stays within a tenth."""
    curve, most = model.curve, model.max_batch
    trace = poisson(0.4 * model.capacity_per_s, 4000, 5.0 * curve.at(1), seed)
    changes_s = trace[2000].at_s
    kinds = Kinds(has_buckets=False)
    wrong: list[bool] = []

    def told(size: int, _took_s: float, now: float) -> None:
        if now > changes_s:
            wrong.append(abs(kinds.latency.typical_s(size, now) / curve.at(size) / 2.0 - 1.0) > 0.1)

    service = Slowed(Noisy(curve, model.noise, seed), 2.0, changes_s)
    simulate(trace, ByDeadline(most, model.slots), service, slots=model.slots, max_batch=most, kinds=kinds, told=told)
    return next((len(wrong) - back for back, is_wrong in enumerate(reversed(wrong)) if is_wrong), 0)


def draw(rows: Sequence[Mapping[str, Any]], trace: str, file: Path) -> None:
    """Goodput over load: a row for each model, a column for each objective."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    of = [line for line in lines(rows) if line[0]["trace"] == trace]
    names = list(dict.fromkeys((line[0]["model"], line[0]["slots"], line[0]["origin"]) for line in of))
    objectives = sorted({line[0]["objective"] for line in of})
    size = (4.4 * len(objectives), 3.2 * len(names) + 0.6)
    figure, grid = pyplot.subplots(len(names), len(objectives), figsize=size, squeeze=False, layout="constrained")
    for line in of:
        head = line[0]
        place = names.index((head["model"], head["slots"], head["origin"]))
        axes = grid[place][objectives.index(head["objective"])]
        for number, name in enumerate(head["shares"]):
            points = [(row["load"], row["load"] * statistics.median(row["shares"][name])) for row in line]
            style = {OURS: "-", BOUND: ":", FORESIGHT: ":"}.get(name, "--")
            width = 2.2 if name == OURS else 1.2
            axes.plot(
                *zip(*points, strict=True),
                style,
                color="black" if name == BOUND else f"C{number}",
                lw=width,
                label=name,
            )
        axes.set_title(
            f"{head['model']} ({head['origin']}), slots: {head['slots']}, {head['objective']:g} x one", fontsize=8
        )
        axes.set_xlabel("offered load / capacity")
        axes.set_ylabel("answered in time / capacity")
        axes.grid(visible=True, alpha=0.25)
    grid[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    figure.suptitle(f"Goodput within the deadline, simulated, arrivals: {trace}", fontsize=10)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def main() -> int:
    """Sweep, print what it comes to, and write it down with plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few loads, nothing written")
    quick = parser.parse_args().quick
    known = models()
    loads, seeds = ((0.4, 1.0, 2.0), (1,)) if quick else (_LOADS, _SEEDS)
    cells = [
        Cell(model, trace, objective, load, seeds, 1000 if quick else _MOST)
        for model, trace, objective, load in product(known, TRACES, _OBJECTIVES, loads)
    ]
    with Pool(2) as pool:
        rows = pool.map(measure, cells, chunksize=1)
        shifts = dict(zip([f"{m.name}, slots: {m.slots}" for m in known], pool.map(shift, known), strict=True))
    report = summary(rows, shifts)
    print(json.dumps(report, indent=1))
    if not quick:
        document = {"machine": machine(), "models": [asdict(model) for model in known], "summary": report, "rows": rows}
        (RESULTS / "goodput.json").write_text(json.dumps(document) + "\n")
        for trace in TRACES:
            draw(rows, trace, RESULTS / f"goodput-{trace}.png")
    return 0


def summary(rows: Sequence[Mapping[str, Any]], shifts: Mapping[str, int]) -> dict[str, Any]:
    """What *rows* come to."""
    groups = dict.fromkeys((row["model"], row["slots"]) for row in rows)
    told = {
        f"{name}, slots: {slots}": ratios([row for row in rows if (row["model"], row["slots"]) == (name, slots)])
        for name, slots in groups
    }
    by_line = [
        {
            **{key: line[0][key] for key in ("model", "slots", "trace", "objective")},
            "sustained": sustained(line),
            "twice": at_twice_the_capacity(line),
        }
        for line in lines(rows)
    ]
    return {
        "ours_over": {
            of: {trace: {name: asdict(each) for name, each in others.items()} for trace, others in traces.items()}
            for of, traces in told.items()
        },
        "batches_until_twice_as_slow_is_known": dict(shifts),
        "lines": by_line,
    }


if __name__ == "__main__":
    sys.exit(main())
