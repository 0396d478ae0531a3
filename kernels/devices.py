"""Where kernels run, by configuration. A device is looked for when somebody asks for it, and imported no earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol

from kernels.arrays import Array, DeviceArray
from kernels.dlpack import NEEDS_CUPY
from kernels.guard import Kernels
from kernels.recipe import Recipe


class KernelDevice(Protocol):
    """A device that kernels run on; safe to share between threads."""

    def run(self, recipe: Recipe, pictures: Sequence[Array] | Array) -> Array | None:
        """A `kernels.guard.Kernel`."""
        ...

    def run_there(self, recipe: Recipe, pictures: Sequence[Array] | Array) -> DeviceArray | None:
        """A `kernels.guard.KernelThere`."""
        ...

    def scores(self, scores: DeviceArray, k: int | None, temperature: float) -> tuple[Array, ...]:
        """A `kernels.guard.ScoreKernel`."""
        ...


def device_number(device: str) -> int | None:
    """Which CUDA device *device* is: `cuda` or `cuda:1`; None: it is `cpu`.

    Raises:
        ValueError: it is none of these.
    """
    kind, colon, number = device.partition(":")
    if device == "cpu":
        return None
    if kind != "cuda" or (colon and not (number.isascii() and number.isdecimal())):
        raise ValueError(f"{device!r} is no device; name cpu, cuda, or cuda:1 and so on")
    return int(number or 0)


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How a model's image steps are run.

    Attributes:
        fuse: False leaves them to the plain steps, one after the other.
        device: `cpu`, or `cuda` and `cuda:1`.
        check: share of pictures that are computed again by the plain steps, 0 to 1.
    """

    fuse: bool = True
    device: str = "cpu"
    check: float = 0.001


def kernels_for(options: KernelOptions) -> Kernels:
    """What *options* ask for.

    Raises:
        ValueError: the device cannot be used; says the remedy.
    """
    number = device_number(options.device)
    if number is None:
        return Kernels(fuse=options.fuse, check=options.check)
    device = cuda(number)
    return Kernels(
        fuse=options.fuse, check=options.check, kernel=device.run, there=device.run_there, scores=device.scores
    )


@lru_cache
def cuda(number: int = 0) -> KernelDevice:
    """A CUDA device, one for all models.

    Args:
        number: of the device, as CUDA counts.

    Raises:
        ValueError: CuPy is missing, or the device; says the remedy.
    """
    if find_spec("cupy") is None:
        raise ValueError(f"kernels on {NEEDS_CUPY}")
    try:
        device: KernelDevice = import_module("kernels.cuda.device").Device(number)
    except Exception as error:  # CuPy raises from its own classes, which are known only where it is
        raise ValueError(f"CUDA device {number} cannot be used: {error}; check it with nvidia-smi") from error
    return device
