"""A model of Triton's Python backend that adds up what it gets, sequence by sequence.

`x` is (what to add, seconds to take); `y` is (the sum so far, steps so far). It fails on what is not a number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton has it

_START = 1


class TritonPythonModel:
    """What the Python backend looks for in a `model.py`; `Any` stands for its untyped objects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Begin without any."""
        self._totals: dict[int | str, list[float]] = {}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Take a step of every sequence that has a request here."""
        return [self._answered(request) for request in requests]

    def _answered(self, request: Any) -> Any:
        value, pause_s = pb_utils.get_input_tensor_by_name(request, "x").as_numpy().reshape(-1).tolist()
        if request.flags() & _START:
            self._totals[request.correlation_id()] = [0.0, 0.0]
        if math.isnan(value):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("this is not a number"))
        time.sleep(pause_s)
        total = self._totals.setdefault(request.correlation_id(), [0.0, 0.0])
        total[0] += value
        total[1] += 1
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([total], np.float32))])
