"""What models of the cluster's are replaced by."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.integration import models


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


def first_of(mark: Path) -> str:
    """The name of a model here that can be had once: whoever asks first leaves *mark*, and others are refused."""
    return f"once_{str(mark).encode().hex()}"


def __getattr__(name: str) -> Any:  # Any: a model
    if not name.startswith("once_"):
        raise AttributeError(name)
    try:
        os.close(os.open(bytes.fromhex(name.removeprefix("once_")), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise ValueError("only the first replica has this model") from None
    return models.fast
