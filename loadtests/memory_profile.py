"""How many buffers as large as a tensor the gateway has at once, while it takes one in or gives one out.

    python -m loadtests.memory_profile [--megabytes 10] [--rounds 5] [--out loadtests/results/memory_profile.json]

One gateway runs in a process of its own, with a model that takes a large FP32 tensor and gives a number, and one that
does the reverse. Requests go one at a time, by HTTP (binary tensor data), by gRPC (raw contents) and through shared
memory. For each request, two peaks are measured above what was there before it, in multiples of the tensor:

- traced: what Python and NumPy have allocated, by tracemalloc. A count of copies.
- resident: the process's, by VmHWM, which Linux resets on demand. It has what C and C++ allocate too (gRPC, protobuf),
  and a buffer only as far as it was touched. malloc gives large blocks back at once here (MALLOC_MMAP_THRESHOLD_), or
  what one request left would hide what the next one takes.

A request is over when the gateway's memory stands still: what is done behind the reply, such as recording an answer,
counts. `kept` is what is still there then. Memory for copies out of shared memory is lent again and again: the first
requests, which are not counted, leave it resident, and `resident_first` says how much that is.

A last request of each kind runs under a profiler that looks at the traced memory after every call, and lists the lines
of this repository (or else of a library) under which it grew by half of the tensor or more, in their order. While one
thread allocates, another's call may be blamed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results" / "memory_profile.json"
ROOT = Path(__file__).parents[1]
WARM_UPS = 3
MB = 1_000_000
_OURS = ("gateway/", "batching/", "backends/", "kernels/", "router/", "loadtests/")
_SIZE = "POINTSMAN_PROFILED_BYTES"

CONFIG = """
models:
  in:
    backend: python
    target: loadtests.memory_profile:total
    inputs: [{{name: x, datatype: FP32, shape: [-1]}}]
    outputs: [{{name: y, datatype: FP32, shape: [1]}}]
    expose: true
  out:
    backend: python
    target: loadtests.memory_profile:filled
    inputs: [{{name: x, datatype: FP32, shape: [-1]}}]
    outputs: [{{name: y, datatype: FP32, shape: [-1]}}]
    expose: true
server: {{http_port: 0, grpc_port: 0, control_port: 0, max_body: {limit}B, shared_memory: {{enabled: true}}}}
store: {{path: store.db}}
"""


# --- the models ---


def total(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """A large tensor in, its sum out."""
    return {"y": inputs["x"].sum(axis=1, keepdims=True)}


def filled(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """A number in, a large tensor of it out."""
    return {"y": np.full((len(inputs["x"]), int(os.environ[_SIZE]) // 4), inputs["x"][0, 0], np.float32)}


# --- the gateway's process ---


@dataclass(frozen=True, slots=True)
class Peak:
    """What a request took above what was there, in bytes.

    Attributes:
        traced: by Python and NumPy.
        resident: by the process.
        kept: of what is traced, when the request was over.
        grown: lines under which memory grew, and by how many tensors; empty where nobody looked.
    """

    traced: int
    resident: int
    kept: int
    grown: list[str]


class _Meter:
    """Measures from `begin` to `end`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._is_watching = False
        self._grown: list[str] = []

    def begin(self, *, watched: bool) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
        self._resident = _status("VmRSS")
        tracemalloc.reset_peak()
        self._traced = self._seen = tracemalloc.get_traced_memory()[0]
        self._grown = []
        self._is_watching = watched

    def end(self) -> Peak:
        _settle()
        self._is_watching = False
        now, peak = tracemalloc.get_traced_memory()
        return Peak(peak - self._traced, _status("VmHWM") - self._resident, now - self._traced, self._grown)

    def look(self, frame: FrameType, event: str, argument: object) -> None:
        """A profiler, for `sys.setprofile`."""
        if not self._is_watching:
            return
        now = tracemalloc.get_traced_memory()[0]
        if now - self._seen >= self._size // 2:
            self._grown.append(f"{_line(frame)} +{(now - self._seen) / self._size:.1f}")
        self._seen = now


def _settle(still_s: float = 0.05, at_most_s: float = 5.0) -> None:
    """Wait until the traced memory stands still."""
    until = time.monotonic() + at_most_s
    last, since = -1, 0.0
    while time.monotonic() < until:
        now = tracemalloc.get_traced_memory()[0]
        if abs(now - last) > 100_000:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > still_s:
            return
        time.sleep(0.005)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _line(frame: FrameType) -> str:
    """Where *frame* is: the innermost line of this repository, or else of all."""
    lines = []
    found: FrameType | None = frame
    while found is not None:
        lines.append(f"{_short(found.f_code.co_filename)}:{found.f_lineno}")
        found = found.f_back
    return next((line for line in lines if line.startswith(_OURS)), lines[0])


