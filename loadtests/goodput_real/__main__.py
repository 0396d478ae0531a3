"""The command: tune, compare, go beyond, print and write down; see the package."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import loadtests.goodput_real as package
from loadtests.goodput_real.comparison import allowance, compare, kept_at_highest, tuned
from loadtests.goodput_real.extremes import overload, refusals, shift
from loadtests.goodput_real.plot import draw
from loadtests.goodput_real.servers import Server, servers
from loadtests.goodput_real.workloads import Allowance, Workload, real, stand_in
from loadtests.models import SLOW
from loadtests.peers.machine import machine
from tests.conformance.triton import why_not as why_no_triton

RESULTS = Path(__file__).parents[1] / "results"
_TUNING_LOAD = 1.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it.

    Attributes:
        traces: for each kind of trace the objectives, and the loads.
        seconds, tuning_s: of one run, and of one that tunes.
        rounds: runs of each side at each point.
    """

    traces: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    seconds: float
    tuning_s: float
    rounds: int

    def of(self, rounds: int | None) -> Scale:
        """The same with *rounds*, if they are said."""
        return self if rounds is None else replace(self, rounds=rounds)


_STAND_IN = Scale(
    {"bursts": ((2.0, 3.0, 5.0), (0.3, 0.6, 1.0, 2.0)), "poisson": ((3.0,), (0.3, 0.6, 1.0, 2.0))},
    seconds=4.0,
    tuning_s=2.5,
    rounds=5,
)
_BOTH = Scale({"bursts": ((3.0,), (0.3, 1.0, 2.0)), "poisson": ((3.0,), (0.3, 1.0, 2.0))}, 4.0, 3.0, 5)
_BURSTS = Scale({"bursts": ((3.0,), (0.3, 1.0, 2.0))}, 4.0, 3.0, 5)
_REAL = {"MiniLM, 32 tokens": _BOTH, "page orientation": _BURSTS, "text line recognition": _BURSTS}
_QUICK = Scale({"bursts": ((3.0,), (0.6, 1.5))}, seconds=2.0, tuning_s=1.0, rounds=2)


def rows(
    workload: Workload, sides: tuple[Server, Server], scale: Scale, allowed: Allowance
) -> Iterator[dict[str, Any]]:
    """Every point of *scale*, Triton tuned anew for each trace and objective."""
    for trace, (objectives, loads) in scale.traces.items():
        for objective in objectives:
            tuning = workload.point(trace, objective, _TUNING_LOAD, scale.tuning_s, allowed)
            settings = tuned(sides[1], workload, tuning)
            for load in loads:
                point = workload.point(trace, objective, load, scale.seconds, allowed)
                yield compare(sides, point, settings, scale.rounds)


def measured(workload: Workload, scale: Scale, *, goes_beyond_s: float) -> dict[str, Any]:
    """Everything about *workload*; with seconds at twice the capacity, also what happens there, and a shift."""
    with tempfile.TemporaryDirectory() as folder, servers(workload, Path(folder)) as sides:
        allowed = allowance(workload, sides)
        found: dict[str, Any] = {**workload.told(), "allowance": asdict(allowed), "rows": []}
        print(json.dumps(found), flush=True)
        for row in rows(workload, sides, scale, allowed):
            print(json.dumps(row), flush=True)
            found["rows"].append(row)
        found["at_highest_load"] = kept_at_highest(found["rows"])
        if goes_beyond_s:
            found["overload"] = overload(sides[0], workload, allowed, goes_beyond_s)
            found["refusals"] = refusals(sides[0], goes_beyond_s / 10)
            found["shift"] = shift(sides[0], workload, allowed, 3 if goes_beyond_s > 10.0 else 1)
    return found


def main() -> int:
    """Measure all models, print and write down."""
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few points, nothing written")
    parser.add_argument("--only", choices=("stand-in", "real"), help="a part of the models, nothing written")
    parser.add_argument("--rounds", type=int, metavar="N", help="runs of each side at each point, instead of 5")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; use at least 1")
    if why := why_no_triton():
        print(why, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with it
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[SLOW] = str(Path(folder, "slow"))
        if arguments.only != "real":
            scale, beyond_s = (_QUICK, 5.0) if arguments.quick else (_STAND_IN, 60.0)
            parts.append(measured(stand_in(), scale.of(arguments.rounds), goes_beyond_s=beyond_s))
        if arguments.only != "stand-in":
            for name, scale in _REAL.items():
                used = _QUICK if arguments.quick else scale
                parts.append(measured(real(name, Path(folder)), used.of(arguments.rounds), goes_beyond_s=0.0))
    report = {"machine": machine(), "models": parts}
    print(json.dumps({part["model"]: {**part, "rows": len(part["rows"])} for part in parts}, indent=1))
    if not (arguments.quick or arguments.only):
        (RESULTS / "goodput_real.json").write_text(json.dumps(report, indent=1) + "\n")
        draw(parts, RESULTS / "goodput_real.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
