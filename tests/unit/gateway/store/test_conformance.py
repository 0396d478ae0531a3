"""Every kind of store there is does what a store must."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store import StoreOptions, open_store
from gateway.store.contract import Store
from tests.unit.gateway.store.conformance import CHECKS, DAY_S, Check, Opener
from tests.unit.gateway.store.samples import Clock


@pytest.fixture
def sqlite(tmp_path: Path) -> Opener:
    options = StoreOptions(tmp_path / "store.db", retention_s=7 * DAY_S)

    async def open_(clock: Clock, wall_clock: Clock) -> Store:
        return await open_store(options, clock=clock, wall_clock=wall_clock)

    return Opener(open_)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_sqlite_conforms(sqlite: Opener, check: Check) -> None:
    await check(sqlite)
