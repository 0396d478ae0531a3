"""Replicas of a model come and go with the time that batches wait for them, on the Serve of the folder's cluster."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.contract import Batch, Deadline, Tensor
from backends.ray_serve.backend import open_deployment
from gateway.settings import load_settings
from tests.integration.process import ROOT
from tests.integration.ray.clusters import Cluster, environment, joined, why_not

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of which there are many

_APP, _SECONDS = "scaled", 0.05

_CONFIG = """
models:
  slow:
    backend: python
    target: tests.integration.ray.test_scaling:slow
    inputs: [{name: x, datatype: FP32, shape: [1]}]
    outputs: [{name: y, datatype: FP32, shape: [1]}]
    expose: true
    serve: {num_cpus: 0.1, autoscale: {min: 0, max: 2, queue_delay: 10ms, up_after: 1s, down_after: 3s}}
"""


def slow(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """What comes in, after the time of a batch."""
    time.sleep(_SECONDS)
    return {"y": inputs["x"]}


def running_replicas() -> int:
    from ray import serve

    (deployment,) = serve.status().applications[_APP].deployments.values()
    return int(deployment.replica_states.get("RUNNING", 0))


async def until(replicas: int, within_s: float = 40.0) -> None:
    async with asyncio.timeout(within_s):
        while await asyncio.to_thread(running_replicas) != replicas:  # noqa: ASYNC110  # Serve tells nobody
            await asyncio.sleep(0.2)


def replicas_of(load: dict[str, float], seconds: int, replicas: int) -> list[int]:
    """See `scaled.py`, which has Serve's own delay logic ask our policy."""
    if reason := why_not():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.ray.scaled"], input=json.dumps([(load, seconds, replicas)]), cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.splitlines()[-1])
    return list(found)


def test_a_queue_is_met_with_more_replicas_within_a_few_rounds() -> None:
    found = replicas_of({"work": 3.2}, 30, 1)

    assert found[4:6] == [1, 2]
    assert found[-1] >= 4


@pytest.mark.parametrize(
    "amiss", [{"misses": 1.0}, {"misses": 100.0}, {"delay_s": 0.05}], ids=["one caller", "all callers", "batching"]
)
@pytest.mark.parametrize("replicas", [1, 4, 8])
def test_what_replicas_are_not_the_cause_of_does_not_multiply_them(amiss: dict[str, float], replicas: int) -> None:
    found = replicas_of({"work": 0.1, **amiss}, 300, replicas)

    assert max(found) <= replicas
    assert found[-1] == 1


@pytest.mark.parametrize("amiss", [{"misses": 20.0}, {"delay_s": 0.05}], ids=["misses", "batching"])
def test_replicas_do_not_come_and_go_where_they_cannot_help(amiss: dict[str, float]) -> None:
    found = replicas_of({"work": 2.4, **amiss}, 1200, 3)

    assert len(set(found[300:])) == 1


def test_replicas_go_by_halves_each_after_its_time() -> None:
    found = replicas_of({"work": 0.1}, 200, 8)

    steps = [
        (second, now) for second, (before, now) in enumerate(zip([8, *found], found, strict=False)) if now < before
    ]
    assert [now for _, now in steps] == [4, 2, 1]
    assert all(later - sooner >= 60 for (sooner, _), (later, _) in itertools.pairwise(steps))


async def test_there_is_none_while_nobody_asks_and_more_while_batches_wait(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(_CONFIG)
    model = load_settings(tmp_path / "my.yaml").models["slow"]
    with joined(cluster):
        from ray import serve

        from gateway.cluster.apart import Apartment, application_of

        assert model.serve is not None
        one = replace(Apartment.of_model(model, model.serve), app=_APP)
        ((_, digest),) = one.models
        handle = await asyncio.to_thread(serve.run, application_of(one), name=_APP, route_prefix=None)
        assert await asyncio.to_thread(running_replicas) == 0
        backend = await open_deployment("slow", handle, 2, digest=digest, timeout_s=60)  # wakes the first
        batch = Batch.of({"x": Tensor.of(np.ones((1, 1), np.float32))})

        async def ask() -> None:
            while True:
                await backend.infer(batch, Deadline(time.monotonic() + 20))

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        await until(2)
        for task in asking:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await until(0)

        answer = await backend.infer(batch, Deadline(time.monotonic() + 60))  # which waits for one to start
        assert answer["y"].numpy()[0, 0] == 1.0
        await backend.aclose()
        await asyncio.to_thread(serve.delete, _APP)
