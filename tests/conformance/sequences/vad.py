"""Silero's voice activity detector, run as its authors run it: each chunk of sound goes on from the state before it.

Used here in the test's own process, and copied to a model repository of Triton beside `vad_model.py`, so nothing of the
project is imported. Source: `OnnxWrapper` of `silero_vad/utils_vad.py` (silero-vad 6.2.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

CHUNK = 512
"""Samples of a step, at 16 kHz."""

_CONTEXT = 64  # of the chunk before, which the network sees again
_RATE = np.array(16_000, np.int64)


def session(model: Path) -> Any:  # Any: untyped
    """The network, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


class Listener:
    """The state of one sequence."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros((1, _CONTEXT), np.float32)

    def hear(self, chunk: NDArray[np.float32]) -> float:
        """How probable it is that somebody speaks in *chunk*, (CHUNK,), FP32."""
        sound = np.concatenate([self._context, chunk.reshape(1, CHUNK)], axis=1)
        found, self._state = self._network.run(None, {"input": sound, "state": self._state, "sr": _RATE})
        self._context = sound[:, -_CONTEXT:]
        return float(found[0, 0])
