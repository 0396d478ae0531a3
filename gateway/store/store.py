"""The store: `gateway.store.contract` over a database, a writing thread and a few reading ones.

    event loop ── submit ──> writer thread ── one transaction a group ──> SQLite, or PostgreSQL
        │                        (bulk functions of answers, keys, reviews, retention, log)
        └────── read ───────> reader threads, a snapshot each

Nothing here blocks the loop: it queues, waits for futures, and keeps three small things in memory: answers that are
recorded but not committed yet, who waits for which answer, and how full the disk is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from backends.errors import Code, Unavailable
from gateway.answer import Answer, AnswerId, Revision, told_s
from gateway.people.scope import EVERYTHING, Scope
from gateway.store import (
    answers,
    certificates,
    changes,
    configurations,
    gold,
    halts,
    history,
    keys,
    labels,
    leases,
    log,
    notices,
    opinions,
    outbox,
    retention,
    reviews,
    sessions,
    workload,
)
from gateway.store import erasure as erasing
from gateway.store.answers import Commit, Feedback, Hide
from gateway.store.contract import (
    CanaryHalt,
    Configuration,
    ConfigurationDraft,
    Decided,
    Delivery,
    Erased,
    Erasure,
    Escalated,
    Fresh,
    GoldCount,
    GoldItem,
    KeyClaim,
    Known,
    LabelledItem,
    Maintenance,
    Message,
    Notice,
    NoticeRule,
    Opinion,
    OutboxDepth,
    OutboxState,
    Place,
    QualityCounts,
    QueueDepth,
    QueueWork,
    RequestKey,
    Review,
    ReviewHistory,
    ReviewState,
    ReviewTask,
    Step,
    StoreStatistics,
    UndoOffer,
    Workload,
)
from gateway.store.database import Clocks, Database
from gateway.store.key import StoreKey, open_key
from gateway.store.keys import KeyRequest, Release, Renewal
from gateway.store.options import CannotOpenStore, Postgres, StoreOptions
from gateway.store.outbox import Announce, Telling, announce_nothing
from gateway.store.ownership import reopen_of, reopen_of_dead
from gateway.store.places import open_database
from gateway.store.retention import Watermarks
from gateway.store.reviews import Correction, Ruling
from gateway.store.transaction import Identity, Transaction
from gateway.store.writer import InDoubt, Writer
from router.certificate import Certificate

_LOGGER = logging.getLogger(__name__)

_QUEUE_RECORDS = 4096
_QUEUE_BYTES = 64 * 2**20
_POLL_S = 1.0
_POLL_IDS = 500
_VACUUM_PAGES = 1024
_UPKEEP = "upkeep"
_HELD_BYTES = 256 * 1024  # of inputs, until the answer to them is written down
_OVERWRITE_BYTES = 512 * 2**20
_UNDERWAY_S = 0.5
"""Age of an answer's id up to which a sibling may not have committed the answer yet."""
_LOOK_AGAIN_S = 0.03

_R = TypeVar("_R")
_Sweep: TypeAlias = Callable[[Transaction, str], tuple[int, str]]


async def open_store(
    options: StoreOptions,
    *,
    clock: Callable[[], float] | None = None,
    wall_clock: Callable[[], float] | None = None,
    siblings: bool = False,
    announce: Announce = announce_nothing,
    hide: Hide | None = None,
) -> SqlStore:
    """Open the store, making or upgrading its schema, and reopening what dead processes held; close it with `aclose`.

    Args:
        options: where, and how much.
        clock: of leases, in seconds; one for all processes that share the store. None: the host's monotonic one on
            SQLite, the server's on PostgreSQL.
        wall_clock: Unix time, in seconds; None: the host's, or the server's.
        siblings: other processes answer the same callers, so an answer of theirs may be asked for here before it is
            committed: it is looked for again until its id is half a second old. On PostgreSQL there may always be some.
        announce: what is to be told of answers that people, or erasures, have closed; called in the writer's thread.
        hide: what is kept of labels and reasons in people's and callers' own words, None: all of them; called in the
            writer's thread.

    Raises:
        CannotOpenStore: there is no sound SQLite, the file or the server cannot be used, or a later version made it.
    """
    siblings = siblings or isinstance(options.place, Postgres)
    database, identity, key = await asyncio.to_thread(_open, options)
    return SqlStore(
        options, key, database, identity, clock, wall_clock, siblings=siblings, announce=announce, hide=hide
    )


