"""Triton's best settings for a trace, and both servers on the same traces in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from loadtests.generator.report import Report
from loadtests.goodput_real.servers import Server, Setting, ask_gateway, ask_triton
from loadtests.goodput_real.workloads import MODEL, Allowance, Point, Workload
from loadtests.ratios import paired_ratio

SIDES = ("gateway", "triton", "triton with timeout")
_TIMEOUTS = (0.2, 0.35, 0.5, 0.7)
_KEPT = 2
_TUNING_SEED = 100
_ALONE = 100
_APART = 1.5
_STEP_S = 0.001


def allowance(workload: Workload, servers: tuple[Server, Server]) -> Allowance:
    """The 90th percentile of what replies take above the model's time, at each server, to the next millisecond.

    Requests come so far apart that none waits for another.
    """
    moments = [number * _APART * workload.alone_s for number in range(_ALONE)]
    found = []
    for server, model in zip(servers, (MODEL, Setting().model), strict=True):
        report = server.replayed(moments, model)
        assert report.latency_ms is not None, f"{server.url} answered nobody: {report.errors}"
        over_s = report.latency_ms["p90"] / 1e3 - workload.alone_s
        found.append(round(max(1, math.ceil(over_s / _STEP_S)) * _STEP_S, 3))
    return Allowance(*found)


def tuned(server: Server, workload: Workload, point: Point) -> tuple[Setting, Setting]:
    """Triton's best settings without and with timeouts, on a trace of their own.

    Timeouts are tried with the best delays and preferred sizes, and with neither of them.
    """

    def share(setting: Setting) -> float:
        return ask_triton(server, point, _TUNING_SEED, setting).in_time

    grid = [Setting(delay_s, preferred) for delay_s, preferred in product(workload.delays_s, workload.preferred)]
    shares = {setting: share(setting) for setting in grid}
    best = sorted(grid, key=lambda setting: -shares[setting])
    tried = dict.fromkeys([*best[:_KEPT], Setting()])
    timed = max((replace(each, timeout=part) for each, part in product(tried, _TIMEOUTS)), key=share)
    return best[0], timed


def compare(
    servers: tuple[Server, Server], point: Point, settings: tuple[Setting, Setting], rounds: int
) -> dict[str, Any]:
    """All sides on the same traces, in turns."""
    gateway, other = servers
    plain, timed = settings

    def ask(side: str, seed: int) -> Report:
        if side == "gateway":
            return ask_gateway(gateway, point, seed)
        return ask_triton(other, point, seed, plain if side == "triton" else timed)

    runs: dict[str, list[Report]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES[:: 1 if number % 2 == 0 else -1]:
            runs[side].append(ask(side, number + 1))
    return {
        **{key: getattr(point, key) for key in ("trace", "objective", "load")},
        "settings": {"triton": asdict(plain), "triton with timeout": asdict(timed)},
        **summed_up(runs),
    }


def summed_up(runs: Mapping[str, Sequence[Report]]) -> dict[str, Any]:
    """What *runs* of each side found: parts of the arrivals that were in time, and what they cost."""
    shares = {side: [report.in_time for report in reports] for side, reports in runs.items()}
    others = {side: share for side, share in shares.items() if side != "gateway"}
    return {
        "shares": shares,
        "late": {side: [report.late for report in reports] for side, reports in runs.items()},
        "refused": {side: [report.refused for report in reports] for side, reports in runs.items()},
        "gateway_over": {
            # A side that answers nobody in time has no ratio.
            side: asdict(paired_ratio(shares["gateway"], share)) if min(share) else None
            for side, share in others.items()
        },
        "cpu_us": {side: _median([report.server_cpu_us for report in reports]) for side, reports in runs.items()},
        "lateness_p99_ms": {side: _median([r.lateness_p99_ms for r in reports]) for side, reports in runs.items()},
        "wrong": sum(report.wrong for reports in runs.values() for report in reports),
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def kept_at_highest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each trace and objective, each side's goodput at the highest load over its peak over all loads."""
    found = []
    for trace, objective in dict.fromkeys((row["trace"], row["objective"]) for row in rows):
        line = [row for row in rows if (row["trace"], row["objective"]) == (trace, objective)]
        goodput = {side: [row["load"] * statistics.median(row["shares"][side]) for row in line] for side in SIDES}
        highest = max(range(len(line)), key=lambda index: line[index]["load"])
        kept = {side: round(values[highest] / max(values), 3) for side, values in goodput.items() if max(values)}
        found.append({"trace": trace, "objective": objective, "load": line[highest]["load"], "over_peak": kept})
    return found
