"""Processes that defer, record and decide as fast as they can, killed at random moments.

Run by `test_store_kill`: `python -m tests.faults.defer_until_killed STORE KILLS PROCESSES SEED`, where STORE is a
SQLite file, or `postgres:FILE` with the address in it. Every line on standard output tells what was asked for,
`submitted ANSWER` to people or `recorded ANSWER` of a model, or was acknowledged: `deferred ANSWER`, `decided REVIEW
LABEL`. It goes out in one write, so that a kill leaves none half-written.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from backends.errors import Conflict
from gateway.answer import Answer
from gateway.store import Postgres, SqlStore, StoreOptions, open_store
from gateway.store.contract import Fresh, Message, RequestKey
from gateway.store.outbox import new_message
from tests.unit.gateway.store.samples import LABELS, TENANT, accepted, deferred

ITEMS = 2
CALLERS = 12
MAX_LIFE_S = {Path: 0.6, Postgres: 0.9}
"""Beside opening, which is part of a life, too: what it took the first is added."""

ON_POSTGRES = "postgres:"
BODY = b"f" * 32


_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it was gone before
        os._exit(1)


def place_of(store: str) -> Path | Postgres:
    """Where STORE is."""
    if store.startswith(ON_POSTGRES):
        return Postgres(url_file=Path(store.removeprefix(ON_POSTGRES)))
    return Path(store)


def announce(answer: Answer, now_s: float) -> Iterator[Message]:
    """One message an answer."""
    yield new_message("crm", now_s, lambda _: answer.id)


def tell(line: str) -> None:
    """Tell the test."""
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


async def defer_for_ever(store: SqlStore) -> None:
    """Defer answers, each with a key of its own."""
    while True:
        answer, tasks = deferred(items=ITEMS)
        tell(f"submitted {answer.id}")
        key = RequestKey(TENANT, "pets", answer.id)
        claim = await store.claim_key(key, BODY)
        assert isinstance(claim, Fresh)
        await store.commit(answer, tasks, key, claim.fence)
        tell(f"deferred {answer.id}")


async def record_for_ever(store: SqlStore) -> None:
    """Record accepted answers; nobody is told of them."""
    while True:
        answer = accepted(items=ITEMS)
        tell(f"recorded {answer.id}")
        await store.record(answer)
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
            tell(f"decided {review.id} {label}")


async def work_for_ever(place: Path | Postgres) -> None:
    """What a process does until it is killed."""
    store = await open_store(StoreOptions(place, undo_s=0.0), announce=announce)
    name = f"reviewer-{os.getpid()}"
    await asyncio.gather(
        *(defer_for_ever(store) for _ in range(CALLERS)), record_for_ever(store), decide_for_ever(store, name)
    )


def time_to_open(place: Path | Postgres) -> float:
    """Seconds from a fork to a store that is open, once it is there."""

    async def open_once() -> None:
        await open_store(StoreOptions(place, undo_s=0.0))
        os._exit(0)

    for _ in range(2):  # the first makes it
        started = time.monotonic()
        if (child := os.fork()) == 0:
            asyncio.run(open_once())
        assert os.waitpid(child, 0)[1] == 0, "the store cannot be opened"
    return time.monotonic() - started


def kill_again_and_again(
    work: Callable[[Path | Postgres], Coroutine[Any, Any, None]], store: str, kills: int, processes: int, seed: int
) -> None:
    """Fork *processes* at a time that do *work* on STORE, and kill them, until *kills* were killed."""
    die_with_parent()
    place = place_of(store)
    moments = random.Random(seed)
    if isinstance(place, Postgres):
        importlib.import_module("gateway.store.postgres")  # once, not in every child
    longest_s = time_to_open(place) + next(life_s for kind, life_s in MAX_LIFE_S.items() if isinstance(place, kind))
    for _ in range(kills // processes):
        lives = sorted(moments.uniform(0.0, longest_s) for _ in range(processes))
        children = []
        for _ in lives:
            child = os.fork()
            if child == 0:
                die_with_parent()
                asyncio.run(work(place))
            children.append(child)
        started = time.monotonic()
        for child, life_s in zip(children, lives, strict=True):
            time.sleep(max(0.0, started + life_s - time.monotonic()))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "a process ended by itself"


if __name__ == "__main__":
    kill_again_and_again(work_for_ever, sys.argv[1], *map(int, sys.argv[2:5]))
