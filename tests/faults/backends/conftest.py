"""A real Triton that serves `dbl` alone, for the whole folder; without one, every test that needs it is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.repository import only, write_repository
from tests.conformance.triton import TritonProcess, triton, why_not


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `dbl` alone, with which a Triton starts in a second."""
    if reason := why_not():
        pytest.skip(reason)
    return write_repository(tmp_path_factory.mktemp("repository") / "models", only("dbl"))


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A Triton."""
    with triton(tmp_path_factory.mktemp("triton"), repository) as process:
        yield process
