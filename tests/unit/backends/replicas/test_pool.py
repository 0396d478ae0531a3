"""Replicas that are alike stay in however much calls differ; one that is not alike goes."""

from __future__ import annotations

import random

import pytest

from backends.replicas.options import ReplicaOptions
from backends.replicas.pool import Pool
from backends.replicas.replica import Replica
from tests.unit.backends.replicas.servers import Served, Server, Watch


def pool_of(count: int, watch: Watch, seed: int) -> Pool:
    options = ReplicaOptions()
    replicas = [Replica(str(i), Server().open, options) for i in range(count)]
    for replica in replicas:
        replica.backend = Served(Server())
    return Pool("m", replicas, options, random.Random(seed), watch)


def play(pool: Pool, rng: random.Random, calls: int, large: float, slow: Replica | None = None) -> None:
    """So many calls, one after another, at random replicas; one in five takes *large* times as long as the others."""
    now = 1000.0
    for _ in range(calls):
        replica = rng.choice(pool.replicas)
        if not replica.health.takes_calls(now):
            continue
        took_s = 0.01 * rng.lognormvariate(0.0, 0.5)
        took_s *= (large if rng.random() < 0.2 else 1.0) * (20.0 if replica is slow else 1.0)
        ticket = pool.begin(replica, now)
        now += 0.01
        pool.answered(replica, ticket, took_s, now)
        pool.ended(replica, ticket, took_s, now)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("large", [1.0, 6.0, 50.0])
def test_nobody_like_the_others_is_ejected_for_slowness_however_much_calls_differ(
    large: float, count: int, seed: int
) -> None:
    watch = Watch()

    play(pool_of(count, watch, seed), random.Random(seed), 5000, large)

    assert not watch.ejected


@pytest.mark.parametrize("count", [3, 5])
def test_a_replica_that_is_twenty_times_slower_is_ejected_though_calls_differ(count: int) -> None:
    watch = Watch()
    pool = pool_of(count, watch, 0)

    play(pool, random.Random(0), 5000, 4.0, slow=pool.replicas[1])

    assert {record.address for record in watch.ejected} == {"1"}
