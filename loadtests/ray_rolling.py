"""Replicas are killed every few seconds and configurations change, under load, on Ray Serve: which requests fail?

    .venv-ray/bin/python -m loadtests.ray_rolling [--seconds 180] [--every 4]

Three gateways and three replicas of a model that is a deployment of its own, on this machine. Callers over HTTP and
gRPC, each asking again as soon as it is answered, have numbers multiplied. Meanwhile

- one replica after the other gets a SIGKILL, gateways and the model's in turn: every few seconds, but only while two of
  its kind are left, which is what a cluster that is losing machines could promise anybody;
- `pointsman cluster up` brings one changed configuration after the other: another model in the place of the old one, by
  whose answers the change is seen, and back.

Callers repeat what protocols let any client repeat: over HTTP what carries an idempotency key and whose connection was
closed before a reply began; over gRPC what is UNAVAILABLE, by the retry policy of the channel's service config
(gRFC A6). Everything else counts as failed, and so does every wrong answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from loadtests.peers.machine import machine
from loadtests.peers.servers import gateway_versions
from tests.integration.ray import callers
from tests.integration.ray.clusters import CLUSTER_CONFIG, GATEWAY, MODEL, Cluster, running, why_not

RESULTS = Path(__file__).parent / "results" / "ray_rolling.json"
REPLICAS = 3
_LEFT = 2
_CONFIG = CLUSTER_CONFIG.replace("replicas: 2", f"replicas: {REPLICAS}")
_TRIPLE = _CONFIG.replace("tests.integration.models:double", "tests.integration.ray.served:triple")
_FACTORS = (2, 3)
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class Killing:
    """Kills replicas of *cluster* in turn, from a thread of its own."""

    def __init__(self, cluster: Cluster, every_s: float) -> None:
        self._cluster = cluster
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)
        self.killed: Counter[str] = Counter()

    def __enter__(self) -> Killing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _kill(self) -> None:
        for kind in itertools.cycle((GATEWAY, MODEL)):
            while len(serving := self._cluster.serving(kind)) <= _LEFT:
                if self._ended.wait(0.2):
                    return
            with suppress(ProcessLookupError):
                os.kill(min(serving), signal.SIGKILL)
                self.killed[kind] += 1
            if self._ended.wait(self._every_s):
                return


def upgraded(cluster: Cluster, until_s: float) -> list[dict[str, Any]]:
    """One configuration after the other until `time.monotonic` is *until_s*: how long each took, and how it ended."""
    found: list[dict[str, Any]] = []
    for config in itertools.cycle((_TRIPLE, _CONFIG)):
        time.sleep(5.0)
        if (began := time.monotonic()) > until_s:
            return found
        done = cluster.up(config)
        said = "" if done.returncode == 0 else done.stderr[-500:]
        found.append({"took_s": round(time.monotonic() - began, 1), "failed": said})
    raise AssertionError


def rolled(seconds: float, every_s: float, each: int) -> dict[str, Any]:
    """What became of the requests."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), _CONFIG, ("--log-level", "WARNING")) as cluster,
        callers.calling(cluster.http, cluster.grpc, each, _FACTORS, retries=_RETRIES) as outcome,
    ):
        callers.many_more(outcome)
        began = time.monotonic()
        with Killing(cluster, every_s) as killing:
            upgrades = upgraded(cluster, began + seconds)
        callers.many_more(outcome)
        took_s = time.monotonic() - began
    return {
        "seconds": round(took_s, 1),
        "killed": dict(killing.killed),
        "upgrades": upgrades,
        "answered": outcome.answered,
        "by_factor": dict(Counter(map(str, outcome.factors))),
        "repeated_over_http": outcome.repeated,
        "failed": len(outcome.failed),
        "failures": dict(Counter(failed[:200] for failed in outcome.failed)),
        "p50_s": round(statistics.median(outcome.waits_s), 4),
        "p99_s": round(statistics.quantiles(outcome.waits_s, n=100)[98], 3),
        "longest_s": round(outcome.longest_s, 2),
    }


def main() -> int:
    """Measure, print, and write down; 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two kills")
    parser.add_argument("--each", type=int, default=2, help="callers of each protocol")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        parser.error(reason)
    where = machine()
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "machine": where,
        "versions": gateway_versions(),
        **rolled(options.seconds, options.every, options.each),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key not in ("machine", "versions")}, indent=1))
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
