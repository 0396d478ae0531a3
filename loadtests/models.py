"""The null model: so little work that what is left of a request's time is the gateway's."""

from __future__ import annotations

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
