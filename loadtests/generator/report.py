"""All processes of a run, and what is reported of them."""

from __future__ import annotations

import math
import multiprocessing
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from loadtests.generator.callers import WRONG
from loadtests.generator.histogram import Histogram
from loadtests.generator.load import Plan, Tally, run_process

LATENESS_BOUND_S = 0.002
"""A later generator says that it was saturated: it adds to every latency, and offers less than it says."""

_LEAD_S = 0.05
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "max": 1.0}


class NotStarted(Exception):
    """A process could not begin; the message says why."""


@dataclass(frozen=True, slots=True)
class Report:
    """A run.

    Attributes:
        offered_rate, achieved_rate: scheduled arrivals, and right replies, a second.
        errors: by kind, `wrong` among them.
        wrong: replies that are not twice their input.
        in_time: the part of the scheduled arrivals that was answered rightly within `plan.within_s`.
        late: the part that was answered rightly, and later.
        refused: the part that got another reply.
        in_time_by_slice: as `in_time`, of the arrivals in each slice of the run; NaN where there were none.
        refusal_ms: by quantile, of replies that are no answers, from when they were written; None where there are none.
        latency_ms: by quantile, of right replies alone: read it with `errors`; None where there are none.
        lateness_p99_ms: of the generator; None in a closed loop, as `saturated`.
        note: what is to be known about the generator, in words.
        generator_cpu_s: user and system time of all processes.
        server_cpu_s: user and system time of the process that was named and its children.
        server_cpu_us: that per right reply.
        started_s: when the run began, on the clock of `time.monotonic`.
    """

    plan: Plan
    offered_rate: float
    achieved_rate: float
    sent: int
    completed: int
    errors: dict[str, int]
    wrong: int
    in_time: float
    late: float
    refused: float
    in_time_by_slice: tuple[float, ...]
    refusal_ms: dict[str, float] | None
    latency_ms: dict[str, float] | None
    lateness_p99_ms: float | None
    saturated: bool | None
    note: str
    generator_cpu_s: float
    server_cpu_s: float | None
    server_cpu_us: float | None
    started_s: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def generate(plan: Plan, pid: int | None = None) -> Report:
    """Run *plan*; every process is spawned, so that no gRPC object exists before it.

    Args:
        plan: what to send.
        pid: the server's process, whose CPU time is to be told.

    Raises:
        NotStarted: nobody answers at `plan.url`.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(plan.processes):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=run_process, args=(plan, number, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return _generate(plan, pid, pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10.0)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _generate(plan: Plan, pid: int | None, pipes: list[Any]) -> Report:  # Any: multiprocessing's connections
    tally = Tally()
    try:
        for pipe in pipes:
            if (said := pipe.recv()) != "ready":
                raise NotStarted(f"{plan.url}: {said}")
        before_s = tree_cpu_s(pid)
        start = time.monotonic() + _LEAD_S
        for pipe in pipes:
            pipe.send(start)
        for pipe in pipes:
            tally.add(pipe.recv())
        after_s = tree_cpu_s(pid)
    except EOFError as error:
        raise NotStarted("a process of the generator ended early; its error is above") from error
    server_s = None if before_s is None or after_s is None else after_s - before_s
    return _report(plan, tally, server_s, start)


def tree_cpu_s(pid: int | None) -> float | None:
    """User and system seconds of *pid* and its living children."""
    if pid is None:
        return None
    server = psutil.Process(pid)
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _report(plan: Plan, tally: Tally, server_s: float | None, start: float) -> Report:
    in_time, offered = int(tally.in_time_in.sum()), tally.offered or 1
    shares = [kept / came if came else math.nan for kept, came in zip(tally.in_time_in, tally.offered_in, strict=True)]
    late_s = None if not plan.is_open else tally.lateness.quantile(0.99)
    saturated = None if late_s is None else late_s > LATENESS_BOUND_S
    return Report(
        plan=plan,
        offered_rate=round(tally.offered / plan.seconds, 1),
        achieved_rate=round(tally.completed / max(plan.seconds, tally.took_s), 1),
        sent=tally.sent,
        completed=tally.completed,
        errors=dict(tally.errors),
        wrong=tally.errors[WRONG],
        in_time=round(in_time / offered, 4),
        late=round((tally.completed - in_time) / offered, 4),
        refused=round(int(tally.refusal.counts.sum()) / offered, 4),
        in_time_by_slice=tuple([round(float(share), 4) for share in shares]),
        refusal_ms=_quantiles_ms(tally.refusal) if tally.errors else None,
        latency_ms=_quantiles_ms(tally.latency) if tally.completed else None,
        lateness_p99_ms=None if late_s is None else round(1e3 * late_s, 3),
        saturated=saturated,
        note=_note(plan, tally, saturated),
        generator_cpu_s=round(tally.cpu_s, 3),
        server_cpu_s=None if server_s is None else round(server_s, 3),
        server_cpu_us=round(1e6 * server_s / tally.completed, 1) if server_s is not None and tally.completed else None,
        started_s=start,
    )


def _quantiles_ms(times: Histogram) -> dict[str, float] | None:
    if not times.counts.any():
        return None
    return {name: round(1e3 * times.quantile(q), 3) for name, q in _QUANTILES.items()}


def _note(plan: Plan, tally: Tally, saturated: bool | None) -> str:
    if saturated is None:
        return "a closed loop: stalls are hidden, and latencies are from the moment of writing"
    if not saturated:
        return f"the generator kept to its schedule (p99 within {1e3 * LATENESS_BOUND_S:g} ms)"
    unsent = tally.offered - tally.sent
    remedy = "connections" if tally.held > tally.offered / 100 else "processes"
    return (
        f"the generator was saturated: its p99 lateness is above {1e3 * LATENESS_BOUND_S:g} ms and {unsent} requests "
        f"were never written, so that the server did not see the rate that is stated; use more {remedy}, or a lower "
        f"rate ({tally.held} of {tally.offered} found all {plan.connections} connections of a process waiting)"
    )
