"""What the gateway asks of its store, whatever database is behind it.

**An acknowledgement means committed.** When `commit`, `decide`, `finish_key` or `add_certificate` has returned, the
effect survives `kill -9` and power loss. When one raises, the effect may or may not be there, and calling again is
safe.

**State machines.** A review is open → claimed → decided; a claim that is released, or whose lease runs out, reopens it
under a new fence. An idempotency key is absent → in progress (under a lease and a fence) → done. CHECK constraints and
fenced updates hold both; no caller can skip a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from backends.errors import Code
from gateway.answer import Answer, AnswerId, StageRecord
from router.certificate import Certificate
from router.contract import Reason

KEY_LEASE_S = 60.0
"""Seconds that an idempotency key is held after `claim_key` and after each `renew_key`."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A caller's idempotency key, in the scope in which it is unique."""

    tenant: str
    route: str
    key: str


@dataclass(frozen=True, slots=True)
class Fresh:
    """The key was absent, or its lease had run out: the caller owns it now, and finishes it under *fence*."""

    fence: int


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another request with this key and the same body is being answered."""


@dataclass(frozen=True, slots=True)
class Done:
    """The key was used: replay the answer, in its current state, or the stored refusal."""

    answer_id: AnswerId | None
    code: Code | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used with another body."""


