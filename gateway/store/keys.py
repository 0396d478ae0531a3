"""Idempotency keys: absent → in progress (under a lease and a fence) → done.

A request that takes longer than its lease renews it. One that fails in a way a retry may mend gives its key back; one
whose process died leaves it in progress, and the lease ends with that process. A key is bound to the first body it came
with until then, and while it is done: another body is a mismatch. Done keys are kept until their answer is final and as
long more as the options say, even where the disk limit has purged the answer: what was answered once is never answered
anew, unless it was erased.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, select, tuple_, update

from backends.errors import Code, Conflict, PointsmanError
from gateway.answer import AnswerId
from gateway.store.bulk import Existing, Row, insert_rows
from gateway.store.contract import KEY_LEASE_S, Done, Fresh, InProgress, KeyClaim, Mismatch, RequestKey
from gateway.store.schema import IDEMPOTENCY_KEYS
from gateway.store.transaction import Transaction

_IN_PROGRESS, _DONE = "in_progress", "done"
_Key: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """A key, and the SHA-256 of the body it came with."""

    key: RequestKey
    fingerprint: bytes


def claim_keys(transaction: Transaction, requests: Sequence[KeyRequest]) -> list[KeyClaim]:
    """Claim many keys with a constant number of statements; of several claims of one key, the first wins.

    A key that is there is locked, and so judged by what it is. One that is absent is inserted, and where another
    transaction was faster, judged by what that made of it.
    """
    stored = _load(transaction, [request.key for request in requests])
    claims: list[KeyClaim] = []
    taken: dict[_Key, Row] = {}
    for request in requests:
        key = _columns(request.key)
        if key in taken:
            same = request.fingerprint == taken[key][3]
            claims.append(InProgress() if same else Mismatch())
            continue
        claim = _judge(stored.get(key), request.fingerprint, transaction)
        if isinstance(claim, Fresh):
            taken[key] = _leased(transaction, key, request.fingerprint, claim.fence)
        claims.append(claim)
    anew = [taken[key] for key in sorted(taken) if key in stored]
    first = [taken[key] for key in sorted(taken) if key not in stored]
    insert_rows(transaction.connection, IDEMPOTENCY_KEYS, anew, Existing.REPLACED)
    if insert_rows(transaction.connection, IDEMPOTENCY_KEYS, first, Existing.KEPT) == len(first):
        return claims
    return _without_lost(transaction, requests, claims)


def _without_lost(
    transaction: Transaction, requests: Sequence[KeyRequest], claims: Sequence[KeyClaim]
) -> list[KeyClaim]:
    """*claims*, where other transactions have inserted some of the keys first."""
    stored = _load(transaction, [request.key for request in requests])
    held: list[KeyClaim] = []
    for request, claim in zip(requests, claims, strict=True):
        row = stored.get(_columns(request.key))
        if row is None or (isinstance(claim, Fresh) and claim.fence == row["fence"]):
            held.append(claim)
            continue
        found = _judge(row, request.fingerprint, transaction)
        held.append(InProgress() if isinstance(found, Fresh) else found)  # whoever asks again gets it
    return held


@dataclass(frozen=True, slots=True)
class Renewal:
    """A key whose request, which claimed it under *fence*, is still being answered."""

    key: RequestKey
    fence: int


def renew_keys(transaction: Transaction, renewals: Sequence[Renewal]) -> list[bool]:
    """Extend the leases of many keys with two statements; for each, whether it is still held."""
    stored = _load(transaction, [renewal.key for renewal in renewals])
    held: list[bool] = []
    leased: dict[_Key, Row] = {}
    for renewal in renewals:
        key = _columns(renewal.key)
        row = stored.get(key)
        if row is None or row["state"] != _IN_PROGRESS or row["fence"] != renewal.fence:
            held.append(False)
            continue
        held.append(True)
        leased[key] = _leased(transaction, key, row["fingerprint"], renewal.fence)
    insert_rows(transaction.connection, IDEMPOTENCY_KEYS, list(leased.values()), Existing.REPLACED)
    return held


@dataclass(frozen=True, slots=True)
class Finish:
    """A key held under *fence*, the answer it led to, and the Unix time after which it is forgotten (None: open)."""

    key: RequestKey
    fence: int
    answer_id: AnswerId
    expires_s: float | None


def finish_with_answers(transaction: Transaction, finishes: Sequence[Finish]) -> list[PointsmanError | None]:
    """Mark many keys done with two statements; for each, None or the Conflict.

    One that is done with this answer stays as it is: when it is forgotten is its answer's to say by now.
    """
    stored = _load(transaction, [finish.key for finish in finishes])
    outcomes: list[PointsmanError | None] = []
    done: list[Row] = []
    for finish in finishes:
        row = stored.get(_columns(finish.key))
        if not _is_held(row, finish.fence, finish.answer_id):
            outcomes.append(
                Conflict(
                    f"idempotency key {finish.key.key!r} is no longer held by this request; repeat it to get its answer"
                )
            )
            continue
        assert row is not None
        outcomes.append(None)
        if row["state"] == _DONE:
            continue
        end = (finish.answer_id, None, "", finish.expires_s)
        done.append((*_columns(finish.key), row["fingerprint"], _DONE, finish.fence, None, None, *end))
    insert_rows(transaction.connection, IDEMPOTENCY_KEYS, done, Existing.REPLACED)
    return outcomes


def finish_with_refusal(transaction: Transaction, key: RequestKey, fence: int, code: Code, message: str) -> None:
    """Mark *key* done with a refusal; a stale *fence* changes nothing."""
    values = {"new_answer_id": None, "new_code": code.value, "new_message": message.replace("\0", "\ufffd")}
    transaction.connection.execute(_FINISH, _where(key, fence) | values | {"new_expires_s": transaction.key_ends_s})


@dataclass(frozen=True, slots=True)
class Release:
    """A key whose request, which claimed it under *fence*, will not be answered."""

    key: RequestKey
    fence: int


def release_keys(transaction: Transaction, releases: Sequence[Release]) -> Sequence[None]:
    """Forget many keys; a stale fence changes nothing. Fences never repeat, so its former holder stays stale."""
    for one in sorted(releases, key=lambda release: _columns(release.key)):  # as they are locked elsewhere
        transaction.connection.execute(_RELEASE, _where(one.key, one.fence))
    return [None] * len(releases)


def close_answer(transaction: Transaction, answer_id: AnswerId) -> None:
    """Start the time after which the key of *answer_id* is forgotten: nothing about the answer is open any more."""
    transaction.connection.execute(_CLOSE, {"of_answer": answer_id, "new_expires_s": transaction.key_ends_s})


def reopen_answer(transaction: Transaction, answer_id: AnswerId) -> None:
    """Keep the key of *answer_id* again: something about the answer is open once more."""
    transaction.connection.execute(_CLOSE, {"of_answer": answer_id, "new_expires_s": None})


def reopen_of(connection: Connection, owner: int) -> None:
    """End the leases that the dead process *owner* gave."""
    connection.execute(
        update(IDEMPOTENCY_KEYS).where(_C.state == _IN_PROGRESS, _C.owner == owner).values(lease_until_s=0.0),
    )


def _judge(row: RowMapping | None, fingerprint: bytes, transaction: Transaction) -> KeyClaim:
    # 1. absent, or done and due to be forgotten: fresh
    # 2. another body: mismatch, whatever became of the first
    # 3. done: what it was answered with
    # 4. in progress: leave it to its holder, until the lease has run out, or the holder is dead: who asks again because
    #    of that should not wait for the next upkeep
    if row is None or (
        row["state"] == _DONE and row["expires_s"] is not None and row["expires_s"] <= transaction.now_s
    ):
        return Fresh(transaction.identity.next_fence())
    if row["fingerprint"] != fingerprint:
        return Mismatch()
    if row["state"] == _DONE:
        return Done(row["answer_id"], None if row["code"] is None else Code(row["code"]), row["message"])
    if row["lease_until_s"] > transaction.now and not transaction.has_lost(row["owner"]):
        return InProgress()
    return Fresh(transaction.identity.next_fence())


def _leased(transaction: Transaction, key: _Key, fingerprint: bytes, fence: int) -> Row:
    lease = (transaction.identity.slot, transaction.now + KEY_LEASE_S)
    # A key that nobody finishes or claims again is forgotten as late as a finished one.
    end = (None, None, "", transaction.key_ends_s)
    return (*key, fingerprint, _IN_PROGRESS, fence, *lease, *end)


def _is_held(row: RowMapping | None, fence: int, answer_id: AnswerId) -> bool:
    if row is None or row["fence"] != fence:
        return False
    return bool(row["state"] == _IN_PROGRESS or row["answer_id"] == answer_id)


def _load(transaction: Transaction, keys: Sequence[RequestKey]) -> dict[_Key, RowMapping]:
    if not keys:
        return {}
    found = transaction.connection.execute(_LOAD, {"keys": [_columns(key) for key in keys]}).mappings()
    return {(row["tenant"], row["route"], row["key"]): row for row in found}


def _columns(key: RequestKey) -> _Key:
    return key.tenant, key.route, key.key


def _where(key: RequestKey, fence: int) -> dict[str, object]:
    return {"of_tenant": key.tenant, "of_route": key.route, "of_key": key.key, "of_fence": fence}


_C = IDEMPOTENCY_KEYS.c
_HELD = and_(
    _C.tenant == bindparam("of_tenant"),
    _C.route == bindparam("of_route"),
    _C.key == bindparam("of_key"),
    _C.fence == bindparam("of_fence"),
    _C.state == _IN_PROGRESS,
)
_LOAD = (
    select(IDEMPOTENCY_KEYS)
    .where(tuple_(_C.tenant, _C.route, _C.key).in_(bindparam("keys", expanding=True)))
    .order_by(_C.tenant, _C.route, _C.key)  # in which they are locked
    .with_for_update()
)
_FINISH = (
    update(IDEMPOTENCY_KEYS)
    .where(_HELD)
    .values(
        state=_DONE,
        owner=None,
        lease_until_s=None,
        answer_id=bindparam("new_answer_id"),
        code=bindparam("new_code"),
        message=bindparam("new_message"),
        expires_s=bindparam("new_expires_s"),
    )
)
_RELEASE = delete(IDEMPOTENCY_KEYS).where(_HELD)
_CLOSE = (
    update(IDEMPOTENCY_KEYS)
    .where(_C.answer_id == bindparam("of_answer"), _C.state == _DONE)
    .values(expires_s=bindparam("new_expires_s"))
)
