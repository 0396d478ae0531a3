"""Models that share replicas on Ray Serve: pools of ours, beside Serve's own multiplexing.

    .venv-ray/bin/python -m loadtests.ray_pools [--rounds 3] [--seconds 60]

Twenty-four ONNX models of 16 MiB each, of which two replicas have six each in memory. Requests come as a Poisson
process over HTTP JSON (open loop), each for a model by Zipf's law: a few are asked all the time, most seldom. The same
trace goes to both sides, in turns, each time in a cluster of its own:

    ours     a gateway, and a pool of two replicas (`gateway.cluster.pools`)
    serve    a deployment of two replicas with `serve.multiplexed`, behind HAProxy in throughput mode

A request is slow if it takes longer than `SLOW_S`: warm ones take a few milliseconds, loads some tens. Serve's HAProxy
listens on every interface: run it where there is none but loopback (`unshare -n`, with `lo` up).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import local
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
from onnx import helper, numpy_helper

from loadtests.peers.machine import machine
from loadtests.peers.servers import HAPROXY_VARIABLES, SERVING, Form, Script, gateway_versions
from loadtests.ratios import paired_ratio, spread
from loadtests.ray_serve import AS_CLUSTER_UP
from tests.integration.process import wait_for
from tests.integration.ray.clusters import running, why_not

RESULTS = Path(__file__).parent / "results" / "ray_pools.json"
SLOW_S = 0.03
_MODELS, _REPLICAS, _EACH = 24, 2, 6
_INPUT, _HIDDEN = 16, 2**18
_MODEL_MIB = 17
_RATE_PER_S, _CALLERS, _TIMEOUT_S = 30.0, 32, 20.0


def write_model(file: Path, factor: float) -> None:
    """A model of 16 MiB that gives *factor* times the sum of its inputs, by way of as many numbers as that takes."""
    weights = np.full((_INPUT, _HIDDEN), factor / _HIDDEN, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("ReduceSum", ["h", "axes"], ["y"], keepdims=1),
        ],
        "wide",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", _INPUT])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def config() -> str:
    """Of the gateway."""
    models = "".join(
        f"  m{n}: {{backend: onnx, path: m{n}.onnx, max_batch: 4, expose: true, "
        f"warm: {{keep: 0, memory: {_MODEL_MIB}MiB}}, serve: {{pool: shelf}}}}\n"
        for n in range(_MODELS)
    )
    shelf = f"{{replicas: {_REPLICAS}, num_cpus: 0.1, memory: {_EACH * _MODEL_MIB}MiB}}"
    return (
        f"models:\n{models}cluster: {{replicas: 1, num_cpus: 0.1, pools: {{shelf: {shelf}}}}}\n"
        "store: {path: pools.db, retention: 1d, limit: 16GiB}\n"
    )


@dataclass(frozen=True, slots=True)
class Side:
    """Where requests of one side go, and what they look like.

    Attributes:
        path, headers: for model *n*.
        value: of a reply, as JSON.
        cold: how many requests have found their model cold, by the bodies of replies.
    """

    url: str
    path: Callable[[int], str]
    body: bytes
    headers: Callable[[int], dict[str, str]]
    value: Callable[[Any], float]  # Any: JSON, here and below
    cold: Callable[[Sequence[Any]], int]


@contextmanager
def ours(folder: Path) -> Iterator[Side]:
    """The gateway."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, _INPUT], "data": [1.0] * _INPUT}
    with running(folder, config(), ("--log-level", "WARNING")) as cluster:
        yield Side(
            cluster.http,
            lambda n: f"/v2/models/m{n}/infer",
            json.dumps({"inputs": [x]}).encode(),
            lambda _: {"Content-Type": "application/json"},
            lambda reply: float(reply["outputs"][0]["data"][0]),
            lambda _: cold_starts(cluster.control),
        )


def cold_starts(url: str) -> int:
    """What the gateway has counted."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=_TIMEOUT_S) as reply:  # noqa: S310  # of our own
        lines = reply.read().decode().splitlines()
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith("pointsman_cold_starts_total{"))


@contextmanager
def theirs(folder: Path) -> Iterator[Side]:
    """Serve's multiplexing."""
    command = (str(SERVING / "multiplexed_on_ray.py"), "{port}", str(folder), str(_REPLICAS), str(_EACH))
    with Script(command, variables={**AS_CLUSTER_UP, **HAPROXY_VARIABLES}).start(folder) as found:
        side = Side(
            found.urls[Form.JSON],
            lambda _: "/",
            json.dumps({"x": [[1.0] * _INPUT]}).encode(),
            lambda n: {"Content-Type": "application/json", "serve_multiplexed_model_id": f"m{n}"},
            lambda reply: float(reply["y"][0][0]),
            lambda replies: sum(reply["cold"] for reply in replies),
        )
        wait_for(lambda: _answers(side), 120.0)
        yield side


