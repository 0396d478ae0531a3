"""A real model that a pool loads and unloads on a real Triton: what a load takes, and its first request.

Triton runs beside this under `--model-control-mode=explicit`. The model is magika's, 3 MB of ONNX, in Triton's Python
backend (the wheel that it comes from lacks the ONNX one): a process of its own that imports ONNX Runtime and builds the
session, and a warm-up that its configuration has Triton run before it is READY. Two sides take turns, as in `sessions`:

- `cold`: the request finds the model unloaded, and waits for its load;
- `warmed`: it was loaded ahead, and the gateway's own warm-up has run.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from backends.contract import NO_DEADLINE, Backend, Batch, Tensor
from backends.triton.model import ModelControl, TritonOptions, open_triton
from backends.warm.entry import Ladder
from backends.warm.pool import Pooled, WarmPool
from backends.warm.report import Step
from loadtests.cold_starts.sessions import Clock, Side, Steps, tail
from tests.conformance.triton import FOLDER, triton

NAME = "magika"
_WIDTH = 2048
_AGAIN = 8

_MODEL = """
import os
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        return [self._answered(request) for request in requests]

    def _answered(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "bytes").as_numpy()
        (found,) = self._session.run(None, {self._session.get_inputs()[0].name: given})
        return pb_utils.InferenceResponse([pb_utils.Tensor("target_label", found)])
"""


def _config(classes: int) -> str:
    return f"""
        name: "{NAME}"
        backend: "python"
        max_batch_size: 8
        input [ {{ name: "bytes" data_type: TYPE_INT32 dims: [ {_WIDTH} ] }} ]
        output [ {{ name: "target_label" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
        model_warmup [ {{ name: "zeros" batch_size: 1
            inputs {{ key: "bytes" value: {{ data_type: TYPE_INT32 dims: [ {_WIDTH} ] zero_data: true }} }} }} ]
        parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{FOLDER}" }} }}
    """


def why_no_runtime() -> str | None:
    """Why Triton's environment cannot run the model; None where it can."""
    found = list(FOLDER.glob("lib/python3.*/site-packages/onnxruntime"))
    return None if found else "Triton's environment has no onnxruntime; pip install it there"


async def loads_on_triton(folder: Path, file: Path, rounds: int) -> Mapping[str, Any]:
    """How long loads and first requests of the model in *file* take there. Any: JSON."""
    classes = _write(folder / "models", file)
    os.environ["XDG_STATE_HOME"] = str(folder)
    with triton(folder, folder / "models", "--model-control-mode=explicit") as server:
        cold = await _side(f"grpc://{server.grpc}", is_ahead=False)
        warmed = await _side(f"grpc://{server.grpc}", is_ahead=True)
        sides = {"cold": cold, "warmed": warmed}
        first: defaultdict[str, list[float]] = defaultdict(list)
        again: defaultdict[str, list[float]] = defaultdict(list)
        unload_ms: list[float] = []
        for side in sides.values():
            await side.put_out()
        for number in range(rounds):
            for name in list(sides)[:: 1 if number % 2 else -1]:
                side = sides[name]
                if side.is_ahead:
                    await side.load()
                first[name].append(await _timed_ms(side.model, classes))
                again[name] += [await _timed_ms(side.model, classes) for _ in range(_AGAIN)]
                started_s = time.perf_counter()
                await side.put_out()
                unload_ms.append(1e3 * (time.perf_counter() - started_s))
        for side in sides.values():
            await side.model.aclose()
            await side.pool.aclose()
        steps = {step: cold.steps.seconds[step] + warmed.steps.seconds[step] for step in (Step.OPEN, Step.WARM_UP)}
    return {
        "rounds": rounds,
        "ms": {name: {"first": tail(first[name]), "again": tail(again[name])} for name in sides},
        "first_p50_over_warm_p50": {n: round(median(first[n]) / median(again[n]), 3) for n in sides},
        "first_p99_over_warm_p99": {
            n: round(float(np.percentile(first[n], 99) / np.percentile(again[n], 99)), 3) for n in sides
        },
        "step_ms": {step.value: tail([1e3 * s for s in found]) for step, found in steps.items()},
        "unload_ms": tail(unload_ms),
        "load_s": round(median(steps[Step.OPEN]) + median(steps[Step.WARM_UP]), 3),
    }


def _write(repository: Path, file: Path) -> int:
    """The repository with the model in *file*; how many classes it has."""
    import onnxruntime

    version = repository / NAME / "1"
    version.mkdir(parents=True)
    shutil.copy(file, version / "model.onnx")
    (version / "model.py").write_text(_MODEL)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    classes = int(session.get_outputs()[0].shape[-1])
    (repository / NAME / "config.pbtxt").write_text(_config(classes))
    return classes


async def _side(url: str, *, is_ahead: bool) -> Side:
    clock, steps = Clock(), Steps()
    pool = WarmPool(clock=clock, observer=steps)
    pool.start()
    options = TritonOptions(url, model=NAME, model_control=ModelControl.EXPLICIT)

    async def warm_up(backend: Backend) -> None:
        for _ in range(2):
            await backend.infer(_batch(), NO_DEADLINE)

    model = await pool.open(NAME, Ladder(lambda: open_triton(NAME, options), warm_up))
    return Side(pool, clock, steps, model, is_ahead)


def _batch() -> Batch:
    return Batch.of({"bytes": Tensor.of(np.zeros((1, _WIDTH), np.int32))})


async def _timed_ms(model: Pooled, classes: int) -> float:
    started_s = time.perf_counter()
    outputs = await model.infer(_batch(), NO_DEADLINE)
    took_ms = 1e3 * (time.perf_counter() - started_s)
    assert outputs["target_label"].shape == (1, classes)
    return took_ms
