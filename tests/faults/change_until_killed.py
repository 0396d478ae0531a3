"""Processes that decide, take back, correct and cancel as fast as they can, killed at random moments.

Run by `test_store_kill`: `python -m tests.faults.change_until_killed STORE KILLS PROCESSES SEED`. Every line on
standard output is an acknowledgement, `changed ANSWER REVISION`, in one write, as in `defer_until_killed`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from backends.errors import Conflict
from gateway.answer import Answer
from gateway.store import Postgres, SqlStore, StoreOptions, open_store
from gateway.store.contract import Message
from gateway.store.outbox import new_message
from tests.faults.defer_until_killed import ITEMS, kill_again_and_again, tell
from tests.unit.gateway.store.samples import LABELS, TENANT, deferred

SHARED = 8
"""Answers that all processes know of beside their own."""


def tell_revision(answer: Answer, now_s: float) -> Iterable[Message]:
    """Of every answer that is closed, its revision."""
    yield new_message("crm", now_s, lambda message_id: str(answer.revision))


def told(answer: Answer) -> None:
    """A change was acknowledged."""
    tell(f"changed {answer.id} {answer.revision}")


async def decide_and_change_one_s_mind(store: SqlStore, reviewer: str) -> None:
    """Decide what is open, and then take it back, correct it, or leave it."""
    while True:
        review = await store.claim_next(TENANT, "pets", reviewer, 60.0)
        if review is None:
            await store.commit(*deferred(items=ITEMS))
            continue
        with suppress(Conflict):
            told(await store.decide(TENANT, review.id, reviewer, review.fence, random.choice(LABELS)))
            match random.randrange(3):
                case 0:
                    back = await store.undo(TENANT, review.id, reviewer, review.fence)
                    found = await store.answer(TENANT, review.answer_id)
                    assert found is not None
                    told(found)
                    if random.randrange(2):
                        told(await store.decide(TENANT, review.id, reviewer, back.fence, random.choice(LABELS)))
                case 1:
                    told(await store.correct(TENANT, review.id, reviewer, random.choice(LABELS)))
                case _:
                    pass


async def cancel_at_random(store: SqlStore) -> None:
    """Cancel what others are deciding."""
    while True:
        await asyncio.sleep(0.005)
        waiting = await store.reviews(TENANT, state=None, limit=SHARED)
        if waiting:
            told(await store.cancel(TENANT, random.choice(waiting).answer_id, "app"))


async def work_for_ever(path: Path | Postgres) -> None:
    """What a process does until it is killed."""
    store = await open_store(StoreOptions(path, undo_s=3600.0), announce=tell_revision)
    for _ in range(SHARED):
        await store.commit(*deferred(items=ITEMS))
    names = (f"reviewer-{os.getpid()}-{i}" for i in range(3))
    await asyncio.gather(cancel_at_random(store), *(decide_and_change_one_s_mind(store, name) for name in names))


if __name__ == "__main__":
    kill_again_and_again(work_for_ever, sys.argv[1], *map(int, sys.argv[2:5]))
