"""Models that share replicas: loaded where they are wanted, within the memory of each, and asked where they are."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from backends.contract import Batch, Deadline, Tensor
from backends.ray_serve.kept import kept
from backends.ray_serve.pooled import PooledRayServe, open_pooled
from backends.ray_serve.residence import TOLD_EVERY_S, Residence, residence_of
from backends.warm.policy import Phase
from gateway.settings import load_settings
from tests.integration.process import wait_for
from tests.integration.ray.clusters import GATEWAY, Cluster, joined, running, why_not
from tests.integration.ray.test_cluster import metrics
from tests.integration.test_v1 import call
from tests.unit.gateway.test_warming import write_times

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of which there are many

_MODELS = 6
_TWO_FIT = "100KiB"
_WITHIN_S = 30.0
_TOLD_S = 3 * TOLD_EVERY_S
"""In which replicas have told what they have."""


def config(replicas: int = 2) -> str:
    models = "".join(
        f"  m{n}: {{backend: onnx, path: m{n}.onnx, max_batch: 4, expose: true, warm: {{keep: 0, memory: 45KiB}}, "
        "serve: {pool: small}}\n"
        for n in range(_MODELS)
    )
    pool = f"{{replicas: {replicas}, num_cpus: 0.1, memory: {_TWO_FIT}}}"
    return (
        f"models:\n{models}cluster: {{replicas: 2, num_cpus: 0.1, targets: targets, pools: {{small: {pool}}}}}\n"
        "store: {path: store.db, retention: 1d, limit: 1GiB}\n"
    )


def write_models(folder: Path, times: float = 1.0) -> None:
    for n in range(_MODELS):
        write_times(folder / f"m{n}.onnx", times * (n + 1))


def warm(residence: Residence) -> dict[str, set[str]]:
    """The models that each replica has told of, by their digests."""
    return {
        replica: {digest for digest, one in told.models.items() if one.phase is Phase.WARM}
        for replica, told in residence._told.items()
    }


def answer(cluster: Cluster, n: int) -> list[float] | int:
    """What the model makes of two numbers; the status of a refusal."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]}
    reply = call(f"{cluster.http}/v2/models/m{n}/infer", json.dumps(body).encode(), Content_Type="application/json")
    found: list[float] = reply.body["outputs"][0]["data"] if reply.status == 200 else []
    return found or reply.status


def answers(cluster: Cluster) -> list[list[float] | int]:
    """What each of the models makes of them."""
    return [answer(cluster, n) for n in range(_MODELS)]


class Pool:
    """A pool that runs, and its models as a gateway has them."""

    def __init__(self, residence: Residence, models: dict[str, PooledRayServe], app: str) -> None:
        self.residence = residence
        self.models = models
        self.app = app

    async def ask(self, n: int) -> float:
        batch = Batch.of({"x": Tensor.of(np.full((1, 2), 3.0, np.float32))})
        deadline = Deadline(time.monotonic() + _WITHIN_S)
        model = self.models[f"m{n}"]
        async with model.hold(deadline):
            outputs = await model.infer(batch, deadline)
        return float(outputs["y"].numpy()[0, 0])

    def where(self, n: int) -> set[str]:
        """The replicas that have told that they have the model."""
        digest = self.models[f"m{n}"]._about.digest
        return {replica for replica, found in warm(self.residence).items() if digest in found}

    async def settle(self, expected: Callable[[], bool]) -> None:
        """Return when *expected* holds."""
        async with asyncio.timeout(_WITHIN_S):
            while not expected():  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.1)


@pytest.fixture
async def pool(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Pool]:
    """Two replicas, with room for two of the models each."""
    write_models(tmp_path)
    (tmp_path / "my.yaml").write_text(config())
    settings = load_settings(tmp_path / "my.yaml")
    with joined(cluster):
        from ray import serve

        from gateway.cluster.apart import apartments, application_of

        (one,) = apartments(settings)
        handle = await asyncio.to_thread(serve.run, application_of(one), name=one.app, route_prefix=None)
        residence = residence_of(one.deployment, one.app)
        models = {}
        for model, digest in one.models:
            about = await asyncio.to_thread(kept, one.app, digest)
            assert about is not None  # the first replica has told
            models[model.name] = await open_pooled(
                model.name, handle, residence, digest=digest, timeout_s=_WITHIN_S, about=about
            )
        yield Pool(residence, models, one.app)
        for opened in models.values():
            await opened.aclose()
        await asyncio.to_thread(serve.delete, one.app)


