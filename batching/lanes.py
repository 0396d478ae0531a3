"""What waits: one lane for each compatibility key, in order of arrival, and a clock's worth of deadlines.

Both structures are synchronous and know nothing of event loops. An entry may leave from any place at any time
(callers do), so lanes are `OrderedDict`s, which drop from the middle at once: a queue that only marks its leavers
grows without bound while a backend hangs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

from backends.contract import Deadline
from batching.policy import Waiting


class Queued(Waiting, Hashable, Protocol):
    """An entry that lanes can hold."""

    @property
    def nbytes(self) -> int:
        """Bytes of host memory it keeps busy."""
        ...

    @property
    def key(self) -> Hashable:
        """Equal for entries that may share a batch."""
        ...


Q = TypeVar("Q", bound=Queued)


class Lanes(Generic[Q]):
    """Waiting entries and their totals.

    Attributes:
        items: items of all entries.
        nbytes: bytes of all entries.
    """

    __slots__ = ("_lanes", "items", "nbytes")

    def __init__(self) -> None:
        self._lanes: dict[Hashable, OrderedDict[Q, None]] = {}
        self.items = 0
        self.nbytes = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __contains__(self, entry: Q) -> bool:
        return entry in self._lanes.get(entry.key, ())

    def __iter__(self) -> Iterator[OrderedDict[Q, None]]:
        """The lanes, none of them empty."""
        return iter(self._lanes.values())

    def entries(self) -> list[Q]:
        """Everything that waits, lane by lane."""
        return [entry for lane in self._lanes.values() for entry in lane]

    def add(self, entry: Q) -> None:
        """Put *entry* at the end of its lane."""
        lane = self._lanes.get(entry.key)
        if lane is None:
            lane = self._lanes[entry.key] = OrderedDict()
        lane[entry] = None
        self.items += entry.size
        self.nbytes += entry.nbytes

    def remove(self, entry: Q) -> None:
        """Take *entry* out.

        Raises:
            KeyError: it does not wait here.
        """
        lane = self._lanes[entry.key]
        del lane[entry]
        if not lane:
            del self._lanes[entry.key]
        self.items -= entry.size
        self.nbytes -= entry.nbytes


class Expiring(Protocol):
    """Something with a deadline, that may be over before it."""

    @property
    def deadline(self) -> Deadline:
        """When it expires."""
        ...

    def is_over(self) -> bool:
        """Whether it no longer matters."""
        ...


E = TypeVar("E", bound=Expiring)

_SMALLEST_SWEEP = 64


class Deadlines(Generic[E]):
    """The entries that have a deadline, by deadline.

    A heap, from which an entry that is over is dropped when it comes to the front, or when a sweep finds that half of
    the heap is over. One timer for the earliest then serves them all; a timer an entry was rejected, since nearly
    every one of them would be set only to be cancelled.
    """

    __slots__ = ("_heap", "_pushed", "_sweep_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, E]] = []
        self._pushed = 0
        self._sweep_at = _SMALLEST_SWEEP

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, entry: E) -> None:
        """Watch *entry*; one without a deadline needs no watching."""
        if entry.deadline == math.inf:
            return
        self._pushed += 1  # breaks ties, so that entries themselves are never compared
        heappush(self._heap, (entry.deadline, self._pushed, entry))
        if len(self._heap) > self._sweep_at:
            self._heap = [item for item in self._heap if not item[2].is_over()]
            heapify(self._heap)
            self._sweep_at = max(_SMALLEST_SWEEP, 2 * len(self._heap))

    def pop_expired(self, now: float) -> list[E]:
        """Take out, and return, the entries that are not over and whose deadline has passed."""
        expired = []
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].is_over()):
            entry = heappop(self._heap)[2]
            if not entry.is_over():
                expired.append(entry)
        return expired

    def earliest(self) -> float:
        """The earliest deadline that is watched, infinity where none is; its entry may be over by now."""
        return self._heap[0][0] if self._heap else math.inf
