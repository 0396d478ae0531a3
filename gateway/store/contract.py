"""What the gateway asks of its store, whatever database is behind it.

**An acknowledgement means committed.** When `commit`, `decide`, `correct`, `undo`, `cancel`, `finish_key` or
`add_certificate` has returned, the effect survives `kill -9` and power loss. When one raises, the effect may or may not
be there, and calling again is safe.

**State machines.** A review is open → claimed → decided; a claim that is released, or whose lease runs out, reopens it
under a new fence, and so do its reviewer who takes the decision back in time, and an opinion that does not decide it
yet (see `Panel`). One that is due and undecided moves on to another queue, or is marked as overdue; neither decides it.
Undecided, it can also be cancelled, by who asked for the answer, or expire; both are for good. An idempotency key is
absent → in progress (under a lease and a fence) → done. CHECK constraints and fenced updates hold both; no caller can
skip a state.

**Revisions.** Whatever changes an answer after its first reply makes a revision of it, numbered from 2; who changed
what, and what was there before, is kept as long as the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from backends.errors import Code, Conflict
from gateway.answer import Answer, AnswerId, Revision, StageRecord
from gateway.people.scope import EVERYTHING, Scope
from gateway.store.audit import LogRow
from router.certificate import Certificate
from router.contract import ONE_PERSON, USUAL_PRIORITY, LabelQuality, Reason

Known: TypeAlias = Callable[[str], Collection[str]]
"""The labels that can be chosen of a route, by its name."""

KEY_LEASE_S = 60.0
"""Seconds that an idempotency key is held after `claim_key` and after each `renew_key`."""

UNDO_LEASE_S = 300.0
"""Seconds that a review is claimed for whoever has taken their decision about it back; it does not expire sooner."""


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
class CanaryHalt:
    """A version of a route that gets no traffic any more, as it was worse than the stable one; see `gateway.halts`.

    Attributes:
        at_s: when it was halted, Unix time in seconds.
        why: in words.
    """

    route: str
    version: str
    at_s: float
    why: str


@dataclass(frozen=True, slots=True)
class ConfigurationDraft:
    """A configuration that is to be served by all who share the store.

    Attributes:
        document: the YAML file's text. Secrets are not in it: it names variables and files that hold them, has digests
            of API keys, and no address with credentials passes `gateway.settings`. What no check can know is in it as
            it is written, such as a webhook's path that only its receiver should know.
        files: the SHA-256, in hexadecimal, of every file that decides answers, by its name; see
            `gateway.cluster.files`.
        author: who has made it, `user@host`.
    """

    document: str
    files: Mapping[str, str]
    author: str


class ConfigurationState(StrEnum):
    """What became of a configuration."""

    SERVING = "serving"  # of all, what all replicas have come to serve last
    SERVED = "served"
    CALLED_OFF = "called off"  # when it was rolled out last
    NEVER = "never served"


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration that is kept. Unix times, in seconds.

    Attributes:
        version: 1 for the first, and one more for each other.
        digest: of document and files, SHA-256 in hexadecimal.
        document: see `ConfigurationDraft`, as *files* and *author*; left out (empty) in lists.
        rolled_s, rolled_by: when it was rolled out last, or began to be, and who did.
        served_s: when all replicas had come to serve it last; None: they never had.
        called_off: why its last rollout was; None: it was not.
    """

    version: int
    digest: str
    document: str
    files: Mapping[str, str]
    made_s: float
    author: str
    rolled_s: float
    rolled_by: str
    served_s: float | None
    called_off: str | None
    state: ConfigurationState


class RolloutUnderWay(Conflict):
    """Somebody is rolling out a configuration, and others have to wait."""


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """An item handed to people.

    Attributes:
        item: index into the answer's items.
        due_s: Unix time by which a person should have decided, in seconds.
        labels: what can be chosen, in order; empty for free text.
        payload: the input as its sender sent it (an image file, a text), for the person to see.
        content_type: media type of the payload; "" where that is not kept any more (`is_forgotten`).
        expires_s: Unix time from which on nobody is asked any more, in seconds; None: it waits for ever.
        priority: 1 is decided first.
        skills: what whoever decides it must have, beside the skills that its queue asks for.
        quality: how many people are asked, and how they are checked.
    """

    item: int
    queue: str
    due_s: float
    labels: tuple[str, ...]
    payload: bytes
    content_type: str
    proposals: tuple[Proposal, ...]
    reason: Reason
    expires_s: float | None = None
    priority: int = USUAL_PRIORITY
    skills: tuple[str, ...] = ()
    quality: LabelQuality = ONE_PERSON

    @property
    def is_forgotten(self) -> bool:
        """Whether what was shown is gone, by its retention or an erasure."""
        return not self.content_type


