"""Real MLServer and KServe SDK servers in processes of their own, from what `make mlserver` and `make kserve` install.

Both serve the same five models, by HTTP and gRPC:

    dbl     x FP32 [-1, 16]  -> y = 2x
    text    x BYTES [-1, 1]  -> y = x
    sums    a, b INT32 [-1, -1] -> sum, difference
    fails   x FP32 [-1, 16]  -> raises, always
    waits   x FP32 [-1, 1]   -> y = x, after x[0] seconds

MLServer's have version 1. BYTES by HTTP are JSON strings: with MLServer there is nothing else, and KServe's SDK turns
what arrives as binary into strings; elements that are not UTF-8 are served by gRPC alone.

**How they differ from the protocol**, as observed with MLServer 1.7.1 and KServe's SDK 0.21.0; `test_v2_servers.py`
holds them to what a client has to know.

*Metadata* are what the model's author wrote, batch axis included or not, and nothing (`[]`) by default; neither server
checks a request against them: a shape or datatype that they do not allow reaches the model. `versions` is empty in
both. MLServer serves no extensions and says so; KServe serves binary tensors and does not say so.

*Versions*: MLServer has them; one that it does not know is 404. KServe answers any versioned path with 501, and by
gRPC ignores the version.

*HTTP*: KServe takes a body for binary unless its Content-Type is application/json, which tritonclient leaves out of
JSON requests (400). Its binary replies have no Content-Type, and a model may answer in JSON though binary was asked
for (here: sums). MLServer ignores requests for binary outputs, and answers binary inputs with 422, or 500 as
text/plain. A request without an id gets one invented, or, where a KServe model does not invent it, 500. NaN and
infinities come back as null from both.

*gRPC*: raw inputs get raw outputs, with an empty `contents` beside them from MLServer; typed inputs get typed outputs.
A KServe model that answers with lists gives typed outputs whatever came (here: sums). MLServer takes mixtures of raw
and typed inputs, KServe refuses them. Messages are limited to 4 MiB and 8 MiB (RESOURCE_EXHAUSTED). Both leave
grpc.health.v1 and ModelConfig out.

*Requested outputs* are ignored by MLServer, and by KServe over gRPC: all outputs come.

*Errors*: an unknown model is 404 and NOT_FOUND, except MLServer's ModelReady (UNKNOWN). A model that raises is 500 and
INTERNAL, and so is a shape that does not fit its data: as text/plain from MLServer without workers, as
`{"error": "builtins.ValueError: ..."}` with them, as `{"error": "ValueError : ..."}` from KServe. Malformed requests
are 422 `{"detail": [...]}`, without the `error` that the protocol asks for, and echo what was sent; unknown paths are
404 `{"detail": "Not Found"}`.

*Connections*: both are uvicorn; MLServer closes idle ones after 5 s, KServe after 65 s.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.triton import free_port
from tests.integration.process import ROOT, listens

HERE = Path(__file__).parent

_READY_S = 90.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server speaks HTTP and gRPC (host:port)."""

    http: str
    grpc: str


def why_not(name: str) -> str | None:
    """Why no server of `make` *name* ("mlserver", "kserve") can run here, or None where one can."""
    folder = _environment(name)
    if (folder / ".installed").exists():
        return None
    reason = folder / "why-not"
    said = reason.read_text().strip().splitlines() if reason.exists() else []
    return f"there is no {name} here: {said[-1] if said else f'run make {name}, which says why'}"


def _environment(name: str) -> Path:
    return ROOT / f".venv-{name}"


@contextmanager
def mlserver(folder: Path, **settings: object) -> Iterator[Address]:
    """A running MLServer with the models of this folder, without parallel workers; ended on leaving.

    Args:
        folder: for its log and its configuration.
        settings: further entries of its settings.json.
    """
    address = _address()
    _write_mlserver(folder, address, settings)
    command: list[str | Path] = [_environment("mlserver") / "bin/mlserver", "start", folder]
    with _running(folder, command, address, {"PYTHONPATH": str(HERE)}):
        yield address


@contextmanager
def kserve(folder: Path) -> Iterator[Address]:
    """A running server of KServe's SDK with the models of this folder; ended on leaving.

    Args:
        folder: for its log.
    """
    address = _address()
    http_port, grpc_port = (at.rpartition(":")[2] for at in (address.http, address.grpc))
    command: list[str | Path] = [
        *(_environment("kserve") / "bin/python", HERE / "on_kserve.py", "--http_port", http_port),
        *("--grpc_port", grpc_port, "--enable_latency_logging", "false"),
    ]
    with _running(folder, command, address, {}):
        yield address


def _address() -> Address:
    return Address(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")


def _write_mlserver(folder: Path, address: Address, settings: Mapping[str, object]) -> None:
    http_port, grpc_port = (int(at.rpartition(":")[2]) for at in (address.http, address.grpc))
    own = {
        "host": "127.0.0.1", "http_port": http_port, "grpc_port": grpc_port, "metrics_endpoint": None, "debug": False,
        "parallel_workers": 0,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps({**own, **settings}))
    for name, (inputs, outputs) in _SIGNATURES.items():
        place = folder / name
        place.mkdir()
        (place / "model-settings.json").write_text(
            json.dumps({
                "name": name, "implementation": f"on_mlserver.{name.title()}", "parameters": {"version": "1"},
                "inputs": inputs, "outputs": outputs,
            })
        )  # fmt: skip


def _tensors(datatype: str, shape: list[int], *names: str) -> list[dict[str, object]]:
    return [{"name": name, "datatype": datatype, "shape": shape} for name in names]


_SIGNATURES = {
    "dbl": (_tensors("FP32", [-1, 16], "x"), _tensors("FP32", [-1, 16], "y")),
    "text": (_tensors("BYTES", [-1, 1], "x"), _tensors("BYTES", [-1, 1], "y")),
    "sums": (_tensors("INT32", [-1, -1], "a", "b"), _tensors("INT32", [-1, -1], "sum", "difference")),
    "fails": (_tensors("FP32", [-1, 16], "x"), _tensors("FP32", [-1, 16], "y")),
    "waits": (_tensors("FP32", [-1, 1], "x"), _tensors("FP32", [-1, 1], "y")),
}


@contextmanager
def _running(
    folder: Path, command: Sequence[str | Path], address: Address, variables: Mapping[str, str]
) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, **variables},
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait_ready(process, address, log)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until and process.poll() is None:
        if _is_ready(address):
            return
        time.sleep(0.1)
    raise AssertionError(f"the server did not start; its log ends:\n{log.read_text(errors='replace')[-4000:]}")


def _is_ready(address: Address) -> bool:
    host, _, port = address.grpc.rpartition(":")
    try:
        urllib.request.urlopen(f"http://{address.http}/v2/health/ready", timeout=5).close()
    except OSError:
        return False
    return listens(host, int(port))
