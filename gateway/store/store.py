"""The store: `gateway.store.contract` over a database, a writing thread and a few reading ones.

    event loop ── submit ──> writer thread ── one transaction a group ──> SQLite
        │                        (bulk functions of answers, keys, reviews, retention, log)
        └────── read ───────> reader threads, a snapshot each

Nothing here blocks the loop: it queues, waits for futures, and keeps three small things in memory: answers that are
recorded but not committed yet, who waits for which answer, and how full the disk is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from backends.errors import Code, Unavailable
from gateway.answer import Answer, AnswerId, told_s
from gateway.store import answers, certificates, keys, labels, log, migrations, retention, reviews
from gateway.store.answers import Commit, Feedback
from gateway.store.contract import (
    KeyClaim,
    LabelledItem,
    Maintenance,
    QueueDepth,
    RequestKey,
    Review,
    ReviewState,
    ReviewTask,
    StoreStatistics,
)
from gateway.store.keys import KeyRequest, Renewal
from gateway.store.options import CannotOpenStore, StoreOptions
from gateway.store.ownership import enrol, reopen_of, reopen_of_dead
from gateway.store.retention import Watermarks
from gateway.store.reviews import Ruling
from gateway.store.sqlite import SqliteDatabase
from gateway.store.transaction import Identity, Transaction
from gateway.store.writer import Writer
from router.certificate import Certificate

_LOGGER = logging.getLogger(__name__)

_QUEUE_RECORDS = 4096
_QUEUE_BYTES = 64 * 2**20
_POLL_S = 1.0
_POLL_IDS = 500
_VACUUM_PAGES = 1024
_UNDERWAY_S = 0.5
"""Age of an answer's id up to which a sibling may not have committed the answer yet."""
_LOOK_AGAIN_S = 0.03

_R = TypeVar("_R")


async def open_store(
    options: StoreOptions,
    *,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
    siblings: bool = False,
) -> SqlStore:
    """Open the store, making or upgrading its schema, and reopening what dead processes held; close it with `aclose`.

    Args:
        options: where, and how much.
        clock: of leases, in seconds; one for all processes of the host.
        wall_clock: Unix time, in seconds.
        siblings: other processes answer the same callers, so an answer of theirs may be asked for here before it is
            committed: it is looked for again until its id is half a second old.

    Raises:
        CannotOpenStore: there is no sound SQLite, the file cannot be used, or a later version made it.
    """
    database, identity = await asyncio.to_thread(_open, options)
    return SqlStore(options, database, identity, clock, wall_clock, siblings=siblings)