class SaidBefore(Conflict):
    """A reviewer wants a review of an item that they have given an opinion on."""


class Purpose(StrEnum):
    """What becomes of a review's label."""

    DECIDE = "decide"  # it is the item's answer
    SECOND = "second"  # it is compared with the label of the one who decided
    GOLD = "gold"  # it is compared with the known answer


class SecondOpinion(StrEnum):
    """How far the second opinion on an item is that one person decided."""

    NONE = "none"
    DRAWN = "drawn"  # to be asked for once the item is decided
    ASKED = "asked"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Panel:
    """Whom a review is asked of.

    Attributes:
        subject: what opinions are about: the answer, or the gold item; of one subject's item nobody is asked twice.
        needed: how many must give the same label.
        of: how many are asked at most.
        adjudicate: the queue of the one who decides where they differ; None: see `LabelQuality` and `Purpose.SECOND`.
        adjudicating: they have differed, and that one is asked.
        blind: neither proposals nor anybody's label may be shown.
        second: of an item that one person decides.
    """

    purpose: Purpose = Purpose.DECIDE
    subject: str = ""
    needed: int = 1
    of: int = 1
    adjudicate: str | None = None
    adjudicating: bool = False
    blind: bool = False
    second: SecondOpinion = SecondOpinion.NONE

    @property
    def is_asked_of_others(self) -> bool:
        """Whether somebody may have given an opinion on it who must not give another."""
        return self.needed > 1 or self.purpose is not Purpose.DECIDE


class ReviewState(StrEnum):
    """Where a review is."""

    OPEN = "open"
    CLAIMED = "claimed"
    DECIDED = "decided"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_undecided(self) -> bool:
        """Whether somebody can still decide it."""
        return self in (ReviewState.OPEN, ReviewState.CLAIMED)


@dataclass(frozen=True, slots=True)
class Review:
    """A review task in the store.

    Attributes:
        fence: grows with every claim; a decision must carry the fence of the claim it was made under.
        reviewer: who holds or decided it; None while open.
        lease_s: seconds left of the claim, as of the read; None unless claimed.
        label: what was decided; None before.
        created_s: Unix time, in seconds, as `overdue_s`.
        escalations: how often it has moved on to another queue.
        recalled: it is due, and moves on when its holder's lease ends, which is not renewed any more.
        overdue_s: since when it is known to be due and undecided, with no other queue to go to; None where it is not.
        panel: whom it is asked of.
        opinions: the labels that differ, for the one who adjudicates; none before, and none in lists.
        claimed_s: since when its holder holds it, as a Unix time; None where nobody does.
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
    escalations: int = 0
    recalled: bool = False
    overdue_s: float | None = None
    panel: Panel = Panel()
    opinions: tuple[str, ...] = ()
    claimed_s: float | None = None

    def held_s(self, now_s: float) -> float | None:
        """The seconds that its holder has had it at a Unix time in seconds; None where nobody has."""
        return None if self.claimed_s is None else max(0.0, now_s - self.claimed_s)

    @property
    def is_blind(self) -> bool:
        """Whether neither proposals nor anybody's label may be shown."""
        return self.panel.blind

    @property
    def stands_alone(self) -> bool:
        """Whether it is like no other whatever its input: its label is for itself, or settles what people differ on."""
        return self.panel.blind or self.panel.adjudicating


@dataclass(frozen=True, slots=True)
class Step:
    """The queue to which reviews of another one go that are due and undecided, and the seconds that they get there."""

    queue: str
    due_s: float


@dataclass(frozen=True, slots=True)
class Escalated:
    """A review that was due and undecided.

    Attributes:
        queue: where it was.
        to: the queue where it is now; None where there is none, and it stays, overdue.
        due_s: Unix time by which it should be decided now, in seconds.
    """

    review_id: str
    tenant: str
    route: str
    queue: str
    to: str | None
    due_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """A review that somebody has taken. Unix times, in seconds.

    Attributes:
        arrived_s: when it came to its queue.
        claimed_s: when who decided it, or holds it, took it.
        decided_s: None where it is not decided.
    """

    priority: int
    reviewer: str
    arrived_s: float
    claimed_s: float
    decided_s: float | None


