"""What models of the cluster's are replaced by."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def triple(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Numbers in, three times as much out."""
    return {"y": inputs["x"] * 3}


def double_and_say_who(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Twice as much, and the process that has done it."""
    x = inputs["x"]
    return {"y": x * 2, "process": np.full((len(x), 1), os.getpid(), np.int32)}


def sure_in_time(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The first of two classes, after as many seconds as the largest of the numbers."""
    x = inputs["x"]
    time.sleep(float(x.max()))
    return {"y": np.tile(np.array([1, 0], np.float32), (len(x), 1))}
