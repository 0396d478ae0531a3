"""A model that a test holds: it says that it has begun, and goes on when it is told to.

The folder POINTSMAN_HELD has the pipes `begun` (a byte for each call) and `go_on` (one is taken by each call).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


def double(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Numbers in, twice as much out, once it may."""
    folder = Path(os.environ["POINTSMAN_HELD"])
    with (folder / "begun").open("wb", buffering=0) as begun:
        begun.write(b"!")
    with (folder / "go_on").open("rb", buffering=0) as go_on:
        go_on.read(1)
    return {"y": inputs["x"] * 2}
