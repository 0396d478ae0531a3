"""ONNX Runtime, imported in the one way this project wants it: it keeps no device id and sends nothing home.

From 1.32 on it does both (a database under the user's cache folder), unless it is told not to before it is imported.
An operator who wants it otherwise sets ORT_DISABLE_TELEMETRY=0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

__all__ = ["CPU", "CUDA", "InvalidArgument", "open_session", "ort"]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"


def open_session(file: Path, options: Any, providers: Sequence[object] = (CPU,)) -> Any:
    """A session over *file*. Any: ONNX Runtime has no types of its own; its errors pass through.

    Args:
        options: an `onnxruntime.SessionOptions`.
        providers: what computes, the first that can; each a name, or one with its options. None is added to them.
    """
    return ort.InferenceSession(str(file), options, [*providers], enable_fallback=0)
