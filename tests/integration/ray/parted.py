"""A Ray of three nodes, each in a network of its own, with the gateway and its callers on one of them.

    unshare --net --pid --mount-proc --fork --kill-child python parted.py CONFIG FOLDER

    here: the head, the gateway, callers     b: a replica of the model     c: another
      10.0.1.2 |                        10.0.2.2 |                  10.0.3.2 |
               +------------------------------ router ----------------------+

There is no way in or out of these networks, and they end with this process. What the router does not forward is gone
without a word, and all links stay up, as when a cable is cut far away. Ray keeps its files in FOLDER, a name that is
short. The orders (`orders`):

    join NODE       a raylet there, after the end of the one that was
    serve           the gateway of CONFIG
    begin SECONDS   callers begin, with that as their deadline
    answered        how many answers they have
    lap             what came of their requests since the last lap
    end             callers end; the answers that people have to give, all in all
    answering       the nodes whose replicas answer at the moment
    cut NODE        the router forwards nothing from there or to there any more
    heal NODE       it does again
    alive           the nodes that Ray takes to be alive
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ |= {"RAY_ENABLE_AUTO_CONNECT": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "0"}
# Whoever starts this may have had Ray keep to one machine (`launch.LOOPBACK`); these nodes have an address each.
os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)

import ray
from ray import serve

from gateway.ray_app import AppArguments, app
from tests.integration.process import listens, wait_for
from tests.integration.ray.callers import HttpCaller, Outcome, by_grpc, by_http
from tests.integration.ray.clusters import MODEL, replicas_below
from tests.integration.ray.orders import follow

HTTP, GRPC, CONTROL = 8000, 8001, 8002
HERE, ROUTER = "here", "router"
_ADDRESSES = {HERE: "10.0.1", "b": "10.0.2", "c": "10.0.3"}
_CPUS = {HERE: 2, "b": 3, "c": 3}
_GCS = f"{_ADDRESSES[HERE]}.2:6379"
_OBJECTS_BYTES = 100 * 2**20
# A node that is cut off is taken to be dead after some seconds, and not after a minute.
_HEALTH = {
    "health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}  # fmt: skip
_UNSURE = {"inputs": {"x": [0.3, 0.2]}}
_TRIES = 40
_LEFT_S = 30.0


class Parted:
    """The cluster, its networks and its callers."""

    def __init__(self, config: Path, folder: Path, stack: ExitStack) -> None:
        self._config = config
        self._folder = folder
        self._stack = stack
        self._raylets: dict[str, subprocess.Popen[bytes]] = {}
        self._stop = threading.Event()
        self._callers: list[threading.Thread] = []
        self._outcome, self._lapped = Outcome(), 0
        self._handed: list[str] = []
        _ip("-n", ROUTER, "link", "set", "dev", "lo", "up")
        for node in _ADDRESSES:
            _connect(node)

    def join(self, node: str) -> dict[str, Any]:
        """A raylet on *node*."""
        if (left := self._raylets.pop(node, None)) is not None:
            left.wait(timeout=_LEFT_S)  # it hears from the head that it is dead
        folder = self._folder / node
        folder.mkdir(exist_ok=True)
        begin = ["--head", "--port", _GCS.partition(":")[2], "--include-dashboard", "false", "--system-config",
                 json.dumps(_HEALTH)] if node == HERE else ["--address", _GCS]  # fmt: skip
        command = [
            *_inside(node), sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
            "--node-ip-address", f"{_ADDRESSES[node]}.2", "--num-cpus", str(_CPUS[node]), "--object-store-memory",
            str(_OBJECTS_BYTES), "--temp-dir", str(folder), *begin,
        ]  # fmt: skip
        self._raylets[node] = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if node == HERE:
            host, _, port = _GCS.partition(":")
            wait_for(lambda: listens(host, int(port)))  # what joins gives up when there is none for five seconds
        return {}

    def serve(self) -> dict[str, Any]:
        """The gateway, here: the model's replicas come first, and have all of the other nodes' cores."""
        ray.init(address=_GCS, namespace="serve", log_to_driver=False, _node_ip_address=f"{_ADDRESSES[HERE]}.2")
        self._stack.callback(ray.shutdown)
        wait_for(lambda: set(self.alive()["nodes"]) == set(self._raylets))
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False, "log_level": "WARNING"})
        arguments = AppArguments(config=self._config, http_port=HTTP, grpc_port=GRPC, control_port=CONTROL)
        serve.run(app(arguments), route_prefix=None)
        return {}

    def begin(self, deadline_s: str) -> dict[str, Any]:
        """Two callers by each protocol, and one for whom no answer is sure enough."""
        within_s = float(deadline_s)
        self._stop.clear()
        self._outcome, self._lapped, self._handed = Outcome(), 0, []
        http, grpc = f"http://127.0.0.1:{HTTP}", f"127.0.0.1:{GRPC}"
        stop, outcome = self._stop, self._outcome
        of_each = [
            lambda: by_http(http, stop, outcome, deadline_s=within_s),
            lambda: by_grpc(grpc, stop, outcome, deadline_s=within_s),
        ]
        of_each = [*of_each, *of_each, lambda: self._hand_over(http, within_s)]
        self._callers = [threading.Thread(target=one, daemon=True) for one in of_each]
        for caller in self._callers:
            caller.start()
        return {}

    def _hand_over(self, url: str, within_s: float) -> None:
        caller = HttpCaller(url, within_s)
        while not self._stop.is_set():
            asked_s = time.monotonic()
            try:
                reply = caller.ask("/v1/routes/halves:decide", _UNSURE, self._outcome, status=202)
                self._handed.append(reply["answer_id"])
                self._outcome.waits_s.append(time.monotonic() - asked_s)
            except Exception as error:
                self._outcome.has_failed(f"people: {error!r}", asked_s)
        caller.close()

    def answered(self) -> dict[str, Any]:
        """How many answers callers have."""
        return {"answered": self._outcome.answered}

    def lap(self) -> dict[str, Any]:
        """What came since the last time; a request counts from its answer on."""
        waits = self._outcome.waits_s[self._lapped :]
        self._lapped += len(waits)
        failed, self._outcome.failed = self._outcome.failed, []
        longest_s, self._outcome.longest_failed_s = self._outcome.longest_failed_s, 0.0
        return {"waits_s": waits, "failed": failed, "longest_failed_s": longest_s}

    def end(self) -> dict[str, Any]:
        """Callers get what they are waiting for, and end."""
        self._stop.set()
        for caller in self._callers:
            caller.join()
        return {"handed": self._handed}

    def answering(self) -> dict[str, Any]:
        """Where the model answers: each of two replicas that are asked at random is missed once in 2^40 times."""
        caller, outcome, x = HttpCaller(f"http://127.0.0.1:{HTTP}"), Outcome(), [1.0, 2.0]
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": x}]}
        asked = set()
        for _ in range(_TRIES):
            outputs = caller.ask("/v2/models/double/infer", body, outcome)["outputs"]
            asked.add(next(output["data"][0] for output in outputs if output["name"] == "process"))
        caller.close()
        return {"nodes": [node for node, raylet in self._raylets.items() if asked & replicas_below(raylet.pid, MODEL)]}

    def cut(self, node: str) -> dict[str, Any]:
        """What comes from *node* goes nowhere, and what is for it is dropped."""
        _set_forwarding(node, "0")
        _ip("-n", ROUTER, "route", "add", "blackhole", f"{_ADDRESSES[node]}.2/32")
        return {}

    def heal(self, node: str) -> dict[str, Any]:
        """As before."""
        _ip("-n", ROUTER, "route", "delete", "blackhole", f"{_ADDRESSES[node]}.2/32")
        _set_forwarding(node, "1")
        return {}

    def alive(self) -> dict[str, Any]:
        """As far as Ray's head knows."""
        found = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        return {"nodes": [node for node, address in _ADDRESSES.items() if f"{address}.2" in found]}


