"""The sides of the comparison of image kernels do the same work."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.arrays import Array
from loadtests.kernels import CONVENTIONS, DEVIATION, SIDES, noise, sides


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_all_sides_give_one_batch_of_model_inputs(convention: str) -> None:
    pictures = noise((300, 420), 6)

    results = {name: side(pictures) for name, side in sides(convention).items()}

    assert tuple(results) == SIDES
    assert {(result.shape, str(result.dtype)) for result in results.values()} == {((6, 3, 224, 224), "float32")}
    assert levels_apart(results["fused"], results["plain"]) <= 1.01
    if convention != "antialiased":  # which OpenCV has not
        assert levels_apart(results["fused"], results["opencv"]) <= 1.01


def levels_apart(one: Array, other: Array) -> float:
    return float((np.abs(one - other) * 255 * np.array(DEVIATION)[:, np.newaxis, np.newaxis]).max())
