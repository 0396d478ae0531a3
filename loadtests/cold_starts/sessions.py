"""First requests of real ONNX sessions that come and go in a pool, in this process; and what opening them takes.

Three sides take turns, each a pool of its own over the same file:

- `cold`: the request finds the model on the disk, and waits for its load and warm-up;
- `opened`: the session was built ahead, and has seen no batch;
- `warmed`: the session was built ahead, and has seen a batch of every size.

In each round the model is unloaded (the pool's clock is moved, so that it has been unused for long), loaded, and asked
once, and then several times more: the others are what a warm model takes at that moment, on that machine. The size of
the first batch changes from round to round. A tail that the machine makes, such as another process's turn, is in both.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.contract import NO_DEADLINE, Backend, Batch
from backends.onnx import OnnxOptions, open_onnx
from backends.warm.entry import Ladder
from backends.warm.pool import Pooled, WarmPool
from backends.warm.report import Step, StepReport
from batching.warm_up import zeros
from loadtests.ratios import ratio, spread

SIZES = (1, 2, 4, 8)
_AGAIN = 8
_LONG_S = 1e6


class Clock:
    """Goes as time does, and can be moved."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return time.monotonic() + self._ahead_s

    def move(self, seconds: float) -> None:
        """Go *seconds* ahead."""
        self._ahead_s += seconds


class Steps:
    """What steps of loads took, and when a model has left."""

    def __init__(self) -> None:
        self.seconds: defaultdict[Step, list[float]] = defaultdict(list)
        self.left = asyncio.Event()

    def on_load_step(self, report: StepReport) -> None:
        """Kept."""
        self.seconds[report.step].append(report.duration_s)

    def on_cold_start(self, model: str) -> None:
        """Of no interest here."""

    def on_unload(self, model: str, error: BaseException | None) -> None:
        """Told by `left`."""
        self.left.set()


@dataclass(frozen=True, slots=True)
class Side:
    """A pool with one model."""

    pool: WarmPool
    clock: Clock
    steps: Steps
    model: Pooled
    is_ahead: bool

    async def put_out(self) -> None:
        """Have the model unloaded, as if it had been unused for long."""
        self.steps.left.clear()
        self.clock.move(_LONG_S)
        self.pool.poke()
        await self.steps.left.wait()

    async def load(self) -> None:
        """Have it loaded, and warmed up."""
        async with self.model.hold(NO_DEADLINE):
            pass


async def first_requests(file: Path, rounds: int) -> Mapping[str, Any]:
    """How long first requests of the model in *file* take, and those that follow. Any: JSON."""
    sides = {
        "cold": await _side(file, warms=True, is_ahead=False),
        "opened": await _side(file, warms=False, is_ahead=True),
        "warmed": await _side(file, warms=True, is_ahead=True),
    }
    first: defaultdict[str, list[float]] = defaultdict(list)
    again: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        size = SIZES[number % len(SIZES)]
        order = list(sides)[:: 1 if number % 2 else -1]
        for name in order:
            await sides[name].put_out()
            if sides[name].is_ahead:
                await sides[name].load()
            batch = zeros(sides[name].model.signature, size)
            first[name].append(await _timed_ms(sides[name].model, batch) / size)
            again[name] += [await _timed_ms(sides[name].model, batch) / size for _ in range(_AGAIN)]
    for side in sides.values():
        await side.model.aclose()
        await side.pool.aclose()
    return {
        "rounds": rounds,
        "ms_per_item": {name: {"first": tail(first[name]), "again": tail(again[name])} for name in sides},
        "first_p99_over_warm_p99": {name: round(_p(first[name], 99) / _p(again[name], 99), 3) for name in sides},
        "first_p50_over_warm_p50": {name: round(_p(first[name], 50) / _p(again[name], 50), 3) for name in sides},
        "step_ms": {
            step.value: tail([1e3 * s for s in found]) for step, found in sides["warmed"].steps.seconds.items()
        },
    }


async def graph_cache(file: Path, rounds: int) -> Mapping[str, Any]:
    """What opening the model in *file* takes, from its own graph and from the optimised one. Any: JSON."""
    took_ms: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for is_cached in (False, True) if number % 2 else (True, False):
            started_s = time.perf_counter()
            backend = await open_onnx(file.stem, OnnxOptions(file, graph_cache=is_cached))
            took_ms[is_cached].append(1e3 * (time.perf_counter() - started_s))
            await backend.aclose()
    first_ms = took_ms[True].pop(0)  # which optimises, and writes
    return {
        "rounds": rounds,
        "file_mib": round(_size_bytes(file) / (1 << 20), 1),
        "open_ms": {"from its file": asdict(spread(took_ms[False])), "from the cache": asdict(spread(took_ms[True]))},
        "writing_ms": round(first_ms, 1),
        "cache_over_file": asdict(ratio(took_ms[True], took_ms[False])),
    }


def _size_bytes(file: Path) -> int:
    return file.stat().st_size


async def _side(file: Path, *, warms: bool, is_ahead: bool) -> Side:
    clock, steps = Clock(), Steps()
    pool = WarmPool(clock=clock, observer=steps)
    pool.start()

    async def warm_up(backend: Backend) -> None:
        for size in SIZES if warms else ():
            for _ in range(2):
                await backend.infer(zeros(backend.signature, size), NO_DEADLINE)

    async def read() -> None:
        await asyncio.to_thread(file.read_bytes)

    options = OnnxOptions(file, max_batch=max(SIZES))
    model = await pool.open(file.stem, Ladder(lambda: open_onnx(file.stem, options), warm_up, read))
    return Side(pool, clock, steps, model, is_ahead)


async def _timed_ms(model: Pooled, batch: Batch) -> float:
    started_s = time.perf_counter()
    await model.infer(batch, NO_DEADLINE)
    return 1e3 * (time.perf_counter() - started_s)


def tail(values: Sequence[float]) -> Mapping[str, float]:
    """Median and high percentiles of *values*."""
    return {f"p{share}": round(_p(values, share), 3) for share in (50, 90, 99)}


def _p(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))
