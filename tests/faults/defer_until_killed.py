"""Processes that defer, record and decide as fast as they can, killed at random moments.

Run by `test_store_kill`: `python -m tests.faults.defer_until_killed STORE KILLS PROCESSES SEED`. Every line on standard
output is an acknowledgement: `deferred ANSWER` or `decided REVIEW LABEL`. It goes out in one write, so that a kill
leaves none half-written.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from backends.errors import Conflict
from gateway.store import SqlStore, StoreOptions, open_store
from gateway.store.contract import Fresh, RequestKey
from tests.unit.gateway.store.samples import LABELS, TENANT, accepted, deferred

ITEMS = 2
MAX_LIFE_S = 0.4


def acknowledge(line: str) -> None:
    """Tell the test."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


async def defer_for_ever(store: SqlStore) -> None:
    """Defer answers, each with a key of its own."""
    while True:
        answer, tasks = deferred(items=ITEMS)
        key = RequestKey(TENANT, "pets", answer.id)
        claim = await store.claim_key(key, b"f" * 32)
        assert isinstance(claim, Fresh)
        await store.commit(answer, tasks, key, claim.fence)
        acknowledge(f"deferred {answer.id}")


async def record_for_ever(store: SqlStore) -> None:
    """Record accepted answers; nobody is told of them."""
    while True:
        await store.record(accepted(items=ITEMS))
        await asyncio.sleep(0.001)


async def decide_for_ever(store: SqlStore, reviewer: str) -> None:
    """Decide what is open."""
    while True:
        review = await store.claim_next(TENANT, "pets", reviewer, 60.0)
        if review is None:
            await asyncio.sleep(0.001)
            continue
        label = random.choice(LABELS)
        with suppress(Conflict):
            await store.decide(TENANT, review.id, reviewer, review.fence, label)
            acknowledge(f"decided {review.id} {label}")


async def work_for_ever(path: Path) -> None:
    """What a process does until it is killed."""
    store = await open_store(StoreOptions(path))
    name = f"reviewer-{os.getpid()}"
    await asyncio.gather(
        *(defer_for_ever(store) for _ in range(4)), record_for_ever(store), decide_for_ever(store, name)
    )


def main(path: Path, kills: int, processes: int, seed: int) -> None:
    """Fork *processes* at a time and kill them, until *kills* were killed."""
    moments = random.Random(seed)
    for _ in range(kills // processes):
        lives = sorted(moments.uniform(0.0, MAX_LIFE_S) for _ in range(processes))
        children = []
        for _ in lives:
            child = os.fork()
            if child == 0:
                asyncio.run(work_for_ever(path))
            children.append(child)
        started = time.monotonic()
        for child, life_s in zip(children, lives, strict=True):
            time.sleep(max(0.0, started + life_s - time.monotonic()))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "a process ended by itself"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
