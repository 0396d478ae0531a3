"""What a durable hand-over to people costs: on SQLite and on PostgreSQL, with group commit and without.

    python -m loadtests.store [--rounds 9] [--seconds 1] [--out loadtests/results/store.json]

A deferral is what the gateway commits before it says 202: answer, item, log row, review with a text of 200 bytes. Four
stores are open, on the same disk: each database, with up to 64 of them in a transaction and with one. PostgreSQL is the
one that tests use, on a Unix socket, with its own defaults, `fsync` included; its processes share the cores.

**Capacity**: so many callers that each commit the next when the last is durable. **Latency**: arrivals at a given rate,
as a Poisson process, whatever has become of those before; timed from when each was due, so that waiting counts. It is
what a deferral adds to its request. A rate that a store cannot keep up with shows in its latency.

**Records**: decisions that nobody waits for, an answer, its item and a row of the log, handed over as fast as the store
takes them, until all are written.

The stores take turns, the order reversed with every round; figures are medians over rounds with their quartiles, ratios
of medians have a bootstrap interval of 95 %. Beside them what one flush of this disk takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from backends.contract import Tensor
from gateway.answer import Answer, ItemAnswer, StageRecord, Status, new_answer_id
from gateway.store import Postgres, SqlStore, StoreOptions, open_store
from gateway.store.contract import Proposal, ReviewTask
from gateway.store.sqlite import find_module
from loadtests.peers.machine import machine
from loadtests.ratios import ratio, spread
from router.contract import Decision, Reason
from tests.postgres import PostgresServer

RESULT = Path(__file__).parent / "results" / "store.json"
DATABASES = ("sqlite", "postgres")
GROUPS = {"grouped": 64, "alone": 1}
CALLERS = (1, 8, 64)
RATES = (50, 200, 800)
RECORDING = 8
"""Callers that record."""
_PAYLOAD = b"the scanner of the second floor prints every page twice, and the second time upside down. " * 2
_LIMIT_S = 10.0
"""Longest that a run of arrivals waits for those that are late."""

Side = tuple[str, str]
SIDES: tuple[Side, ...] = tuple((database, group) for database in DATABASES for group in GROUPS)


def deferral() -> tuple[Answer, list[ReviewTask]]:
    """What a route of two stages hands over when neither is sure."""
    outputs = {"probabilities": Tensor.of(np.array([[0.5, 0.3, 0.2]], np.float32))}
    trail = (
        StageRecord("fast", "1", "printing", 0.5, Decision.ESCALATE, Reason.LOW_CONFIDENCE),
        StageRecord("strong", "1", "printing", 0.6, Decision.DEFER, Reason.LOW_CONFIDENCE),
    )
    item = ItemAnswer(Status.PROVISIONAL, "strong", "printing", outputs, 0.6, None, Reason.LOW_CONFIDENCE, trail)
    now_s = time.time()
    proposals = (Proposal("fast", "printing", 0.5), Proposal("strong", "printing", 0.6))
    task = ReviewTask(
        0, "tickets", now_s + 3600.0, ("printing", "network", "other"), _PAYLOAD, "text/plain", proposals,
        Reason.LOW_CONFIDENCE,
    )  # fmt: skip
    return Answer(new_answer_id(), "default", "tickets", now_s, (item,)), [task]


def sure() -> Answer:
    """What a route of two stages answers when its first is sure."""
    outputs = {"probabilities": Tensor.of(np.array([[0.97, 0.02, 0.01]], np.float32))}
    trail = (StageRecord("fast", "1", "printing", 0.97, Decision.ACCEPT, None),)
    item = ItemAnswer(Status.FINAL, "fast", "printing", outputs, 0.97, None, None, trail)
    return Answer(new_answer_id(), "default", "tickets", time.time(), (item,))


async def capacity(store: SqlStore, callers: int, seconds: float) -> dict[str, float]:
    """*callers* that each commit the next deferral when the last is durable."""
    taken_s: list[float] = []
    before, started = store.statistics(), time.perf_counter()

    async def call() -> None:
        while (asked := time.perf_counter()) < started + seconds:
            await store.commit(*deferral())
            taken_s.append(time.perf_counter() - asked)

    await asyncio.gather(*(call() for _ in range(callers)))
    took_s = time.perf_counter() - started
    commits = store.statistics().commits - before.commits
    return _quantiles(taken_s) | {"rate": len(taken_s) / took_s, "a_transaction": len(taken_s) / commits}


async def recording(
    store: SqlStore, callers: int, seconds: float, decided: Callable[[], Answer] = sure
) -> dict[str, float]:
    """*callers* that hand over decisions, each *decided* by models; nobody waits for them but at the end."""
    recorded = 0
    before, started = store.statistics(), time.perf_counter()

    async def call() -> None:
        nonlocal recorded
        while time.perf_counter() < started + seconds:
            await store.record(decided())
            recorded += 1
            if not recorded % 64:
                await asyncio.sleep(0)

    await asyncio.gather(*(call() for _ in range(callers)))
    while store.statistics().pending_writes:  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.001)
    took_s = time.perf_counter() - started
    commits = store.statistics().commits - before.commits
    return {"rate": recorded / took_s, "a_transaction": recorded / max(1, commits)}


async def latency(store: SqlStore, rate: int, seconds: float) -> dict[str, float]:
    """Arrivals at *rate* a second; how long each took from when it was due."""
    rng = random.Random(rate)
    loop = asyncio.get_running_loop()
    taken_s: list[float] = []

    async def commit(due: float) -> None:
        await store.commit(*deferral())
        taken_s.append(loop.time() - due)

    start = due = loop.time()
    commits: list[asyncio.Task[None]] = []
    while (due := due + rng.expovariate(rate)) < start + seconds:
        await asyncio.sleep(due - loop.time())
        commits.append(asyncio.create_task(commit(due)))
    _, late = await asyncio.wait(commits, timeout=_LIMIT_S)
    for one in late:
        taken_s.append(_LIMIT_S)
        one.cancel()
    return _quantiles(taken_s) | {"rate": len(taken_s) / seconds, "late": len(late)}


def _quantiles(values_s: Sequence[float]) -> dict[str, float]:
    return {name: 1e3 * float(np.quantile(values_s, q)) for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99))}


def flush_ms(folder: Path) -> dict[str, float]:
    """What it takes to write a page and to flush it, in milliseconds."""
    taken_s = []
    with (folder / "flush").open("wb") as file:
        for _ in range(200):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fdatasync(file.fileno())
            taken_s.append(time.perf_counter() - started)
    return {name: round(value, 3) for name, value in _quantiles(taken_s).items()}


async def compare(rounds: int, seconds: float) -> dict[str, Any]:
    """Every side, by callers and by rate."""
    where = machine()
    runs: dict[tuple[str, int, Side], list[dict[str, float]]] = {}
    with PostgresServer(durable=True) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            stores = {}
            for database, group in SIDES:
                place: Path | Postgres = folder / f"{group}.db"
                if database == "postgres":
                    place, _ = stack.enter_context(server.store(folder))
                store = await open_store(StoreOptions(place, group_units=GROUPS[group]))
                stack.push_async_callback(store.aclose)
                stores[database, group] = store
                await capacity(store, 8, 0.3)  # not counted: everything is loaded and warm then
            cells: list[tuple[str, int, Callable[[SqlStore, int, float], Awaitable[dict[str, float]]]]] = [
                *(("callers", callers, capacity) for callers in CALLERS),
                ("recording", RECORDING, recording),
                *(("rate", rate, latency) for rate in RATES),
            ]
            for number in range(rounds):
                for what, size, work in cells:
                    for side in SIDES if number % 2 else reversed(SIDES):
                        runs.setdefault((what, size, side), []).append(await work(stores[side], size, seconds))
            for side, store in stores.items():
                if faults := await store.verify_log():
                    raise AssertionError(f"{side}: {faults}")
        flush = flush_ms(folder)
        postgres = server.execute("SHOW server_version")[0][0]
    return {
        "what": "durable deferrals: medians with quartiles, ratios of medians with a bootstrap interval of 95 %",
        "machine": where,
        "versions": {
            "sqlite": find_module().sqlite_version,
            "postgres": postgres,
            **{name: version(name) for name in ("sqlalchemy", "psycopg", "uvloop")},
        },
        "flush": flush,
        "rounds": rounds,
        "seconds_a_run": seconds,
        "cells": [_cell(what, size, runs) for what, size, _ in cells],
    }


def _cell(what: str, size: int, runs: dict[tuple[str, int, Side], list[dict[str, float]]]) -> dict[str, Any]:
    def values(side: Side, figure: str) -> list[float]:
        return [run[figure] for run in runs[what, size, side]]

    figures = [name for name in runs[what, size, SIDES[0]][0] if name != "late"]
    cell: dict[str, Any] = {what: size}
    for side in SIDES:
        found = {figure: asdict(spread(values(side, figure), 3)) for figure in figures}
        late = sum(int(run.get("late", 0)) for run in runs[what, size, side])
        cell["/".join(side)] = found | ({"late": late} if what == "rate" else {})
    judged = {"callers": ("rate", "p50_ms", "p99_ms"), "recording": ("rate",), "rate": ("p50_ms", "p99_ms")}[what]
    pairs = {
        f"{database}: grouped over alone": ((database, "grouped"), (database, "alone")) for database in DATABASES
    } | {"grouped: postgres over sqlite": (("postgres", "grouped"), ("sqlite", "grouped"))}
    cell["ratios"] = {
        name: {figure: asdict(ratio(values(own, figure), values(other, figure))) for figure in judged}
        for name, (own, other) in pairs.items()
    }
    return cell


def plot(report: dict[str, Any], path: Path) -> None:
    """Deferrals a second by callers, and latency by the rate of arrivals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot, ticker

    figure, (bars, lines) = pyplot.subplots(1, 2, figsize=(10.4, 4.2), layout="constrained")
    colours = dict(zip(SIDES, ("tab:blue", "lightblue", "tab:orange", "navajowhite"), strict=True))
    by_callers = [cell for cell in report["cells"] if "callers" in cell]
    by_rate = [cell for cell in report["cells"] if "rate" in cell]
    for number, side in enumerate(SIDES):
        name = "/".join(side)
        label = f"{ {'sqlite': 'SQLite', 'postgres': 'PostgreSQL'}[side[0]] }, " + (
            "up to 64 a transaction" if side[1] == "grouped" else "one a transaction"
        )
        found = [cell[name]["rate"] for cell in by_callers]
        middle = np.array([one["median"] for one in found])
        reach = np.maximum([middle - [one["low"] for one in found], [one["high"] for one in found] - middle], 0)
        bars.bar(
            np.arange(len(found)) + 0.2 * number, middle, 0.19, yerr=reach, color=colours[side], label=label, capsize=2
        )
        for quantile, style in (("p50_ms", "o-"), ("p99_ms", "^:")):
            latencies = [cell[name][quantile]["median"] for cell in by_rate]
            lines.plot(RATES, latencies, style, color=colours[side], label=f"{label}, {quantile[:3]}")
    bars.set_xticks(np.arange(len(by_callers)) + 0.3, [f"{cell['callers']} at a time" for cell in by_callers])
    bars.set_ylabel("durable deferrals a second")
    bars.legend(fontsize=7)
    lines.set_xscale("log")
    lines.set_yscale("log")
    lines.set_xticks(RATES, [f"{rate}/s" for rate in RATES])
    lines.xaxis.set_minor_locator(ticker.NullLocator())
    lines.set_xlabel("arrivals")
    lines.set_ylabel("added latency, ms")
    lines.legend(fontsize=6)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Compare, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one run")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    report = uvloop.run(compare(arguments.rounds, arguments.seconds))
    for cell in report["cells"]:
        (what, size), *_ = cell.items()
        for side in map("/".join, SIDES):
            figures = [name for name in ("rate", "p50_ms", "p99_ms") if name in cell[side]]
            told = ", ".join(f"{name} {cell[side][name]['median']:.1f}" for name in figures)
            print(f"{what:9} {size:4} {side:16} {told}")
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    plot(report, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
