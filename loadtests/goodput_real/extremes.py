"""The gateway beyond its capacity, what its refusals cost, and a model that becomes twice as slow."""

from __future__ import annotations

import os
import statistics
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from loadtests.goodput_real.servers import Server, ask_gateway
from loadtests.goodput_real.workloads import Allowance, Workload
from loadtests.looking import looking
from loadtests.models import SLOW

_PARTS = 10
_REFUSED_PER_S = 400.0
_IMPOSSIBLE_S = 0.002
_BATCHES_BEFORE = 40
_SLICES = 32
_SHIFT_S = 8.0
_SHIFT_LOAD = 0.4
_SETTLED = 0.9
_SEED = 50


def overload(gateway: Server, workload: Workload, allowance: Allowance, seconds: float) -> dict[str, Any]:
    """Twice the capacity for *seconds*: the process's memory after each tenth of them, and what becomes of requests."""
    process = psutil.Process(gateway.pid)
    point = workload.point("bursts", 3.0, 2.0, seconds / _PARTS, allowance)
    memory_mib, reports = [], []
    for number in range(_PARTS):
        reports.append(ask_gateway(gateway, point, _SEED + number))
        memory_mib.append(round(process.memory_info().rss / 2**20, 1))
    return {
        "load": point.load,
        "seconds": seconds,
        "rss_mib": memory_mib,
        "shares": [report.in_time for report in reports],
        "refusal_ms": [report.refusal_ms for report in reports],
    }


def refusals(gateway: Server, seconds: float) -> dict[str, Any]:
    """Requests whose deadline nobody could meet: how fast each is refused, and the CPU time that it takes."""
    moments = [number / _REFUSED_PER_S for number in range(round(seconds * _REFUSED_PER_S))]
    report = gateway.replayed(moments, timeout_s=_IMPOSSIBLE_S)
    cpu_s = report.server_cpu_s or 0.0
    return {
        "offered_per_s": _REFUSED_PER_S,
        "kinds": report.errors,
        "answered": report.completed,
        "client_ms": report.refusal_ms,
        "server_cpu_ms": round(1e3 * cpu_s / (report.sent or 1), 3),
    }


class _Watched:
    """How many batches ran until when; and the moment at which the model became slow, which it makes it after some."""

    def __init__(self, gateway: Server, slow: Path) -> None:
        self._gateway, self._slow = gateway, slow
        self.seen: list[tuple[float, int]] = []
        self.slow_since_s = 0.0

    def look(self) -> None:
        """To be called as often as a batch may end."""
        number = self._gateway.batches()
        self.seen.append((time.monotonic(), number))
        if not self.slow_since_s and number >= self.seen[0][1] + _BATCHES_BEFORE:
            self._slow.touch()
            self.slow_since_s = time.monotonic()

    def until(self, moment_s: float) -> int:
        """How many batches had run."""
        return self.seen[max(0, bisect_right(self.seen, (moment_s, 1 << 62)) - 1)][1]


def shift(gateway: Server, workload: Workload, allowance: Allowance, times: int) -> dict[str, Any]:
    """The model becomes twice as slow, *times* over: how many batches until as many are in time as ever will be.

    Between two of them it is fast again for as long.
    """
    slow = Path(os.environ[SLOW])
    point = workload.point("poisson", 5.0, _SHIFT_LOAD, _SHIFT_S, allowance)
    found = []
    for number in range(times):
        try:
            watched = _Watched(gateway, slow)
            with looking(watched.look, workload.alone_s / 2):
                report = ask_gateway(gateway, point, _SEED + number, slices=_SLICES)
        finally:
            slow.unlink(missing_ok=True)
        slice_s = report.plan.seconds / _SLICES
        ends_s = [report.started_s + (index + 1) * slice_s for index in range(_SLICES)]
        first = bisect_right(ends_s, watched.slow_since_s)  # the slice in which it happened
        shares = report.in_time_by_slice
        until, settled = recovered(shares[first:])
        found.append(
            {
                "before": round(statistics.fmean(shares[:first]), 3),
                "at_worst": min(shares[first:]),
                "settled": settled,
                "batches": watched.until(ends_s[first + until]) - watched.until(watched.slow_since_s),
                "shares": shares,
            }
        )
        ask_gateway(gateway, point, _SEED)
    return {"load": _SHIFT_LOAD, "objective": point.objective, "slice_s": round(_SHIFT_S / _SLICES, 3), "runs": found}


def recovered(shares: Sequence[float]) -> tuple[int, float]:
    """From which of *shares* on things are as they stay, and how that is: the mean of the last half.

    That is the first of two in a row that reach nearly as much; a single one may be luck.
    """
    settled = statistics.fmean(shares[len(shares) // 2 :])
    enough = [share >= _SETTLED * settled for share in shares]
    pairs = [index for index in range(len(shares) - 1) if enough[index] and enough[index + 1]]
    return (pairs[0] if pairs else len(shares) - 1), round(settled, 3)