def _connect(node: str) -> None:
    """A cable from *node* to the router; *node* has a network of its own, but for the one that is here."""
    at, end = _ADDRESSES[node], []
    if node != HERE:
        _ip("netns", "add", node)
        end = ["-n", node]
    _ip(*end, "link", "set", "dev", "lo", "up")
    _ip(*end, "link", "add", "eth0", "type", "veth", "peer", "name", node, "netns", ROUTER)
    _ip(*end, "address", "add", f"{at}.2/24", "dev", "eth0")
    _ip(*end, "link", "set", "dev", "eth0", "up")
    _ip("-n", ROUTER, "address", "add", f"{at}.1/24", "dev", node)
    _ip("-n", ROUTER, "link", "set", "dev", node, "up")
    _ip(*end, "route", "add", "default", "via", f"{at}.1")
    _set_forwarding(node, "1")


def _set_forwarding(node: str, value: str) -> None:
    """Whether the router forwards what comes from *node*."""
    setting = f"/proc/sys/net/ipv4/conf/{node}/forwarding"
    subprocess.run([*_inside(ROUTER), "sh", "-c", f"echo {value} > {setting}"], check=True)


def _inside(network: str) -> list[str]:
    return [] if network == HERE else ["ip", "netns", "exec", network]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def main() -> None:
    """Follow orders."""
    # Where `ip` notes names of networks is this process's own too, so that none outlives it.
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    _ip("netns", "add", ROUTER)
    with ExitStack() as stack:
        follow(Parted(Path(sys.argv[1]), Path(sys.argv[2]), stack))


if __name__ == "__main__":
    main()
