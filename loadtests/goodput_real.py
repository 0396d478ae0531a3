"""Goodput on real servers: the gateway beside a real Triton whose dynamic batcher is tuned for every trace.

    python -m loadtests.goodput_real            half an hour
    python -m loadtests.goodput_real --quick    two minutes, nothing is written

**The model** stands in for an accelerator: it sleeps as long as a batch takes there (`loadtests.models.accelerator`),
one batch at a time, in the gateway as a Python callable and in Triton in its Python backend. There is no accelerator
here, and a model that computes on the two cores would compete with the servers and the generator for them.

**The trace** is the same for both, by the open-loop generator over HTTP JSON, and so is the objective: 2, 3 and 5 times
what one item takes, plus `ALLOWANCE_S` for the way there and back on a busy machine. A reply counts if it is right and
comes within the objective of its scheduled moment. To the gateway the objective goes as the request's `timeout`.

**Triton** is tuned on traces of their own, for every kind of trace and objective, over delays and preferred sizes; once
as it is usually deployed, and once with requests that carry a `timeout`, a part of the objective that is tuned as well
(its queue policy then rejects what waited longer). Every point has both servers in turns (A B B A ...), with the
servers' CPU time beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from threading import Timer
from typing import Any

import psutil

from batching.simulation.arrivals import Trace, bursts, poisson
from loadtests.generator.load import Plan
from loadtests.generator.report import Report, generate
from loadtests.models import BASE_S, ITEM_S, SLOW
from loadtests.peers.machine import machine
from loadtests.peers.servers import SERVING
from loadtests.ratios import ratio
from tests.conformance.triton import FOLDER as TRITON
from tests.conformance.triton import triton
from tests.conformance.triton import why_not as why_no_triton
from tests.integration.process import running

RESULTS = Path(__file__).parent / "results"
MAX_BATCH = 64
ALLOWANCE_S = 0.005
ALONE_S = BASE_S + ITEM_S
CAPACITY_PER_S = MAX_BATCH / (BASE_S + MAX_BATCH * ITEM_S)
TRACES: Mapping[str, Callable[[float, int, float, int], Trace]] = {"poisson": poisson, "bursts": bursts}
_OBJECTIVES = (2.0, 3.0, 5.0)
_LOADS = (0.3, 0.6, 1.0, 1.5, 2.0)
_DELAYS_S = (0.0, ALONE_S / 4, ALONE_S / 2, ALONE_S)
_PREFERRED = (0, MAX_BATCH // 4, MAX_BATCH // 2)
_TIMEOUTS = (0.3, 0.5, 0.7)  # parts of the objective
_TUNING_LOAD = 1.0

GATEWAY = f"""
models:
  dbl:
    backend: python
    target: loadtests.models:accelerator
    inputs: [{{name: x, datatype: FP32, shape: [16]}}]
    outputs: [{{name: y, datatype: FP32, shape: [16]}}]
    max_batch: {MAX_BATCH}
    batching: {{warm_up: [1, 8, {MAX_BATCH}]}}
    expose: true

store: {{path: null.db, retention: 1d, limit: 16GiB}}
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """How Triton batches.

    Attributes:
        timeout: part of the objective that a request waits at most; None: for ever.
    """

    delay_s: float = 0.0
    preferred: int = 0
    timeout: float | None = None

    @property
    def model(self) -> str:
        """The model that batches so; timeouts come with requests."""
        return f"dbl-{round(self.delay_s * 1e6)}-{self.preferred}"