class SqlStore:
    """`gateway.store.contract.Store` over SQL; made by `open_store`."""

    def __init__(
        self,
        options: StoreOptions,
        key: StoreKey,
        database: Database,
        identity: Identity,
        clock: Callable[[], float] | None,
        wall_clock: Callable[[], float] | None,
        *,
        siblings: bool = False,
        announce: Announce = announce_nothing,
        hide: Hide | None = None,
    ) -> None:
        self._options = options
        self._key = key
        self._database = database
        self._clock = clock
        self._wall_clock = wall_clock
        self._siblings = siblings
        self._telling = Telling(announce, options.undo_s)
        self._hide = hide
        self._watermarks = Watermarks.of(options.limit_bytes)
        self._queued: dict[AnswerId, tuple[Answer, int]] = {}  # and what it takes, in bytes
        self._queued_bytes = 0
        self._room = asyncio.Event()
        self._waiting: dict[AnswerId, dict[asyncio.Future[None], float]] = {}  # and the revision that each has seen
        self._readers = ThreadPoolExecutor(database.readers, thread_name_prefix="store-reader")
        self._writer = Writer(
            database,
            identity,
            self._on_recorded,
            self._room.set,
            clock=clock,
            wall_clock=wall_clock,
            group_units=options.group_units,
            keys_s=options.kept.keys_s,
        )
        self._swept: dict[_Sweep, str] = {}  # and the id up to which it has looked
        self._watcher = asyncio.create_task(self._watch(), name="store-watcher")
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        s = self.statistics()
        return f"<SqlStore {self._options.place}: {s.pending_writes} pending, {s.size_bytes} of {s.limit_bytes} bytes>"

    async def claim_key(self, key: RequestKey, fingerprint: bytes) -> KeyClaim:
        """See `Store.claim_key`."""
        self._refuse_when_full()
        try:
            return await self._writer.submit(keys.claim_keys, KeyRequest(key, fingerprint))
        except InDoubt as doubt:
            if isinstance(doubt.outcome, Fresh):
                self._writer.insist(keys.release_keys, Release(key, doubt.outcome.fence))
            raise

    async def renew_key(self, key: RequestKey, fence: int) -> bool:
        """See `Store.renew_key`; never refused for the disk limit: what it holds may still be recorded."""
        return await self._writer.submit(keys.renew_keys, Renewal(key, fence))

    async def finish_key(self, key: RequestKey, fence: int, code: Code, message: str) -> None:
        """See `Store.finish_key`."""
        finishing = self._writer.run(
            lambda transaction: keys.finish_with_refusal(transaction, key, fence, code, message)
        )
        await self._or_released(finishing, Release(key, fence))

    async def release_key(self, key: RequestKey, fence: int) -> None:
        """See `Store.release_key`."""
        release = Release(key, fence)
        await self._or_released(self._writer.submit(keys.release_keys, release), release)

    async def _or_released(self, ending: Awaitable[None], release: Release) -> None:
        """Wait for the end of a key; where it cannot be written, the key is given back once that can."""
        try:
            await ending
        except Unavailable:
            self._writer.insist(keys.release_keys, release)
            raise

    async def commit(
        self, answer: Answer, tasks: Sequence[ReviewTask], key: RequestKey | None = None, fence: int = 0
    ) -> None:
        """See `Store.commit`."""
        self._refuse_when_full()
        if tasks and self._writer.size_bytes >= self._watermarks.refuse_deferrals:
            raise Unavailable(
                f"the store is at {self._used():.0%} of its limit and takes no new reviews; decide open ones, shorten"
                " the retention, or raise the limit",
            )
        await self._writer.submit(answers.commit_answers, Commit(answer, tuple(tasks), key, fence, self._key))

    async def record(self, answer: Answer) -> None:
        """See `Store.record`; large inputs are digested first, and not held until they are written of."""
        commit = Commit(answer, store_key=self._key)
        if answer.inputs is not None and answer.inputs.nbytes > _HELD_BYTES:
            commit = await asyncio.to_thread(answers.with_digests, commit)
        size = _size(commit.answer)
        while True:
            self._refuse_when_full()
            if self._writer.is_failing:
                raise Unavailable("the store cannot write now, and records no decision; try again", retry_after_s=1.0)
            if not self._queued or (len(self._queued) < _QUEUE_RECORDS and self._queued_bytes + size <= _QUEUE_BYTES):
                break
            self._room.clear()
            await self._room.wait()
        self._writer.record(commit)
        self._queued[answer.id] = (commit.answer, size)
        self._queued_bytes += size

    async def answer(self, tenant: str, answer_id: AnswerId) -> Answer | None:
        """See `Store.answer`."""
        queued = self._queued.get(answer_id)
        if queued is not None:
            return queued[0] if queued[0].tenant == tenant else None
        while True:
            found = await self._read(lambda connection: answers.read_answer(connection, tenant, answer_id))
            if found is not None or not self._may_be_underway(answer_id):
                return found
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _committed(self, tenant: str, answer_id: AnswerId) -> None:
        """Wait for the answer, if a sibling may have told it and not committed it yet."""
        if self._may_be_underway(answer_id):
            await self.answer(tenant, answer_id)

    def _may_be_underway(self, answer_id: AnswerId) -> bool:
        # On another host's clock, which may be a little ahead of this one's.
        now_s = time.time() if self._wall_clock is None else self._wall_clock()
        return self._siblings and abs(now_s - told_s(answer_id)) < _UNDERWAY_S

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
        """See `Store.reviews`.

        Raises:
            NotFound: *after* is no review of *tenant*, or was purged.
        """
        return await self._read(
            lambda connection: reviews.list_reviews(
                connection, self._clocks(connection).now, tenant, queue, state, after, limit, scope
            ),
        )

    async def review(self, tenant: str, review_id: str) -> Review | None:
        """See `Store.review`."""
        return await self._read(
            lambda connection: reviews.read_review(connection, self._clocks(connection).now, tenant, review_id)
        )

    async def claim(
        self, tenant: str, review_id: str, reviewer: str, lease_s: float, scope: Scope = EVERYTHING
    ) -> Review:
        """See `Store.claim`; renewing a claim that one still holds keeps its fence."""
        return await self._writer.run(
            lambda transaction: reviews.claim(transaction, tenant, review_id, reviewer, lease_s, scope),
        )

    async def claim_next(
        self, tenant: str, queue: str, reviewer: str, lease_s: float, scope: Scope = EVERYTHING
    ) -> Review | None:
        """See `Store.claim_next`."""
        return await self._writer.run(
            lambda transaction: reviews.claim_next(transaction, tenant, queue, reviewer, lease_s, scope),
        )

    async def renew(self, tenant: str, review_id: str, reviewer: str, fence: int, lease_s: float) -> Review:
        """See `Store.renew`."""
        return await self._writer.run(
            lambda transaction: reviews.renew(transaction, tenant, review_id, reviewer, fence, lease_s),
        )

    async def assign(self, tenant: str, review_id: str, reviewer: str, fence: int, lease_s: float) -> Review:
        """See `Store.assign`."""
        return await self._writer.run(
            lambda transaction: reviews.assign(transaction, tenant, review_id, reviewer, fence, lease_s),
        )

    async def release(self, tenant: str, review_id: str, reviewer: str, fence: int) -> None:
        """See `Store.release`."""
        await self._writer.run(
            lambda transaction: reviews.release(transaction, tenant, review_id, reviewer, fence),
        )

    async def decide(self, tenant: str, review_id: str, reviewer: str, fence: int, label: str) -> Answer:
        """See `Store.decide`; a claim whose lease has run out is not held."""

        def work(transaction: Transaction) -> Answer:
            said, _ = self._kept(transaction, tenant, review_id, label)
            return reviews.decide(transaction, Ruling(tenant, review_id, reviewer, fence, said), self._telling)

        return await self._change(work)

    def _kept(
        self, transaction: Transaction, tenant: str, review_id: str, label: str, reason: str | None = None
    ) -> tuple[str, str | None]:
        """What is kept of what people say about a review; a label that is one of its choices is nobody's own words."""
        if self._hide is None:
            return label, reason
        found = reviews.read_listed(transaction.connection, transaction.now, tenant, review_id)
        if found is None:
            return label, reason
        hide = partial(self._hide, found.route)
        return label if found.task.labels else hide(label), None if reason is None else hide(reason)

    @property
    def undo_s(self) -> float:
        """See `Store.undo_s`."""
        return self._options.undo_s

    async def undo(self, tenant: str, review_id: str, reviewer: str, fence: int) -> Review:
        """See `Store.undo`; "within" is by the wall clock, as the outbox's time is."""
        review = await self._writer.run(
            lambda transaction: reviews.undo(transaction, tenant, review_id, reviewer, fence, self._telling)
        )
        self._notify([review.answer_id])
        return review

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
        """See `Store.correct`."""

        def work(transaction: Transaction) -> Answer:
            said, why = self._kept(transaction, tenant, review_id, label, reason)
            correction = Correction(tenant, review_id, reviewer, said, why, of_anybody)
            return reviews.correct(transaction, correction, self._telling)

        return await self._change(work)

    async def cancel(self, tenant: str, answer_id: AnswerId, caller: str) -> Answer:
        """See `Store.cancel`; never refused for the disk limit: it lets the answer be purged."""
        queued = self._queued.get(answer_id)
        if queued is not None and queued[0].tenant == tenant:
            return queued[0]  # nobody was asked about it
        await self._committed(tenant, answer_id)
        return await self._change(
            lambda transaction: reviews.cancel(transaction, tenant, answer_id, caller, self._telling)
        )

    async def revisions(self, tenant: str, answer_id: AnswerId) -> Sequence[Revision]:
        """See `Store.revisions`."""
        queued = self._queued.get(answer_id)
        if queued is not None:
            return [changes.first_revision(queued[0])] if queued[0].tenant == tenant else []
        await self._committed(tenant, answer_id)
        return await self._read(lambda connection: changes.read_revisions(connection, tenant, answer_id))

    async def _change(self, work: Callable[[Transaction], Answer]) -> Answer:
        """The answer that *work* has changed; whoever waits for it is woken."""
        answer = await self._writer.run(work)
        self._notify([answer.id])
        return answer

    async def add_feedback(self, tenant: str, answer_id: AnswerId, item: int, label: str, source: str) -> None:
        """See `Store.add_feedback`; the same source's last word on an item stands."""
        self._refuse_when_full()
        answers.check_label(label)
        feedback = Feedback(tenant, answer_id, item, label, source)
        queued = self._queued.get(answer_id)
        if queued is None:
            await self._committed(tenant, answer_id)
        route = None if queued is None else answers.answered_route(queued[0], feedback)
        await self._writer.run(lambda transaction: answers.add_feedback(transaction, feedback, route, self._hide))

    def subject(self, tenant: str, name: str) -> bytes:
        """See `Store.subject`."""
        return self._key.of_subject(tenant, name)

    async def erase(self, erasure: Erasure, known: Known) -> Erased:
        """See `Store.erase`; `gateway.store.erasure` says what goes, and what stays."""
        await self._recorded()
        subject = None if erasure.subject is None else self.subject(erasure.tenant, erasure.subject)
        found = await self._read(partial(erasing.find, erasure=erasure, subject=subject, key=self._key))
        # At once: nothing of it can be taken back any more.
        telling = Telling(self._telling.announce)
        work = partial(erasing.erase, erasure=erasure, subject=subject, found=found, known=known, telling=telling)
        done = await self._writer.run(work)
        self._notify(done.changed)
        return Erased(done.answers, done.reviews, await self._overwrite(), done.gold)

    async def _recorded(self) -> None:
        """Wait until what `record` has queued so far is committed.

        Raises:
            Unavailable: the store cannot write.
        """
        ids = set(self._queued)
        while not ids.isdisjoint(self._queued):
            if self._writer.is_failing:
                raise Unavailable("the store cannot write now; try again", retry_after_s=1.0)
            self._room.clear()
            await self._room.wait()

    async def _overwrite(self) -> bool:
        """Overwrite what was deleted, where the store is small enough for everybody to wait for that."""
        if await self._writer.run(self._writer.measure) > _OVERWRITE_BYTES:
            _LOGGER.warning(
                "what was erased may stand in unused parts of the store's file until they are used again: it is too"
                " large to be written anew while it is used. When nobody minds: pointsman store vacuum",
            )
            return False
        return await self._writer.between(self._database.overwrite)

    async def tell_reviewers(self, rule: NoticeRule, tell: Callable[[Notice, float], Message]) -> bool:
        """See `Store.tell_reviewers`."""
        if not await self._read(lambda connection: notices.is_news(connection, rule, self._clocks(connection).now_s)):
            return False  # and nothing was written, as this is asked often
        return await self._writer.run(lambda transaction: notices.tell(transaction, rule, tell))

    async def wait(self, tenant: str, answer_id: AnswerId, timeout_s: float, after: int | None = None) -> Answer | None:
        """See `Store.wait`; what another process has changed is seen within about a second."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        seen = math.inf if after is None else after
        while True:
            changed: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(answer_id, {})[changed] = seen
            try:
                answer = await self.answer(tenant, answer_id)
                left_s = deadline - loop.time()
                if answer is None or not answer.open_items or answer.revision > seen or left_s <= 0:
                    return answer
                await asyncio.wait({changed}, timeout=left_s)
            finally:
                del self._waiting[answer_id][changed]
                if not self._waiting[answer_id]:
                    del self._waiting[answer_id]

    async def labelled(self, tenant: str | None, route: str) -> Sequence[LabelledItem]:
        """See `CertificationStore.labelled`."""
        return await self._read(lambda connection: labels.read_labelled(connection, tenant, route))

    async def certificates(self, route: str | None = None) -> Sequence[Certificate]:
        """See `CertificationStore.certificates`."""
        return await self._read(lambda connection: certificates.read(connection, route))

    async def queue_work(self, tenant: str, scope: Scope = EVERYTHING) -> Mapping[str, QueueWork]:
        """See `InboxStore.queue_work`."""
        return await self._read(
            lambda connection: reviews.queue_work(connection, *self._times(connection), tenant, scope)
        )

    async def alike(
        self, tenant: str, review_id: str, limit: int, *, among: Sequence[str] | None = None
    ) -> Sequence[Review]:
        """See `InboxStore.alike`."""
        return await self._read(
            lambda connection: reviews.read_alike(
                connection, self._clocks(connection).now, tenant, review_id, limit, among
            )
        )

    async def input_digests(self, tenant: str, review_ids: Sequence[str]) -> Mapping[str, bytes]:
        """See `InboxStore.input_digests`."""
        return await self._read(lambda connection: reviews.read_digests(connection, tenant, review_ids))

    async def glance(self, tenant: str, review_id: str) -> Review | None:
        """See `InboxStore.glance`."""
        return await self._read(
            lambda connection: reviews.read_listed(connection, self._clocks(connection).now, tenant, review_id)
        )

    async def history(self, tenant: str, review_id: str) -> ReviewHistory | None:
        """See `InboxStore.history`."""
        return await self._read(
            lambda connection: history.read_history(connection, self._clocks(connection).now, tenant, review_id)
        )

    async def certificates_version(self) -> int:
        """See `Store.certificates_version`."""
        return await self._read(certificates.version)

    async def add_look(self, route: str, subject: str, evidence: str) -> int:
        """See `CertificationStore.add_look`."""
        return await self._writer.run(
            lambda transaction: certificates.add_look(transaction.connection, route, subject, evidence)
        )

    async def add_certificate(self, certificate: Certificate) -> None:
        """See `CertificationStore.add_certificate`; never refused for the disk limit: it is what ends deferring."""
        await self._writer.run(lambda transaction: certificates.add(transaction.connection, certificate))

    async def canary_halts(self) -> Sequence[CanaryHalt]:
        """See `Store.canary_halts`."""
        return await self._read(halts.read)

    async def add_canary_halt(self, halt: CanaryHalt) -> None:
        """See `Store.add_canary_halt`; never refused for the disk limit: it takes next to nothing."""
        await self._writer.run(lambda transaction: halts.add(transaction.connection, halt))

    async def keep_configuration(self, draft: ConfigurationDraft) -> Configuration:
        """See `ConfigurationStore.keep_configuration`; never refused for the disk limit, as a rollout may mend it."""
        return await self._writer.run(lambda transaction: configurations.keep(transaction, draft))

    async def begin_rollout(self, what: ConfigurationDraft | int, author: str, for_s: float) -> Configuration:
        """See `ConfigurationStore.begin_rollout`."""
        return await self._writer.run(lambda transaction: configurations.begin(transaction, what, author, for_s))

    async def renew_rollout(self, for_s: float) -> bool:
        """See `ConfigurationStore.renew_rollout`."""
        return await self._writer.run(lambda transaction: configurations.renew(transaction, for_s))

    async def end_rollout(self, version: int, called_off: str | None = None) -> None:
        """See `ConfigurationStore.end_rollout`."""
        await self._writer.run(lambda transaction: configurations.end(transaction, version, called_off))

    async def configuration_served(self, version: int) -> None:
        """See `ConfigurationStore.configuration_served`."""
        await self._writer.run(lambda transaction: configurations.served(transaction, version))

    async def configurations(self) -> Sequence[Configuration]:
        """See `ConfigurationStore.configurations`."""
        return await self._read(configurations.listed)

    async def configuration(self, version: int) -> Configuration | None:
        """See `ConfigurationStore.configuration`."""
        return await self._read(lambda connection: configurations.read(connection, version))

    async def take_messages(self, webhooks: Mapping[str, int], lasting_s: float) -> Sequence[Delivery]:
        """See `Outbox.take_messages`."""
        names = list(webhooks)
        if not await self._read(lambda connection: outbox.is_due(connection, names, self._clocks(connection).now_s)):
            return ()  # and nothing was written, as this is asked often
        return await self._writer.run(lambda transaction: outbox.take(transaction, webhooks, lasting_s))

    async def end_message(self, message_id: str, state: OutboxState, told: str) -> None:
        """See `Outbox.end_message`."""
        await self._writer.run(lambda transaction: outbox.end(transaction, message_id, state, told))

    async def postpone_message(self, message_id: str, wait_s: float, told: str) -> None:
        """See `Outbox.postpone_message`."""
        await self._writer.run(lambda transaction: outbox.postpone(transaction, message_id, wait_s, told))

    async def bury_messages(self, webhooks: Collection[str], unclaimed_s: float, told: str) -> Mapping[str, int]:
        """See `Outbox.bury_messages`."""
        return await self._writer.run(lambda transaction: outbox.bury(transaction, webhooks, unclaimed_s, told))

    async def outbox_depths(self) -> Mapping[str, OutboxDepth]:
        """See `Outbox.outbox_depths`."""
        return await self._read(outbox.depths)

    async def escalate(self, steps: Mapping[str, Step]) -> Sequence[Escalated]:
        """See `Store.escalate`."""
        escalated: list[Escalated] = []
        while batch := await self._writer.run(lambda transaction: reviews.escalate(transaction, steps)):
            escalated += batch
        return escalated

    async def workloads(self) -> Sequence[Workload]:
        """See `Store.workloads`."""
        return await self._read(lambda connection: workload.read_workloads(connection, self._clocks(connection).now))

    async def places(self, tenant: str, answer_id: AnswerId) -> Sequence[Place]:
        """See `Store.places`."""
        return await self._read(lambda connection: workload.read_places(connection, tenant, answer_id))

    async def opinions(self, tenant: str | None, queue: str | None = None, since_s: float = 0.0) -> Sequence[Opinion]:
        """See `Store.opinions`."""
        return await self._read(lambda connection: opinions.read(connection, tenant, queue, since_s))

    async def quality_counts(self) -> Mapping[str, QualityCounts]:
        """See `Store.quality_counts`."""
        return await self._read(opinions.counts)

    async def add_gold(self, items: Sequence[GoldItem]) -> int:
        """See `Store.add_gold`.

        Raises:
            InvalidInput: a label cannot be kept.
        """
        self._refuse_when_full()
        for item in items:
            answers.check_label(item.label)
        return await self._writer.run(lambda transaction: gold.add(transaction, items))

    async def remove_gold(self, tenant: str, queue: str) -> int:
        """See `Store.remove_gold`."""
        return await self._writer.run(lambda transaction: gold.remove(transaction.connection, tenant, queue))

    async def gold(self, tenant: str) -> Mapping[str, GoldCount]:
        """See `Store.gold`."""
        return await self._read(lambda connection: gold.counted(connection, tenant))

    @property
    def session_secret(self) -> bytes:
        """See `SessionStore.session_secret`."""
        return self._key.of_sessions()

    async def end_session(self, session_id: str, known_s: float) -> None:
        """See `SessionStore.end_session`."""
        await self._writer.run(lambda transaction: sessions.end(transaction, session_id, known_s))

    async def is_session_over(self, session_id: str) -> bool:
        """See `SessionStore.is_session_over`."""
        return await self._read(lambda connection: sessions.is_over(connection, session_id))

    async def offer_undo(self, session_id: str, reviews: Sequence[Decided], for_s: float) -> None:
        """See `SessionStore.offer_undo`."""
        await self._writer.run(lambda transaction: sessions.offer_undo(transaction, session_id, reviews, for_s))

    async def undo_offer(self, session_id: str) -> UndoOffer | None:
        """See `SessionStore.undo_offer`."""
        return await self._read(
            lambda connection: sessions.undo_offer(connection, session_id, self._clocks(connection).now_s)
        )

    async def queue_depths(self) -> Mapping[str, QueueDepth]:
        """See `Store.queue_depths`."""
        return await self._read(lambda connection: reviews.queue_depths(connection, self._clocks(connection).now))

    async def lead(self, for_s: float) -> bool:
        """See `Store.lead`."""
        if not self._siblings:
            return True
        return await self._writer.run(lambda transaction: leases.hold(transaction, _UPKEEP, for_s))

    async def maintain(self) -> Maintenance:
        """See `Store.maintain`; `gateway.store.retention` says what is purged."""
        reopened = await self._writer.run(self._reopen)
        expired = await self._expire()
        await self._writer.run(gold.take_back_overdue)
        await self._writer.run(retention.forget_keys)
        purged = await self._forget()
        size = await self._measure(shrink=False)
        if size >= self._watermarks.purge_from:
            size = await self._measure(shrink=True)
        if size >= self._watermarks.purge_from:
            purged_early, size = await self._make_room()
            purged += purged_early
        await self._writer.run(lambda transaction: self._database.give_back(transaction.connection, _VACUUM_PAGES))
        return Maintenance(reopened, purged, size, size >= self._watermarks.refuse_deferrals, expired)

    async def _forget(self) -> int:
        """Forget what is kept for its time alone; how many answers that were."""
        answers_s, kept = self._options.retention_s, self._options.kept
        messages_s = answers_s if kept.messages_s is None else kept.messages_s
        await self._writer.run(partial(outbox.forget, retention_s=messages_s))
        await self._writer.run(sessions.forget)
        purged = await self._repeat(partial(retention.purge_aged, retention_s=answers_s))
        if kept.payloads_s is not None:
            await self._repeat(partial(retention.give_up_seconds, payloads_s=kept.payloads_s))
            await self._repeat(partial(retention.forget_payloads, payloads_s=kept.payloads_s))
        if kept.decisions_s is not None:
            await self._repeat(partial(retention.prune_log, retention_s=kept.decisions_s))
        if kept.feedback_s is not None:
            await self._repeat(partial(retention.forget_feedback, feedback_s=kept.feedback_s))
        for sweep in (retention.forget_opinions, retention.forget_subjects):
            forgotten = 1
            while forgotten:
                work = partial(sweep, after=self._swept.get(sweep, ""))
                forgotten, self._swept[sweep] = await self._writer.run(work)
        return purged

    async def measure(self) -> int:
        """See `Store.measure`."""
        return await self._measure(shrink=False)

    async def verify_log(self) -> Sequence[str]:
        """See `Store.verify_log`."""
        return await self._read(log.verify)

    def statistics(self) -> StoreStatistics:
        """See `Store.statistics`."""
        writer = self._writer
        return StoreStatistics(
            pending_writes=writer.pending,
            commits=writer.commits,
            rows=writer.rows,
            size_bytes=writer.size_bytes,
            limit_bytes=self._options.limit_bytes,
            full=writer.size_bytes >= self._watermarks.refuse_deferrals,
        )

    async def aclose(self) -> None:
        """See `Store.aclose`; claims and keys that this process holds are reopened."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="store-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._watcher.cancel()
        try:
            await self._writer.run(_let_go)
        except Unavailable as exc:
            _LOGGER.warning("claims stay until the store is opened again: %s", exc)
        await self._writer.aclose()
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._database.close)

    async def _read(self, query: Callable[[Connection], _R]) -> _R:
        if self._closing is not None:
            raise Unavailable("the store is closed; this process is going away")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._query, query)

    def _query(self, query: Callable[[Connection], _R]) -> _R:
        try:
            try:
                return self._queried(query)
            except DBAPIError as exc:
                if not exc.connection_invalidated:
                    raise
            return self._queried(query)  # by a new connection: the server has been away meanwhile
        except (DBAPIError, CannotOpenStore) as exc:
            _LOGGER.error("the store cannot read: %s", exc)
            raise Unavailable("the store cannot read now; try again", retry_after_s=1.0) from exc

    def _queried(self, query: Callable[[Connection], _R]) -> _R:
        with self._database.reading.connect() as connection:
            return query(connection)

    def _times(self, connection: Connection) -> tuple[float, float]:
        clocks = self._clocks(connection)
        return clocks.now, clocks.now_s

    def _clocks(self, connection: Connection) -> Clocks:
        """What time it is for a reader."""
        if self._clock is not None and self._wall_clock is not None:
            return Clocks(self._clock(), self._wall_clock())
        found = self._database.clocks(connection)
        return Clocks(
            found.now if self._clock is None else self._clock(),
            found.now_s if self._wall_clock is None else self._wall_clock(),
        )

    def _refuse_when_full(self) -> None:
        if self._writer.size_bytes >= self._watermarks.refuse_all:
            raise Unavailable(
                f"the store is at {self._used():.0%} of its limit, and a decision that cannot be recorded is not made;"
                " shorten the retention, or raise the limit",
            )

    def _used(self) -> float:
        return self._writer.size_bytes / self._options.limit_bytes

    def _on_recorded(self, commits: list[Commit]) -> None:
        for commit in commits:
            queued = self._queued.pop(commit.answer.id, None)
            if queued is not None:
                self._queued_bytes -= queued[1]
        self._room.set()

    def _notify(self, ids: Sequence[AnswerId], revision: int | None = None) -> None:
        """Wake who waits for *ids*; where *revision* is given, only who has seen no later one."""
        for answer_id in ids:
            for changed, seen in self._waiting.get(answer_id, {}).items():
                if not changed.done() and (revision is None or revision > seen):
                    changed.set_result(None)

    async def _watch(self) -> None:
        """Wake who waits for an answer that another process has changed."""
        while True:
            await asyncio.sleep(_POLL_S)
            ids = list(self._waiting)
            for start in range(0, len(ids), _POLL_IDS):
                chunk = ids[start : start + _POLL_IDS]
                try:
                    found = await self._read(partial(answers.revisions_of, ids=chunk))
                except Unavailable:
                    break  # logged by `_query`; the next round tries again
                for answer_id, (revision, is_closed) in found.items():
                    self._notify([answer_id], None if is_closed else revision)

    def _reopen(self, transaction: Transaction) -> int:
        reopened = reviews.reopen_expired(transaction)
        return reopened + reopen_of_dead(self._database, transaction.connection, transaction.identity.slot)

    async def _expire(self) -> int:
        """Let everything expire whose time is over; how many reviews that were."""
        total = 0
        while ids := await self._writer.run(partial(reviews.expire, telling=self._telling)):
            total += len(ids)
            self._notify(ids)
        if total:
            _LOGGER.warning("%d reviews have expired: nobody decided them in time, and nobody can any more", total)
        return total

    async def _repeat(
        self, batch: Callable[[Transaction], int], enough: Callable[[Transaction], bool] = lambda _: False
    ) -> int:
        """Run *batch*, a transaction each time, until it is *enough* or there is no more to do; how much it did."""
        total = 0
        while done := await self._writer.run(lambda transaction: 0 if enough(transaction) else batch(transaction)):
            total += done
        return total

    async def _make_room(self) -> tuple[int, int]:
        """Purge early until below the watermark: how many answers that took, and the size then."""
        kept_s = self._options.kept.decisions_s
        prune = partial(retention.prune_log, retention_s=self._options.retention_s if kept_s is None else kept_s)
        purged = await self._repeat(retention.purge_oldest, self._is_roomy)
        pruned = await self._repeat(prune, self._is_roomy)
        size = await self._measure(shrink=True)
        if purged or pruned:
            _LOGGER.warning(
                "the store neared its limit of %d bytes: %d final answers purged early, %d old log rows pruned, %d"
                " bytes now; raise the limit or shorten the retention",
                self._options.limit_bytes,
                purged,
                pruned,
                size,
            )
        return purged, size

    def _is_roomy(self, transaction: Transaction) -> bool:
        # Without the write-ahead log: it grows by purging, and shrinks only when readers allow.
        return self._database.used_bytes(transaction.connection) < self._watermarks.purge_to

    async def _measure(self, *, shrink: bool) -> int:
        if shrink:
            await asyncio.get_running_loop().run_in_executor(self._readers, self._database.shrink_log)
        return await self._writer.run(self._writer.measure)


def _open(options: StoreOptions) -> tuple[Database, Identity, StoreKey]:
    database, identity = open_database(options)
    try:
        return database, identity, open_key(options)
    except BaseException:
        database.close()
        raise


def _let_go(transaction: Transaction) -> None:
    """Of all that this process holds, as it closes."""
    reopen_of(transaction.connection, transaction.identity.slot)
    leases.release(transaction)


def _size(answer: Answer) -> int:
    """About what *answer* takes in memory, in bytes: inputs, outputs, and a little for each item."""
    size = 512 * len(answer.items)
    if answer.inputs is not None:
        size += answer.inputs.nbytes
    for item in answer.items:
        if item.outputs:
            for tensor in item.outputs.values():
                size += tensor.nbytes
    return size