async def test_each_model_answers_for_itself_and_no_replica_has_more_than_it_has_room_for(pool: Pool) -> None:
    for _ in range(3):
        answers = await asyncio.gather(*(pool.ask(n) for n in range(_MODELS) for _ in range(5)))
        assert answers == [3.0 * (n + 1) for n in range(_MODELS) for _ in range(5)]
        await pool.settle(lambda: any(warm(pool.residence).values()))
        assert all(len(found) <= 2 for found in warm(pool.residence).values())


async def test_a_model_that_is_asked_again_is_asked_where_it_is(pool: Pool) -> None:
    # One that starts after the other has told what the models are loads none; else both may have the same.
    await pool.settle(lambda: any(warm(pool.residence).values()))
    await asyncio.sleep(_TOLD_S)
    n = next(n for n in range(_MODELS) if not pool.where(n))
    await pool.ask(n)
    await pool.settle(lambda: len(pool.where(n)) == 1)
    before = pool.where(n)

    for _ in range(50):
        assert await pool.ask(n) == 3.0 * (n + 1)
    await asyncio.sleep(_TOLD_S)
    assert await pool.ask(n) == 3.0 * (n + 1)

    assert pool.where(n) == before


async def test_models_of_a_replica_that_is_killed_are_loaded_by_another_and_nobody_is_refused(
    pool: Pool, cluster: Cluster
) -> None:
    for n in (0, 1, 2):
        await pool.ask(n)
    victim = min(cluster.replicas("pool-small"))
    os.kill(victim, signal.SIGKILL)

    for _ in range(10):
        assert await asyncio.gather(*(pool.ask(n) for n in (0, 1, 2))) == [3.0, 6.0, 9.0]

    await asyncio.to_thread(wait_for, lambda: len(cluster.serving("pool-small") - {victim}) == 2)
    assert await asyncio.gather(*(pool.ask(n) for n in range(_MODELS))) == [3.0 * (n + 1) for n in range(_MODELS)]


@pytest.fixture(scope="module")
def pooled_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two gateways, whose models share two replicas."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("pooled")
    write_models(folder)
    with running(folder, config()) as found:
        yield found


def test_callers_meet_models_of_a_pool_as_any_others(pooled_cluster: Cluster) -> None:
    assert len(pooled_cluster.replicas("pool-small")) == len(pooled_cluster.replicas(GATEWAY)) == 2
    for _ in range(3):
        assert answers(pooled_cluster) == [[n + 1.0, 2.0 * (n + 1)] for n in range(_MODELS)]
    shown = [metrics(address) for address in pooled_cluster.targets()]

    assert sum(one.count("pointsman_cold_starts_total{") for one in shown) > 0
    last = f'pointsman_model_residency{{model="m{_MODELS - 1}",state="warm"}} 1.0'
    assert any(last in one for one in shown)


def test_in_an_upgrade_the_next_pool_comes_beside_the_one_before_which_goes_then(pooled_cluster: Cluster) -> None:
    write_models(pooled_cluster.config.parent, times=10.0)
    before = pooled_cluster.replicas("pool-small")

    pooled_cluster.upgrade(config())

    assert answers(pooled_cluster) == [[10.0 * (n + 1), 20.0 * (n + 1)] for n in range(_MODELS)]
    wait_for(lambda: not before & pooled_cluster.replicas("pool-small"))
    assert len(pooled_cluster.replicas("pool-small")) == 2


def test_files_that_have_changed_are_served_by_no_replica_until_they_are_deployed(pooled_cluster: Cluster) -> None:
    before = answers(pooled_cluster)
    victim = min(pooled_cluster.replicas("pool-small"))
    write_models(pooled_cluster.config.parent, times=100.0)
    try:
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in pooled_cluster.replicas("pool-small"))
        found = [answer(pooled_cluster, n) for n in range(_MODELS) for _ in range(3)]
        assert all(one in (before[n // 3], 503) for n, one in enumerate(found))
        assert 503 in found
        wait_for(lambda: any("are not those that it was deployed with" in line for line in pooled_cluster.log))
    finally:
        write_models(pooled_cluster.config.parent, times=10.0)

    wait_for(lambda: len(pooled_cluster.serving("pool-small")) == 2)
    wait_for(lambda: answers(pooled_cluster) == before)