def _answers(side: Side) -> bool:
    try:
        return ask(side, 0, HTTPConnection(urlsplit(side.url).netloc, timeout=_TIMEOUT_S)) is not None
    except OSError:
        return False


def ask(side: Side, n: int, connection: HTTPConnection) -> Any:
    """The reply of model *n*, where it is right; None otherwise."""
    connection.request("POST", side.path(n), side.body, side.headers(n))
    response = connection.getresponse()
    data = response.read()
    if response.status != 200:
        return None
    reply = json.loads(data)
    return reply if abs(side.value(reply) / (_INPUT * (n + 1)) - 1.0) < 1e-3 else None


def trace(seconds: float, seed: int) -> list[tuple[float, int]]:
    """When requests come, and for which model."""
    rng = random.Random(seed)
    weights = [1.0 / rank for rank in range(1, _MODELS + 1)]
    order = rng.sample(range(_MODELS), _MODELS)
    found, at_s = [], rng.expovariate(_RATE_PER_S)
    while at_s < seconds:
        found.append((at_s, rng.choices(order, weights)[0]))
        at_s += rng.expovariate(_RATE_PER_S)
    return found


def replayed(side: Side, requests: Sequence[tuple[float, int]]) -> list[tuple[float, Any]]:
    """For each of *requests*, the seconds from when it was due, and the reply (None: none, or a wrong one)."""
    own = local()
    begin_s = time.monotonic() + 0.5

    def one(due_s: float, n: int) -> tuple[float, Any]:
        try:
            if not hasattr(own, "connection"):
                own.connection = HTTPConnection(urlsplit(side.url).netloc, timeout=_TIMEOUT_S)
            reply = ask(side, n, own.connection)
        except OSError:
            del own.connection
            reply = None
        return time.monotonic() - due_s, reply

    with ThreadPoolExecutor(_CALLERS) as callers:
        asking = []
        for at_s, n in requests:
            time.sleep(max(0.0, begin_s + at_s - time.monotonic()))
            asking.append(callers.submit(one, begin_s + at_s, n))
        return [each.result() for each in asking]


def measured(start: Callable[[Path], Any], seconds: float, seed: int) -> dict[str, Any]:
    """What a trace comes to at one side. Any: a context manager, and JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in range(_MODELS):
            write_model(folder / f"m{n}.onnx", n + 1.0)
        with start(folder) as side:
            connection = HTTPConnection(urlsplit(side.url).netloc, timeout=_TIMEOUT_S)
            for _ in range(50):
                ask(side, 0, connection)
            cold = side.cold([])
            found = replayed(side, trace(seconds, seed))
            replies = [reply for _, reply in found if reply is not None]
            cold = side.cold(replies) - cold
    took_s = sorted(each for each, _ in found)
    cut = statistics.quantiles(took_s, n=100)
    return {
        "requests": len(found),
        "wrong": len(found) - len(replies),
        "cold": cold,
        "slow": sum(each > SLOW_S for each in took_s),
        "p50_ms": round(1e3 * cut[49], 2),
        "p95_ms": round(1e3 * cut[94], 1),
        "p99_ms": round(1e3 * cut[98], 1),
    }


def main() -> int:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        parser.error(reason)
    where, sides = machine(), {"ours": ours, "serve": theirs}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in sorted(sides, reverse=bool(number % 2)):  # A B B A
            runs[name].append(measured(sides[name], options.seconds, number))
            print(number, name, runs[name][-1], flush=True)
    own, other = runs["ours"], runs["serve"]
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "machine": where,
        "versions": gateway_versions(),
        "rounds": options.rounds,
        "seconds_a_run": options.seconds,
        "slow_ms": 1e3 * SLOW_S,
        "runs": runs,
        "medians": {
            name: {key: asdict(spread([run[key] for run in found])) for key in ("p50_ms", "p95_ms", "p99_ms")}
            for name, found in runs.items()
        },
        "over_serve_s": {
            key: asdict(paired_ratio([float(run[key]) for run in own], [float(run[key]) for run in other]))
            for key in ("cold", "slow")
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(result["medians"], result["over_serve_s"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