@dataclass(frozen=True, slots=True)
class Workload:
    """What one tenant's reviews in a queue are like.

    Attributes:
        undecided: how many, by priority.
        claimed: how many of these are held.
        unclaimed_since_s: Unix time since when the oldest of those at the head of their priorities waits, in seconds;
            None where none is open.
        taken: those that are held, and the latest that were decided, in any order.
        is_cut: others were decided before.
    """

    tenant: str
    queue: str
    undecided: Mapping[int, int]
    claimed: int
    unclaimed_since_s: float | None
    taken: tuple[Taken, ...]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where the last of an answer's reviews stands in a queue.

    Attributes:
        ahead: undecided ones before it; what is beyond `MOST_AHEAD` is not counted.
    """

    queue: str
    priority: int
    ahead: int


MOST_AHEAD = 10_000


class OpinionKind(StrEnum):
    """What a person was asked for."""

    PANEL = "panel"  # one of several opinions that decide together
    FIRST = "first"  # the decision that a second opinion is compared with
    SECOND = "second"
    ADJUDICATION = "adjudication"
    GOLD = "gold"


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one person said of an item that others are asked about too, or whose answer is known.

    Attributes:
        subject, item: what it is about; see `Panel`.
        number: which opinion on it this is, from 1; None of gold items.
        truth: the known answer; None but of gold items.
        settles: where opinions on the item differ, somebody decides.
        at_s: Unix time, in seconds.
    """

    subject: str
    item: int
    reviewer: str
    number: int | None
    kind: OpinionKind
    tenant: str
    route: str
    queue: str
    label: str
    truth: str | None
    settles: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class QualityCounts:
    """What a queue's checks have come to, over all tenants.

    Attributes:
        gold_right, gold_wrong: labels of gold items.
        seconds_agreed, seconds_differed: second opinions.
        seconds_asked: those that nobody has given yet.
    """

    gold_right: int = 0
    gold_wrong: int = 0
    seconds_agreed: int = 0
    seconds_differed: int = 0
    seconds_asked: int = 0


@dataclass(frozen=True, slots=True)
class GoldItem:
    """An item whose true label is known.

    Attributes:
        label: that one.
        proposals: what models would have answered; where there are none, it is asked blindly, as second opinions are.
    """

    tenant: str
    queue: str
    label: str
    payload: bytes
    content_type: str
    proposals: tuple[Proposal, ...] = ()


@dataclass(frozen=True, slots=True)
class GoldCount:
    """How many gold items a queue has, and how many labels they were given."""

    items: int
    labels: int


class SecondLabel(StrEnum):
    """What a blind second opinion came to, beside the label that stands: the one that was decided, or corrected to."""

    NONE = "none"  # nobody was to give one
    ASKED = "asked"  # nobody has given it yet
    AGREED = "agreed"  # both gave the label that stands
    DIFFERED = "differed"  # they did not, and nobody has adjudicated
    UPHELD = "upheld"  # they did not, and whoever adjudicated gave the label that stands
    OVERRULED = "overruled"  # they did not, and whoever adjudicated gave another

    @property
    def is_given(self) -> bool:
        """Whether two people have labelled the item."""
        return self not in (SecondLabel.NONE, SecondLabel.ASKED)

    @property
    def differs(self) -> bool:
        """Whether these two said different things, or the same, and something else stands."""
        return self.is_given and self is not SecondLabel.AGREED

    @property
    def is_in_doubt(self) -> bool:
        """Whether the label that stands cannot be relied on."""
        return self in (SecondLabel.DIFFERED, SecondLabel.OVERRULED)


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
        second: what another person said of it, blindly.
    """

    answer_id: AnswerId
    item: int
    at_s: float
    tenant: str
    trail: tuple[StageRecord, ...]
    label: str | None
    disputed: bool = False
    by_person: bool = False
    second: SecondLabel = SecondLabel.NONE


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody took a review.

    Attributes:
        at_s: Unix time, in seconds, as `returned_s`: when they put it back; None where they have not.
    """

    fence: int
    reviewer: str
    at_s: float
    returned_s: float | None


@dataclass(frozen=True, slots=True)
class Statement:
    """What *source* said about an item, as feedback, at a Unix time in seconds."""

    source: str
    label: str
    at_s: float


