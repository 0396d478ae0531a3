"""Configurations roll through all replicas by version, and back, on a real Ray Serve."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.process import ROOT, wait_for
from tests.integration.ray.callers import calling, many_more
from tests.integration.ray.clusters import (
    CLUSTER_CONFIG,
    GATEWAY,
    MODEL,
    READY_S,
    Cluster,
    command,
    environment,
    running,
    why_not,
)
from tests.integration.ray.served import first_of
from tests.integration.ray.test_cluster import DECIDE, TRIPLE, metrics
from tests.integration.test_v1 import call

FIRST = CLUSTER_CONFIG.replace("serve: {replicas: 2, num_cpus: 0.1}", "serve: {num_cpus: 0.1}")
OTHER = FIRST.replace("labels: [a, b, c]", "labels: [x, y, z]")
FAST = "tests.integration.models:fast"
MARK = re.compile(r"^pointsman_configuration_version (\d+)\.0$", re.MULTILINE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two gateways and a model apart from them, which serve version 1 at first."""
    if reason := why_not():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("versions"), FIRST) as found:
        yield found


def served(cluster: Cluster, without: int = 0) -> list[int]:
    """What each replica says that it serves, once there are two, neither of which is process *without*."""
    found: list[int] = []

    def both_tell() -> bool:
        pids = cluster.serving(GATEWAY)
        if without in pids or len(pids) != 2 or len(cluster.targets()) != 2:
            return False
        try:
            told = [re.search(MARK, metrics(address)) for address in cluster.targets()]
        except OSError:  # of one that was killed
            return False
        found[:] = sorted(int(one[1]) for one in told if one is not None)
        return len(found) == 2

    wait_for(both_tell, 60)
    return found


def listed(cluster: Cluster) -> list[tuple[int, str]]:
    """The versions and their states, as an operator is told."""
    done = subprocess.run(
        command("versions", str(cluster.config), "--json"), capture_output=True, text=True, cwd=ROOT,
        env=environment(), timeout=60, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [(one["version"], one["state"]) for one in found]


def up(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    """Another `up`, on the configuration that is there."""
    return subprocess.run(
        command("up", str(cluster.config), "--folder", str(cluster.folder), *words), capture_output=True, text=True,
        cwd=ROOT, env=environment(), timeout=READY_S, check=False,
    )  # fmt: skip


def label(cluster: Cluster) -> str:
    found: str = call(f"{cluster.http}{DECIDE}", b"fast=0.95:b").body["label"]
    return found


@pytest.mark.timeout(300)
def test_an_upgrade_is_a_version_that_all_replicas_have_and_the_one_before_is_gone_back_to(cluster: Cluster) -> None:
    assert served(cluster) == [1, 1]
    assert label(cluster) == "b"
    with calling(cluster.http, cluster.grpc) as outcome:
        many_more(outcome)
        done = cluster.up(OTHER)
        many_more(outcome)
    assert (done.returncode, outcome.failed) == (0, []), done.stderr
    assert done.stdout.rstrip().endswith(" version=2")
    assert served(cluster) == [2, 2]
    assert label(cluster) == "y"
    old = cluster.replicas(GATEWAY)

    failed = cluster.up(OTHER.replace(FAST, "tests.integration.models:nothing_there"))

    assert failed.returncode != 0
    assert "nothing_there" in failed.stderr
    assert served(cluster) == [2, 2]
    assert cluster.replicas(GATEWAY) == old, "what runs goes on, and nothing is started anew"
    assert listed(cluster) == [(3, "called off"), (2, "serving"), (1, "served")]

    with calling(cluster.http, cluster.grpc) as outcome:
        many_more(outcome)
        back = up(cluster, "--version", "1")
        many_more(outcome)

    assert (back.returncode, outcome.failed) == (0, []), back.stderr
    assert back.stdout.rstrip().endswith(" version=1")
    assert served(cluster) == [1, 1]
    assert label(cluster) == "b"
    assert listed(cluster) == [(3, "called off"), (2, "served"), (1, "serving")]


@pytest.mark.timeout(300)
def test_an_upgrade_that_only_some_replicas_can_serve_is_taken_back_from_all(cluster: Cluster) -> None:
    """Serve alone would leave two versions side by side, and replace none of either that is lost."""
    (before,) = set(served(cluster))
    models = cluster.replicas(MODEL)
    target = f"tests.integration.ray.served:{first_of(cluster.config.parent / 'started')}"

    done = cluster.up(OTHER.replace(FAST, target).replace("tests.integration.models:double", TRIPLE))

    assert "only the first" in done.stderr
    assert (cluster.config.parent / "started").exists(), "one could"
    assert served(cluster) == [before, before]
    assert cluster.replicas(MODEL) == models, "those of what failed are gone"
    victim = min(cluster.replicas(GATEWAY))
    os.kill(victim, signal.SIGKILL)
    assert served(cluster, without=victim) == [before, before]
    assert label(cluster) == "b"


@pytest.mark.timeout(300)
def test_a_replica_that_is_killed_amid_a_rollout_leaves_all_on_one_version(cluster: Cluster) -> None:
    old, done = cluster.replicas(GATEWAY), []
    upgrade = threading.Thread(target=lambda: done.append(cluster.up(OTHER)))
    upgrade.start()
    wait_for(lambda: bool(cluster.replicas(GATEWAY) - old), 60)

    os.kill(min(old & cluster.replicas(GATEWAY)), signal.SIGKILL)

    upgrade.join(READY_S)
    assert done[0].returncode == 0, done[0].stderr
    (version,) = set(served(cluster))
    assert (version, "serving") in listed(cluster)
    assert label(cluster) == "y"


@pytest.mark.timeout(300)
def test_a_second_upgrade_meanwhile_is_refused_and_one_whose_operator_is_killed_ends_by_itself(
    cluster: Cluster,
) -> None:
    old = cluster.replicas(GATEWAY)
    cluster.config.write_text(FIRST)
    first = subprocess.Popen(
        command("up", str(cluster.config), "--folder", str(cluster.folder)), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip
    wait_for(lambda: bool(cluster.replicas(GATEWAY) - old), 60)

    refused = up(cluster)

    first.kill()
    first.communicate()
    newest, _ = listed(cluster)[0]
    assert refused.returncode != 0
    assert re.search(rf"\S+@\S+ is rolling out version {newest} since 20\S+Z; wait until that is over", refused.stderr)
    wait_for(lambda: not old & cluster.replicas(GATEWAY), 90)
    assert served(cluster) == [newest, newest]
    wait_for(lambda: listed(cluster)[0] == (newest, "serving"), 30)


def test_nothing_is_left_that_holds_the_store(cluster: Cluster) -> None:
    """The `up` that runs keeps versions, and lets go of the store when that is done."""
    opened = psutil.Process(cluster.process.pid).open_files()
    assert [file.path for file in opened if Path(file.path).suffix == ".db"] == []
