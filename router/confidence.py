"""How sure a model says it is: one number an item, measured on its outputs, before any calibration.

**Model output is not trusted.** A row that is NaN, infinite, negative, does not sum to about one, or is not there at
all measures NaN, which means "no confidence" everywhere in Pointsman: never "confident", and never an exception, since
one bad row must not cost its neighbours their answers.

A single-column output cannot say how sure it is (a softmax over one class is always 1), so it measures NaN as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.contract import Datatype, HostArray, SharedMemoryWindow, Tensor, Tensors
from kernels.images import from_bfloat16

PROBABILITIES = "probabilities"
"""The output that is measured where a model has several and none is named."""

SCORE = "score"
"""The output in which a model without probabilities usually says how sure it is, in [0, 1]."""

# FP16 keeps 11 bits: a thousand rounded probabilities sum to within 0.0005 of one, and quantised models do worse.
_SUM_TOLERANCE = 0.01

_QUICK_BYTES = 512 * 1024
"""Outputs up to this size are measured in two milliseconds at most."""

_LARGE_BYTES = 64 * 1024
_HEAD = 256


class Kind(StrEnum):
    """What is measured: three functions of class probabilities, or a score that the model gives itself."""

    MAX = "max"
    MARGIN = "margin"
    ENTROPY = "entropy"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured, and on which output.

    Attributes:
        output: the output's name; None: `probabilities`, or the only one there is. Never None for `Kind.OUTPUT`.
    """

    kind: Kind = Kind.MAX
    output: str | None = None

    @classmethod
    def parse(cls, text: str) -> Measure:
        """Read `max`, `margin`, `entropy`, each optionally followed by `:OUTPUT`, or `output:NAME`.

        Raises:
            ValueError: says what *text* may be.
        """
        kind, colon, output = text.partition(":")
        if kind not in set(Kind) or (colon and not output) or (kind == Kind.OUTPUT and not output):
            raise ValueError(f"confidence {text!r} is unknown; use max, margin, entropy or output:NAME")
        return cls(Kind(kind), output or None)

    def __str__(self) -> str:
        return f"{self.kind}:{self.output}" if self.output else str(self.kind)


def usual_measure(outputs: Iterable[str]) -> Measure:
    """What is measured of a model with *outputs* where nothing else is said."""
    names = frozenset(outputs)
    return Measure(Kind.OUTPUT, SCORE) if SCORE in names and PROBABILITIES not in names else Measure()


def measured(how: Measure, outputs: Collection[str]) -> str | None:
    """The name of the output that *how* measures, of a model with *outputs*; None where it has no such output."""
    if how.output is not None:
        return how.output if how.output in outputs else None
    if len(outputs) == 1:
        return next(iter(outputs))
    return PROBABILITIES if PROBABILITIES in outputs else None


def is_quick(how: Measure, outputs: Tensors) -> bool:
    """Whether `measure` takes two milliseconds at most: what takes longer belongs in a thread."""
    name = measured(how, outputs)
    if name is None or isinstance(outputs[name].data, SharedMemoryWindow):
        return True
    values = outputs[name].data
    if not isinstance(values, np.ndarray):
        return False
    return values.nbytes <= _QUICK_BYTES or (
        how.kind is not Kind.OUTPUT and values.dtype.kind == "f" and _begins_as_none(values)
    )


def measure(how: Measure, outputs: Tensors, size: int) -> NDArray[np.float64]:
    """How sure a model says it is of each of *size* items.

    Args:
        outputs: the model's, after its postprocessing, with a batch axis of *size*.

    Returns:
        (size,), NaN where there is no usable number. Within [0, 1], 1 the surest, for `max`, `margin` and `entropy`;
        any finite number for `output:NAME`.
    """
    if how.kind is Kind.OUTPUT:
        return _scores(how, outputs, size)
    return _MEASURES[how.kind](probabilities(how, outputs, size))


