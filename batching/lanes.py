"""What waits: one lane for each compatibility key, by deadline, and a clock's worth of deadlines.

Both structures are synchronous and know nothing of event loops. An entry may leave from any place at any time
(callers do), so lanes drop from the middle at once: a queue that only marks its leavers grows without bound while a
backend hangs. A lane is a sorted list: nearly everything comes with the latest deadline and is appended, and what is
taken from a few thousand pointers moves them in a microsecond. A heap was rejected: whoever plans looks at all of it,
in order.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar

from backends.contract import Deadline
from batching.fairness import FairShare
from batching.latency import Kind, Kinds
from batching.policy import Waiting


class Queued(Waiting, Protocol):
    """An entry that lanes can hold."""

    turn: float

    @property
    def nbytes(self) -> int:
        """Bytes of host memory it keeps busy."""
        ...

    @property
    def key(self) -> Hashable:
        """Equal for entries that may share a batch."""
        ...

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...


Q = TypeVar("Q", bound=Queued)


class Lane(Generic[Q]):
    """What may share a batch, the earliest deadline first; equal ones by turn, and so by arrival.

    Attributes:
        latency: what batches of this lane take.
        arrivals: how fast items come to it.
        items: items that wait in it.
        merges: whether a batch of it is one call of the backend.
    """

    __slots__ = ("_entries", "_order", "arrivals", "items", "latency", "merges")

    def __init__(self, kind: Kind, *, merges: bool = True) -> None:
        self.latency = kind.latency
        self.arrivals = kind.arrivals
        self.merges = merges
        self.items = 0
        self._entries: list[Q] = []
        self._order: list[tuple[float, float]] = []  # deadline and turn of each

    def __iter__(self) -> Iterator[Q]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry: Q) -> bool:
        return self._index(entry) is not None

    def add(self, entry: Q) -> None:
        """Put *entry*, which has just come, where it belongs."""
        place = (entry.deadline, entry.turn)
        if not self._order or place >= self._order[-1]:
            self._order.append(place)
            self._entries.append(entry)
        else:
            index = bisect_right(self._order, place)
            self._order.insert(index, place)
            self._entries.insert(index, entry)
        self.items += entry.size
        self.arrivals.observe(entry.size, entry.arrived_s)

    def remove(self, entry: Q) -> None:
        """Take *entry* out.

        Raises:
            KeyError: it does not wait here.
        """
        index = self._index(entry)
        if index is None:
            raise KeyError(entry)
        del self._order[index]
        del self._entries[index]
        self.items -= entry.size

    def due(self, after: float, until: float) -> int:
        """About how many items have a deadline later than *after*, up to *until*: exact where all entries are alike."""
        entries = bisect_right(self._order, (until, math.inf)) - bisect_right(self._order, (after, math.inf))
        return max(0, entries) * self.items // max(1, len(self._entries))

    def _index(self, entry: Q) -> int | None:
        place = (entry.deadline, entry.turn)
        index = bisect_left(self._order, place)
        while index < len(self._order) and self._order[index] == place:
            if self._entries[index] is entry:
                return index
            index += 1
        return None


class Lanes(Generic[Q]):
    """Waiting entries and their totals.

    Args:
        kinds: what is known of each lane, which outlives it: a lane ends with its last entry.
        goes_apart: whether entries of a key are calls of their own; None: none are.

    Attributes:
        items: items of all entries.
        nbytes: bytes of all entries.
        shares: whose turn it is.
    """

    __slots__ = ("_goes_apart", "_kinds", "_lanes", "_turns", "items", "nbytes", "shares")

    def __init__(self, kinds: Kinds, goes_apart: Callable[[Hashable], bool] | None = None) -> None:
        self._kinds = kinds
        self._goes_apart = goes_apart
        self._lanes: dict[Hashable, Lane[Q]] = {}
        self._turns: dict[str, list[float]] = {}  # of what waits, by tenant, in order
        self.items = 0
        self.nbytes = 0
        self.shares = FairShare()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __contains__(self, entry: Q) -> bool:
        lane = self._lanes.get(entry.key)
        return lane is not None and entry in lane

    def __iter__(self) -> Iterator[Lane[Q]]:
        """The lanes, none of them empty."""
        return iter(self._lanes.values())

    def entries(self) -> list[Q]:
        """Everything that waits, lane by lane."""
        return [entry for lane in self._lanes.values() for entry in lane]

    def due(self, after: float, until: float) -> int:
        """About how many items have a deadline later than *after*, up to *until*."""
        return sum([lane.due(after, until) for lane in self._lanes.values()])

    def add(self, entry: Q) -> None:
        """Let *entry* wait, and give it its turn."""
        lane = self._lanes.get(entry.key)
        if lane is None:
            merges = self._goes_apart is None or not self._goes_apart(entry.key)
            lane = self._lanes[entry.key] = Lane(self._kinds.of(entry.key), merges=merges)
        entry.turn = self._turn(entry)
        lane.add(entry)
        self.items += entry.size
        self.nbytes += entry.nbytes

    def take(self, entry: Q) -> None:
        """Take *entry* out, to be served.

        Raises:
            KeyError: it does not wait here.
        """
        self._remove(entry)
        self.shares.serve(entry.tenant, entry.size)

    def holds(self, entries: Sequence[Q]) -> bool:
        """Whether *entries*, at least one and of one key, wait here, each once; at little cost for a whole lane."""
        lane = self._lanes.get(entries[0].key)
        if lane is None:
            return False
        if len(lane) == len(entries):
            return {id(entry) for entry in lane} == {id(entry) for entry in entries}
        return len(set(map(id, entries))) == len(entries) and all(entry in lane for entry in entries)

    def take_all(self, entries: Sequence[Q]) -> None:
        """Take *entries*, which it `holds`, out to be served: a whole lane at once, as it mostly is."""
        key = entries[0].key
        lane = self._lanes[key]
        if len(entries) < len(lane):
            for entry in entries:
                self.take(entry)
            return
        del self._lanes[key]
        self.items -= lane.items
        for entry in entries:
            self.nbytes -= entry.nbytes
            self._forget_turn(entry)
            self.shares.serve(entry.tenant, entry.size)

    def remove(self, entry: Q) -> None:
        """Take *entry* out, unserved.

        Raises:
            KeyError: it does not wait here.
        """
        self._remove(entry)
        self.shares.refund(entry.tenant, entry.size)

    def surplus(self, tenant: str, size: int) -> Iterator[Q]:
        """Whose leaving, one after the other, would make room for *size* more items of *tenant*.

        It is whoever's turn comes last of the greediest tenant, until *tenant* would have more than its share.
        """
        shares = self.shares.copy()
        waiting: dict[str, list[Q]] = {}
        while shares.is_within_share(tenant, size):
            greediest = shares.greediest()
            if greediest not in waiting:
                of = [entry for entry in self.entries() if entry.tenant == greediest]
                waiting[greediest] = sorted(of, key=lambda entry: entry.turn)
            newest = waiting[greediest].pop()
            shares.refund(greediest, newest.size)
            yield newest

    def _remove(self, entry: Q) -> None:
        lane = self._lanes[entry.key]
        lane.remove(entry)
        if not len(lane):
            del self._lanes[entry.key]
        self.items -= entry.size
        self.nbytes -= entry.nbytes
        self._forget_turn(entry)

    def _turn(self, entry: Q) -> float:
        """Of *entry*, which has come: never before one of its tenant's that waits already.

        What another leaves unserved is given back to the tenant, and would let who comes next overtake who came before.
        """
        turn = self.shares.come(entry.tenant, entry.size)
        turns = self._turns.get(entry.tenant)
        if turns is None:
            self._turns[entry.tenant] = [turn]
            return turn
        turn = max(turn, turns[-1])
        turns.append(turn)
        return turn

    def _forget_turn(self, entry: Q) -> None:
        turns = self._turns[entry.tenant]
        if len(turns) == 1:
            del self._turns[entry.tenant]
        else:
            del turns[bisect_left(turns, entry.turn)]


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
