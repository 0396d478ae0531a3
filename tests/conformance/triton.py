"""A real Triton Inference Server in a process of its own, from the wheel that `make triton` unpacks.

The server's binary runs alone: PyTriton, whose wheel carries it, would put a proxy of its own in front. Of its Python
stubs, the one of that environment's version is used, with the NumPy 1 beside it: given arrays of NumPy 2, this Triton
answers with outputs of no bytes, or ends. The stub wants the interpreter as a shared library, which is there where the
interpreter was built so (pyenv, images of python.org), and in Debian's package libpython3.x.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.integration.process import ROOT

FOLDER = ROOT / ".venv-triton"
"""Where `make triton` unpacks the wheel, or says in `why-not` why it could not."""

_READY_S = 90.0
_NO_LIBRARY = 127  # what the dynamic loader ends with


def why_not() -> str | None:
    """Why no Triton can run here, or None where one can."""
    if not (FOLDER / ".installed").exists():
        reason = FOLDER / "why-not"
        said = reason.read_text().strip().splitlines() if reason.exists() else []
        return f"there is no Triton here: {said[-1] if said else 'run make triton, which says why'}"
    alone = subprocess.run([_stub()], env=_environment(), capture_output=True, text=True, check=False)
    if alone.returncode == _NO_LIBRARY:
        return f"Triton's Python stub cannot start (on Debian, install libpython{_version()}): {alone.stderr.strip()}"
    return None


def _packages() -> Path:
    """The site-packages of the wheel's environment."""
    (found,) = FOLDER.glob("lib/python3.*/site-packages")
    return found


def _version() -> str:
    return _packages().parent.name.removeprefix("python")


def _stub() -> Path:
    return _packages() / "pytriton/tritonserver/python_backend_stubs" / _version() / "triton_python_backend_stub"


def _environment() -> dict[str, str]:
    libraries = f"{_packages() / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return {**os.environ, "LD_LIBRARY_PATH": libraries}


@dataclass(frozen=True, slots=True)
class TritonProcess:
    """Where a running Triton speaks HTTP and gRPC (host:port), and its process."""

    http: str
    grpc: str
    pid: int


@contextmanager
def triton(folder: Path, repository: Path, *options: str) -> Iterator[TritonProcess]:
    """A running Triton over *repository*; ended on leaving.

    Args:
        folder: for its log and a copy of its backends.
        options: further ones of its command line.
    """
    server, backends = _packages() / "pytriton/tritonserver", folder / "backends"
    shutil.copytree(server / "backends", backends)
    shutil.copy(_stub(), backends / "python")
    http_port, grpc_port = free_port(), free_port()
    log = folder / "triton.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [server / "bin/tritonserver", f"--model-repository={repository}",
             f"--backend-directory={backends}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
             f"--http-port={http_port}", f"--grpc-port={grpc_port}", "--allow-metrics=false",
             "--model-load-thread-count=2", "--exit-timeout-secs=2", *options],
            stdout=sink, stderr=subprocess.STDOUT, cwd=folder,
            env=_environment(), start_new_session=True,
        )  # fmt: skip
    try:
        _wait_ready(process, http_port, log)
        yield TritonProcess(f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", process.pid)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its stubs too, which outlive a server that crashes
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"Triton did not start; its log ends:\n{log.read_text(errors='replace')[-4000:]}")


def free_port() -> int:
    """A port of this machine that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
