"""What an operator may say about the batching of one model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

_MIB = 1024 * 1024

PaddingValue: TypeAlias = bool | int | float | str
"""What fills up an input, as it is written: a text for BYTES, true or false for BOOL."""


@dataclass(frozen=True, slots=True)
class SequenceOptions:
    """How many sequences of a model that keeps state are answered.

    Attributes:
        max_live: that have begun and not ended; a further one is refused.
        max_waiting: most requests of one that wait for their turn.

    Raises:
        ValueError: lists every value that makes no sense.
    """

    max_live: int = 1024
    max_waiting: int = 64

    def __post_init__(self) -> None:
        found = {"max_live": self.max_live, "max_waiting": self.max_waiting}
        if faults := [f"{name} is {value}; use at least 1" for name, value in found.items() if value < 1]:
            raise ValueError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class BatchingOptions:
    """How one model's requests are gathered.

    Attributes:
        max_batch: most items in a batch; None for the backend's own limit.
        max_delay_s: longest that an item waits for company while the backend is free, in seconds. At 0 a free
            backend is never kept waiting, and batches form from what arrives while it works. None: as long as it
            pays, and its deadline allows.
        max_queue: most items that wait; what comes on top is refused.
        max_queue_bytes: most bytes of host memory that the inputs of waiting items take; and those of one batch, where
            `padding` makes it larger than they are.
        priority_levels: how many levels of priority there are, 1 the highest; 0: all requests are alike, whatever they
            say of it.
        adaptive_concurrency: whether fewer batches run at once than the backend's limit while it answers more slowly
            than usual (`batching.concurrency`).
        warm_up: sizes of the batches of zeros that are run before the first request, which teach the latency curve.
        default_priority: the level of a request that says none, or one that there is not; 0: the middle one.
        length_buckets: ascending upper bounds of items' lengths; only items of one bucket share a batch
            (`batching.padding` says what a length is). Empty: lengths do not matter.
        padding: what fills up items that are shorter than others of their batch, by input.
        trim: outputs that are as long as an item was before it was padded, and the input that each follows.

    Raises:
        ValueError: lists every value that makes no sense.
    """

    max_batch: int | None = None
    max_delay_s: float | None = None
    max_queue: int = 1024
    max_queue_bytes: int = 256 * _MIB
    priority_levels: int = 0
    default_priority: int = 0
    adaptive_concurrency: bool = False
    warm_up: tuple[int, ...] = ()
    length_buckets: tuple[int, ...] = ()
    padding: Mapping[str, PaddingValue] = field(default_factory=dict)
    trim: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = []
        if self.max_batch is not None and self.max_batch < 1:
            faults.append(f"max_batch is {self.max_batch}; use at least 1, or leave it out for the backend's limit")
        if self.max_delay_s is not None and not (math.isfinite(self.max_delay_s) and self.max_delay_s >= 0):
            faults.append(f"max_delay_s is {self.max_delay_s}; use a finite number of seconds, 0 for no delay")
        if self.max_queue < 1:
            faults.append(f"max_queue is {self.max_queue}; use at least 1 item")
        if self.max_queue_bytes < 1:
            faults.append(f"max_queue_bytes is {self.max_queue_bytes}; use at least 1 byte")
        if self.priority_levels < 0:
            faults.append(f"priority_levels is {self.priority_levels}; use at least 1, or 0 for no priorities")
        elif not 0 <= self.default_priority <= self.priority_levels:
            faults.append(
                f"default_priority is {self.default_priority}; use a level from 1 to priority_levels "
                f"({self.priority_levels}), or leave it out"
            )
        if any(size < 1 for size in self.warm_up):
            faults.append(f"warm_up is {list(self.warm_up)}; use sizes of at least 1 item")
        elif self.max_batch is not None and max(self.warm_up, default=0) > self.max_batch:
            faults.append(
                f"warm_up has a batch of {max(self.warm_up)} and max_batch is {self.max_batch}; use smaller sizes"
            )
        faults += self._length_faults()
        if faults:
            raise ValueError("; ".join(faults))

    def _length_faults(self) -> Iterator[str]:
        bounds = self.length_buckets
        if any(bound < 1 for bound in bounds) or any(low >= high for low, high in pairwise(bounds)):
            yield f"length_buckets is {list(bounds)}; use ascending lengths of at least 1"
        for name, value in self.padding.items():
            if isinstance(value, float) and not math.isfinite(value):
                yield f"padding of input {name!r} is {value}; use a finite number"
        for name, follows in self.trim.items():
            if follows not in self.padding:
                yield f"trim lets {name!r} follow input {follows!r}, which is not in padding; add it, or remove it"

    def only_for_batches(self) -> tuple[str, ...]:
        """The options that say something which only a model can follow whose requests share batches."""
        default = BatchingOptions()
        own = ("max_queue", "max_queue_bytes", "priority_levels", "default_priority")
        names = [name for name in self.__dataclass_fields__ if name not in own]
        return tuple(name for name in names if getattr(self, name) != getattr(default, name))

    def level(self, priority: int) -> int:
        """The level of a request that says *priority*; as Triton has it, 0 and unknown levels mean the default."""
        if 1 <= priority <= self.priority_levels:
            return priority
        return self.default_priority or (self.priority_levels + 1) // 2
