"""What a plan takes an item: bytes that it reads and writes, and milliseconds on this machine, for operators to see.

Both come of running it on an item that is made up: a picture of a megapixel, a text of four hundred characters,
sequences of 128. The time is the shortest of a few runs, one item alone on a machine that does little else, so it is
the least that an item takes; a batch takes less an item where it is done at once, and more where cores are busy.
Nothing is decided by it.

Rejected: an estimate from the bytes and the machine's bandwidth. Text steps have nothing to do with it, and what image
steps take is the kernel's and the processor's affair; to run the plan is quick and says it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from kernels.arrays import Array, ArraySpec, Values

LIMIT_S: Final = 0.1
"""For how long a plan is run again, at most five times; the first run, which loads and compiles, comes on top."""

_RUNS: Final = 5
_SIDE, _LENGTH = 1024, 128
_TEXT: Final = b"The signalman moves the points before the train arrives, and never under it. " * 5
_ALONE = threading.Lock()


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one item.

    Attributes:
        sample: the item that it was found with, in words.
        read_bytes: of the values that the plan takes.
        between_bytes: of arrays that its steps leave for each other; what a kernel keeps in a core's cache, or on its
            device, is not in it.
        written_bytes: of the values that it gives.
        seconds: that it took alone.
    """

    sample: str
    read_bytes: int
    between_bytes: int
    written_bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{1e3 * self.seconds:.3g} ms an item of {self.sample}: {self.read_bytes / 1e6:.3g} MB read, "
            f"{self.between_bytes / 1e6:.3g} MB between, {self.written_bytes / 1e6:.3g} MB written"
        )


def sample_of(inputs: Mapping[str, ArraySpec]) -> dict[str, Values]:
    """A batch of one made-up item, the same each time."""
    rng = np.random.default_rng(0)
    return {name: _one(spec, rng) for name, spec in inputs.items()}


def _one(spec: ArraySpec, rng: np.random.Generator) -> Values:
    is_picture = spec.dtype == np.uint8 and len(spec.shape) == 3
    shape = tuple((_SIDE if is_picture else _LENGTH) if length == -1 else length for length in spec.shape)
    item = np.empty(shape, dtype=spec.dtype)
    match spec.dtype.kind:
        case "O":
            item[...] = _TEXT
        case "f":
            item[...] = rng.standard_normal(shape)
        case "b":
            item[...] = True
        case _:
            item[...] = rng.integers(0, 2 if spec.dtype.itemsize > 1 else 256, shape)
    return (item,) if spec.ragged else item[np.newaxis]


def in_words(values: Mapping[str, Values]) -> str:
    """What one item is, as operators read it."""
    items = {name: value[0] for name, value in values.items()}
    return ", ".join(f"{name} {ArraySpec(item.dtype, item.shape)}" for name, item in items.items())


def bytes_of(values: Mapping[str, Values]) -> int:
    """Of all *values*; of texts, their characters' alone."""
    arrays = [array for value in values.values() for array in (value if isinstance(value, tuple) else (value,))]
    return sum(map(_bytes, arrays))


def _bytes(array: Array) -> int:
    return sum(map(len, array.flat)) if array.dtype == object else array.nbytes


def timed(run: Callable[[], object]) -> float:
    """The shortest of a few runs, in seconds; nothing else is timed meanwhile."""
    with _ALONE:
        until, shortest = time.perf_counter() + LIMIT_S, float("inf")
        for _ in range(_RUNS):
            started = time.perf_counter()
            run()
            ended = time.perf_counter()
            shortest = min(shortest, ended - started)
            if ended > until:
                break
    return shortest
