"""Replicas of a model come and go with the time that batches wait for them, on the Serve of the folder's cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.contract import Batch, Deadline, Tensor
from backends.ray_serve.backend import open_deployment
from gateway.settings import load_settings
from tests.integration.ray.clusters import Cluster, joined

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


async def test_there_is_none_while_nobody_asks_and_more_while_batches_wait(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(_CONFIG)
    model = load_settings(tmp_path / "my.yaml").models["slow"]
    with joined(cluster):
        from ray import serve

        from gateway.cluster.apart import model_application

        app = model_application(model, "a digest")
        handle = await asyncio.to_thread(serve.run, app, name=_APP, route_prefix=None)
        assert await asyncio.to_thread(running_replicas) == 0
        backend = await open_deployment("slow", handle, 2, digest="a digest", timeout_s=60)  # wakes the first
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