@dataclass(frozen=True, slots=True)
class ReviewHistory:
    """All that is known of how an item came to a person, and what became of it there.

    Attributes:
        review: as it is, its payload left out.
        requested_s: Unix time of the request, in seconds.
        trail: what every stage said of the item, in order.
        log: what the decision log has of the item, by time; without rows that were pruned from it.
        decided_s: Unix time at which the review was decided, in seconds; None where it is not.
        claims: by time; none of those that were made before the store kept them.
        statements: feedback of whomever, by time; a person's decision is one as well.
        deliveries: messages about the answer that the item is part of, by time; without those that were forgotten.
    """

    review: Review
    requested_s: float
    trail: tuple[StageRecord, ...]
    log: tuple[LogRow, ...]
    decided_s: float | None
    claims: tuple[Claim, ...]
    statements: tuple[Statement, ...]
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class QueueWork:
    """What one tenant's people, or one of them, have before them in a queue.

    Attributes:
        overdue: of the open and the claimed ones.
        oldest_s: Unix time since when the oldest waits, open or claimed, in seconds.
        due_s: Unix time when the first is due, in seconds.
    """

    open: int
    claimed: int
    overdue: int
    oldest_s: float
    due_s: float


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many reviews of a queue wait, and since when the oldest does (Unix time in seconds; None when none)."""

    open: int
    claimed: int
    oldest_s: float | None


class OutboxState(StrEnum):
    """Where a message is."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Message:
    """What a webhook, or whoever reads a mailbox, is to be told.

    Attributes:
        id: the same at every attempt.
        webhook: its name; of mail, that of its addressees (`gateway.notices`).
        body: what is sent, as JSON.
    """

    id: str
    webhook: str
    body: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message in the store.

    Attributes:
        answer_id: what it is about; "" where it is about no answer.
        created_s: Unix time, in seconds, as `next_s`: when the next attempt is due.
        attempts: those that ended.
        last: what the receiver said to the last one, or what went wrong; "" before the first.
    """

    message: Message
    tenant: str
    answer_id: AnswerId
    created_s: float
    state: OutboxState
    attempts: int
    next_s: float
    last: str


@dataclass(frozen=True, slots=True)
class OutboxDepth:
    """How many messages of a webhook wait, and are dead; and since when the oldest waits (Unix time in seconds)."""

    waiting: int
    dead: int
    oldest_s: float | None


class Outbox(Protocol):
    """What whoever delivers messages asks of a store. Safe on one event loop."""

    async def take_messages(self, webhooks: Mapping[str, int], lasting_s: float) -> Sequence[Delivery]:
        """Messages that are due, of each of *webhooks* as many as it says; due again after *lasting_s* seconds."""
        ...

    async def end_message(self, message_id: str, state: OutboxState, told: str) -> None:
        """A message was delivered, or is dead; *told*: what was said to it, or what went wrong."""
        ...

    async def postpone_message(self, message_id: str, wait_s: float, told: str) -> None:
        """An attempt failed; the next is due in *wait_s* seconds."""
        ...

    async def bury_messages(self, webhooks: Collection[str], unclaimed_s: float, told: str) -> Mapping[str, int]:
        """End messages that are due for *unclaimed_s* seconds and for none of *webhooks*; how many, by theirs.

        They are dead, with *told* as the reason. Whoever delivers to a webhook makes what is due for it due later, so
        that nobody does to these. A thousand are ended at most; call it again.
        """
        ...

    async def outbox_depths(self) -> Mapping[str, OutboxDepth]:
        """The webhooks that have messages which wait or are dead."""
        ...


@dataclass(frozen=True, slots=True)
class Maintenance:
    """What one round of upkeep did."""

    leases_reopened: int
    answers_purged: int
    size_bytes: int
    full: bool
    reviews_expired: int = 0


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


class NoticeKind(StrEnum):
    """What reviewers are told of a review."""

    NEW = "new"
    DUE = "due"


@dataclass(frozen=True, slots=True)
class NoticeRule:
    """Which reviews are told of, to whom, and how often at most.

    Attributes:
        id: what it has told by; another one tells everything anew.
        kinds: what is told.
        ahead_s: seconds before a review is due from which on it counts as due.
        every_s: least seconds between two messages.
    """

    id: str
    tenant: str
    queue: str
    kinds: frozenset[NoticeKind]
    ahead_s: float = 0.0
    every_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Notice:
    """What a rule has to tell.

    Attributes:
        new, due: reviews that it has not told of before.
        waiting: all that are undecided in its queue.
        first_due_s: when the first of these is due, as Unix time in seconds.
    """

    rule: NoticeRule
    new: int
    due: int
    waiting: int
    first_due_s: float


@dataclass(frozen=True, slots=True)
class Erasure:
    """What is to be erased: all that an answer's inputs may be read from.

    Attributes:
        by: who asks, for the log; `operator:NAME`.
        subject: of every answer about them, as callers name them; or
        answer_id: of this answer.
    """

    tenant: str
    by: str
    subject: str | None = None
    answer_id: AnswerId | None = None


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did.

    Attributes:
        answers: that held something which is gone now; 0 where it was erased before.
        reviews: that were open, and are cancelled.
        is_overwritten: no page of the store's file has it any more; False where that is left to do.
        gold: gold items that showed one of the inputs, and are removed.
    """

    answers: int
    reviews: int
    is_overwritten: bool
    gold: int = 0


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


