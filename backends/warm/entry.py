"""One model of a pool: how it comes from the disk to its first request, and everything that changes about it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from backends.contract import Backend, Limits, Signature
from backends.errors import InvalidInput
from backends.told import Statistics, lasting_statistics_of
from backends.warm.histogram import KeepAlive
from backends.warm.policy import Phase, Seen
from backends.warm.report import Step
from backends.warm.usage import Usage

_RECENT: Final = 0.3  # weight of the last load among those before
_LEAST_WORTH_S: Final = 0.001  # what a load counts for at least, so that idle times still decide between quick ones
_MEASURED: Final = 5  # loads of which the growth in memory is remembered


async def _nothing_to_warm(backend: Backend) -> None:
    return


@dataclass(frozen=True, slots=True)
class Ladder:
    """How a model comes from the disk to its first request.

    Attributes:
        open: builds the backend, ready to serve, off the event loop.
        warm_up: runs a batch of every size on it.
        read: brings its files into the system's cache; None: `open` does.
    """

    open: Callable[[], Awaitable[Backend]]
    warm_up: Callable[[Backend], Awaitable[None]] = _nothing_to_warm
    read: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class WarmOptions:
    """What an operator says about one model.

    Attributes:
        keep: 1: always in memory; 0: when idle times and the budget say so.
        memory_bytes: that it takes; None: measured.
        keep_alive: how long it is kept.

    Raises:
        InvalidInput: a number that makes no sense.
    """

    keep: int = 0
    memory_bytes: int | None = None
    keep_alive: KeepAlive = field(default_factory=KeepAlive)

    def __post_init__(self) -> None:
        if self.keep not in (0, 1):
            raise InvalidInput(f"keep is {self.keep}; use 1 for a model that is always in memory, or 0")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise InvalidInput(f"memory is {self.memory_bytes}; it must be at least 1 byte")


@dataclass(frozen=True, slots=True)
class Warmth:
    """How warm a model is.

    Attributes:
        phase: where it is.
        load_s: seconds until it is warm, if it were asked for now; 0.0 where it is.
        nbytes: memory that it takes, or would.
    """

    phase: Phase
    load_s: float
    nbytes: int


class Entry:
    """One model of a pool, and everything that changes about it."""

    __slots__ = (
        "asked_s",
        "backend",
        "closing",
        "drained",
        "error",
        "estimate_bytes",
        "failures",
        "grace_until_s",
        "is_closed",
        "kind",
        "ladder",
        "load_s",
        "load_started_s",
        "measured_bytes",
        "name",
        "options",
        "past",
        "phase",
        "retry_at_s",
        "steps_s",
        "task",
        "usage",
        "waiters",
        "was_loaded_ahead",
    )

    def __init__(self, name: str, ladder: Ladder, options: WarmOptions, estimate_bytes: int, now: float) -> None:
        self.name = name
        self.ladder = ladder
        self.options = options
        self.estimate_bytes = estimate_bytes
        self.measured_bytes: deque[int] = deque(maxlen=_MEASURED)
        self.usage = Usage(options.keep_alive, now)
        self.phase = Phase.COLD
        self.backend: Backend | None = None
        self.kind: Kind | None = None
        self.waiters: set[asyncio.Future[BaseException | None]] = set()
        self.asked_s: float | None = None
        self.grace_until_s = -math.inf
        self.was_loaded_ahead = False
        self.load_started_s = 0.0
        self.steps_s: dict[Step, float] = {}
        self.load_s = 0.0  # what a load is expected to take, all steps together; 0.0 where there was none
        self.failures = 0
        self.retry_at_s = -math.inf
        self.task: asyncio.Task[None] | None = None
        self.is_closed = False
        self.drained = asyncio.Event()
        self.closing: asyncio.Future[None] | None = None
        self.error: BaseException | None = None
        self.past: Statistics | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes, or is expected to."""
        if self.options.memory_bytes is not None:
            return self.options.memory_bytes
        return max(self.estimate_bytes, int(median(self.measured_bytes)) if self.measured_bytes else 0)

    def left_s(self, now: float) -> float:
        """Seconds until it is warm, as far as is known."""
        match self.phase:
            case Phase.WARM:
                return 0.0
            case Phase.LOADING:
                return max(self.load_s - (now - self.load_started_s), 0.0)
            case Phase.FAILED:
                return max(self.retry_at_s - now, 0.0) + self.load_s
            case _:
                return self.load_s

    def learn(self, step: Step, duration_s: float) -> None:
        """A step took *duration_s*: one that took longer than usual counts at once, one that was quicker by and by."""
        known_s = self.steps_s.get(step, duration_s)
        self.steps_s[step] = max(duration_s, known_s + _RECENT * (duration_s - known_s))
        self.load_s = sum(self.steps_s.values())

    def statistics(self) -> Statistics | None:
        """What its servers or processes have counted, over all the times that it was open; None where they do not."""
        now = None if self.backend is None else lasting_statistics_of(self.backend)
        if now is None or self.past is None:
            return now or self.past
        return now.after(self.past)

    def leave(self) -> Backend:
        """What is to be closed, which is counted no more."""
        backend = self.backend
        assert backend is not None, "a cold model was to be unloaded. This is a bug."
        if (found := self.statistics()) is not None:
            self.past = found.at_rest()
        self.backend = None
        return backend

    def began(self, now: float) -> None:
        """A call has come that will be answered."""
        self.usage.began(now)
        self.grace_until_s = -math.inf
        self.was_loaded_ahead = False

    def begin_load(self, now: float) -> None:
        """It is on its way into memory, for somebody who waits, or ahead of the next call."""
        self.phase = Phase.LOADING
        self.load_started_s = now
        self.was_loaded_ahead = self.asked_s is None

    def is_due(self, now: float) -> bool:
        """Whether it should be in memory, by its idle times, or for whoever asked for it.

        It is loaded ahead once between two calls: what makes room for others in between would come and go with every
        gap that they leave.
        """
        if self.is_closed or self.kind is None or (self.phase is Phase.COLD and self.was_loaded_ahead):
            return False
        if self.phase is Phase.COLD:
            return self.usage.is_due(now, self.load_s, is_there=False)
        return now < self.grace_until_s or self.usage.is_due(now, self.load_s)

    def seen(self, now: float, room_bytes: float) -> Seen[Entry]:
        """A snapshot for the policy; a model that has turned out to be larger than *room_bytes* takes it all."""
        nbytes = int(min(self.nbytes, room_bytes))
        is_busy = self.usage.calls > 0 or bool(self.waiters) or self.is_closed
        is_due = self.is_due(now)
        worth = 0.0
        if is_due and not is_busy:
            worth = max(self.load_s, _LEAST_WORTH_S) * self.usage.uses_per_s(now) / max(nbytes, 1)
        return Seen(self, self.phase, nbytes, self.options.keep > 0, is_busy, self.asked_s, is_due, worth)

    def next_change_s(self, now: float) -> float:
        """When the policy may see it otherwise, if nothing happens until then."""
        if self.phase is Phase.FAILED:
            return self.retry_at_s
        if self.options.keep or self.phase in (Phase.LOADING, Phase.UNLOADING):
            return math.inf
        change_s = self.usage.next_change_s(now, self.load_s)
        return min(change_s, self.grace_until_s) if self.grace_until_s > now else change_s


@dataclass(frozen=True, slots=True)
class Kind:
    """What a model is, whenever it is opened."""

    signature: Signature
    version: str
    limits: Limits

    @classmethod
    def of(cls, backend: Backend) -> Kind:
        """What *backend* says of itself."""
        return cls(backend.signature, backend.version, backend.limits)

    def has(self, other: Kind) -> bool:
        """Whether *other* can take its place: how many calls it overlaps may differ, as where a server is away."""
        return (
            (other.signature, other.version) == (self.signature, self.version)
            and other.limits.max_batch >= self.limits.max_batch
            and other.limits.memory >= self.limits.memory
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model that was opened elsewhere.

    Attributes:
        load_s: what loading it takes, in seconds.
    """

    kind: Kind
    load_s: float
