"""The models of the conformance suite: the same functions run in Triton (by `triton_model.py`) and in the gateway."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def double(inputs: Arrays) -> Arrays:
    """Numbers in, twice as much out."""
    return {"y": inputs["x"] * np.float32(2)}


def same(inputs: Arrays) -> Arrays:
    """What came in, of any type."""
    return {"y": inputs["x"]}


def sums(inputs: Arrays) -> Arrays:
    """Two inputs, two outputs."""
    return {"sum": inputs["a"] + inputs["b"], "difference": inputs["a"] - inputs["b"]}


def scores(inputs: Arrays) -> Arrays:
    """A classifier that is told its scores."""
    return {"scores": inputs["x"]}


def fails(inputs: Arrays) -> Arrays:
    """Fails where an element is negative."""
    if (inputs["x"] < 0).any():
        raise RuntimeError("a negative element, and so a failure, as asked for")
    return {"y": inputs["x"]}


def waits(inputs: Arrays) -> Arrays:
    """Takes as many seconds as the greatest element says."""
    time.sleep(float(inputs["x"].max(initial=0.0)))
    return {"y": inputs["x"]}


def animals(inputs: Arrays) -> Arrays:
    """A classifier with labels, that is told its scores."""
    return {"probabilities": inputs["x"]}
