"""A place for a store file, and clocks that tests move."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store import StoreOptions
from tests.unit.gateway.store.samples import Clock


@pytest.fixture
def options(tmp_path: Path) -> StoreOptions:
    """A store of its own, which gives up soon where it is locked."""
    return StoreOptions(tmp_path / "store.db", busy_timeout_s=0.05)


@pytest.fixture
def clock() -> Clock:
    """The clock of leases."""
    return Clock(1000.0)


@pytest.fixture
def wall_clock() -> Clock:
    """Unix time."""
    return Clock(1_700_000_000.0)
