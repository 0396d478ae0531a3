"""Opens models in processes, and sees to it that nothing of them is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends.contract import Datatype, TensorSpec
from backends.process.backend import PythonProcesses
from backends.python import PythonOptions, open_python

FUNCTIONS = "tests.unit.backends.process.functions"
X = TensorSpec("x", Datatype.FP32, (3,))
Y = TensorSpec("y", Datatype.FP32, (3,))
OPTIONS = PythonOptions("", (X,), (Y,), version="7", max_batch=5, process=True)

Open = Callable[..., Awaitable[PythonProcesses]]


def descriptors() -> dict[str, str]:
    """Of this process."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them
            found[descriptor.name] = str(descriptor.readlink())
    return found


async def until(holds: Callable[[], bool]) -> None:
    """Wait until *holds*, of which nothing here is told."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 (nobody sets an event)
            await asyncio.sleep(0.005)


@pytest.fixture
async def open_model() -> AsyncIterator[Open]:
    """Opens a function of `functions` by name, with other options; closed afterwards, without leaving anything."""
    opened: list[PythonProcesses] = []
    children = set(psutil.Process().children(recursive=True))
    before = descriptors()

    async def open_one(function: str, **options: Any) -> PythonProcesses:  # Any: as `PythonOptions` has them
        backend = await open_python("m", replace(OPTIONS, target=f"{FUNCTIONS}:{function}", **options))
        assert isinstance(backend, PythonProcesses)
        opened.append(backend)
        return backend

    yield open_one
    for backend in opened:
        await backend.aclose()
    assert set(psutil.Process().children(recursive=True)) == children
    assert descriptors() == before
