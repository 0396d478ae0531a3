"""Processes that hand a request over to people, each killed by itself at the next moment of that.

Run by `test_store_kill`: `python -m tests.faults.die_at_a_statement STORE`. A moment is before a statement of the
writer, before a COMMIT, or after one; savepoints alone change nothing. The process number N dies at the
moment number N; the first that comes to the end is the last. Standard output has a line for what each was acknowledged,
`EVENT KEY`, and for what it died before, `died KEY WHAT`; a key is that of a request, and the name of its queue.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from sqlalchemy import event

from gateway.store import Postgres, SqlStore, StoreOptions, open_store
from gateway.store.contract import Fresh, RequestKey
from tests.faults.defer_until_killed import BODY, ITEMS, announce, die_with_parent, place_of, tell
from tests.unit.gateway.store.samples import LABELS, TENANT, deferred


def watch(store: SqlStore, at: Callable[[str], None]) -> None:
    """Call *at* at every moment of *store*'s writer, with what comes next."""
    engine = store._database._writing  # type: ignore[attr-defined]  # of either database
    do_commit = engine.dialect.do_commit

    def statement(_connection: object, _cursor: object, words: str, *_: object) -> None:
        if not words.startswith(("SAVEPOINT", "RELEASE")):
            at(words.split()[0])

    def commit(connection: Any) -> None:  # Any: the driver's own
        at("COMMIT")
        do_commit(connection)
        at("ACKNOWLEDGEMENT")

    event.listen(engine, "before_cursor_execute", statement)
    engine.dialect.do_commit = commit


async def hand_over(store: SqlStore, key: str) -> None:
    """All that becomes of a request, up to a decision."""
    name = RequestKey(TENANT, "pets", key)
    answer, tasks = deferred(items=ITEMS, queue=key)
    claim = await store.claim_key(name, BODY)
    assert isinstance(claim, Fresh)
    tell(f"claimed {key}")
    await store.commit(answer, tasks, name, claim.fence)
    tell(f"deferred {key}")
    review = await store.claim_next(TENANT, key, "anna", 600.0)
    assert review is not None
    await store.decide(TENANT, review.id, "anna", review.fence, LABELS[1])
    tell(f"decided {key}")


async def live_until(place: Path | Postgres, moment: int) -> None:
    """Hand a request over, and die at *moment*, if there is such a one."""
    key = f"moment-{moment}"
    moments = itertools.count(1)

    def at(what: str) -> None:
        if next(moments) == moment:
            tell(f"died {key} {what}")
            os.kill(os.getpid(), signal.SIGKILL)

    async with aclosing(await open_store(StoreOptions(place, undo_s=0.0), announce=announce)) as store:
        watch(store, at)
        await hand_over(store, key)
        os._exit(0)


def kill_at_every_moment(place: Path | Postgres) -> None:
    """Fork a process for each moment, one after the other."""
    for moment in itertools.count(1):
        child = os.fork()
        if child == 0:
            die_with_parent()
            asyncio.run(live_until(place, moment))
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            assert status == 0, "a process failed"
            return


if __name__ == "__main__":
    die_with_parent()
    kill_at_every_moment(place_of(sys.argv[1]))
