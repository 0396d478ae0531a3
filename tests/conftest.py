"""Settings of every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from gateway.store import Postgres
    from tests.postgres import PostgresServer

# What several modules assert with, before any of them imports it.
pytest.register_assert_rewrite(
    "tests.unit.gateway.store.conformance",
    "tests.unit.gateway.store.endings",
    "tests.unit.gateway.store.quality_conformance",
)

# A slow example on a busy machine is no failure; a test that hangs is, and pytest-timeout tells. CI tries the same
# examples every time, so that a change is judged by what it changes; on a developer's machine the search goes on, in
# twice as many.
_IN_CI = "CI" in os.environ
settings.register_profile("pointsman", deadline=None, derandomize=_IN_CI, max_examples=50 if _IN_CI else 100)
settings.load_profile("pointsman")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for this session's tests."""
    from tests.postgres import NoPostgres, PostgresServer

    try:
        server = PostgresServer()
        with server:
            yield server
    except NoPostgres as reason:
        pytest.skip(f"no PostgreSQL: {reason}")


@pytest.fixture(scope="session")
def postgres_database(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Postgres, str]]:
    """A store on it, and its database's name."""
    with postgres_server.store(tmp_path_factory.mktemp("postgres")) as found:
        yield found


@pytest.fixture
def postgres(postgres_server: PostgresServer, postgres_database: tuple[Postgres, str]) -> Postgres:
    """A store that is empty; its tables must be left as they are."""
    place, name = postgres_database
    postgres_server.clear(name)
    return place
