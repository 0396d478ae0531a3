"""The gateway on a real Ray Serve, as callers and operators meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest

from gateway.cluster.launch import LOOPBACK
from tests.integration.process import ROOT, wait_for
from tests.integration.ray.callers import Outcome, by_grpc, by_http, calling, many_more
from tests.integration.ray.clusters import (
    CLUSTER_CONFIG,
    GATEWAY,
    MODEL,
    Cluster,
    environment,
    running,
    why_not,
)
from tests.integration.test_v1 import UNSURE, call

TRIPLE = "tests.integration.ray.served:triple"
_LEAVE = """
import sys
from gateway.cluster import leave
from tests.integration.ray.clusters import GATEWAY, MODEL, replicas_below
root = int(sys.argv[1])
leave.replicas_here = lambda: len(replicas_below(root, GATEWAY) | replicas_below(root, MODEL))
sys.exit(leave.main(40.0))
"""
"""A pod sees its own processes alone, and this machine has other clusters."""

_LONG_S = 36.0
_PATIENT = (
    "{input: {x: {datatype: FP32, shape: [2]}}, cascade: [double], accept: {min_confidence: 0.5}, on_defer: error, "
    "slo: {deadline: 2m}}"
)
DECIDE = "/v1/routes/words:decide"


def metrics(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        found: str = reply.read().decode()
        return found


def requests_at(address: str) -> float:
    """Requests that the replica there has answered."""
    lines = (line for line in metrics(address).splitlines() if line.startswith("pointsman_requests_total{"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def is_whole(cluster: Cluster) -> bool:
    return len(cluster.replicas(GATEWAY)) == len(cluster.replicas(MODEL)) == len(cluster.targets()) == 2


def one_round(cluster: Cluster) -> Outcome:
    """A caller of each kind, until both have been answered."""
    outcome, stop = Outcome(), threading.Event()
    threads = [
        threading.Thread(target=by_http, args=(cluster.http, stop, outcome)),
        threading.Thread(target=by_grpc, args=(cluster.grpc, stop, outcome)),
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: outcome.answered >= 20 or bool(outcome.failed))
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    return outcome


def test_nothing_listens_where_others_can_reach_it(cluster: Cluster) -> None:
    pids = {cluster.process.pid, *(process.pid for process in cluster.processes())}
    listening = {
        (connection.pid, str(connection.laddr[0]))
        for connection in psutil.net_connections("tcp")
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN and connection.laddr
    }

    assert len(listening) > 4
    assert {address for _, address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_both_protocols_are_answered_by_replicas_that_share_the_ports(cluster: Cluster) -> None:
    assert is_whole(cluster)
    for _ in range(20):  # connections, of which one replica gets none once in 2^39 times
        outcome = one_round(cluster)
        assert outcome.failed == []
        if all(requests_at(address) > 0 for address in cluster.targets()):
            break

    assert all(requests_at(address) > 0 for address in cluster.targets())
    assert all(pid not in cluster.replicas(MODEL) for pid in cluster.replicas(GATEWAY))


def test_people_are_asked_and_answer_at_any_replica(cluster: Cluster) -> None:
    reply = call(f"{cluster.http}{DECIDE}", UNSURE.encode())
    assert reply.status == 202

    states = {call(f"http://{address}/v1/answers/{reply.body['answer_id']}").status for address in cluster.targets()}

    assert states == {202}


def test_a_model_replica_that_is_killed_costs_nobody_an_answer(cluster: Cluster) -> None:
    victim = min(cluster.replicas(MODEL))
    with calling(cluster.http, cluster.grpc) as outcome:
        wait_for(lambda: outcome.answered > 50)
        os.kill(victim, signal.SIGKILL)
        many_more(outcome)
        wait_for(lambda: is_whole(cluster))

    assert outcome.failed == []
    assert victim not in cluster.replicas(MODEL)


def test_a_model_replica_that_hangs_keeps_nobody_waiting_for_long(cluster: Cluster) -> None:
    """As one does that a network has been cut off from: its connections stand, and nothing comes."""
    victim = min(cluster.replicas(MODEL))
    with calling(cluster.http, cluster.grpc) as outcome:
        wait_for(lambda: outcome.answered > 100)
        os.kill(victim, signal.SIGSTOP)
        try:
            for _ in range(4):  # nobody waits for it again and again, or for good
                many_more(outcome, 50)
        finally:
            os.kill(victim, signal.SIGCONT)

    assert outcome.failed == []
    wait_for(lambda: is_whole(cluster))


def test_a_gateway_that_is_killed_is_replaced_and_its_callers_ask_again(cluster: Cluster) -> None:
    """Calls that were under way fail by gRPC: nobody may repeat these but their caller."""
    victim = min(cluster.replicas(GATEWAY))
    with calling(cluster.http, cluster.grpc) as outcome:
        wait_for(lambda: outcome.answered > 50)
        os.kill(victim, signal.SIGKILL)
        many_more(outcome)
        wait_for(lambda: is_whole(cluster))

    assert [failed for failed in outcome.failed if failed.startswith("http")] == []
    assert all("UNAVAILABLE" in failed for failed in outcome.failed)
    assert len(outcome.failed) <= 4  # of the two gRPC callers, what was under way, and what came before they knew
    assert victim not in cluster.replicas(GATEWAY)


def test_an_upgrade_under_load_fails_no_request(cluster: Cluster) -> None:
    old = cluster.replicas(GATEWAY)
    with calling(cluster.http, cluster.grpc) as outcome:
        wait_for(lambda: outcome.answered > 50)

        cluster.upgrade(CLUSTER_CONFIG.replace("labels: [a, b, c]\n    cost: 0.1", "labels: [x, y, z]\n    cost: 0.1")
                        .replace("    labels: [a, b, c]\n  double", "    labels: [x, y, z]\n  double"))  # fmt: skip

        many_more(outcome)

    assert outcome.failed == []
    assert call(f"{cluster.http}{DECIDE}", b"fast=0.95:b").body["label"] == "y"
    wait_for(lambda: is_whole(cluster))
    assert not old & cluster.replicas(GATEWAY)


def test_an_upgrade_of_a_model_that_is_apart_fails_no_request_and_brings_its_answers(cluster: Cluster) -> None:
    """Old gateways have the old replicas for as long as they are there."""
    old = cluster.replicas(MODEL)
    with calling(cluster.http, cluster.grpc, factors=(2, 3)) as outcome:
        many_more(outcome)

        cluster.upgrade(cluster.config.read_text().replace("tests.integration.models:double", TRIPLE))

        many_more(outcome)
        wait_for(lambda: is_whole(cluster), 60)  # the old ones are gone
        many_more(outcome)

    assert outcome.failed == []
    assert set(outcome.factors[:100]) == {2}
    assert set(outcome.factors[-100:]) == {3}
    assert not old & cluster.replicas(MODEL)


def test_an_upgrade_in_which_a_model_goes_fails_no_request(cluster: Cluster) -> None:
    """The model is one of each gateway's own from then on."""
    with calling(cluster.http, cluster.grpc, factors=(2, 3)) as outcome:
        many_more(outcome)

        cluster.upgrade(CLUSTER_CONFIG.replace("    serve: {replicas: 2, num_cpus: 0.1}\n", ""))

        many_more(outcome)
        wait_for(lambda: not cluster.replicas(MODEL), 60)
        many_more(outcome)
        cluster.upgrade(CLUSTER_CONFIG)
        many_more(outcome)

    assert outcome.failed == []
    wait_for(lambda: is_whole(cluster))


