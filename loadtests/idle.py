"""What do idle connections cost? Opens many to a gateway, leaves them idle, and asks it something meanwhile.

    python -m loadtests.idle [CONFIG] [--connections 10000] [--requests 2000] [--out FILE]

Told are the gateway's resident memory per connection, and the latency of a good request on another connection before
and while the others are there: the ratio matters, on a machine that others use. The connections come from several
loopback addresses, since each has some 28,000 ports. Limits on open files are raised as far as the system allows.
"""

from __future__ import annotations

import argparse
import http.client
import json
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

_CONFIG = Path(__file__).parent / "configs" / "null.yaml"
_OUT = Path(__file__).parent / "results" / "idle.json"
_A_SOURCE = 5000
_BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16}]})


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen.

    Attributes:
        rss_kib_per_connection: how much the gateway's resident memory grew, by connection.
        alone_ms: latency of a request without idle connections, by quantile.
        among_them_ms: with them.
    """

    connections: int
    requests: int
    open_s: float
    rss_kib_per_connection: float
    alone_ms: dict[str, float]
    among_them_ms: dict[str, float]
    served_afterwards: bool
    python: str
    machine: str


def measure(config: Path, connections: int, requests: int) -> Report:
    """Start a gateway on *config*, open *connections*, and send *requests* before and while they are there."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < connections + 500:
        sys.exit(f"only {hard} files may be open here, too few for {connections} connections; raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # which the gateway inherits
    with subprocess.Popen(  # noqa: S603  # our own interpreter, on a file that the caller names
        [sys.executable, "-m", "gateway.cli", "serve", str(config), "--http-port", "0", "--grpc-port", "0",
         "--control-port", "0", "--log-level", "WARNING"],
        stdout=subprocess.PIPE,
        text=True,
    ) as gateway:  # fmt: skip
        try:
            assert gateway.stdout is not None
            address = urlsplit(re.findall(r"http=(\S+)", gateway.stdout.readline())[0])
            host, port = str(address.hostname), int(address.port or 0)
            process = psutil.Process(gateway.pid)
            _latencies(host, port, requests)  # to warm up
            alone = _latencies(host, port, requests)
            before, started = process.memory_info().rss, time.monotonic()
            idle = [_connection(host, port, number) for number in range(connections)]
            open_s = time.monotonic() - started
            among_them = _latencies(host, port, requests)
            grown = process.memory_info().rss - before
            for connection in idle:
                connection.close()
            afterwards = len(_latencies(host, port, 10)) == 10
        finally:
            gateway.terminate()
    return Report(
        connections=connections,
        requests=requests,
        open_s=round(open_s, 3),
        rss_kib_per_connection=round(grown / 1024 / connections, 2),
        alone_ms=_quantiles(alone),
        among_them_ms=_quantiles(among_them),
        served_afterwards=afterwards,
        python=platform.python_version(),
        machine=f"{platform.machine()}, {psutil.cpu_count()} cores",
    )


def _connection(host: str, port: int, number: int) -> socket.socket:
    source = f"127.0.0.{2 + number // _A_SOURCE}" if host.startswith("127.") else ""
    return socket.create_connection((host, port), timeout=30, source_address=(source, 0))


def _latencies(host: str, port: int, requests: int) -> list[float]:
    """Milliseconds that each of *requests* took, one after the other."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    found = []
    for _ in range(requests):
        started = time.perf_counter()
        connection.request("POST", "/v2/models/dbl/infer", _BODY, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            sys.exit(f"the gateway answered {response.status}; the route dbl is needed, as {_CONFIG.name} has it")
        found.append(1000 * (time.perf_counter() - started))
    connection.close()
    return found


def _quantiles(values: list[float]) -> dict[str, float]:
    return {name: round(float(np.quantile(values, q)), 3) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=_CONFIG)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=_OUT)
    arguments = parser.parse_args()
    report = json.dumps(asdict(measure(arguments.config, arguments.connections, arguments.requests)), indent=2)
    print(report)
    arguments.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
