"""Do warm pools pay: fewer cold requests for the same memory, and first requests that are like any other?

    python -m loadtests.cold_starts [--models 60] [--days 3] [--seeds 3] [--more-seeds 20] [--rounds 120]
        [--triton-rounds 40] [--cycles 1000] [--only simulation|seeds|sessions|triton|cycles]

**Simulation.** Days of serverless-like traffic (`trace`) over the policy's own objects (`simulation`), under several
memory budgets, beside fixed keep-alives of several lengths and least-recently-used under the same budgets. What counts
is `cold_at_equal_memory`: the pool's cold requests over those of a 10-minute keep-alive, where both use as many
model-seconds, read off between two budgets. Learning counts: nothing is known when the trace begins. In the last trace
models differ in memory and load time; there, byte-seconds are compared. Loads are told as well: a policy could buy
warm requests with loads that nobody needed.

**Seeds.** The same for more traces, of which nobody has looked at one while the policy was made: under two budgets
alone, which lie on either side of equal memory. Their median has a bootstrap interval over traces.

**Cycles.** Two models take turns in a pool that has room for one (`cycles`): no request may fail, and memory comes
back.

**Sessions.** First requests of real models in real pools (`sessions`): magika's content types, and MiniLM where the
demo has fetched it; and what a graph that was optimised before saves (`graph_cache`).

**Triton.** The same of a real Triton under explicit control (`on_triton`); and a trace of models alike that load as
slowly as it was measured there.

Limits: the trace is synthetic (see there). Its rates end at three calls a minute; more frequent models are always warm
and would only lower every share of cold requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import magika
import onnxruntime

from gateway.demo.packages import cache_folder
from loadtests.cold_starts.cycles import cycled
from loadtests.cold_starts.on_triton import loads_on_triton, why_no_runtime
from loadtests.cold_starts.plot import draw
from loadtests.cold_starts.sessions import first_requests, graph_cache
from loadtests.cold_starts.simulation import Outcome, Pool, keep_alive, least_recently_used
from loadtests.cold_starts.trace import DAY_S, Traffic, traffic
from loadtests.peers.machine import machine
from loadtests.ratios import median_of
from tests.conformance.triton import why_not

RESULT = Path(__file__).parent.parent / "results" / "cold_starts.json"
_BUDGETS = (0.8, 1.0, 1.15)
_AROUND_EQUAL = (1.0, 1.2)
_KEEPS_MIN = (2, 5, 10, 20, 40)


def simulated(models: int, days: float, seed: int, *, alike: bool) -> Mapping[str, Any]:
    """One trace under every policy, relative to 10 minutes of keep-alive. Any: JSON."""
    calls = traffic(models, days, seed, alike=alike)
    usual = keep_alive(calls, 600.0)
    budgets = [share * usual.byte_s / (days * DAY_S) for share in _BUDGETS]
    pools = [_relative(Pool(calls, budget).run(), usual, alike) for budget in budgets]
    unlimited = _relative(Pool(calls, math.inf).run(), usual, alike)
    pools.append(unlimited)
    return {
        "trace": f"seed {seed}, {models} models {'alike' if alike else 'of all sizes'}, {days:g} days",
        "unit": "model-seconds" if alike else "byte-seconds",
        "calls": usual.calls,
        "cold_of_keep_alive": usual.cold,
        "loads_of_keep_alive": usual.loads,
        "mean_resident": round(usual.model_s / (days * DAY_S), 1),
        "cold_at_equal_memory": _at_equal_memory(pools, "cold"),
        "waited_at_equal_memory": _at_equal_memory(pools, "waited"),
        "loads_at_equal_memory": _at_equal_memory(pools, "loads"),
        "kinds": _kinds(calls),
        "policies": {
            "pool": pools,
            "keep-alive": [_relative(keep_alive(calls, 60.0 * m), usual, alike) for m in _KEEPS_MIN],
            "least recently used": [_relative(least_recently_used(calls, b), usual, alike) for b in budgets],
        },
    }


def simulations(models: int, days: float, seeds: int) -> Sequence[Mapping[str, Any]]:
    """So many traces of models that are alike, and one of models that are not, each on a core of its own. Any: JSON."""
    arguments = [(models, days, seed, seed < seeds) for seed in range(seeds + 1)]
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as processes:
        return list(processes.map(_simulated, arguments))


def more_seeds(models: int, days: float, first: int, count: int) -> Mapping[str, Any]:
    """Cold requests at equal model-seconds over so many further traces, and their median. Any: JSON."""
    seeds = range(first, first + count)
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as processes:
        found = dict(
            zip(seeds, processes.map(_at_equal_memory_of, [(models, days, seed) for seed in seeds]), strict=True)
        )
    known = {seed: one for seed, one in found.items() if one is not None}
    return {
        "models": models,
        "days": days,
        "by_seed": found,
        "not_bracketed": sorted(found.keys() - known.keys()),
        "cold_at_equal_model_seconds": asdict(median_of([one["cold"] for one in known.values()])),
        "loads_at_equal_model_seconds": asdict(median_of([one["loads"] for one in known.values()])),
        "at_most_half": sum(one["cold"] <= 0.5 for one in known.values()),
    }


def _at_equal_memory_of(arguments: tuple[int, float, int]) -> Mapping[str, float] | None:
    """What is read off between the two budgets; None where equal memory is not between them."""
    models, days, seed = arguments
    calls = traffic(models, days, seed)
    usual = keep_alive(calls, 600.0)
    budgets = [share * usual.byte_s / (days * DAY_S) for share in _AROUND_EQUAL]
    points = [_relative(Pool(calls, budget).run(), usual, alike=True) for budget in budgets]
    found = {what: _at_equal_memory(points, what) for what in ("cold", "loads")}
    is_between = min(point["memory"] for point in points) <= 1.0 <= max(point["memory"] for point in points)
    return {what: value for what, value in found.items() if value is not None} if is_between else None


def _simulated(arguments: tuple[int, float, int, bool]) -> Mapping[str, Any]:
    models, days, seed, alike = arguments
    return simulated(models, days, seed, alike=alike)


def _relative(found: Outcome, usual: Outcome, alike: bool) -> Mapping[str, float]:
    memory = found.model_s / usual.model_s if alike else found.byte_s / usual.byte_s
    return {
        "memory": round(memory, 4),
        "cold": round(found.cold / usual.cold, 4),
        "waited": round(found.waited_s / usual.waited_s, 4),
        "loads": round(found.loads / usual.loads, 3),
    }


def _at_equal_memory(points: Sequence[Mapping[str, float]], what: str) -> float | None:
    """*what* where memory is 1.0, between the two points around it; the last one's where none needs as much."""
    ordered = sorted(points, key=lambda point: point["memory"])
    if ordered[-1]["memory"] <= 1.0:
        return ordered[-1][what]
    for low, high in pairwise(ordered):
        if low["memory"] <= 1.0 <= high["memory"]:
            share = (1.0 - low["memory"]) / max(high["memory"] - low["memory"], 1e-9)
            return round(low[what] + share * (high[what] - low[what]), 4)
    return None


