"""Libraries that the tests of the CUDA sources share."""

from __future__ import annotations

import pytest

from tests.unit.kernels.cuda.host import Build, builder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A library of a source with its macros."""
    return builder(tmp_path_factory.mktemp("emulated"))