@dataclass(frozen=True, slots=True)
class Point:
    """A trace at one load with one objective."""

    trace: str
    objective: float
    load: float
    seconds: float

    @property
    def within_s(self) -> float:
        """Seconds from a request's moment to the end of the objective."""
        return self.objective * ALONE_S + ALLOWANCE_S

    def moments(self, seed: int) -> tuple[float, ...]:
        """When requests come."""
        rate_per_s = self.load * CAPACITY_PER_S
        made = TRACES[self.trace](rate_per_s, round(rate_per_s * self.seconds), self.within_s, seed)
        return tuple([request.at_s for request in made])


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs."""

    url: str
    pid: int

    def asked(self, point: Point, seed: int, model: str, timeout_s: float | None) -> Report:
        """What becomes of the trace of *point*."""
        moments = point.moments(seed)
        plan = Plan(
            self.url,
            model,
            seconds=moments[-1] + 0.001,
            moments=moments,
            within_s=point.within_s,
            timeout_s=timeout_s,
            connections=1024,
            patience_s=2.0,
        )
        return generate(plan, self.pid)


@contextmanager
def servers(folder: Path) -> Iterator[tuple[Server, Server]]:
    """The gateway and Triton, both warm."""
    with ExitStack() as stack:
        (folder / "gateway").mkdir()
        gateway = stack.enter_context(running(folder / "gateway", GATEWAY, ("--log-level", "WARNING")))
        for delay_s, preferred in product(_DELAYS_S, _PREFERRED):
            _write(folder / "models", Setting(delay_s, preferred))
        process = stack.enter_context(triton(folder, folder / "models"))
        yield Server(gateway.http, gateway.process.pid), Server(f"http://{process.http}", process.pid)


def _write(repository: Path, setting: Setting) -> None:
    """A model of Triton's repository."""
    version = repository / setting.model / "1"
    version.mkdir(parents=True)
    shutil.copy(SERVING / "accelerator_on_triton.py", version / "model.py")
    preferred = f"preferred_batch_size: [ {setting.preferred} ]" if setting.preferred else ""
    parameters = {"EXECUTION_ENV_PATH": TRITON, "base_s": BASE_S, "item_s": ITEM_S}
    written = "".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n' for key, value in parameters.items()
    )
    (repository / setting.model / "config.pbtxt").write_text(f"""
        name: "{setting.model}"
        backend: "python"
        max_batch_size: {MAX_BATCH}
        input [ {{ name: "x" data_type: TYPE_FP32 dims: [16] }} ]
        output [ {{ name: "y" data_type: TYPE_FP32 dims: [16] }} ]
        instance_group [ {{ kind: KIND_CPU count: 1 }} ]
        dynamic_batching {{
            {preferred}
            max_queue_delay_microseconds: {round(setting.delay_s * 1e6)}
            default_queue_policy {{ timeout_action: REJECT allow_timeout_override: true
                                    default_timeout_microseconds: 60000000 }}
        }}
        {written}""")


def ask_triton(server: Server, point: Point, seed: int, setting: Setting) -> Report:
    """What Triton, batching by *setting*, makes of *point*."""
    timeout_s = None if setting.timeout is None else setting.timeout * point.within_s
    return server.asked(point, seed, setting.model, timeout_s)


def tuned(server: Server, point: Point) -> tuple[Setting, Setting]:
    """Triton's best settings without and with timeouts, on a trace of their own.

    The timeout is tuned with no delay and no preferred size, then these two, with and without it.
    """
    cut = max((Setting(timeout=part) for part in _TIMEOUTS), key=lambda each: _share(server, point, each))
    grid = [Setting(delay_s, preferred) for delay_s, preferred in product(_DELAYS_S, _PREFERRED)]
    plain = max(grid, key=lambda each: _share(server, point, each))
    timed = max((replace(each, timeout=cut.timeout) for each in grid), key=lambda each: _share(server, point, each))
    return plain, timed


def _share(server: Server, point: Point, setting: Setting) -> float:
    return ask_triton(server, point, 100, setting).in_time


def compare(
    gateway: Server, other: Server, point: Point, settings: tuple[Setting, Setting], rounds: int
) -> dict[str, Any]:
    """All three on the same traces, in turns."""
    plain, timed = settings
    runs: dict[str, list[Report]] = {"gateway": [], "triton": [], "triton with timeout": []}
    for number in range(rounds):
        turns = list(runs)[:: 1 if number % 2 == 0 else -1]
        for name in turns:
            if name == "gateway":
                report = gateway.asked(point, number + 1, "dbl", point.within_s)
            else:
                report = ask_triton(other, point, number + 1, plain if name == "triton" else timed)
            runs[name].append(report)
            time.sleep(0.2)
    shares = {name: [report.in_time for report in reports] for name, reports in runs.items()}
    return {
        **{key: getattr(point, key) for key in ("trace", "objective", "load")},
        "triton": asdict(plain),
        "triton with timeout": asdict(timed),
        "shares": shares,
        "gateway_over": {
            name: asdict(ratio(shares["gateway"], of)) for name, of in shares.items() if name != "gateway" and min(of)
        },
        "cpu_us": {name: statistics.median(r.server_cpu_us or 0.0 for r in reports) for name, reports in runs.items()},
        "lateness_p99_ms": max(r.lateness_p99_ms or 0.0 for reports in runs.values() for r in reports),
        "wrong": sum(r.wrong for reports in runs.values() for r in reports),
        "refusal_ms": runs["gateway"][-1].refusal_ms,
    }


