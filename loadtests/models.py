"""Models for load tests: one that does next to nothing, and one that takes the time of an accelerator."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray


def double(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Numbers in, twice as much out.

    Args:
        inputs: `x`, (n, 16), float32.

    Returns:
        `y`, (n, 16), float32.
    """
    return {"y": inputs["x"] * 2}


BASE_S, ITEM_S = 0.05, 0.002
"""What a batch of the stand-in for an accelerator takes, and every item on top."""

SLOW = "POINTSMAN_LOADTEST_SLOW"
"""Names a file; while it is there, the stand-in takes twice as long."""


def accelerator(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """As `double`, after the time that an accelerator might take: it sleeps, so that the CPU is free for others.

    Args:
        inputs: `x`, (n, 16), float32.

    Returns:
        `y`, (n, 16), float32.
    """
    factor = 2.0 if os.path.exists(os.environ.get(SLOW, "")) else 1.0  # noqa: PTH110  # a microsecond, not ten
    time.sleep(factor * (BASE_S + ITEM_S * len(inputs["x"])))
    return double(inputs)
