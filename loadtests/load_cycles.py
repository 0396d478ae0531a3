"""A model is loaded anew and unloaded a thousand times while requests come: does one fail, and does memory come back?

    python -m loadtests.load_cycles [--cycles 1000] [--clients 4] [--out loadtests/results/load_cycles.json]

A route has two stages, real ONNX sessions that double their input; both are right, so that whichever answers, the reply
can be checked. All the time a closed loop asks the route; meanwhile the first stage is unloaded, and loaded again from
its file, over and over, by Triton's own calls. No request may fail: the second stage answers while the first is gone.
Resident memory is read after every tenth of the cycles, when the first have been left out as warming up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
import yaml
from onnx import TensorProto, helper, numpy_helper

from loadtests.generator.load import Plan
from loadtests.generator.report import generate
from loadtests.peers.machine import machine
from tests.integration.process import running

RESULTS = Path(__file__).parent / "results" / "load_cycles.json"
_MIB = 1024 * 1024
_SLICE_S = 2.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen.

    Attributes:
        completed: right replies.
        errors: requests that ended in another way, by how.
        cycles: unloads, each followed by a load.
        took_s: of all cycles.
        rss_mib: resident memory of the gateway, after every tenth of the cycles, warming up first.
        load_ms: median and highest of what a load took.
    """

    completed: int
    errors: dict[str, int]
    cycles: int
    took_s: float
    rss_mib: list[float]
    load_ms: tuple[float, float]


def write_model(file: Path, width: int = 16, weights_mib: int = 4) -> None:
    """An ONNX model that doubles rows of *width* numbers, and carries so many MiB of weights that it adds up to 0."""
    ballast = np.zeros((weights_mib * _MIB // 4,), np.float32)
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("ReduceSum", ["ballast"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["twice", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(ballast, "ballast")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(file))


def configuration(model: Path) -> str:
    """A route over two stages of *model*."""
    one = {"backend": "onnx", "path": str(model), "max_batch": 16}
    return yaml.safe_dump(
        {
            "models": {"first": one, "second": dict(one)},
            "routes": {
                "dbl": {
                    "input": {"x": {"datatype": "FP32", "shape": [16]}},
                    "cascade": ["first", "second"],
                    "accept": {"min_confidence": 0.0},
                    "on_defer": "provisional",
                    "slo": {"deadline": "5s"},
                }
            },
            "server": {"model_control": "explicit"},
            "store": {"path": "store.db", "retention": "1d", "limit": "4GiB"},
        }
    )


def measure(folder: Path, cycles: int, clients: int) -> Report:
    """Run *cycles* under the load of *clients*.

    Raises:
        AssertionError: a load or an unload failed.
    """
    write_model(folder / "double.onnx")
    seen: Counter[str] = Counter()
    completed = 0
    ended = threading.Event()
    with running(folder, configuration(folder / "double.onnx")) as gateway:

        def ask() -> None:
            nonlocal completed
            while not ended.is_set():
                report = generate(Plan(gateway.http, clients=clients, seconds=_SLICE_S))
                completed += report.completed
                seen.update(report.errors)

        asking = threading.Thread(target=ask)
        asking.start()
        process = psutil.Process(gateway.process.pid)
        rss_mib, load_ms = [], []
        began = time.monotonic()
        try:
            for cycle in range(cycles):
                _control(gateway.http, "unload")
                started = time.monotonic()
                _control(gateway.http, "load")
                load_ms.append(1000 * (time.monotonic() - started))
                if cycle % max(1, cycles // 10) == 0:
                    rss_mib.append(round(process.memory_info().rss / _MIB, 1))
            took_s = time.monotonic() - began
            rss_mib.append(round(process.memory_info().rss / _MIB, 1))
        finally:
            ended.set()
            asking.join()
    spread = (round(float(np.median(load_ms)), 2), round(max(load_ms), 2))
    return Report(completed, dict(seen), cycles, round(took_s, 1), rss_mib, spread)


def _control(url: str, what: str) -> None:
    request = urllib.request.Request(f"{url}/v2/repository/models/first/{what}", b"{}")  # noqa: S310  # http
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310  # our own server
        assert reply.status == 200, reply.status


def main() -> int:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory(prefix="load-cycles-") as folder:
        report = measure(Path(folder), options.cycles, options.clients)
    result = {"what": (__doc__ or "").splitlines()[0], "machine": where, "clients": options.clients, **asdict(report)}
    text = json.dumps(result, indent=1)
    print(text)
    options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
