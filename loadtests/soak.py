"""Does the gateway stay quick and small? Starts one, sends it many requests, and watches it from outside.

    python -m loadtests.soak CONFIG [--items ITEMS] [--requests 100000] [--rate 300] [--out FILE]

ITEMS has a JSON object a line (route, content_type, payload_b64), as the demo's `items.jsonl` beside its `demo.yaml`.

Told apart: the time from start to ready, resident memory when ready and its slope over the second half of the run, how
late the event loop was (the gateway's own probe), and the CPU time a request took. Requests go over a fixed number of
connections, each sending its next when the last is answered, or at its time where a rate is given: right for a leak,
wrong for latency under overload, which is why no latency is reported here.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import math
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

SAMPLE_S = 1.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Shot:
    """A request to send."""

    route: str
    body: bytes
    media: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen.

    Attributes:
        ready_s: from the start of the process to its ready line.
        rss_mib: resident memory when ready, at half of the requests, and at the end.
        rss_slope_kib: a straight line through the second half, per 1,000 requests.
        loop_lag_s: how late the event loop was, by quantile; upper edges of histogram buckets.
        cpu_ms: user and system time of the gateway per request.
        statuses: how many replies had which HTTP status.
    """

    requests: int
    rate: float | None
    connections: int
    ready_s: float
    rss_mib: tuple[float, float, float]
    rss_slope_kib: float
    loop_lag_s: dict[str, float]
    cpu_ms: float
    requests_per_s: float
    statuses: dict[str, int]
    python: str
    machine: str


async def soak(config: Path, shots: Sequence[Shot], requests: int, connections: int, rate: float) -> Report:
    """Start a gateway on *config*, send it *requests* of *shots* in turn, *rate* a second at most, and stop it."""
    started = time.monotonic()
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "serve", str(config), "--http-port", "0", "--grpc-port", "0",
        "--control-port", "0", "--log-level", "WARNING", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert gateway.stdout is not None
        ready = (await gateway.stdout.readline()).decode()
        ready_s = time.monotonic() - started
        addresses = dict(re.findall(r"(\w+)=(\S+)", ready))
        process = psutil.Process(gateway.pid)
        samples: list[tuple[int, int]] = [(0, process.memory_info().rss)]
        cpu = process.cpu_times()
        begun = time.monotonic()
        statuses = await _send(addresses["http"], shots, requests, connections, rate, process, samples)
        took_s = time.monotonic() - begun
        after = process.cpu_times()
        samples.append((requests, process.memory_info().rss))
        lag = await _lag(addresses["control"])
    finally:
        gateway.terminate()
        await gateway.wait()
    spent_s = after.user + after.system - cpu.user - cpu.system
    return Report(
        requests=requests,
        rate=rate if math.isfinite(rate) else None,
        connections=connections,
        ready_s=round(ready_s, 2),
        rss_mib=_rss(samples, requests),
        rss_slope_kib=_slope(samples, requests),
        loop_lag_s=lag,
        cpu_ms=round(1000 * spent_s / requests, 3),
        requests_per_s=round(requests / took_s, 1),
        statuses=statuses,
        python=platform.python_version(),
        machine=f"{platform.machine()}, {psutil.cpu_count()} cores",
    )


async def _send(
    url: str, shots: Sequence[Shot], requests: int, connections: int, rate: float, process: psutil.Process,
    samples: list[tuple[int, int]],
) -> dict[str, int]:  # fmt: skip
    """Send everything; adds (requests done, resident bytes) to *samples* about once a second."""
    statuses: dict[str, int] = {}
    numbers = iter(range(requests))
    done = 0
    begun = last = time.monotonic()

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal done, last
        for number in numbers:
            await asyncio.sleep(begun + number / rate - time.monotonic())
            shot = shots[number % len(shots)]
            target = f"{url}/v1/routes/{shot.route}:decide"
            async with session.post(target, data=shot.body, headers={"Content-Type": shot.media}) as reply:
                await reply.read()
                statuses[str(reply.status)] = statuses.get(str(reply.status), 0) + 1
            done += 1
            if time.monotonic() - last >= SAMPLE_S:
                last = time.monotonic()
                samples.append((done, process.memory_info().rss))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:
        await asyncio.gather(*(work(session) for _ in range(connections)))
    return statuses


async def _lag(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
        text = await reply.text()
    found = re.findall(r'pointsman_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text)
    edges = [(float(edge.replace("+Inf", "inf")), float(count)) for edge, count in found]
    total = edges[-1][1]
    return {
        f"p{100 * q:g}": next(edge for edge, count in edges if count >= q * total) for q in (0.5, 0.9, 0.99, 0.999, 1.0)
    }


def _rss(samples: Sequence[tuple[int, int]], requests: int) -> tuple[float, float, float]:
    half = next(rss for done, rss in samples if done >= requests / 2)
    return tuple(round(rss / _MIB, 1) for rss in (samples[0][1], half, samples[-1][1]))  # type: ignore[return-value]


def _slope(samples: Sequence[tuple[int, int]], requests: int) -> float:
    """KiB per 1,000 requests, over the second half."""
    late = np.array([sample for sample in samples if sample[0] >= requests / 2], dtype=np.float64)
    return round(float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1000 / 1024, 2)


def _shots(items: Path) -> list[Shot]:
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    return [Shot(line["route"], base64.b64decode(line["payload_b64"]), line["content_type"]) for line in lines]


def main() -> None:
    """Run, print the report, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--items", type=Path, help="what to send [items.jsonl beside CONFIG]")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, default=math.inf, help="requests a second [as many as there can be]")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shots = _shots(arguments.items or arguments.config.with_name("items.jsonl"))
    report: dict[str, Any] = asdict(
        asyncio.run(soak(arguments.config, shots, arguments.requests, arguments.connections, arguments.rate))
    )
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
