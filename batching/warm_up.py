"""Batches that mean nothing, to learn what a model takes before anybody waits for it."""

from __future__ import annotations

import numpy as np

from backends.contract import Batch, Datatype, Signature, Tensor, TensorSpec


def zeros(signature: Signature, size: int) -> Batch:
    """A batch of *size* items of zeros, or of empty bytes; an axis whose length varies is 1 long."""
    return Batch({spec.name: _zeros(spec, size) for spec in signature.inputs}, size)


def _zeros(spec: TensorSpec, size: int) -> Tensor:
    shape = (size, *(1 if axis == -1 else axis for axis in spec.shape))
    fill = b"" if spec.datatype is Datatype.BYTES else 0
    return Tensor.of(np.full(shape, fill, spec.datatype.numpy), spec.datatype)