@dataclass(frozen=True, slots=True)
class Decided:
    """A review that was decided, and the fence that it was decided under."""

    review_id: str
    fence: int

    def stands(self, now: Review | None) -> bool:
        """Whether the review, as it is *now*, is decided by that very decision, so that this can be taken back."""
        return now is not None and (now.state, now.fence) == (ReviewState.DECIDED, self.fence)


@dataclass(frozen=True, slots=True)
class UndoOffer:
    """What can be taken back in a session: one decision, or several that were made at once.

    Attributes:
        left_s: how much longer that is offered, in seconds.
    """

    reviews: tuple[Decided, ...]
    left_s: float


class SessionStore(Protocol):
    """What all gateways must know of the inbox's sessions, whichever a browser meets. Safe on one event loop."""

    @property
    def session_secret(self) -> bytes:
        """What their cookies are signed with: the same for all who share the store, and not in it; 32 bytes."""
        ...

    async def end_session(self, session_id: str, known_s: float) -> None:
        """A session is over; that is known for *known_s* seconds. Repeating it is harmless.

        Raises:
            Unavailable: the store cannot write; calling again is safe.
        """
        ...

    async def is_session_over(self, session_id: str) -> bool:
        """Whether it was ended, at whichever gateway."""
        ...

    async def offer_undo(self, session_id: str, reviews: Sequence[Decided], for_s: float) -> None:
        """*reviews*, and nothing before them, can be taken back in a session for *for_s* seconds; none: nothing can."""
        ...

    async def undo_offer(self, session_id: str) -> UndoOffer | None:
        """What can be taken back in a session; None where nothing can, any more."""
        ...


class InboxStore(SessionStore, Protocol):
    """What the review inbox asks of a store beside taking and deciding reviews. Safe on one event loop."""

    async def queue_work(self, tenant: str, scope: Scope = EVERYTHING) -> Mapping[str, QueueWork]:
        """The queues in which anything of *tenant* is undecided that *scope* admits."""
        ...

    async def alike(
        self, tenant: str, review_id: str, limit: int, *, among: Sequence[str] | None = None
    ) -> Sequence[Review]:
        """Undecided reviews that ask the same about the same input as one does, which is one of them.

        The same input: of equal digest and media type. The same question: of the same queue and route, with the same
        labels. Those that stand alone are like no other. In the order in which they are to be decided, and without
        their payloads.

        Args:
            tenant: whose reviews.
            review_id: the one.
            limit: most that are given: the one, and the newest of the others.
            among: the ids that are looked at; None: all.

        Raises:
            NotFound: *tenant* has no such review.
        """
        ...

    async def input_digests(self, tenant: str, review_ids: Sequence[str]) -> Mapping[str, bytes]:
        """The keyed digests of the inputs of those of *review_ids* that *tenant* has, as the decision log has them."""
        ...

    async def glance(self, tenant: str, review_id: str) -> Review | None:
        """As `Store.review`, the payload left out."""
        ...

    async def history(self, tenant: str, review_id: str) -> ReviewHistory | None:
        """The way that an item took; None where *tenant* has no such review."""
        ...


