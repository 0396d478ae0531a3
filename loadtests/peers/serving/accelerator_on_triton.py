"""A stand-in for an accelerator in Triton's Python backend; it is copied to a model repository as `model.py`.

It sleeps as long for a batch as `loadtests.models.accelerator` does; the configuration names the times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton has it

_TWO = np.float32(2)


class TritonPythonModel:
    """What the Python backend looks for in a `model.py`; `Any` stands for its untyped objects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the times."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._base_s = float(parameters["base_s"]["string_value"])
        self._item_s = float(parameters["item_s"]["string_value"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One sleep for the whole batch, then every request's answer."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        time.sleep(self._base_s + self._item_s * sum(len(x) for x in inputs))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x * _TWO)]) for x in inputs]
