"""What the README says of backups on PostgreSQL, as it says it, with PostgreSQL's own tools."""

from __future__ import annotations

import re
import subprocess
from contextlib import aclosing
from pathlib import Path

import pytest

from backends.errors import Conflict
from gateway.store import StoreOptions, open_store, verify_log_of
from gateway.store.contract import ReviewState
from tests.integration.process import ROOT
from tests.postgres import PostgresServer, find_binaries
from tests.unit.gateway.store.samples import TENANT, accepted, deferred


def told(pattern: str) -> str:
    """What of the README's part on backups matches *pattern*, in one line."""
    (found,) = re.findall(pattern, " ".join((ROOT / "README.md").read_text().split()))
    return str(found)


def run(command: str, address: str, file: Path) -> None:
    """One of PostgreSQL's programs, with DATABASE and FILE filled in."""
    program, *words = command.replace("DATABASE", address).replace("FILE", str(file)).split()
    done = subprocess.run([find_binaries() / program, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_backup_is_taken_while_a_gateway_runs_and_put_back_without_its_claims(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    with postgres_server.store(tmp_path) as (place, name):
        options, address, file = StoreOptions(place), postgres_server.address(name), tmp_path / "backup"
        async with aclosing(await open_store(options)) as store:
            kept, tasks = deferred()
            await store.commit(kept, tasks)
            (review,) = await store.reviews(TENANT)
            before = await store.claim(TENANT, review.id, "anna", 600.0)
            run(told(r"`(pg_dump [^`]*)`"), address, file)
            later = accepted()
            await store.commit(later, [])
            await store.release(TENANT, review.id, "anna", before.fence)
            after = await store.claim(TENANT, review.id, "bert", 600.0)

        run(told(r"`(pg_restore [^`]*)`"), address, file)
        postgres_server.execute(told(r"`(UPDATE writers [^`]*)`"), name)

        async with aclosing(await open_store(options)) as store:
            assert await store.answer(TENANT, kept.id) is not None
            assert await store.answer(TENANT, later.id) is None
            (review,) = await store.reviews(TENANT)
            for reviewer, fence in (("anna", before.fence), ("bert", after.fence)):
                with pytest.raises(Conflict):
                    await store.decide(TENANT, review.id, reviewer, fence, "cat")
            if review.state is ReviewState.CLAIMED:
                await store.release(TENANT, review.id, "anna", review.fence)
            claimed = await store.claim(TENANT, review.id, "bert", 600.0)
            assert claimed.fence > max(before.fence, after.fence)
            await store.decide(TENANT, review.id, "bert", claimed.fence, "cat")
            await store.commit(accepted(), [])
        assert await verify_log_of(options) == []