def _kinds(calls: Sequence[Traffic]) -> Mapping[str, int]:
    kinds = [one.kind.value for one in calls]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def real_models() -> Mapping[str, Path]:
    """The files of models that are there."""
    content_types = Path(magika.__file__).parent / "models" / "standard_v3_3" / "model.onnx"
    encoders = sorted(cache_folder().rglob("*minilm*/**/*.onnx")) + sorted(
        cache_folder().rglob("feedback-strong*.onnx")
    )
    found = {"magika": content_types, **({"minilm": encoders[0]} if encoders else {})}
    return {name: file for name, file in found.items() if file.exists()}


async def sessions(models: Mapping[str, Path], rounds: int) -> Mapping[str, Any]:
    """First requests of every real model. Any: JSON."""
    return {
        name: {**await first_requests(file, rounds), "graph_cache": await graph_cache(file, rounds // 3)}
        for name, file in models.items()
    }


def on_triton(models: int, days: float, rounds: int) -> Mapping[str, Any]:
    """Loads of a real Triton, and what they come to over a trace; why not, where there is none. Any: JSON."""
    if (why := why_not() or why_no_runtime()) is not None:
        return {"why_not": why}
    with tempfile.TemporaryDirectory(prefix="cold-starts-") as folder:
        measured = asyncio.run(loads_on_triton(Path(folder), real_models()["magika"], rounds))
    seed = 0
    calls = [replace(one, load_s=measured["load_s"]) for one in traffic(models, days, seed)]
    usual = keep_alive(calls, 600.0)
    budgets = [share * usual.byte_s / (days * DAY_S) for share in _AROUND_EQUAL]
    points = [_relative(Pool(calls, budget).run(), usual, alike=True) for budget in budgets]
    told = {f"{what}_at_equal_model_seconds": _at_equal_memory(points, what) for what in ("cold", "waited", "loads")}
    return {**measured, "simulation": {"trace": f"seed {seed}, {models} models alike, {days:g} days", **told}}


def main() -> int:
    """Simulate, measure, and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--days", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--more-seeds", type=int, default=20)
    parser.add_argument("--triton-rounds", type=int, default=40)
    parser.add_argument("--only", choices=["simulation", "seeds", "sessions", "triton", "cycles"])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.only and options.out.exists() else {}
    result |= {"machine": machine(), "onnxruntime": onnxruntime.__version__}
    if options.only in (None, "simulation"):
        runs = simulations(options.models, options.days, options.seeds)
        alike = [run["cold_at_equal_memory"] for run in runs[:-1]]
        result["simulation"] = {"runs": runs, "cold_at_equal_model_seconds": round(median(alike), 3)}
        draw(runs, options.out.with_suffix(".png"))
    if options.only in (None, "seeds"):
        first = options.seeds + 1  # beside those of the simulation, the last of which has models of all sizes
        result["seeds"] = more_seeds(options.models, options.days, first, options.more_seeds)
    if options.only in (None, "sessions"):
        with tempfile.TemporaryDirectory(prefix="cold-starts-") as folder:
            found = real_models()
            os.environ["XDG_CACHE_HOME"] = folder  # graphs are cached anew
            result["sessions"] = asyncio.run(sessions(found, options.rounds))
    if options.only in (None, "triton"):
        result["triton"] = on_triton(options.models, options.days, options.triton_rounds)
    if options.only in (None, "cycles"):
        with tempfile.TemporaryDirectory(prefix="cold-starts-") as folder:
            result["cycles"] = asdict(asyncio.run(cycled(Path(folder), options.cycles)))
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "simulation"}, indent=1))
    for run in result.get("simulation", {}).get("runs", ()):
        print(run["trace"], run["cold_at_equal_memory"], run["loads_at_equal_memory"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
