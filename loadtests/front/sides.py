"""The sides that are compared, all over one Triton."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from loadtests.peers.servers import SERVING, Form, Running, Server, gateway_versions, triton_versions
from tests.conformance.triton import FOLDER, TritonProcess, triton
from tests.integration.process import ROOT, running

FORMS = (Form.BINARY, Form.GRPC)


@dataclass(frozen=True, slots=True)
class Width:
    """How many numbers a request has, and over how many clients it is asked for."""

    name: str
    numbers: int
    clients: tuple[int, ...]


SMALL = Width("64 bytes", 16, (1, 8, 32))
WIDE = Width("602 KB", 224 * 224 * 3, (1, 4))


@contextmanager
def one_triton(folder: Path, width: Width) -> Iterator[TritonProcess]:
    """A Triton with the model `dbl` over rows of *width*."""
    model = folder / "models" / "dbl"
    (model / "1").mkdir(parents=True)
    shutil.copy(SERVING / "on_triton.py", model / "1" / "model.py")
    (model / "config.pbtxt").write_text(f"""
        name: "dbl"
        backend: "python"
        max_batch_size: 64
        input [ {{ name: "x" data_type: TYPE_FP32 dims: [{width.numbers}] }} ]
        output [ {{ name: "y" data_type: TYPE_FP32 dims: [{width.numbers}] }} ]
        dynamic_batching {{ }}
        parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{FOLDER}" }} }}
    """)
    with triton(folder, folder / "models") as process:
        yield process


def sides(process: TritonProcess, width: Width, form: Form) -> list[Server]:
    """What is asked, each over *process*."""
    to = process.grpc if form is Form.GRPC else process.http
    through_gateway: dict[str, Mapping[str, object]] = {
        "gateway-http": {"url": f"http://{process.http}"},
        "gateway-grpc": {"url": f"grpc://{process.grpc}"},
        "gateway-shm": {"url": f"http://{process.http}", "shared_memory": True},
    }
    if width is SMALL:
        del through_gateway["gateway-shm"]  # small tensors go inline in any case
    found = [
        _side("triton", "asked directly", width, partial(_alone, process), triton_versions),
        _side("hop", "a process that forwards bytes, on uvloop", width, partial(_hop, to, form), dict),
    ]
    found += [
        _side(name, f"Pointsman, {options}", width, partial(_gateway, options), gateway_versions)
        for name, options in through_gateway.items()
    ]
    return found if width is SMALL else [*found, *_with_regions(process, width, through_gateway["gateway-shm"])]


def _with_regions(process: TritonProcess, width: Width, options: Mapping[str, object]) -> list[Server]:
    """Triton, and Pointsman before it, asked for tensors in regions of the client's own."""
    direct = _side("regions", "asked directly, regions", width, partial(_alone, process), triton_versions)
    through = _side("gateway-regions", "Pointsman, regions", width, partial(_gateway, options), gateway_versions)
    return [replace(side, shared=True) for side in (direct, through)]


def _side(
    name: str,
    about: str,
    width: Width,
    start: Callable[[Path], AbstractContextManager[Running]],
    versions: Callable[[], Mapping[str, str]],
) -> Server:
    return Server(name, about, FORMS, start, versions, width=width.numbers)


@contextmanager
def _alone(process: TritonProcess, folder: Path) -> Iterator[Running]:
    yield Running(process.pid, {Form.BINARY: f"http://{process.http}", Form.GRPC: f"grpc://{process.grpc}"})


@contextmanager
def _hop(to: str, form: Form, folder: Path) -> Iterator[Running]:
    command = [sys.executable, "-m", "loadtests.front.hop", to]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # our own module
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        scheme = "grpc" if form is Form.GRPC else "http"
        try:
            yield Running(process.pid, {form: f"{scheme}://127.0.0.1:{port}"})
        finally:
            process.stdin.close()


@contextmanager
def _gateway(options: Mapping[str, object], folder: Path) -> Iterator[Running]:
    config = {
        "models": {"dbl": {"backend": "triton", "expose": True, **options}},
        "server": {"shared_memory": {"enabled": True}},
        "store": {"path": "store.db", "retention": "1d", "limit": "16GiB"},
    }
    with running(folder, yaml.safe_dump(config)) as gateway:
        yield Running(gateway.process.pid, {Form.BINARY: gateway.http, Form.GRPC: f"grpc://{gateway.grpc}"})
