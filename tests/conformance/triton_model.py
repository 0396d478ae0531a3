"""A model of Triton's Python backend around the function that the model's configuration names.

It is copied to a model repository as `model.py`, and `tests/conformance/models.py` beside it as `models.py`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton has it


class TritonPythonModel:
    """What the Python backend looks for in a `model.py`; `Any` stands for its untyped objects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Find the function."""
        config = json.loads(args["model_config"])
        self._is_passed_on = config["input"][0]["data_type"] == "TYPE_BF16"  # NumPy has no such arrays: no function
        self._function = getattr(importlib.import_module("models"), config["parameters"]["function"]["string_value"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request for itself: the function sees each alone, as it sees a batch in the gateway."""
        return [self._answered(request) for request in requests]

    def _answered(self, request: Any) -> Any:
        if self._is_passed_on:
            return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("y", request.inputs()[0].to_dlpack())])
        try:
            outputs = self._function({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        except Exception as error:  # a model may fail in any way
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name]) for name in wanted])
