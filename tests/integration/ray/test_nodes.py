"""The gateway on a Ray of several nodes: one is preempted, one dies, and at last the head does, and comes back.

The tests are in this order, each on what the one before has left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.process import wait_for
from tests.integration.ray.callers import calling, many_more
from tests.integration.ray.clusters import (
    CLUSTER_CONFIG,
    GATEWAY,
    MODEL,
    replicas_below,
    targets_of,
    why_not,
)
from tests.integration.ray.orders import Script, followed

_CONFIG = CLUSTER_CONFIG.replace("serve: {replicas: 2, num_cpus: 0.1}", "serve: {replicas: 2, num_cpus: 1}").replace(
    "cluster: {replicas: 2, num_cpus: 0.1,", "cluster: {replicas: 2, num_cpus: 2,"
)
_CONFIG = _CONFIG.replace("models:double\n", "ray.served:double_and_say_who\n").replace(
    "outputs: [{name: y, datatype: FP32, shape: [-1]}]",
    "outputs: [{name: y, datatype: FP32, shape: [-1]}, {name: process, datatype: INT32, shape: [1]}]",
)
_AGAIN_S = 90.0
_HEADLESS_S = 8.0


@dataclass(slots=True)
class Nodes:
    """The cluster that `nodes.py` has made.

    Attributes:
        raylets: the process that is the root of each node, by the node's id.
        at: what it said when it served.
    """

    script: Script
    folder: Path
    raylets: dict[str, int] = field(default_factory=dict)
    at: dict[str, Any] = field(default_factory=dict)

    def order(self, words: str) -> dict[str, Any]:
        """The reply to an order."""
        return self.script.order(words)

    def add(self) -> str:
        """Another node; its id."""
        found = self.order("add")
        self.raylets[found["node"]] = found["raylet"]
        return str(found["node"])

    def on(self, node: str, deployment: str) -> set[int]:
        """The replicas of *deployment* on *node*."""
        return replicas_below(self.raylets[node], deployment)

    def are_whole(self, *on: str) -> bool:
        """Whether there is one replica of each kind on each of the nodes *on*, and they answer."""
        each = all(len(self.on(node, kind)) == 1 for node in on for kind in (GATEWAY, MODEL))
        return each and len(targets_of(self.folder)) == len(on)

    def lose(self, node: str) -> None:
        """All of its processes end at once, as with the power."""
        root = psutil.Process(self.raylets.pop(node))
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def calling(self) -> Any:
        """See `callers.calling`."""
        return calling(f"http://{self.at['http']}", self.at["grpc"])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes beside the head, each with a gateway and a replica of its model."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "my.yaml").write_text(_CONFIG)
    short = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp"))
    (short / "ray").mkdir()
    program = Path(__file__).with_name("nodes.py")
    try:
        with followed([sys.executable, str(program), str(folder / "my.yaml"), str(short)]) as script:
            found = Nodes(script, folder)
            found.add()
            found.add()
            found.at = found.order("serve")
            yield found
    finally:
        shutil.rmtree(short, ignore_errors=True)


def assert_only_what_was_under_way(failed: list[str]) -> None:
    """HTTP callers repeat that by themselves; gRPC's must be told to."""
    assert [each for each in failed if each.startswith("http")] == []
    assert all("UNAVAILABLE" in each for each in failed)
    assert len(failed) <= 4


def test_gateways_ask_the_replica_of_their_own_node_while_it_has_room(nodes: Nodes) -> None:
    """A connection is one gateway's."""
    wait_for(lambda: nodes.are_whole(*nodes.raylets), _AGAIN_S)
    asked = set()
    for _ in range(40):  # connections, of which one gateway gets none once in 2^39 times
        connection = HTTPConnection(nodes.at["http"], timeout=20)
        answers = {_answered_by(connection) for _ in range(20)}
        gateway = _at_the_other_end(connection)
        connection.close()
        [node] = [node for node in nodes.raylets if gateway in nodes.on(node, GATEWAY)]
        assert answers == nodes.on(node, MODEL)
        asked.add(node)
        if len(asked) == 2:
            break
    assert asked == set(nodes.raylets)


def _answered_by(connection: HTTPConnection) -> int:
    """The process of the model's replica that did."""
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    connection.request("POST", "/v2/models/double/infer", json.dumps(body), {"Content-Type": "application/json"})
    outputs = json.loads(connection.getresponse().read())["outputs"]
    return int(next(output["data"][0] for output in outputs if output["name"] == "process"))


def _at_the_other_end(connection: HTTPConnection) -> int | None:
    """The process that is."""
    here = connection.sock.getsockname()
    return next(one.pid for one in psutil.net_connections("tcp") if one.raddr == here and one.status == "ESTABLISHED")


def test_a_node_that_is_preempted_is_left_before_it_goes(nodes: Nodes) -> None:
    leaving, staying = nodes.raylets
    wait_for(lambda: nodes.are_whole(leaving, staying), _AGAIN_S)
    with nodes.calling() as outcome:
        many_more(outcome)
        coming = nodes.add()

        assert nodes.order(f"drain {leaving}") == {"why_not": ""}

        wait_for(lambda: not nodes.on(leaving, GATEWAY) and not nodes.on(leaving, MODEL), _AGAIN_S)
        nodes.lose(leaving)
        many_more(outcome)
        assert nodes.are_whole(staying, coming)

    assert outcome.failed == []


def test_a_node_that_dies_costs_what_was_under_way_there_at_most(nodes: Nodes) -> None:
    dying, staying = nodes.raylets
    with nodes.calling() as outcome:
        many_more(outcome)
        nodes.lose(dying)
        many_more(outcome)  # at the other, with the model that is left
        coming = nodes.add()
        wait_for(lambda: nodes.are_whole(staying, coming), _AGAIN_S)
        many_more(outcome)

    assert_only_what_was_under_way(outcome.failed)


def test_gateways_answer_while_there_is_no_head(nodes: Nodes) -> None:
    """Serve can place, replace and scale nothing then, which no request needs."""
    with nodes.calling() as outcome:
        many_more(outcome)
        os.kill(nodes.at["gcs"], signal.SIGKILL)
        gone = threading.Event()
        gone.wait(_HEADLESS_S)
        many_more(outcome)

    assert outcome.failed == []


def test_a_head_that_comes_back_finds_what_it_has_to_place(nodes: Nodes) -> None:
    """A gateway that is killed while there is none is replaced from then on."""
    dying, staying = nodes.raylets
    with nodes.calling() as outcome:
        many_more(outcome)
        [gateway] = nodes.on(dying, GATEWAY)
        os.kill(gateway, signal.SIGKILL)
        many_more(outcome)  # at the other

        nodes.at |= nodes.order("back")

        wait_for(lambda: nodes.are_whole(dying, staying) and gateway not in nodes.on(dying, GATEWAY), _AGAIN_S)
        many_more(outcome)

    assert_only_what_was_under_way(outcome.failed)
