"""Models that put each other out of a pool under traffic, over and over: does a request fail, does memory come back?

Two ONNX models of some MiB each share a pool with room for one. Callers ask for either at random, and check what they
are told: one model doubles, the other triples. Every change of mind is an unload and a load; calls wait for these, and
none may fail. Resident memory of this process is read after every tenth of the cycles.
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from backends.contract import NO_DEADLINE, Batch, Tensor
from backends.onnx import OnnxOptions, open_onnx
from backends.warm.entry import Ladder, WarmOptions
from backends.warm.memory import give_back, resident_bytes
from backends.warm.pool import Pooled, WarmPool
from backends.warm.report import IgnorePool

_MIB = 1 << 20
WEIGHTS_MIB = 16
_CALLERS = 4


@dataclass(frozen=True, slots=True)
class Cycles:
    """What was seen.

    Attributes:
        cycles: unloads under traffic.
        answered: calls that were answered rightly.
        failed: the others.
        model_mib: weights of each model.
        rss_mib: resident memory after every tenth of the cycles, the first tenth first.
        kept_mib: how much more it was at the end than after the first tenth.
    """

    cycles: int
    answered: int
    failed: int
    took_s: float
    model_mib: int
    rss_mib: list[float]
    kept_mib: float


class _Count(IgnorePool):
    """Counts unloads, and reads memory now and then."""

    def __init__(self, cycles: int) -> None:
        self.unloads = 0
        self.rss_mib: list[float] = []
        self.over = asyncio.Event()
        self._cycles = cycles

    def on_unload(self, model: str, error: BaseException | None) -> None:
        self.unloads += 1
        if self.unloads % max(1, self._cycles // 10) == 0:
            self.rss_mib.append(round(resident_bytes() / _MIB, 1))
        if self.unloads >= self._cycles:
            self.over.set()


async def cycled(folder: Path, cycles: int) -> Cycles:
    """So many unloads under traffic; *folder* takes the models' files."""
    count = _Count(cycles)
    tally = [0, 0]
    started_s = time.monotonic()
    async with WarmPool(1.5 * WEIGHTS_MIB * _MIB, observer=count) as pool:
        models = {factor: await _opened(pool, folder, factor) for factor in (2, 3)}
        async with asyncio.TaskGroup() as callers:
            for seed in range(_CALLERS):
                callers.create_task(_call(models, seed, count.over, tally))
        for model in models.values():
            await model.aclose()
    gc.collect()
    give_back()
    count.rss_mib.append(round(resident_bytes() / _MIB, 1))
    took_s = round(time.monotonic() - started_s, 1)
    kept_mib = round(count.rss_mib[-1] - count.rss_mib[0], 1)
    return Cycles(count.unloads, tally[0], tally[1], took_s, WEIGHTS_MIB, count.rss_mib, kept_mib)


async def _opened(pool: WarmPool, folder: Path, factor: int) -> Pooled:
    file = folder / f"times-{factor}.onnx"
    await asyncio.to_thread(_write, file, factor)
    name, options = file.stem, OnnxOptions(file)
    return await pool.open(name, Ladder(lambda: open_onnx(name, options)), WarmOptions(0, WEIGHTS_MIB * _MIB))


async def _call(models: dict[int, Pooled], seed: int, over: asyncio.Event, tally: list[int]) -> None:
    rng = np.random.default_rng(seed)
    while not over.is_set():
        factor = int(rng.choice([2, 3]))
        given = rng.random((2, 8), np.float32)
        try:
            outputs = await models[factor].infer(Batch.of({"x": Tensor.of(given)}), NO_DEADLINE)
            is_right = np.array_equal(outputs["y"].numpy(), given * np.float32(factor))
        except Exception:  # whatever it is, it is a call that failed
            is_right = False
        tally[0 if is_right else 1] += 1


def _write(file: Path, factor: int) -> None:
    """A model that multiplies by *factor*, and carries weights that come to nothing."""
    ballast = np.zeros((WEIGHTS_MIB * _MIB // 4,), np.float32)
    nodes = [
        helper.make_node("Gather", ["ballast", "place"], ["nothing"]),
        helper.make_node("Mul", ["x", "factor"], ["times"]),
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Gather", ["ballast", "whole"], ["zeros"]),
        helper.make_node("Add", ["times", "zeros"], ["most"]),
        helper.make_node("Add", ["most", "nothing"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(ballast, "ballast"),
        numpy_helper.from_array(np.array(0, np.int64), "place"),
        numpy_helper.from_array(np.array(factor, np.float32), "factor"),
    ]
    graph = helper.make_graph(
        nodes,
        "times",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
