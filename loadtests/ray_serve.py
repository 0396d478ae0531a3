"""The gateway's own listeners under Ray Serve, beside Serve's own paths, on the same model.

    .venv-ray/bin/python -m loadtests.ray_serve [--rounds 5] [--clients 1,8,32] [--seconds 3] [--out FILE]

All answer with twice what they are asked (FP32 [1, 16]), and are asked in turns, as in `loadtests.peers`, whose rounds
and generator these are. Reported are medians of requests a second, latency, and requests per CPU second of the whole
process tree, Ray's own processes included; ratios have a bootstrap interval of 95 %.

    gateway          one process, without Ray
    cluster          one replica, its own listeners
    cluster-native   the same, with gRPC on the native transport
    cluster-2        two replicas, which share the ports; cluster-4: four
    cluster-apart    one replica, and the model as a deployment of its own, by handle
    behind-proxy     one replica behind Serve's proxies: over HTTP as an ASGI application, over gRPC by its methods
    behind-haproxy   the same behind HAProxy, in throughput mode
    serve            a bare Serve deployment behind its proxies: JSON or protobuf, NumPy, and nothing else
    serve-haproxy    the same behind HAProxy, in throughput mode

The gateway does more than a bare deployment: it checks, batches and records every decision. Its replicas carry
gRPC by grpcio, as Serve does, where nothing else is said, and the gateway without Ray by the native transport. Serve's
replicas, its gRPC proxy and HAProxy listen on every interface: run it where there is none but loopback (`unshare -n`,
with `lo` up).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gateway.cluster.launch import LOOPBACK
from loadtests.peers.goals import Cell
from loadtests.peers.machine import machine
from loadtests.peers.rounds import Extent, compare
from loadtests.peers.servers import HAPROXY_VARIABLES, SERVERS, SERVING, Form, Running, Script, Server, gateway_versions
from loadtests.ratios import ratio
from tests.integration.process import ROOT
from tests.integration.ray.clusters import running as cluster_running
from tests.integration.ray.clusters import why_not

RESULTS = Path(__file__).parent / "results" / "ray_serve.json"
OURS = "cluster"
_ALL = (Form.JSON, Form.GRPC)


def _config(serve: str = "") -> str:
    """`loadtests/configs/null.yaml`, with room for the decisions of a long run; *serve*: its model is a deployment."""
    text = (ROOT / "loadtests" / "configs" / "null.yaml").read_text().replace("limit: 1GiB", "limit: 16GiB")
    return text.replace("    expose: true\n", f"    expose: true\n{serve}")


def _cluster(replicas: int, serve: str = "", more: str = "") -> Callable[[Path], AbstractContextManager[Running]]:
    @contextmanager
    def start(folder: Path) -> Iterator[Running]:
        arguments = ("--replicas", str(replicas), "--log-level", "WARNING")
        with cluster_running(folder, _config(serve) + more, arguments) as found:
            yield Running(found.process.pid, {Form.JSON: found.http, Form.GRPC: f"grpc://{found.grpc}"})

    return start


AS_CLUSTER_UP: Mapping[str, str] = {
    **LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "0",
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "{folder}",
}  # fmt: skip
"""What `pointsman cluster up` says to Ray, said to the others too."""


_APART: Mapping[str, str] = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": "42000",
    "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": "43000",
}
"""Of one HAProxy's replicas, whose gRPC ports Serve counts from the same number on in every cluster, and shares without
a word (`SO_REUSEPORT`): half of its calls would go to the replica of another cluster, which is paused.
"""


def _behind(variables: Mapping[str, str]) -> Callable[[Path], AbstractContextManager[Running]]:
    script = Script(
        (str(SERVING / "ingress_on_ray.py"), "{folder}/null.yaml", "{port}", "{grpc_port}"),
        grpc=True,
        variables={**AS_CLUSTER_UP, **variables},
        files={"null.yaml": _config()},
    )
    return script.start


def _bare(name: str, variables: Mapping[str, str]) -> Server:
    command = (str(SERVING / "on_ray.py"), "{port}", "{grpc_port}")
    start = Script(command, grpc=True, variables={**AS_CLUSTER_UP, **variables}).start
    found = SERVERS[name]
    return replace(found, forms=_ALL, start=start, versions=gateway_versions, why_not=why_not, is_peer=False)


def servers() -> Mapping[str, Server]:
    """All of them, by name."""

    def ours(name: str, forms: tuple[Form, ...], start: Callable[[Path], AbstractContextManager[Running]]) -> Server:
        return Server(name, "the gateway under Ray Serve", forms, start, gateway_versions, why_not)

    found = (
        replace(SERVERS["gateway"], forms=_ALL),
        ours("cluster-native", (Form.GRPC,), _cluster(1, more="server: {grpc_transport: native}\n")),
        ours(OURS, _ALL, _cluster(1)),
        ours("cluster-2", _ALL, _cluster(2)),
        ours("cluster-4", _ALL, _cluster(4)),
        ours("cluster-apart", _ALL, _cluster(1, "    serve: {num_cpus: 0.5}\n")),
        ours("behind-proxy", _ALL, _behind({})),
        ours("behind-haproxy", _ALL, _behind(HAPROXY_VARIABLES)),
        replace(_bare("ray", {}), name="serve"),
        replace(_bare("ray-haproxy", {**HAPROXY_VARIABLES, **_APART}), name="serve-haproxy"),
    )
    return {server.name: server for server in found}


def told(cell: Cell) -> Mapping[str, Any]:
    """Medians of each server in *cell*, and ratios of ours to the others."""
    rows = {}
    for name, samples in cell.samples.items():
        cpu_us = statistics.median(sample.server_cpu_us for sample in samples)
        rows[name] = {
            "rate": statistics.median(sample.rate for sample in samples),
            "p50_ms": statistics.median(sample.p50_ms for sample in samples),
            "p99_ms": statistics.median(sample.p99_ms for sample in samples),
            "requests_a_cpu_second": round(1e6 / cpu_us) if cpu_us else None,
            "errors": sum(sample.errors for sample in samples),
        }
    return {
        "form": cell.form,
        "clients": cell.clients,
        "offered": cell.offered,
        "servers": rows,
        "ratios": _ratios(cell),
    }


def _ratios(cell: Cell) -> Mapping[str, Any]:
    """Ours over each other server's, of rates and of requests per CPU second."""
    found: dict[str, Any] = {}
    own = cell.samples.get(OURS)
    for name, samples in cell.samples.items():
        if own is None or name == OURS:
            continue
        found[name] = {"rate": asdict(ratio([s.rate for s in own], [s.rate for s in samples]))}
        cpu = [s.server_cpu_us for s in own], [s.server_cpu_us for s in samples]
        if min(map(min, cpu)) > 0:
            found[name]["requests_a_cpu_second"] = asdict(ratio(cpu[1], cpu[0]))
    return found


def main() -> int:
    """Measure, print the medians, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=None, help="servers, by name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        parser.error(reason)
    chosen: Sequence[Server] = [s for name, s in servers().items() if options.only is None or name in options.only]
    extent = Extent(options.clients, options.rounds, options.seconds)
    where, cells, absent = machine(), [], {}
    for form in _ALL:
        comparison = compare(form, [server for server in chosen if form in server.forms], extent)
        cells += [told(cell) for cell in comparison.cells]
        absent[str(form)] = comparison.absent
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "machine": where,
        "rounds": extent.rounds,
        "seconds_a_run": extent.seconds,
        "versions": gateway_versions(),
        "absent": absent,
        "cells": cells,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for cell in cells:
        print(f"{cell['form']}, {cell['clients'] or 'open loop'}")
        for name, row in cell["servers"].items():
            print(f"  {name:15} {row}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