def _short(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
        return str(path.relative_to(ROOT))
    return "/".join(path.parts[-2:])


def serve(config: Path) -> None:
    """Be the gateway; obeys lines on the standard input, and answers in JSON."""
    from gateway.serve import run
    from gateway.settings import load_settings

    tracemalloc.start()  # after the imports, which it would slow down
    meter = _Meter(int(os.environ[_SIZE]))
    threading.setprofile(meter.look)  # of threads to come
    sys.setprofile(meter.look)
    threading.Thread(target=_obey, args=(meter,), daemon=True).start()
    run(load_settings(config), lambda addresses: _say(asdict(addresses)))


def _obey(meter: _Meter) -> None:
    sys.setprofile(None)  # or what others allocate would be found under this thread's calls
    for line in sys.stdin:
        if line.strip() == "end":
            _say(asdict(meter.end()))
        else:
            meter.begin(watched=line.strip() == "watch")
            _say({})


def _say(value: Any) -> None:  # Any: JSON
    print(json.dumps(value), flush=True)


# --- the client's ---


class Profiled:
    """The gateway's process, as its client sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.addresses = self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the gateway has ended; its own words stand above")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def measure(self, request: Callable[[], None], *, watched: bool = False) -> Peak:
        """What *request* takes in the gateway."""
        self._ask("watch" if watched else "begin")
        request()
        return Peak(**self._ask("end"))

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._heard()


@contextmanager
def gateway(size: int) -> Iterator[Profiled]:
    """A gateway in a process of its own, for tensors of *size* bytes."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "gateway.yaml"
        config.write_text(CONFIG.format(limit=2 * size))
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
            "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
            _SIZE: str(size),
        }
        command = [sys.executable, "-m", "loadtests.memory_profile", "--serve", str(config)]
        with subprocess.Popen(  # noqa: S603  # a command of our own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        ) as process:
            try:
                yield Profiled(process)
            finally:
                process.terminate()


def requests(addresses: Mapping[str, str], size: int, stack: ExitStack) -> dict[str, Callable[[], None]]:
    """What is measured, by name: a transport, and whether the large tensor goes in or comes out."""
    large = np.ones((1, size // 4), np.float32)
    http = stack.enter_context(triton_http.InferenceServerClient(addresses["http"]))
    grpc = stack.enter_context(triton_grpc.InferenceServerClient(addresses["grpc"]))
    path = Path("/dev/shm") / f"pointsman-profile-{uuid.uuid4().hex}"  # noqa: S108  # the folder of shm_open
    path.write_bytes(large.tobytes())
    stack.callback(path.unlink)
    http.register_system_shared_memory("large", f"/{path.name}", size)
    found: dict[str, Callable[[], None]] = {}
    for name, module, client in (("http", triton_http, http), ("grpc", triton_grpc, grpc)):
        found[f"{name}, in"] = _request(module, client, "in", large)
        found[f"{name}, out"] = _request(module, client, "out", large[:, :1])
        found[f"{name} and shared memory, in"] = _request(module, client, "in", large, placed="x")
        found[f"{name} and shared memory, out"] = _request(module, client, "out", large[:, :1], placed="y", size=size)
    return found


def _request(
    module: Any, client: Any, model: str, values: NDArray[Any], placed: str = "", size: int = 0
) -> Callable[[], None]:  # Any: tritonclient is untyped
    tensor = module.InferInput("x", list(values.shape), "FP32")
    output = module.InferRequestedOutput("y")
    if placed == "x":
        tensor.set_shared_memory("large", values.nbytes)
    else:
        tensor.set_data_from_numpy(values)
    if placed == "y":
        output.set_shared_memory("large", size)

    def request() -> None:
        client.infer(model, [tensor], outputs=[output])

    return request


def profile(size: int, rounds: int) -> dict[str, Any]:
    """Every request's peaks (Any: JSON)."""
    cells = []
    with gateway(size) as profiled, ExitStack() as stack:
        for name, request in requests(profiled.addresses, size, stack).items():
            warm_up = [profiled.measure(request) for _ in range(WARM_UPS)]
            peaks = [profiled.measure(request) for _ in range(rounds)]
            watched = profiled.measure(request, watched=True)
            cells.append(
                {
                    "request": name,
                    "traced": _multiple([peak.traced for peak in peaks], size),
                    "resident": _multiple([peak.resident for peak in peaks], size),
                    "resident_first": round(warm_up[0].resident / size, 2),
                    "kept": _multiple([peak.kept for peak in peaks], size),
                    "grown": watched.grown,
                }
            )
    return {
        "tensor_bytes": size,
        "rounds": rounds,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "grpcio", "protobuf", "httptools", "uvloop")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "cells": cells,
    }


def _multiple(peaks: list[int], size: int) -> dict[str, float]:
    """The median and the extremes of *peaks*, in multiples of *size*."""
    return {
        "least": round(min(peaks) / size, 2),
        "median": round(statistics.median(peaks) / size, 2),
        "most": round(max(peaks) / size, 2),
    }


def main() -> None:
    """Profile, or be the gateway that is profiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=10, help="of the large tensor")
    parser.add_argument("--rounds", type=int, default=5, help="requests of each kind that are counted")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    found = profile(arguments.megabytes * MB, arguments.rounds)
    for cell in found["cells"]:
        figures = ", ".join(f"{name} {cell[name]['median']:.2f}" for name in ("traced", "resident", "kept"))
        print(f"{cell['request']:28} {figures}")
        print("".join(f"    {line}\n" for line in cell["grown"]), end="")
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