@np.errstate(invalid="ignore", over="ignore")  # infinities in a row add up to NaN, which is the point
def probabilities(how: Measure, outputs: Tensors, size: int) -> NDArray[np.float64]:
    """The class probabilities that *how* measures.

    Returns:
        (size, classes), rows in [0, 1] that sum to one; rows of NaN where the model's row is no distribution;
        (size, 1) of NaN where the output is missing or of another shape.
    """
    tensor = _output(how, outputs)
    if tensor is not None and _is_large_and_no_distribution(tensor):
        return np.full((size, 1), np.nan)
    values = _floats(tensor, size)
    if values is None or values.ndim != 2 or values.shape[1] < 2:
        return np.full((size, 1), np.nan)
    # An item at a time is the usual case, and of that NumPy's own overhead is all: reductions are called directly.
    sums = np.add.reduce(values, axis=1, keepdims=True)
    # Written so that NaN fails: every comparison with NaN is false.
    sound = (np.minimum.reduce(values, axis=1, keepdims=True) >= 0.0) & (np.abs(sums - 1.0) <= _SUM_TOLERANCE)
    if np.count_nonzero(sound) == size:
        return values / sums
    rows: NDArray[np.float64] = np.divide(values, sums, out=np.full_like(values, np.nan), where=sound)
    return rows


def _is_large_and_no_distribution(tensor: Tensor) -> bool:
    """Whether *tensor* is so large that it should not be copied to be measured, and has no row to measure.

    Models that are no classifiers (images, hidden states) are measured like every other, in vain.
    """
    values = tensor.data
    if not isinstance(values, np.ndarray) or values.nbytes < _LARGE_BYTES or values.dtype.kind != "f":
        return False
    if _begins_as_none(values):
        return True
    sums = np.add.reduce(values, axis=1, dtype=np.float64)
    return not np.count_nonzero(np.abs(sums - 1.0) <= 2 * _SUM_TOLERANCE)


@np.errstate(invalid="ignore")  # infinities, as above
def _begins_as_none(values: NDArray[Any]) -> bool:
    """Whether the first numbers of every row of *values* tell that it is no distribution."""
    if values.ndim != 2:
        return True
    head = values[:, :_HEAD]
    sums = np.add.reduce(head, axis=1, dtype=np.float64)
    # Written so that NaN fails, as above.
    can_be = (np.minimum.reduce(head, axis=1, initial=np.inf) >= 0.0) & (sums <= 1.0 + 2 * _SUM_TOLERANCE)
    return not np.count_nonzero(can_be)


def _maximum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    best: NDArray[np.float64] = np.maximum.reduce(rows, axis=1)
    return best


def _margin(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best minus the second best."""
    if rows.shape[1] < 2:
        return rows[:, 0]
    top: NDArray[np.float64] = np.partition(rows, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0]


def _certainty(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """One minus the entropy in units of its maximum: 1 for one class alone, 0 for all alike."""
    classes = rows.shape[1]
    if classes < 2:
        return rows[:, 0]
    logs = np.log(rows, out=np.zeros_like(rows), where=rows > 0.0)  # 0 log 0 = 0
    entropy = -(rows * logs).sum(axis=1) / np.log(classes)
    certainty: NDArray[np.float64] = np.clip(1.0 - entropy, 0.0, 1.0)
    return certainty


_MEASURES: dict[Kind, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    Kind.MAX: _maximum,
    Kind.MARGIN: _margin,
    Kind.ENTROPY: _certainty,
}


@np.errstate(invalid="ignore")  # a signalling NaN
def _scores(how: Measure, outputs: Tensors, size: int) -> NDArray[np.float64]:
    values = _floats(_output(how, outputs), size)
    if values is None or values.size != size:
        return np.full(size, np.nan)
    flat = values.reshape(size)
    return np.where(np.isfinite(flat), flat, np.nan)


def _output(how: Measure, outputs: Tensors) -> Tensor | None:
    name = measured(how, outputs)
    return None if name is None else outputs[name]


def _floats(tensor: Tensor | None, size: int) -> NDArray[np.float64] | None:
    """(size, ...) as float64; None where the tensor is missing, not numbers in host memory, or of another size."""
    if tensor is None or not isinstance(tensor.data, np.ndarray) or tensor.data.shape[:1] != (size,):
        return None
    if tensor.data.dtype.kind not in "fiub":
        return None
    return _widened(tensor.datatype, tensor.data)


def _widened(datatype: Datatype, values: HostArray) -> NDArray[np.float64]:
    if values.dtype == np.float64:
        return values
    if datatype is Datatype.BF16:
        return from_bfloat16(values).astype(np.float64)
    return values.astype(np.float64)
