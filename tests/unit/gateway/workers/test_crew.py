"""A worker that cannot be started again is tried again, for as long as it takes, and costs its siblings nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import Settings, load_settings
from gateway.workers import crew
from gateway.workers.crew import Crew, Worker, WorkerFailed
from gateway.workers.supervisor import supervise


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "models: {echo: {backend: echo, expose: true}}\n"
        "server: {workers: 2, http_port: 0, grpc_port: 0, control_port: 0}\n"
    )
    return load_settings(path)


async def no_process(*_: Any, **__: Any) -> Any:  # Any: stands in for a function of many arguments
    raise BlockingIOError(11, "Resource temporarily unavailable")


async def test_a_system_that_has_no_process_to_give_is_a_failure_to_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_process)
    folder = tmp_path / "folder"
    folder.mkdir()

    with pytest.raises(WorkerFailed, match=r"no process can be started: .*temporarily unavailable"):
        await Worker(0, settings, folder).run(lambda: None)

    assert list(folder.iterdir()) == []


async def test_however_often_one_fails_it_is_tried_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "MOST_BACKOFF_S", 0.0)
    tries = 0
    tried_enough = asyncio.Event()

    async def run(self: Worker, on_ready: Any) -> str:  # Any: as above
        nonlocal tries
        if not tries:
            self.pid = 1  # as a started process has one
            on_ready()
        tries += 1
        if tries == 2500:
            tried_enough.set()
        if tries % 3 == 0:
            raise ValueError("a bug")
        raise WorkerFailed("it cannot start")

    monkeypatch.setattr(Worker, "run", run)
    workers = Crew(settings, tmp_path)
    workers._waiting = {workers.workers[0]}
    tending = asyncio.create_task(workers._tend(workers.workers[0]))

    await asyncio.wait({asyncio.create_task(tried_enough.wait()), tending}, return_when=asyncio.FIRST_COMPLETED)

    assert tried_enough.is_set()
    workers._draining.set()
    await tending


async def test_a_folder_whose_name_is_too_long_for_sockets_is_told_with_the_remedy(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("t" * 80)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with pytest.raises(OSError, match="too long a name; set TMPDIR"):
        await supervise(settings, lambda _: None)
