"""A store file, and its clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store import StoreOptions
from tests.unit.gateway.store.samples import Clock


@pytest.fixture
def options(tmp_path: Path) -> StoreOptions:
    return StoreOptions(tmp_path / "store.db")


@pytest.fixture
def wall_clock() -> Clock:
    """Unix time of the store."""
    return Clock(1_700_000_000.0)
