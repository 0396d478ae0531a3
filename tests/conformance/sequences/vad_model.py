"""A model of Triton's Python backend that keeps a `Listener` for each sequence.

It is copied to a model repository as `model.py`, and `vad.py` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # Triton has it
import vad  # type: ignore[import-not-found]  # as it is called there


class TritonPythonModel:
    """What the Python backend looks for in a `model.py`; `Any` stands for its untyped objects."""

    def initialize(self, args: dict[str, str]) -> None:
        """Find the network; its package is not imported, which would want PyTorch."""
        found = find_spec("silero_vad")
        assert found is not None
        assert found.submodule_search_locations is not None
        self._network = vad.session(Path(found.submodule_search_locations[0], "data", "silero_vad_16k_op15.onnx"))
        self._listeners: dict[int, Any] = {}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Take a step of every sequence that has a request here."""
        return [self._answered(request) for request in requests]

    def _answered(self, request: Any) -> Any:
        if self._control(request, "READY") == 0:
            return pb_utils.InferenceResponse([pb_utils.Tensor("speech", np.zeros((1, 1), np.float32))])
        sequence = self._control(request, "CORRID")
        if self._control(request, "START"):
            self._listeners[sequence] = vad.Listener(self._network)
        chunk = pb_utils.get_input_tensor_by_name(request, "sound").as_numpy()
        speech = self._listeners[sequence].hear(chunk)
        if self._control(request, "END"):
            del self._listeners[sequence]
        return pb_utils.InferenceResponse([pb_utils.Tensor("speech", np.full((1, 1), speech, np.float32))])

    def _control(self, request: Any, name: str) -> int:
        return int(pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0])
