"""A worker that cannot be started again is tried again, for as long as it takes, and costs its siblings nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.errors import Unavailable
from gateway.folders import private_folder
from gateway.http.messages import HttpRequest
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
        await Worker(0, settings, folder, {}).run(lambda: None)

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


def freeze(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:  # Any: of whatever type
    """An inline model: holds the event loop of its worker for as many seconds as it is told."""
    time.sleep(float(inputs["seconds"].max()))
    return {"seconds": np.zeros_like(inputs["seconds"])}


FREEZING = """
models:
  freeze:
    backend: python
    target: tests.unit.gateway.workers.test_crew:freeze
    inline: true
    inputs: [{name: seconds, datatype: FP32, shape: [1]}]
    outputs: [{name: seconds, datatype: FP32, shape: [1]}]
    max_batch: 4
    expose: true
server: {workers: 2, http_port: 0, grpc_port: 0, control_port: 0}
"""


def freezing(seconds: float) -> HttpRequest:
    tensor = {"name": "seconds", "datatype": "FP32", "shape": [1, 1], "data": [seconds]}
    body = json.dumps({"inputs": [tensor]}).encode()
    headers = {"host": "127.0.0.1", "content-type": "application/json"}
    return HttpRequest("POST", "/v2/models/freeze/infer", "", headers, body)


async def test_a_worker_whose_event_loop_hangs_is_told_of_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crew, "ASK_S", 0.5)
    monkeypatch.setattr(crew, "HUNG_S", 1.0)
    path = tmp_path / "gateway.yaml"
    path.write_text(FREEZING)
    with private_folder("crew", 100) as folder:
        async with asyncio.timeout(120), Crew(load_settings(path), folder) as workers:
            assert await workers.wait_ready(asyncio.Event())
            first, other = workers.workers
            pids = first.pid, other.pid

            hanging = asyncio.create_task(workers.forward(freezing(600.0)))  # to the first: they take turns
            up: list[set[float]] = []
            while first.restarts == 0:
                families = {family.name: family for family in await workers.families(())}
                up.append({sample.value for sample in families["pointsman_worker_up"].samples})
            with pytest.raises(Unavailable, match="has just ended"):
                await hanging
            while not first.is_ready:
                await workers.look()
            replies = [await workers.forward(freezing(0.0)) for _ in range(2)]

    assert {0.0, 1.0} in up
    assert "its event loop hangs; it is killed" in caplog.text
    assert [reply.status for reply in replies] == [200, 200]
    assert first.pid != pids[0]
    assert (other.pid, other.restarts) == (pids[1], 0)


async def test_a_worker_that_misses_a_question_now_and_then_lives_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    worker = Worker(0, settings, tmp_path, {})
    monkeypatch.setattr(worker, "kill", lambda: killed.append(worker.number))

    for miss in range(crew.HUNG_MISSES):  # the supervisor was stopped for an hour after the first
        worker._miss(0.0 if miss == 0 else 3600.0)
        assert bool(killed) == (miss == crew.HUNG_MISSES - 1)
    killed.clear()
    worker._misses = 0
    for _ in range(100):  # scrapes that follow each other closely
        worker._miss(7000.0)
    assert not killed
    assert not worker.answers