class ConfigurationStore(Protocol):
    """The configurations that replicas of a cluster have served, for good. Safe on one event loop.

    **Rollouts.** One at a time: whoever has begun one has a lease of it until it has ended, or they are gone, and the
    lease with them. A rollout ends as served, or as called off; one whose operator is gone may end as served still, as
    replicas tell when all of them have come to serve it (`configuration_served`).
    """

    async def keep_configuration(self, draft: ConfigurationDraft) -> Configuration:
        """Keep *draft* as what is rolled out, by others than this store: what `begin_rollout` does, without a lease.

        Raises:
            Unavailable: the store cannot write; calling again is safe, as it is anyway.
        """
        ...

    async def begin_rollout(self, what: ConfigurationDraft | int, author: str, for_s: float) -> Configuration:
        """Keep a draft, or take a version that is kept, to roll it out: this process does, for *for_s* seconds.

        A draft like the one that is served, or like the newest where that was not called off, is that one again.

        Raises:
            RolloutUnderWay: somebody does already; tells who, and since when.
            NotFound: there is no such version.
            Unavailable: the store cannot write; calling again is safe.
        """
        ...

    async def renew_rollout(self, for_s: float) -> bool:
        """Go on with the rollout that was begun for another *for_s* seconds; whether it is this process's still.

        Raises:
            Unavailable: the store cannot write; calling again is safe.
        """
        ...

    async def end_rollout(self, version: int, called_off: str | None = None) -> None:
        """The rollout of *version* is over: all replicas serve it, unless it is *called_off*, and why.

        Raises:
            Conflict: it took longer than this process said, and another was begun meanwhile.
            Unavailable: the store cannot write; calling again is safe.
        """
        ...

    async def configuration_served(self, version: int) -> None:
        """All replicas serve *version*; it is marked so where it is what was rolled out last, and not called off.

        Raises:
            Unavailable: the store cannot write; calling again is safe.
        """
        ...

    async def configurations(self) -> Sequence[Configuration]:
        """All that are kept, the newest first."""
        ...

    async def configuration(self, version: int) -> Configuration | None:
        """One of them; None where there is no such version."""
        ...


