"""What servers say, whichever way they are asked: tensors of their metadata and answers, and words with a meaning."""

from __future__ import annotations

import math
from typing import Any

from backends.contract import Datatype, SharedMemoryWindow, TensorSpec
from backends.oip.raw import Claim
from backends.quoting import shorten

ANSWER_ID = "pointsman-answer-id"
"""The header, or gRPC trailer, with which another Pointsman refuses what waits for a person there."""


def spec_of(name: Any, datatype: Any, shape: Any) -> TensorSpec:
    """A tensor of a server's metadata (hence Any), of the shape that it states.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"a tensor's name is {shorten(name)}")
    axes = tuple(int(axis) for axis in shape)
    return TensorSpec(name, Datatype(datatype), axes)


def is_expired(said: str) -> bool:
    """Whether *said* is how Triton tells that a request waited longer than its `timeout`."""
    return "timeout expired" in said


def is_full(said: str) -> bool:
    """Whether *said* is how Triton tells that a model's queue is full, or another Pointsman that too much waits."""
    return "maximum queue size" in said or "max_queue_size" in said or "overloaded" in said


def is_unsure(said: str) -> bool:
    """Whether *said* is how another Pointsman tells that no model was sure enough, and that no person is there."""
    return "no person to ask" in said


def is_forgotten(said: str) -> bool:
    """Whether *said* is how Triton tells that it has no such sequence, or another Pointsman that its state is lost."""
    return "must specify the START flag" in said or "is over: its state is lost" in said


def claim_of(name: Any, datatype: Any, shape: Any) -> Claim:
    """An output as an answer (hence Any) states it.

    Raises:
        ValueError, TypeError: it is none.
    """
    spec = spec_of(name, datatype, shape)
    if min(spec.shape, default=0) < 0:
        raise ValueError(f"output {name!r} has shape {list(spec.shape)}")
    return Claim(spec.name, spec.datatype, spec.shape, math.prod(spec.shape), "output")


def filled(claim: Claim, place: SharedMemoryWindow) -> SharedMemoryWindow:
    """Where in *place* the output *claim* lies. Triton does not repeat the place, and does not say how much it wrote.

    Raises:
        ValueError: it does not fit there.
    """
    size = claim.count * (claim.datatype.itemsize or 0)
    if not claim.datatype.itemsize or size > place.byte_size:
        raise ValueError(f"output {claim.name!r} of shape {list(claim.shape)} does not fit its {place.byte_size} bytes")
    return place.part(0, size)
