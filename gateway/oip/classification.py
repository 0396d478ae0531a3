"""Triton's classification extension: an output told as its *k* greatest values, as text.

    [[0.1, 0.7, 0.2]], k = 2, labels (cat, dog, fox)  ->  [["0.700000:1:dog", "0.200000:2:fox"]]

Elements of an item are counted in row-major order, whatever its shape. Floating-point values have six decimals, as
Triton writes them. Where we differ: equal values come in the order of their indices, which Triton leaves open, and NaN,
which would leave Triton's whole order open, comes last; FP16 and BF16 are served too.

Source: https://github.com/triton-inference-server/server, docs/protocol/extension_classification.md and
src/classification.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.contract import Datatype, HostArray, Tensor
from backends.errors import InvalidInput
from backends.quoting import shorten
from gateway.oip.shapes import MAX_BYTES_ELEMENTS
from kernels.images import from_bfloat16

_NO_NUMBERS = (Datatype.BYTES, Datatype.BOOL)


def class_count(value: Any, output: str) -> int:
    """The parameter `classification` of *output* as its sender wrote it (hence Any); 0, or none at all, asks for none.

    Raises:
        InvalidInput: it is not a whole number from 0 upwards.
    """
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise InvalidInput(f"output {output!r} has classification {shorten(value)}; it is a number of classes")
    return value


def check_classes(output: str, datatype: Datatype) -> None:
    """Refuse to order what has no order.

    Raises:
        InvalidInput: *datatype* is not numeric.
    """
    if datatype in _NO_NUMBERS:
        raise InvalidInput(f"output {output!r} is {datatype}; classification takes numeric outputs only")


def classified(output: str, tensor: Tensor, k: int, labels: Sequence[str] = ()) -> Tensor:
    """The *k* greatest elements of every item of *tensor*, greatest first, as `value:index[:label]`.

    Args:
        output: its name, for messages.
        tensor: (n, ...), numeric.
        k: 1 or more; where items have fewer elements, all of them.
        labels: of the elements by index; used where there is one for every element.

    Returns:
        (n, min(k, elements)), BYTES.

    Raises:
        InvalidInput: *tensor* is not numeric, or these are more than `MAX_BYTES_ELEMENTS` in all.
    """
    check_classes(output, tensor.datatype)
    array = _numbers(tensor)
    rows = array.reshape(len(array), int(np.prod(array.shape[1:])))
    count = len(rows) * min(k, rows.shape[1])
    if count > MAX_BYTES_ELEMENTS:
        raise InvalidInput(
            f"output {output!r} would be told as {count} classes; at most {MAX_BYTES_ELEMENTS} are: ask for fewer"
        )
    best = np.argsort(_descending(rows), axis=1, kind="stable")[:, :k]
    suffixes = [f":{label}".encode() for label in labels] if len(labels) == rows.shape[1] else [b""] * rows.shape[1]
    written = b"%f:%d%b" if rows.dtype.kind == "f" else b"%d:%d%b"
    found = np.empty(best.shape, dtype=object)
    for i, indices in enumerate(best.tolist()):
        values = rows[i, indices].tolist()
        found[i] = [written % (value, j, suffixes[j]) for value, j in zip(values, indices, strict=True)]
    return Tensor.of(found, Datatype.BYTES)


def _numbers(tensor: Tensor) -> HostArray:
    """The elements, of a type that NumPy can order."""
    array = tensor.numpy()
    return from_bfloat16(array) if tensor.datatype is Datatype.BF16 else array


def _descending(rows: HostArray) -> HostArray:
    """What sorts upwards as *rows* sort downwards: no integer overflows, and NaN stays behind everything."""
    return -rows if rows.dtype.kind == "f" else ~rows
