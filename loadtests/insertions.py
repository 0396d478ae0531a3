"""What a row costs on PostgreSQL whose columns are sent as arrays, and as VALUES: see `gateway.store.bulk`.

    python -m loadtests.insertions [--rounds 9] [--seconds 1] [--out loadtests/results/insertions.json]

One store on the PostgreSQL that tests use, with its own defaults, `fsync` included, on a Unix socket; its processes
share the cores. Its writer sends arrays, as it does, or VALUES and IN, as it did before and still does to SQLite. Of
`loadtests.store`: decisions that are only recorded, all alike; the same where what they hold varies, as routes and
models do; and deferrals, of a lone caller and of 64.

The sides take turns, the order reversed with every round, and write to the same tables. SQLite's takes a turn in every
round too, for what PostgreSQL takes more than it. Figures are medians over rounds with their quartiles, ratios of
medians have a bootstrap interval of 95 %. CPU is that of all of the process, the callers included, and of PostgreSQL.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import psutil
import uvloop

from gateway.answer import Answer
from gateway.store import SqlStore, StoreOptions, bulk, open_store
from loadtests.peers.machine import machine
from loadtests.ratios import ratio, spread
from loadtests.store import capacity, recording, sure
from router.contract import Reason
from tests.postgres import PostgresServer

RESULT = Path(__file__).parent / "results" / "insertions.json"
SIDES = ("arrays", "values", "sqlite")
_WARM_S = 0.5

Figures: TypeAlias = dict[str, float]
Work: TypeAlias = Callable[[SqlStore, int, float], Awaitable[Figures]]


def varied(number: Iterator[int] = itertools.count()) -> Answer:  # noqa: B008 - one count for all
    """An answer with one item or a few, which have what items may have, or lack it."""
    n, answer = next(number), sure()
    (item,) = answer.items
    items = tuple(
        replace(
            item,
            label=f"label {i % 7}" if i % 3 else None,
            confidence=i % 11 / 11 if i % 4 else None,
            decided_by="model:fast" if i % 2 else None,
            reason=None if i % 5 else Reason.OUT_OF_TIME,
            outputs=item.outputs if i % 6 else None,
        )
        for i in range(n, n + 1 + (n % 16 == 0) * 4)
    )
    return replace(answer, items=items, route=f"route {n % 5}", certified=not n % 2)


CELLS: tuple[tuple[str, int, Work], ...] = (
    ("recording", 8, recording),
    ("recording varied", 8, partial(recording, decided=varied)),
    ("callers", 1, capacity),
    ("callers", 64, capacity),
)


def sending(side: str) -> AbstractContextManager[object]:
    """Have the writer send what *side* says."""
    return mock.patch.object(bulk, "takes_arrays", return_value=False) if side == "values" else nullcontext()


async def _measured(work: Work, store: SqlStore, size: int, seconds: float, server: psutil.Process) -> Figures:
    """What *work* tells, and the CPU that each row of a group took, in microseconds."""
    rows, own_s, its_s = store.statistics().rows, time.process_time(), _cpu_s(server)
    found = await work(store, size, seconds)
    rows = store.statistics().rows - rows
    cpu = {"own_cpu_us": time.process_time() - own_s, "server_cpu_us": _cpu_s(server) - its_s}
    return found | {name: 1e6 * taken_s / max(1, rows) for name, taken_s in cpu.items()}


def _cpu_s(server: psutil.Process) -> float:
    """Of all the server's processes; those that have ended are in their parent's."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


async def compare(rounds: int, seconds: float) -> dict[str, Any]:
    """Every side, by what is written."""
    where = machine()
    runs: dict[tuple[str, int, str], list[Figures]] = {}
    with PostgresServer(durable=True) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server.store(folder) as (place, _):
            async with (
                aclosing(await open_store(StoreOptions(place))) as postgres,
                aclosing(await open_store(StoreOptions(folder / "store.db"))) as sqlite,
            ):
                process = psutil.Process(server.pid)
                for number in range(-1, rounds):
                    for what, size, work in CELLS:
                        for side in SIDES if number % 2 else reversed(SIDES):
                            store = sqlite if side == "sqlite" else postgres
                            with sending(side):
                                lasting_s = _WARM_S if number < 0 else seconds
                                found = await _measured(work, store, size, lasting_s, process)
                            if number >= 0:
                                runs.setdefault((what, size, side), []).append(found)
                for store in (postgres, sqlite):
                    if faults := await store.verify_log():
                        raise AssertionError(faults)
        release = server.execute("SHOW server_version")[0][0]
    return {
        "what": "rows sent to PostgreSQL as arrays and as VALUES: medians with quartiles, ratios of medians with a"
        " bootstrap interval of 95 %",
        "machine": where,
        "versions": {"postgres": release, **{name: version(name) for name in ("sqlalchemy", "psycopg", "uvloop")}},
        "rounds": rounds,
        "seconds_a_run": seconds,
        "cells": [_cell(what, size, runs) for what, size, _ in CELLS],
    }


def _cell(what: str, size: int, runs: dict[tuple[str, int, str], list[Figures]]) -> dict[str, Any]:
    def values(side: str, figure: str) -> list[float]:
        return [run[figure] for run in runs[what, size, side]]

    figures = list(runs[what, size, SIDES[0]][0])
    judged = {"values": [figure for figure in figures if figure != "a_transaction"], "sqlite": ["rate"]}
    return {
        what: size,
        **{side: {figure: asdict(spread(values(side, figure), 3)) for figure in figures} for side in SIDES},
        "ratios": {
            f"arrays over {other}": {
                figure: asdict(ratio(values("arrays", figure), values(other, figure))) for figure in those
            }
            for other, those in judged.items()
        },
    }


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
        for side in SIDES:
            told = ", ".join(f"{name} {found['median']:,.1f}" for name, found in cell[side].items())
            print(f"{what:16} {size:3} {side:7} {told}")
        for name, found in cell["ratios"].items():
            print(" " * 21 + name, ", ".join(f"{k} {v['median']} [{v['low']}, {v['high']}]" for k, v in found.items()))
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