@pytest.mark.timeout(300)
def test_gateways_that_start_wake_no_model_that_nobody_asks(cluster: Cluster) -> None:
    idle = CLUSTER_CONFIG.replace(
        "serve: {replicas: 2, num_cpus: 0.1}",
        "serve: {num_cpus: 0.1, autoscale: {min: 0, max: 2, up_after: 1s, down_after: 1s}}",
    )
    try:
        cluster.upgrade(idle)
        wait_for(lambda: not cluster.replicas(MODEL), 90)
        old = cluster.replicas(GATEWAY)

        cluster.upgrade(idle.replace("labels: [a, b, c]", "labels: [x, y, z]"))

        assert not old & cluster.replicas(GATEWAY)
        assert cluster.replicas(MODEL) == set()
        assert one_round(cluster).failed == []
    finally:
        cluster.upgrade(CLUSTER_CONFIG)
    wait_for(lambda: is_whole(cluster))


def test_an_upgrade_that_cannot_start_leaves_what_runs(cluster: Cluster) -> None:
    good = cluster.config.read_text()
    old = cluster.replicas(GATEWAY)
    try:
        with pytest.raises(AssertionError, match="nothing_there"):
            cluster.upgrade(good.replace("tests.integration.models:fast", "tests.integration.models:nothing_there"))
        assert call(f"{cluster.http}{DECIDE}", b"fast=0.95:b").status == 200
        assert old & cluster.replicas(GATEWAY)
    finally:
        cluster.upgrade(good)
    wait_for(lambda: is_whole(cluster))