KeyClaim: TypeAlias = Fresh | InProgress | Done | Mismatch


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a model would have answered, shown to the person who decides."""

    stage: str
    label: str | None
    confidence: float | None


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """An item handed to people.

    Attributes:
        item: index into the answer's items.
        due_s: Unix time by which a person should have decided, in seconds.
        labels: what can be chosen, in order; empty for free text.
        payload: the input as its sender sent it (an image file, a text), for the person to see.
        content_type: media type of the payload.
    """

    item: int
    queue: str
    due_s: float
    labels: tuple[str, ...]
    payload: bytes
    content_type: str
    proposals: tuple[Proposal, ...]
    reason: Reason


class ReviewState(StrEnum):
    """Where a review is."""

    OPEN = "open"
    CLAIMED = "claimed"
    DECIDED = "decided"


@dataclass(frozen=True, slots=True)
class Review:
    """A review task in the store.

    Attributes:
        fence: grows with every claim; a decision must carry the fence of the claim it was made under.
        reviewer: who holds or decided it; None while open.
        lease_s: seconds left of the claim, as of the read; None unless claimed.
        label: what was decided; None before.
        created_s: Unix time, in seconds.
    """

    id: str
    tenant: str
    answer_id: AnswerId
    route: str
    state: ReviewState
    fence: int
    reviewer: str | None
    lease_s: float | None
    label: str | None
    created_s: float
    task: ReviewTask


@dataclass(frozen=True, slots=True)
class LabelledItem:
    """An item that its route showed to all stages whatever they said, and what turned out to be true of it.

    Attributes:
        at_s: Unix time of its request, in seconds.
        trail: what every stage said, in order.
        label: the person's decision, else the one that all who gave feedback agree on; None where nobody has said yet,
            or they disagree.
        disputed: no person has decided, and those who gave feedback disagree.
        by_person: the label is a person's decision.
    """

    answer_id: AnswerId
    item: int
    at_s: float
    tenant: str
    trail: tuple[StageRecord, ...]
    label: str | None
    disputed: bool = False
    by_person: bool = False


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many reviews of a queue wait, and since when the oldest does (Unix time in seconds; None when none)."""

    open: int
    claimed: int
    oldest_s: float | None


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What one round of upkeep did."""

    leases_reopened: int
    answers_purged: int
    size_bytes: int
    full: bool


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """The store at a glance.

    Attributes:
        pending_writes: queued, not yet committed.
        commits: transactions committed since the store was opened.
        rows: writes those held; over `commits`, how well they share.
        size_bytes: on disk, free pages excluded.
        limit_bytes: the operator's limit.
        full: deferrals are refused.
    """

    pending_writes: int
    commits: int
    rows: int
    size_bytes: int
    limit_bytes: int
    full: bool


class CertificationStore(Protocol):
    """What certifying a route takes from a store, and what it puts there. Safe on one event loop."""

    async def labelled(self, tenant: str | None, route: str) -> Sequence[LabelledItem]:
        """The items of *route* that every stage scored without selection, labelled or not, as they were decided.

        These are what `no_certificate` sent to a person, and what was answered as `observed`. They are read from the
        decision log and from feedback, which outlive the answers; so an item counts as long as its log row is kept.
        Ordered by the time of their requests. What `record` has queued is not among them yet.

        Args:
            tenant: whose; None: everybody's.
            route: its name.
        """
        ...

    async def certificates(self, route: str | None = None) -> Sequence[Certificate]:
        """Every certificate that was ever added, of *route* where it is given, newest first.

        One that was altered in the store is left out, and an error is logged: it proves nothing.
        """
        ...

    async def add_look(self, route: str, subject: str, evidence: str) -> int:
        """Count that somebody looks whether labels certify *route*; how many looks that makes, from 1.

        Looking again at the same labels tells nothing new, and is the same look.

        Args:
            subject: digest of what would be certified; each has looks of its own.
            evidence: digest of the labelled scores that are looked at.

        Raises:
            Unavailable: the store cannot write.
        """
        ...

    async def add_certificate(self, certificate: Certificate) -> None:
        """Keep *certificate* for good. Adding it again is harmless; nothing changes or removes it.

        Raises:
            Unavailable: the store cannot write; calling again is safe.
        """
        ...


class Store(CertificationStore, Protocol):
    """Answers, review items, idempotency keys, the decision log, feedback and certificates. Safe on one event loop."""

    async def claim_key(self, key: RequestKey, fingerprint: bytes) -> KeyClaim:
        """Take *key* for a request whose canonical body hashes to *fingerprint* (SHA-256, 32 bytes)."""
        ...

    async def renew_key(self, key: RequestKey, fence: int) -> bool:
        """Hold *key*, whose request is still being answered, for another `KEY_LEASE_S`; whether it is held still.

        A lease that has run out is renewed too, as long as nobody has claimed the key since.

        Raises:
            Unavailable: the store cannot write; the lease may or may not have been renewed.
        """
        ...

    async def finish_key(self, key: RequestKey, fence: int, code: Code, message: str) -> None:
        """Store a refusal that any repetition would meet again. A stale *fence* changes nothing."""
        ...

    async def release_key(self, key: RequestKey, fence: int) -> None:
        """Forget *key*: its request failed in a way that a retry may mend. A stale *fence* changes nothing."""
        ...

    async def commit(
        self, answer: Answer, tasks: Sequence[ReviewTask], key: RequestKey | None = None, fence: int = 0
    ) -> None:
        """Keep *answer*, its log rows and its review tasks, and finish *key*, in one durable transaction.

        Raises:
            Unavailable: the store is full, or cannot write; nothing was acknowledged.
            Conflict: *key* is no longer held under *fence*.
        """
        ...

    async def record(self, answer: Answer) -> None:
        """Keep *answer* and its log rows soon, in a batch behind the reply; waits only when too many are queued.

        Raises:
            Unavailable: the store can record nothing more: a decision that cannot be recorded is not made.
        """
        ...

    async def answer(self, tenant: str, answer_id: AnswerId) -> Answer | None:
        """The answer in its current state; None where *tenant* has no such answer. Sees what `record` has queued."""
        ...

    async def reviews(
        self,
        tenant: str,
        queue: str | None = None,
        state: ReviewState | None = ReviewState.OPEN,
        *,
        after: str | None = None,
        limit: int = 50,
    ) -> Sequence[Review]:
        """Reviews by due time, oldest first, from behind the id *after*; of every state where *state* is None.

        Their payloads are left out (empty): `review` and `claim` give them.
        """
        ...

    async def review(self, tenant: str, review_id: str) -> Review | None:
        """One review; None where *tenant* has no such review."""
        ...

    async def claim(self, tenant: str, review_id: str, reviewer: str, lease_s: float) -> Review:
        """Give an open review, or one that *reviewer* already holds, to *reviewer*.

        Raises:
            NotFound: *tenant* has no such review.
            Conflict: somebody else holds it, or it is decided.
        """
        ...

    async def claim_next(self, tenant: str, queue: str, reviewer: str, lease_s: float) -> Review | None:
        """Give *reviewer* the review they hold in *queue*, else the open one due first; None where none is open."""
        ...

    async def release(self, tenant: str, review_id: str, reviewer: str, fence: int) -> None:
        """Put a claimed review back. A stale claim changes nothing."""
        ...

    async def decide(self, tenant: str, review_id: str, reviewer: str, fence: int, label: str) -> Answer:
        """Give the item its final label; the answer as it is then. Repeating one's own decision is harmless.

        Raises:
            NotFound: *tenant* has no such review.
            InvalidInput: *label* is not one of the task's labels.
            Conflict: *reviewer* does not hold it under *fence*, or it is decided otherwise.
        """
        ...

    async def add_feedback(self, tenant: str, answer_id: AnswerId, item: int, label: str, source: str) -> None:
        """Keep what the true label of an item turned out to be.

        Raises:
            NotFound: *tenant* has no such answer, or it has no such item.
        """
        ...

    async def wait(self, tenant: str, answer_id: AnswerId, timeout_s: float) -> Answer | None:
        """`answer`, once it is final or *timeout_s* have passed, whichever comes first."""
        ...

    async def queue_depths(self) -> Mapping[str, QueueDepth]:
        """Every queue that has ever had a review, over all tenants."""
        ...

    async def certificates_version(self) -> int:
        """A number that changes when a certificate is added, by whichever process; far cheaper than reading them."""
        ...

    async def maintain(self) -> Maintenance:
        """Reopen reviews whose lease ran out, purge what retention or the disk limit tells; call every few seconds."""
        ...

    async def measure(self) -> int:
        """How many bytes the store takes now; for a process whose store another one maintains: call every few seconds.

        A store that is full refuses before it writes, and so would not see that another process has made room.
        """
        ...

    async def verify_log(self) -> Sequence[str]:
        """Where the decision log's hash chains are broken: one line a fault; none when it is whole."""
        ...

    def statistics(self) -> StoreStatistics:
        """The store at a glance, without I/O."""
        ...

    async def aclose(self) -> None:
        """Commit what is queued, and close. Closing twice is harmless."""
        ...
