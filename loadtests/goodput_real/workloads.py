"""What both servers serve: one model each, what its batches take, and how both are told of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml

from batching.simulation.arrivals import bursts, poisson
from loadtests.goodput_real import network
from loadtests.latency_curves import MODELS
from loadtests.models import BASE_S, ITEM_S
from loadtests.peers.servers import SERVING

MODEL = "dbl"
TRACES = {"poisson": poisson, "bursts": bursts}
_RUNS = 5


@dataclass(frozen=True, slots=True)
class Point:
    """A trace at one load with one objective.

    Attributes:
        objective: in times of what one item takes.
        load: in parts of the capacity.
        timeout_s: what the gateway is told: `within_s` without the way there and back.
        within_s: the objective and the allowance.
    """

    trace: str
    objective: float
    load: float
    seconds: float
    rate_per_s: float
    timeout_s: float
    within_s: float

    def moments(self, seed: int) -> tuple[float, ...]:
        """When requests come; the same for the same *seed*."""
        count = max(1, round(self.rate_per_s * self.seconds))
        return tuple([request.at_s for request in TRACES[self.trace](self.rate_per_s, count, self.within_s, seed)])


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the way there and back takes at each server, in seconds; replies from both may be late by the longer."""

    gateway_s: float
    triton_s: float

    @property
    def both_s(self) -> float:
        """The longer."""
        return max(self.gateway_s, self.triton_s)


@dataclass(frozen=True, slots=True)
class Workload:
    """A model.

    Attributes:
        kind: whether it is real.
        curve: seconds that a batch takes, by size.
        options: of the model in the gateway's configuration.
        on_triton: its file for Triton's Python backend.
        parameters: what that file is told.
        packages: what it imports that Triton's environment lacks.
        delays_s, preferred: what of Triton's batcher is tried.
    """

    name: str
    kind: str
    max_batch: int
    curve: Mapping[int, float]
    options: Mapping[str, Any]
    on_triton: Path
    parameters: Mapping[str, str]
    packages: tuple[Path, ...]
    delays_s: tuple[float, ...]
    preferred: tuple[int, ...]

    @property
    def alone_s(self) -> float:
        """What one item takes."""
        return self.curve[1]

    @property
    def capacity_per_s(self) -> float:
        """Most items a second, whatever they wait."""
        return max(size / taken_s for size, taken_s in self.curve.items())

    def point(self, trace: str, objective: float, load: float, seconds: float, allowance: Allowance) -> Point:
        """The trace at *load* of the capacity, with *objective* times what one item takes."""
        within_s = objective * self.alone_s + allowance.both_s
        rate_per_s = load * self.capacity_per_s
        return Point(trace, objective, load, seconds, rate_per_s, within_s - allowance.gateway_s, within_s)

    def gateway(self) -> str:
        """The gateway's configuration; of its batching, only what it warms up with is said."""
        model = {
            **self.options,
            "max_batch": self.max_batch,
            "batching": {"warm_up": [1, 8, self.max_batch]},
            "expose": True,
        }
        store = {"path": "null.db", "retention": "1d", "limit": "16GiB"}
        return str(yaml.safe_dump({"models": {MODEL: model}, "store": store}))

    def told(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "model": self.name,
            "kind": self.kind,
            "ms_by_batch": {size: round(1e3 * taken_s, 2) for size, taken_s in self.curve.items()},
            "max_batch": self.max_batch,
            "capacity_per_s": round(self.capacity_per_s, 1),
        }


def stand_in() -> Workload:
    """One that sleeps: a base, and as much for every item, as an accelerator's batches take.

    It is slow enough that bursts of twice its capacity do not saturate a process in Python on two shared cores.
    """
    alone_s = BASE_S + ITEM_S
    sides = {"x": "inputs", "y": "outputs"}
    tensors = {side: [{"name": name, "datatype": "FP32", "shape": [16]}] for name, side in sides.items()}
    return Workload(
        name=f"sleeps {1e3 * BASE_S:g} ms and {1e3 * ITEM_S:g} ms an item",
        kind="stand-in for an accelerator",
        max_batch=32,
        curve={size: BASE_S + size * ITEM_S for size in (1, 2, 4, 8, 16, 32)},
        options={"backend": "python", "target": "loadtests.models:accelerator", **tensors},
        on_triton=SERVING / "accelerator_on_triton.py",
        parameters={"base_s": str(BASE_S), "item_s": str(ITEM_S)},
        packages=(),
        delays_s=(0.0, alone_s / 4, alone_s / 2),
        preferred=(0, 8, 16),
    )


def real(name: str, folder: Path) -> Workload:
    """The one of `latency_curves.MODELS` that is called *name*, on one core of this machine, written to *folder*."""
    file = folder / "network.onnx"
    network.write(MODELS[name], file)
    curve = _measured(file, (1, 2, 4, 8, 16, 32))
    return Workload(
        name=name,
        kind="real, ONNX Runtime on one core",
        max_batch=32,
        curve=curve,
        options={"backend": "onnx", "path": str(file)},
        on_triton=SERVING / "onnx_on_triton.py",
        parameters={"path": str(file)},
        packages=(Path(onnxruntime.__file__).parent,),
        delays_s=(0.0, curve[1] / 2),
        preferred=(0, 4),
    )


def _measured(file: Path, sizes: tuple[int, ...]) -> dict[int, float]:
    """What batches of *sizes* take on one core, run as both servers do: medians."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found = {}
    for size in sizes:
        x = np.random.default_rng(size).normal(0.0, 1e4, (size, 16)).astype(np.float32)
        taken_s = []
        for _ in range(_RUNS + 1):  # the first is the warm-up
            started_s = time.perf_counter()
            session.run(["y"], {"x": x})
            taken_s.append(time.perf_counter() - started_s)
        found[size] = statistics.median(taken_s[1:])
    return found