def test_down_finishes_what_was_accepted_and_leaves_nothing(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    alone = CLUSTER_CONFIG.replace("    serve: {replicas: 2, num_cpus: 0.1}\n", "")
    alone = alone.replace("replicas: 2", "replicas: 1")
    with running(tmp_path, alone) as cluster:
        left = cluster.processes()
        replies: list[int] = []
        slow = threading.Thread(target=lambda: replies.append(call(f"{cluster.http}{DECIDE}", b"fast=slow").status))
        slow.start()
        (address,) = cluster.targets()
        wait_for(lambda: 'pointsman_batches_in_flight{model="fast"} 1.0' in metrics(address))

        cluster.down()

        slow.join(timeout=10)
        assert replies == [200]
        assert cluster.process.wait(timeout=10) == 0
        assert cluster.targets() == set()
        _, alive = psutil.wait_procs(left, timeout=10)
        assert alive == []


def test_down_waits_as_long_as_a_drain_may_take_and_models_end_after_gateways(tmp_path: Path) -> None:
    """Serve itself waits for 30 s, and ends all of its applications at once."""
    if reason := why_not():
        pytest.skip(reason)
    patient = CLUSTER_CONFIG.replace("replicas: 2", "replicas: 1").replace(
        "tests.integration.models:double", "tests.integration.ray.served:sure_in_time"
    )
    patient = patient.replace("routes:\n", f"routes:\n  patient: {_PATIENT}\n") + "server: {drain: 60s}\n"
    with running(tmp_path, patient) as cluster:
        replies: list[int] = []
        inputs = [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [_LONG_S, 1.0]}]
        where, body = f"{cluster.http}/v2/models/patient/infer", json.dumps({"inputs": inputs}).encode()
        request = urllib.request.Request(where, body, {"Content-Type": "application/json"})

        def ask() -> None:
            with urllib.request.urlopen(request, timeout=2 * _LONG_S) as reply:
                replies.append(reply.status)

        asking = threading.Thread(target=ask)
        asking.start()
        (address,) = cluster.targets()
        wait_for(lambda: 'pointsman_batches_in_flight{model="double"} 1.0' in metrics(address))

        cluster.down()

        asking.join(timeout=10)
        assert replies == [200]


def test_a_pod_that_ends_is_left_by_its_replicas_first(tmp_path: Path) -> None:
    """They would be killed with its Ray."""
    if reason := why_not():
        pytest.skip(reason)
    with running(tmp_path, CLUSTER_CONFIG.replace("replicas: 2", "replicas: 1")) as cluster:
        known = {
            **LOOPBACK,
            "RAY_ADDRESS": json.loads((cluster.folder / "running").read_text())["ray"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(cluster.folder / "token"),
        }

        done = subprocess.run(
            [sys.executable, "-c", _LEAVE, str(cluster.process.pid)], cwd=ROOT, env={**environment(), **known},
            timeout=60, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert (done.returncode, cluster.replicas(GATEWAY), cluster.replicas(MODEL)) == (0, set(), set()), done.stderr