class SqlStore:
    """`gateway.store.contract.Store` over SQL; made by `open_store`."""

    def __init__(
        self,
        options: StoreOptions,
        database: SqliteDatabase,
        identity: Identity,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        *,
        siblings: bool = False,
    ) -> None:
        self._options = options
        self._database = database
        self._identity = identity
        self._clock = clock
        self._wall_clock = wall_clock
        self._siblings = siblings
        self._watermarks = Watermarks.of(options.limit_bytes)
        self._queued: dict[AnswerId, tuple[Answer, int]] = {}  # and what it takes, in bytes
        self._queued_bytes = 0
        self._room = asyncio.Event()
        self._waiting: dict[AnswerId, set[asyncio.Future[None]]] = {}
        self._readers = ThreadPoolExecutor(database.readers, thread_name_prefix="store-reader")
        self._writer = Writer(database, identity, clock, wall_clock, self._on_recorded, self._room.set)
        self._watcher = asyncio.create_task(self._watch(), name="store-watcher")
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        s = self.statistics()
        return f"<SqlStore {self._options.path}: {s.pending_writes} pending, {s.size_bytes} of {s.limit_bytes} bytes>"

    async def claim_key(self, key: RequestKey, fingerprint: bytes) -> KeyClaim:
        """See `Store.claim_key`."""
        self._refuse_when_full()
        return await self._writer.submit(keys.claim_keys, KeyRequest(key, fingerprint))

    async def renew_key(self, key: RequestKey, fence: int) -> bool:
        """See `Store.renew_key`; never refused for the disk limit: what it holds may still be recorded."""
        return await self._writer.submit(keys.renew_keys, Renewal(key, fence))

    async def finish_key(self, key: RequestKey, fence: int, code: Code, message: str) -> None:
        """See `Store.finish_key`."""
        await self._writer.run(
            lambda transaction: keys.finish_with_refusal(transaction, key, fence, code, message),
        )

    async def release_key(self, key: RequestKey, fence: int) -> None:
        """See `Store.release_key`."""
        await self._writer.run(lambda transaction: keys.release(transaction, key, fence))

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
        await self._writer.submit(answers.commit_answers, Commit(answer, tuple(tasks), key, fence))

    async def record(self, answer: Answer) -> None:
        """See `Store.record`."""
        size = _size(answer)
        while True:
            self._refuse_when_full()
            if self._writer.is_failing:
                raise Unavailable("the store cannot write now, and records no decision; try again", retry_after_s=1.0)
            if not self._queued or (len(self._queued) < _QUEUE_RECORDS and self._queued_bytes + size <= _QUEUE_BYTES):
                break
            self._room.clear()
            await self._room.wait()
        self._writer.record(Commit(answer))
        self._queued[answer.id] = (answer, size)
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

    def _may_be_underway(self, answer_id: AnswerId) -> bool:
        return self._siblings and 0.0 <= self._wall_clock() - told_s(answer_id) < _UNDERWAY_S

    async def reviews(
        self,
        tenant: str,
        queue: str | None = None,
        state: ReviewState | None = ReviewState.OPEN,
        *,
        after: str | None = None,
        limit: int = 50,
    ) -> Sequence[Review]:
        """See `Store.reviews`.

        Raises:
            NotFound: *after* is no review of *tenant*, or was purged.
        """
        now = self._clock()
        return await self._read(
            lambda connection: reviews.list_reviews(connection, now, tenant, queue, state, after, limit),
        )

    async def review(self, tenant: str, review_id: str) -> Review | None:
        """See `Store.review`."""
        now = self._clock()
        return await self._read(lambda connection: reviews.read_review(connection, now, tenant, review_id))

    async def claim(self, tenant: str, review_id: str, reviewer: str, lease_s: float) -> Review:
        """See `Store.claim`; renewing a claim that one still holds keeps its fence."""
        return await self._writer.run(
            lambda transaction: reviews.claim(transaction, tenant, review_id, reviewer, lease_s),
        )

    async def claim_next(self, tenant: str, queue: str, reviewer: str, lease_s: float) -> Review | None:
        """See `Store.claim_next`."""
        return await self._writer.run(
            lambda transaction: reviews.claim_next(transaction, tenant, queue, reviewer, lease_s),
        )

    async def release(self, tenant: str, review_id: str, reviewer: str, fence: int) -> None:
        """See `Store.release`."""
        await self._writer.run(
            lambda transaction: reviews.release(transaction, tenant, review_id, reviewer, fence),
        )

    async def decide(self, tenant: str, review_id: str, reviewer: str, fence: int, label: str) -> Answer:
        """See `Store.decide`; a claim whose lease has run out is not held."""
        ruling = Ruling(tenant, review_id, reviewer, fence, label)
        answer = await self._writer.run(lambda transaction: reviews.decide(transaction, ruling))
        self._notify([answer.id])
        return answer

    async def add_feedback(self, tenant: str, answer_id: AnswerId, item: int, label: str, source: str) -> None:
        """See `Store.add_feedback`; the same source's last word on an item stands."""
        self._refuse_when_full()
        answers.check_label(label)
        feedback = Feedback(tenant, answer_id, item, label, source)
        queued = self._queued.get(answer_id)
        if queued is None and self._may_be_underway(answer_id):
            await self.answer(tenant, answer_id)
        route = None if queued is None else answers.answered_route(queued[0], feedback)
        await self._writer.run(lambda transaction: answers.add_feedback(transaction, feedback, route))

    async def wait(self, tenant: str, answer_id: AnswerId, timeout_s: float) -> Answer | None:
        """See `Store.wait`; another process's decision is seen within about a second."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            changed: asyncio.Future[None] = loop.create_future()
            self._waiting.setdefault(answer_id, set()).add(changed)
            try:
                answer = await self.answer(tenant, answer_id)
                left_s = deadline - loop.time()
                if answer is None or not answer.open_items or left_s <= 0:
                    return answer
                await asyncio.wait({changed}, timeout=left_s)
            finally:
                self._waiting[answer_id].discard(changed)
                if not self._waiting[answer_id]:
                    del self._waiting[answer_id]

    async def labelled(self, tenant: str | None, route: str) -> Sequence[LabelledItem]:
        """See `CertificationStore.labelled`."""
        return await self._read(lambda connection: labels.read_labelled(connection, tenant, route))

    async def certificates(self, route: str | None = None) -> Sequence[Certificate]:
        """See `CertificationStore.certificates`."""
        return await self._read(lambda connection: certificates.read(connection, route))

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

    async def queue_depths(self) -> Mapping[str, QueueDepth]:
        """See `Store.queue_depths`."""
        now = self._clock()
        return await self._read(lambda connection: reviews.queue_depths(connection, now))

    async def maintain(self) -> Maintenance:
        """See `Store.maintain`; `gateway.store.retention` says what is purged."""
        reopened = await self._writer.run(self._reopen)
        await self._writer.run(retention.forget_keys)
        purged = await self._repeat(partial(retention.purge_aged, retention_s=self._options.retention_s))
        size = await self._measure(shrink=False)
        if size >= self._watermarks.purge_from:
            size = await self._measure(shrink=True)
        if size >= self._watermarks.purge_from:
            purged_early, size = await self._make_room()
            purged += purged_early
        await self._writer.run(lambda transaction: self._database.give_back(transaction.connection, _VACUUM_PAGES))
        return Maintenance(reopened, purged, size, size >= self._watermarks.refuse_deferrals)

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
            await self._writer.run(lambda transaction: reopen_of(transaction.connection, self._identity.slot))
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
            with self._database.reading.connect() as connection:
                return query(connection)
        except DBAPIError as exc:
            _LOGGER.error("the store cannot read: %s", exc)
            raise Unavailable("the store cannot read now; try again", retry_after_s=1.0) from exc

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

    def _notify(self, ids: Sequence[AnswerId]) -> None:
        for answer_id in ids:
            for changed in self._waiting.get(answer_id, ()):
                if not changed.done():
                    changed.set_result(None)

    async def _watch(self) -> None:
        """Wake who waits for an answer that another process has closed."""
        while True:
            await asyncio.sleep(_POLL_S)
            ids = list(self._waiting)
            for start in range(0, len(ids), _POLL_IDS):
                chunk = ids[start : start + _POLL_IDS]
                try:
                    self._notify(await self._read(partial(answers.closed, ids=chunk)))
                except Unavailable:
                    break  # logged by `_query`; the next round tries again

    def _reopen(self, transaction: Transaction) -> int:
        reopened = reviews.reopen_expired(transaction)
        return reopened + reopen_of_dead(self._database, transaction.connection, self._identity.slot)

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
        prune = partial(retention.prune_log, retention_s=self._options.retention_s)
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


def _open(options: StoreOptions) -> tuple[SqliteDatabase, Identity]:
    database = SqliteDatabase(options)
    try:
        with database.writer.begin():
            migrations.upgrade(database.writer)
        with database.writer.begin():
            return database, enrol(database, database.writer)
    except DBAPIError as exc:
        database.close()
        raise CannotOpenStore(f"store file {options.path}: {exc.orig}; free or restore it, or use another") from exc
    except BaseException:
        database.close()
        raise


def _size(answer: Answer) -> int:
    """About what *answer* takes in memory, in bytes: outputs, and a little for each item."""
    size = 512 * len(answer.items)
    for item in answer.items:
        if item.outputs:
            for tensor in item.outputs.values():
                size += tensor.nbytes
    return size
