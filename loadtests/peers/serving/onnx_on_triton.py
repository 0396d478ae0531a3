"""An ONNX model in Triton's Python backend; it is copied to a model repository as `model.py`.

The server that the wheel carries has no backend for ONNX. ONNX Runtime's package lies beside this file, the gateway's
own, and runs as the gateway's `backend: onnx` runs it: one thread, no arena.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton has it


class TritonPythonModel:
    """What the Python backend looks for in a `model.py`; `Any` stands for its untyped objects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the file that the configuration names."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        path = json.loads(args["model_config"])["parameters"]["path"]["string_value"]
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One run for the whole batch, then every request's rows."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (y,) = self._session.run(["y"], {"x": np.concatenate(inputs)})
        parts = np.split(y, np.cumsum([len(x) for x in inputs])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", part)]) for part in parts]
