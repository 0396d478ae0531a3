"""What tests of every edge share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest


@pytest.fixture
def done_in_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that were run beside the event loop, in order."""
    names: list[str] = []

    async def to_thread(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        names.append(function.__name__)
        return await asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments, **named))

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    return names
