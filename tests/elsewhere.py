"""What stands for a device's memory where there is no device: arrays that DLPack alone can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernels import fused, outputs
from kernels.arrays import Array, DeviceArray
from kernels.dlpack import to_host
from kernels.recipe import Recipe


class Elsewhere:
    """*array*, which nobody takes for one of the host; DLPack says where it really is, so that it can be read."""

    def __init__(self, array: Array) -> None:
        self.array = np.asarray(array, order="C")

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __getitem__(self, index: int) -> Elsewhere:
        return Elsewhere(self.array[index])


def run_there(recipe: Recipe, pictures: Sequence[Array] | Array) -> DeviceArray | None:
    """`fused.run` as a kernel whose result stays where it is."""
    made = fused.run(recipe, pictures)
    return None if made is None else Elsewhere(made)


def scores_there(scores: DeviceArray, k: int | None, temperature: float) -> tuple[Array, ...]:
    """Softmax and top-k as a kernel for scores that are elsewhere."""
    assert isinstance(scores, Elsewhere)
    probabilities = outputs.softmax(to_host(scores), temperature=temperature)
    return (probabilities,) if k is None else outputs.top_k(probabilities, k)