class Store(CertificationStore, ConfigurationStore, InboxStore, Outbox, Protocol):
    """Answers, reviews, idempotency keys, decision log, feedback, messages, certificates. Safe on one event loop."""

    async def claim_key(self, key: RequestKey, fingerprint: bytes) -> KeyClaim:
        """Take *key* for a request whose canonical body hashes to *fingerprint* (SHA-256, 32 bytes).

        Raises:
            Unavailable: the store cannot write. Where that took the key nevertheless, it is given back once it can.
        """
        ...

    async def renew_key(self, key: RequestKey, fence: int) -> bool:
        """Hold *key*, whose request is still being answered, for another `KEY_LEASE_S`; whether it is held still.

        A lease that has run out is renewed too, as long as nobody has claimed the key since.

        Raises:
            Unavailable: the store cannot write; the lease may or may not have been renewed.
        """
        ...

    async def finish_key(self, key: RequestKey, fence: int, code: Code, message: str) -> None:
        """Store a refusal that any repetition would meet again. A stale *fence* changes nothing.

        Raises:
            Unavailable: the store cannot write; the key is given back once it can.
        """
        ...

    async def release_key(self, key: RequestKey, fence: int) -> None:
        """Forget *key*: its request failed in a way that a retry may mend. A stale *fence* changes nothing.

        Raises:
            Unavailable: the store cannot write; it is done once it can.
        """
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
        scope: Scope = EVERYTHING,
    ) -> Sequence[Review]:
        """Reviews in the order in which they are to be decided, from behind the id *after*; those that *scope* admits.

        That is by priority, then by due time; of every state where *state* is None. Their payloads are left out
        (empty): `review` and `claim` give them.
        """
        ...

    async def review(self, tenant: str, review_id: str) -> Review | None:
        """One review; None where *tenant* has no such review."""
        ...

    async def claim(
        self, tenant: str, review_id: str, reviewer: str, lease_s: float, scope: Scope = EVERYTHING
    ) -> Review:
        """Give an open review, or one that *reviewer* already holds, to *reviewer*.

        Raises:
            NotFound: *tenant* has no such review.
            PermissionDenied: *scope* does not admit it.
            Conflict: somebody else holds it, it is decided, or it was recalled and is about to move on.
            SaidBefore: *reviewer* has given an opinion on its item.
        """
        ...

    async def claim_next(
        self, tenant: str, queue: str, reviewer: str, lease_s: float, scope: Scope = EVERYTHING
    ) -> Review | None:
        """Give *reviewer* the review they hold in *queue*, else the first open one that *scope* admits; None: none is.

        The first is of the best priority, and among these due first. One on whose item they have given an opinion is
        not for them.
        """
        ...

    async def renew(self, tenant: str, review_id: str, reviewer: str, fence: int, lease_s: float) -> Review:
        """Hold a claimed review for another *lease_s*; for what was left where it is recalled.

        Raises:
            NotFound: *tenant* has no such review.
            Conflict: *reviewer* does not hold it under *fence*.
        """
        ...

    async def assign(self, tenant: str, review_id: str, reviewer: str, fence: int, lease_s: float) -> Review:
        """Give a review that is undecided, and has *fence* still, to *reviewer*, whoever holds it; under a new fence.

        One that is recalled is theirs for what was left.

        Raises:
            NotFound: *tenant* has no such review.
            Conflict: it is decided, about to move on, or somebody has claimed it since it was read.
        """
        ...

    async def release(self, tenant: str, review_id: str, reviewer: str, fence: int) -> None:
        """Put a claimed review back. A stale claim changes nothing."""
        ...

    async def decide(self, tenant: str, review_id: str, reviewer: str, fence: int, label: str) -> Answer:
        """Give a review its label; the answer as it is then. Repeating one's own decision is harmless.

        The label is the item's final one, unless more opinions are needed, or it is a check of people (`Purpose`): then
        the answer stays as it is.

        Raises:
            NotFound: *tenant* has no such review.
            InvalidInput: *label* is not one of the task's labels.
            Conflict: *reviewer* does not hold it under *fence*, or it is decided otherwise, cancelled or expired.
        """
        ...

    @property
    def undo_s(self) -> float:
        """Seconds in which a decision can be taken back, and for which webhooks are not told of it; 0: it never can."""
        ...

    async def undo(self, tenant: str, review_id: str, reviewer: str, fence: int) -> Review:
        """Take one's own decision back within `undo_s`: claimed again under a new fence, the item as it was before.

        Messages about the answer that were not sent are not. Repeating it is harmless.

        Args:
            tenant: whose review.
            review_id: the review.
            reviewer: who decided, and holds it for `UNDO_LEASE_S` then.
            fence: of the claim under which the decision was made.

        Raises:
            NotFound: *tenant* has no such review.
            Conflict: *reviewer* did not decide it under *fence*, it is too late, or it was corrected, or its answer
                cancelled, since.
        """
        ...

    async def correct(
        self,
        tenant: str,
        review_id: str,
        reviewer: str,
        label: str,
        reason: str | None = None,
        *,
        of_anybody: bool = False,
    ) -> Answer:
        """Give an item that was decided another label; the answer as it is then. Repeating it is harmless.

        Args:
            tenant: whose review.
            review_id: the review.
            reviewer: who corrects.
            label: the one that stands from now on.
            reason: why, in words; kept as long as the answer, and not in the decision log, which nobody can erase.
            of_anybody: *reviewer* may correct what others decided.

        Raises:
            NotFound: *tenant* has no such review.
            InvalidInput: *label* is not one of the task's labels.
            PermissionDenied: somebody else has decided it.
            Conflict: it is not decided.
        """
        ...

    async def cancel(self, tenant: str, answer_id: AnswerId, caller: str) -> Answer:
        """Ask nobody any more about the items that wait for a person; the answer as it is then, all of it closed.

        What was decided stays as it is. Repeating it is harmless.

        Raises:
            NotFound: *tenant* has no such answer.
        """
        ...

    async def revisions(self, tenant: str, answer_id: AnswerId) -> Sequence[Revision]:
        """Every revision of the answer, in order; nothing where *tenant* has no such answer."""
        ...

    async def add_feedback(self, tenant: str, answer_id: AnswerId, item: int, label: str, source: str) -> None:
        """Keep what the true label of an item turned out to be.

        It is taken as long as the answer is kept, and after that as long as the decision log has an item that people
        were asked about, or that every stage scored: what `labelled` lists can be labelled.

        Raises:
            NotFound: *tenant* has no such answer, or it has no such item.
        """
        ...

    def subject(self, tenant: str, name: str) -> bytes:
        """By what the store knows *name*, whom an answer of *tenant* is about: a digest under its key, 32 bytes."""
        ...

    async def erase(self, erasure: Erasure, known: Known) -> Erased:
        """Erase, in one durable transaction; doing it again is harmless, and finds what came since.

        Reviews that are open are cancelled, and so are their answers' items; gold items that show the same input are
        removed. The decision log keeps its rows, digests and hashes; labels in it that are no choice of their route are
        taken out, and it says so.

        Args:
            known: the labels of a route, which tell nothing of an input; "" and what is not served has none.

        Raises:
            NotFound: the tenant has, and had, no such answer.
            Unavailable: the store cannot write; calling again is safe.
        """
        ...

    async def tell_reviewers(self, rule: NoticeRule, tell: Callable[[Notice, float], Message]) -> bool:
        """Have *tell*'s message delivered, where *rule* has something new to tell and it is time; whether that is so.

        What is told is marked with it, in one transaction: however many gateways ask, each review is told of once.

        Args:
            tell: makes the message, at a Unix time in seconds; called in the writer's thread.
        """
        ...

    async def wait(self, tenant: str, answer_id: AnswerId, timeout_s: float, after: int | None = None) -> Answer | None:
        """`answer`, once nothing of it is open or *timeout_s* have passed, whichever comes first.

        Args:
            tenant: whose answer.
            answer_id: the answer.
            timeout_s: how long to wait, in seconds.
            after: a revision; a later one ends the wait, too.
        """
        ...

    async def escalate(self, steps: Mapping[str, Step]) -> Sequence[Escalated]:
        """Move reviews on that are due and undecided, and log it; call it every few seconds.

        Those in a queue without a step stay, and are marked as overdue, once. One that is held stays with its holder
        for as long as the lease lasts, which cannot be renewed then, and moves on after that; nobody takes it before.

        Args:
            steps: where reviews go, by the queue that they are in.
        """
        ...

    async def workloads(self) -> Sequence[Workload]:
        """What every tenant's reviews are like in every queue that has any."""
        ...

    async def places(self, tenant: str, answer_id: AnswerId) -> Sequence[Place]:
        """Where the reviews of an answer stand that are undecided: of those in one queue, the last."""
        ...

    async def opinions(self, tenant: str | None, queue: str | None = None, since_s: float = 0.0) -> Sequence[Opinion]:
        """What people said of items that several were asked about, or whose answer is known, oldest first.

        Args:
            tenant: whose; None: everybody's.
            queue: on items of which one was given there, whoever adjudicated elsewhere included; None: anywhere.
            since_s: Unix time from which on, in seconds.
        """
        ...

    async def quality_counts(self) -> Mapping[str, QualityCounts]:
        """What checks of people have come to, by queue; of those that have any."""
        ...

    async def add_gold(self, items: Sequence[GoldItem]) -> int:
        """Keep *items*, all or none, to be put beside real ones; how many were not known before.

        One that is known, by tenant, queue and payload, is replaced.

        Raises:
            Unavailable: the store is full, or cannot write.
        """
        ...

    async def remove_gold(self, tenant: str, queue: str) -> int:
        """Ask about no gold item of *queue* any more; how many there were. What people said of them stays."""
        ...

    async def gold(self, tenant: str) -> Mapping[str, GoldCount]:
        """The gold items there are, by queue."""
        ...

    async def queue_depths(self) -> Mapping[str, QueueDepth]:
        """Every queue that has ever had a review, over all tenants."""
        ...

    async def certificates_version(self) -> int:
        """A number that changes when a certificate is added, by whichever process; far cheaper than reading them."""
        ...

    async def canary_halts(self) -> Sequence[CanaryHalt]:
        """The last halt of every version that was ever halted."""
        ...

    async def add_canary_halt(self, halt: CanaryHalt) -> None:
        """Keep *halt* in the place of an earlier one of its version.

        Raises:
            Unavailable: the store cannot write; calling again is safe.
        """
        ...

    async def lead(self, for_s: float) -> bool:
        """Whether, of several gateways on this store, this one does what one is to do, `maintain` above all.

        It has *for_s* seconds for that, of which half are left at least, and asks again in time. Where one process has
        the store, it is that one.
        """
        ...

    async def maintain(self) -> Maintenance:
        """Reopen reviews whose lease ran out, let those expire whose time is over, purge what retention or the disk
        limit tells; call every few seconds.
        """
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
