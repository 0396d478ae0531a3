"""What a process of its own costs a Python function, and what it spares everybody else.

    python -m loadtests.process_backend [--rounds 5] [--calls 200] [--out loadtests/results/process_backend.json]

**Cost.** The same function, which adds one to its input, inline, on a thread and in a process, on tensors of three
sizes. One caller asks again when it is answered: right for what is asked here, what a call costs. Each run gives the
latency and the CPU time a call takes, of the gateway's side (this process) and of the worker's. Rounds are interleaved
(A B C C B A); reported are medians with quartiles, and the ratio of process to thread with a bootstrap interval of
95 %.

**The GIL.** A function that computes in Python for 20 ms, called without a pause on a thread and in a process, while
a probe on the event loop asks to be woken every 2 ms, as a request would: how much later than that it was. The same
probe without any function says what the machine itself does.

Nothing is pinned: the worker is meant to have a core of its own where there is one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

from backends.contract import NO_DEADLINE, Backend, Batch, Datatype, HostArray, Tensor, TensorSpec
from backends.process.backend import PythonProcesses
from backends.python import PythonOptions, open_python
from loadtests.ratios import ratio, spread

RESULTS = Path(__file__).parent / "results" / "process_backend.json"
SIDES = ("inline", "thread", "process")
SIZES: Mapping[str, int] = {"64 B": 64, "602 KB": 602_112, "10 MB": 10_000_000}
_PROBE_S = 0.002
_COMPUTES_S = 0.02


def add_one(inputs: Mapping[str, HostArray]) -> Mapping[str, HostArray]:
    """A function of which little but its call is left."""
    return {"y": inputs["x"] + np.float32(1)}


def compute(inputs: Mapping[str, HostArray]) -> Mapping[str, HostArray]:
    """A function that computes in Python and never lets go of the GIL by itself."""
    end, total = time.perf_counter() + _COMPUTES_S, 0
    while time.perf_counter() < end:
        total += 1
    return {"y": inputs["x"]}


async def opened(function: str, nbytes: int, side: str) -> Backend:
    """*function* on vectors of *nbytes* bytes."""
    shape = (nbytes // 4,)
    options = PythonOptions(
        f"loadtests.process_backend:{function}",
        (TensorSpec("x", Datatype.FP32, shape),),
        (TensorSpec("y", Datatype.FP32, shape),),
        inline=side == "inline",
        process=side == "process",
    )
    return await open_python(function, options)


def of(nbytes: int) -> Batch:
    """One item."""
    return Batch.of({"x": Tensor.of(np.ones((1, nbytes // 4), np.float32))})


def worker_cpu_s(backend: Backend) -> float:
    """CPU seconds that the worker processes of *backend* have used."""
    if not isinstance(backend, PythonProcesses):
        return 0.0
    children = [child for child in psutil.Process().children() if "backends.process.worker" in child.cmdline()]
    return sum(sum(child.cpu_times()[:2]) for child in children)


async def run(backend: Backend, batch: Batch, calls: int) -> dict[str, float]:
    """Ask *calls* times, one after the other."""
    latencies = []
    cpu, theirs = time.process_time(), worker_cpu_s(backend)
    for _ in range(calls):
        asked = time.perf_counter()
        await backend.infer(batch, NO_DEADLINE)
        latencies.append(time.perf_counter() - asked)
    cpu, theirs = time.process_time() - cpu, worker_cpu_s(backend) - theirs
    latencies.sort()
    return {
        "p50_us": 1e6 * statistics.median(latencies),
        "p99_us": 1e6 * latencies[calls * 99 // 100],
        "gateway_cpu_us": 1e6 * cpu / calls,
        "worker_cpu_us": 1e6 * theirs / calls,
    }


async def cost(rounds: int, calls: int) -> list[dict[str, Any]]:
    """Every side on every size."""
    cells = []
    for size, nbytes in SIZES.items():
        count = max(20, calls if nbytes > 1_000_000 else 10 * calls)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        async with AsyncExitStack() as stack:
            backends = {}
            for side in SIDES:
                backends[side] = await opened("add_one", nbytes, side)
                stack.push_async_callback(backends[side].aclose)
                await run(backends[side], of(nbytes), 20)  # not counted: everything is loaded and warm then
            for _ in range(rounds):
                for side in (*SIDES, *reversed(SIDES)):
                    runs[side].append(await run(backends[side], of(nbytes), count))
        cells.append(_cell(size, count, runs))
    return cells


def _cell(size: str, calls: int, runs: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    cell: dict[str, Any] = {"tensor": size, "calls_a_run": calls}
    for figure in ("p50_us", "p99_us", "gateway_cpu_us", "worker_cpu_us"):
        cell[figure] = {side: asdict(spread([one[figure] for one in found])) for side, found in runs.items()}
    for figure in ("p50_us", "gateway_cpu_us"):
        own, other = ([one[figure] for one in runs[side]] for side in ("process", "thread"))
        cell[figure]["process over thread"] = asdict(ratio(own, other))
    return cell


async def delays(seconds: float, backend: Backend | None) -> dict[str, float]:
    """How late the probe was while *backend*, if there is one, was called without a pause."""
    late: list[float] = []
    calls = 0

    async def call_on(backend: Backend) -> None:
        nonlocal calls
        while True:
            await backend.infer(of(64), NO_DEADLINE)
            calls += 1

    calling = None if backend is None else asyncio.create_task(call_on(backend))
    until = time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        await asyncio.sleep(_PROBE_S)
        late.append(max(0.0, time.perf_counter() - now - _PROBE_S))
    if calling is not None:
        calling.cancel()
        await asyncio.wait({calling})
    late.sort()
    return {
        "p50_us": 1e6 * statistics.median(late),
        "p99_us": 1e6 * late[len(late) * 99 // 100],
        "calls": calls / seconds,
    }


async def contention(rounds: int, seconds: float) -> dict[str, Any]:
    """The probe beside nothing, a thread and a process."""
    sides = ("nothing", "thread", "process")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    async with AsyncExitStack() as stack:
        backends: dict[str, Backend | None] = {"nothing": None}
        for side in sides[1:]:
            backend = backends[side] = await opened("compute", 64, side)
            stack.push_async_callback(backend.aclose)
        for _ in range(rounds):
            for side in (*sides, *reversed(sides)):
                runs[side].append(await delays(seconds, backends[side]))
    found: dict[str, Any] = {
        figure: {side: asdict(spread([one[figure] for one in runs[side]])) for side in sides}
        for figure in ("p50_us", "p99_us", "calls")
    }
    found["p99_us"]["thread over process"] = asdict(
        ratio([one["p99_us"] for one in runs["thread"]], [one["p99_us"] for one in runs["process"]])
    )
    return found


async def measured(rounds: int, calls: int, seconds: float) -> dict[str, Any]:
    """Everything."""
    return {
        "what": "a Python function inline, on a thread and in a process: latency and CPU of a call, delays of the loop",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "uvloop")},
        "rounds": rounds,
        "load_average_at_start": os.getloadavg()[0],
        "cells": await cost(rounds, calls),
        "event_loop_delay": await contention(rounds, seconds),
    }


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100, help="of one run with 10 MB; ten times that with less")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one run of the probe")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = uvloop.run(measured(arguments.rounds, arguments.calls, arguments.seconds))
    for cell in found["cells"]:
        for figure in ("p50_us", "gateway_cpu_us", "worker_cpu_us"):
            print(f"{cell['tensor']:>7} {figure:15}", *(f"{side} {cell[figure][side]['median']:8}" for side in SIDES))
    late = found["event_loop_delay"]["p99_us"]
    print("event loop, p99 delay in us:", {side: figures["median"] for side, figures in late.items()})
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