def overload(gateway: Server, seconds: float) -> dict[str, Any]:
    """Twice the capacity for a while: memory in MiB every tenth of it, and how fast refusals are."""
    process = psutil.Process(gateway.pid)
    memory: list[float] = []
    point = Point("bursts", 3.0, 2.0, seconds / 10)
    reports = []
    for number in range(10):
        reports.append(gateway.asked(point, 50 + number, "dbl", point.within_s))
        memory.append(round(process.memory_info().rss / 2**20, 1))
    return {"rss_mib": memory, "shares": [r.in_time for r in reports], "refusal_ms": [r.refusal_ms for r in reports]}


def shift(gateway: Server, slow: Path) -> dict[str, Any]:
    """The model becomes twice as slow in the middle of a run: what is answered in time before, and later."""
    point = Point("poisson", 5.0, 0.3, 4.0)
    before = gateway.asked(point, 71, "dbl", point.within_s).in_time
    timer = Timer(0.5, slow.touch)
    timer.start()
    changing = gateway.asked(point, 72, "dbl", point.within_s).in_time
    after = gateway.asked(point, 73, "dbl", point.within_s).in_time
    slow.unlink()
    recovering = gateway.asked(point, 74, "dbl", point.within_s).in_time
    return {"before": before, "changing": changing, "twice as slow": after, "and back": recovering}


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Goodput over load: a row for each trace, a column for each objective."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    traces, objectives = (list(dict.fromkeys(row[key] for row in rows)) for key in ("trace", "objective"))
    size = (4.4 * len(objectives), 3.4 * len(traces) + 0.6)
    figure, grid = pyplot.subplots(len(traces), len(objectives), figsize=size, squeeze=False, layout="constrained")
    for (i, trace), (j, objective) in product(enumerate(traces), enumerate(objectives)):
        line = [row for row in rows if (row["trace"], row["objective"]) == (trace, objective)]
        for name in line[0]["shares"]:
            points = [(row["load"], row["load"] * statistics.median(row["shares"][name])) for row in line]
            grid[i][j].plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        grid[i][j].set_title(f"{trace}, objective {objective:g} x one", fontsize=9)
        grid[i][j].set_xlabel("offered load / capacity")
        grid[i][j].set_ylabel("answered in time / capacity")
        grid[i][j].grid(visible=True, alpha=0.25)
    grid[0][-1].legend(fontsize=8)
    figure.suptitle("Goodput of real servers before a stand-in for an accelerator (25 ms + 1 ms an item)", fontsize=10)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main() -> int:
    """Tune, compare, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few points, nothing written")
    quick = parser.parse_args().quick
    if why := why_no_triton():
        print(why, file=sys.stderr)
        return 1
    objectives, loads = ((3.0,), (0.6, 1.5)) if quick else (_OBJECTIVES, _LOADS)
    seconds, tuning_s, rounds = (2.0, 1.0, 2) if quick else (5.0, 3.0, 4)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        slow = Path(folder, "slow")
        os.environ[SLOW] = str(slow)
        with servers(Path(folder)) as (gateway, other):
            for trace, objective in product(TRACES, objectives):
                settings = tuned(other, Point(trace, objective, _TUNING_LOAD, tuning_s))
                for load in loads:
                    row = compare(gateway, other, Point(trace, objective, load, seconds), settings, rounds)
                    print(json.dumps(row), flush=True)
                    rows.append(row)
            crowded = overload(gateway, 10.0 if quick else 60.0)
            shifted = shift(gateway, slow)
    report = {
        "machine": machine(),
        "capacity_per_s": CAPACITY_PER_S,
        "overload": crowded,
        "shift": shifted,
        "rows": rows,
    }
    print(json.dumps({"overload": crowded, "shift": shifted}, indent=1))
    if not quick:
        (RESULTS / "goodput_real.json").write_text(json.dumps(report, indent=1) + "\n")
        draw(rows, RESULTS / "goodput_real.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
