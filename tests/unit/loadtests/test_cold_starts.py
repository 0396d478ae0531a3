"""What the benchmark of warm pools stands on: the trace, the simulation, and models that take turns in a pool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.cold_starts.cycles import WEIGHTS_MIB, Cycles
from loadtests.cold_starts.simulation import CALL_S, Outcome, Pool, keep_alive, least_recently_used
from loadtests.cold_starts.trace import DAY_S, Kind, Traffic, traffic

ROOT = Path(__file__).parents[3]


def hourly(days: float = 2.0) -> Traffic:
    times = tuple(3600.0 * (i + 1) for i in range(int(24 * days)))
    return Traffic(Kind.TIMER, times, 1 / 3600, 100, 4.0)


def test_a_trace_is_the_same_for_the_same_seed_and_has_the_paper_s_popularity() -> None:
    found = traffic(400, 1.0, seed=3)

    assert found == traffic(400, 1.0, seed=3)
    assert all(list(one.arrivals_s) == sorted(one.arrivals_s) for one in found)
    assert all(not one.arrivals_s or one.arrivals_s[-1] < DAY_S * 1.01 for one in found)
    free = [one.per_s for one in found if one.kind in (Kind.STEADY, Kind.BURSTS)]
    assert 0.35 < sum(rate <= 1 / 3600 for rate in free) / len(free) < 0.55
    assert 0.71 < sum(rate <= 1 / 60 for rate in free) / len(free) < 0.91


def test_ten_minutes_of_keep_alive_never_meet_a_model_that_comes_on_the_hour() -> None:
    found = keep_alive([hourly()], 600.0)

    assert (found.calls, found.cold, found.loads) == (48, 48, 48)
    assert found.waited_s == 48 * 4.0
    assert abs(found.model_s - (47 * (4.0 + CALL_S + 600.0))) < 5.0


def test_the_pool_learns_the_hour_and_costs_less_memory() -> None:
    models = [hourly()]

    found = Pool(models, budget_bytes=1e9).run()

    usual = keep_alive(models, 600.0)
    assert found.calls == 48
    assert found.cold < 12  # of which most were needed to learn
    assert found.model_s < 2.0 * usual.model_s


def test_the_pool_keeps_to_its_budget_and_answers_every_call() -> None:
    models = traffic(30, 0.25, seed=1)
    budget = 6 * models[0].nbytes

    found = Pool(models, budget).run()

    assert found.calls == sum(len(one.arrivals_s) for one in models)
    assert found.model_s <= 6 * 0.26 * DAY_S


@pytest.mark.no_cover
def test_a_first_day_at_no_more_model_seconds_has_far_fewer_cold_requests_than_either_peer() -> None:
    models = traffic(40, 1.0, seed=2)
    usual = keep_alive(models, 600.0)
    size = models[0].nbytes

    found: Outcome = Pool(models, usual.model_s / DAY_S * size).run()

    assert found.model_s <= 1.02 * usual.model_s
    assert found.cold <= 0.6 * usual.cold
    assert found.cold <= 0.6 * least_recently_used(models, usual.model_s / DAY_S * size).cold


_PROGRAM = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from loadtests.cold_starts.cycles import cycled
print(json.dumps(asdict(asyncio.run(cycled(Path(sys.argv[1]), cycles=60)))))
"""


def test_models_that_put_each_other_out_fail_no_call_and_leave_no_memory_behind(tmp_path: Path) -> None:
    """In a process of its own: what other tests have left to the allocator comes and goes meanwhile."""
    words = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, timeout=100)
    found = Cycles(**json.loads(done.stdout))

    assert (found.cycles >= 60, found.failed) == (True, 0)
    assert found.answered > 60
    assert found.kept_mib < 3 * WEIGHTS_MIB  # what stayed of every load would be 60 times as much
