"""Every kind of store there is does what a store must."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store import Postgres, StoreOptions, open_store
from gateway.store.contract import Store
from tests.unit.gateway.store.configurations import CONFIGURATION_CHECKS
from tests.unit.gateway.store.conformance import CHECKS, DAY_S, Check, Opener
from tests.unit.gateway.store.endings import ENDINGS
from tests.unit.gateway.store.quality_conformance import QUALITY_CHECKS
from tests.unit.gateway.store.samples import Clock


@pytest.fixture(params=["sqlite", "postgres"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    place: Path | Postgres = tmp_path / "store.db"
    if request.param == "postgres":
        place = request.getfixturevalue("postgres")
    options = StoreOptions(place, retention_s=7 * DAY_S)

    async def open_(clock: Clock, wall_clock: Clock) -> Store:
        return await open_store(options, clock=clock, wall_clock=wall_clock)

    return Opener(open_)


@pytest.mark.parametrize(
    "check", [*CHECKS, *ENDINGS, *QUALITY_CHECKS, *CONFIGURATION_CHECKS], ids=lambda check: check.__name__
)
async def test_a_store_conforms(opener: Opener, check: Check) -> None:
    await check(opener)
