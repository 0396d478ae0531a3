"""The servers that are compared: how each is started, where it then listens, and which versions it is made of.

Each is given as its documentation sets it up for throughput on this machine, and where two ways are usual (with
batching and without), both are there. A server is ready when it answers requests rightly, which the load generator
finds out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

from loadtests.generator.shots import WIDTH
from loadtests.peers import environments
from tests.conformance.triton import FOLDER as TRITON
from tests.conformance.triton import free_port, triton
from tests.conformance.triton import why_not as why_no_triton
from tests.integration.process import ROOT, running

SERVING = Path(__file__).parent / "serving"
_END_S = 15.0


class Form(StrEnum):
    """What carries the tensors."""

    JSON = "http json"
    BINARY = "http binary"
    GRPC = "grpc"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs.

    Attributes:
        pid: the process at the root of its tree.
        urls: where it speaks what, for the load generator.
    """

    pid: int
    urls: Mapping[Form, str]


@dataclass(frozen=True, slots=True)
class Server:
    """One that can be compared.

    Attributes:
        start: with a folder for what it writes.
        why_not: why it cannot run here, or None.
        versions: of what it is made of.
        path, rows: where and how it takes JSON, if it is not the Open Inference Protocol.
        is_peer: measured beside the gateway alone, not in the common comparison.
        width: numbers in a row of the model that it serves.
        shared: asked for tensors in shared memory, which no open loop does.
    """

    name: str
    about: str
    forms: tuple[Form, ...]
    start: Callable[[Path], AbstractContextManager[Running]]
    versions: Callable[[], Mapping[str, str]]
    why_not: Callable[[], str | None] = lambda: None
    path: str | None = None
    rows: bool = False
    is_peer: bool = False
    width: int = WIDTH
    shared: bool = False


# --- the gateway and Triton ---


def _gateway(server: str, *arguments: str) -> Callable[[Path], AbstractContextManager[Running]]:
    """`loadtests/configs/null.yaml` with *server* as its section, and room for the decisions of a long run."""

    @contextmanager
    def start(folder: Path) -> Iterator[Running]:
        config = (ROOT / "loadtests" / "configs" / "null.yaml").read_text().replace("limit: 1GiB", "limit: 16GiB")
        with running(folder, f"{config}\nserver: {server}\n", arguments) as gateway:
            http, grpc = gateway.http, f"grpc://{gateway.grpc}"
            yield Running(gateway.process.pid, {Form.JSON: http, Form.BINARY: http, Form.GRPC: grpc})

    return start


_CONFIG = """
name: "dbl"
backend: "python"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [16] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [16] } ]
dynamic_batching { }
"""


@contextmanager
def _triton(folder: Path) -> Iterator[Running]:
    model = folder / "models" / "dbl"
    (model / "1").mkdir(parents=True)
    shutil.copy(SERVING / "on_triton.py", model / "1" / "model.py")
    environment = f'parameters {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "{TRITON}" }} }}\n'
    (model / "config.pbtxt").write_text(_CONFIG + environment)
    with triton(folder, folder / "models") as process:
        http, grpc = f"http://{process.http}", f"grpc://{process.grpc}"
        yield Running(process.pid, {Form.JSON: http, Form.BINARY: http, Form.GRPC: grpc})


def triton_versions() -> Mapping[str, str]:
    """What the real Triton is made of."""
    found = {file.name.removesuffix(".dist-info") for file in TRITON.glob("lib/python3.*/site-packages/*.dist-info")}
    pinned = dict(name.split("-", 1) for name in found if name.startswith(("numpy-", "nvidia_pytriton-")))
    return {"triton": "2.51 (of nvidia-pytriton)", **pinned}


# --- those that a command starts ---


@dataclass(frozen=True, slots=True)
class Script:
    """A server that one command starts, in an environment of its own or in the project's.

    Attributes:
        command: after the interpreter; `{port}`, `{grpc_port}`, `{spare0}` to `{spare3}`, `{folder}` and `{bin}` are
            filled in.
        form: what it speaks on its port.
        grpc: it speaks that too, on `{grpc_port}`.
        environment: whose interpreter runs it; None: the project's.
        variables: of its environment, filled in alike.
        files: written to its folder before, with `<port>` and so on filled in, since JSON has braces of its own.
    """

    command: Sequence[str]
    form: Form = Form.JSON
    grpc: bool = False
    environment: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The interpreter."""
        return Path(sys.executable) if self.environment is None else environments.python_of(self.environment)

    @contextmanager
    def start(self, folder: Path) -> Iterator[Running]:
        """Run it until the end of the block; its whole tree ends then."""
        port = free_port()
        names = {
            "port": str(port),
            "grpc_port": str(free_port()),
            "folder": str(folder),
            "bin": str(self.python.parent),
        }
        names |= {f"spare{number}": str(free_port()) for number in range(4)}
        for name, text in self.files.items():
            for key, value in names.items():
                text = text.replace(f"<{key}>", value)
            (folder / name).write_text(text)
        command = [str(self.python), *(word.format(**names) for word in self.command)]
        variables = {key: value.format(**names) for key, value in self.variables.items()}
        if self.environment is None:
            variables["PYTHONPATH"] = f"{ROOT}:{ROOT / 'proto'}"
        with (folder / "log").open("wb") as log:
            process = psutil.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT if self.environment is None else SERVING,
                env={**os.environ, **variables}, start_new_session=True,
            )  # fmt: skip
        scheme = "grpc" if self.form is Form.GRPC else "http"
        urls = {self.form: f"{scheme}://127.0.0.1:{port}"}
        if self.grpc:
            urls[Form.GRPC] = f"grpc://127.0.0.1:{names['grpc_port']}"
        try:
            yield Running(process.pid, urls)
        finally:
            _end(process)


def _end(root: psutil.Popen) -> None:
    """Ask the root of a tree to end, and end what is left of it then."""
    tree: list[psutil.Process] = [root]
    with suppress(psutil.NoSuchProcess):
        tree += root.children(recursive=True)
        root.terminate()
    psutil.wait_procs([root], timeout=_END_S)
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(tree, timeout=_END_S)


def _ours(name: str, about: str, module: str, form: Form) -> Server:
    script = Script(("-m", f"loadtests.peers.serving.{module}", "{port}"), form)
    return Server(name, about, (form,), script.start, lambda: environments.versions(script.python))


def _peer(name: str, about: str, script: Script, path: str | None = None) -> Server:
    assert script.environment is not None
    environment = script.environment
    return Server(
        name, about, (script.form,), script.start, lambda: environments.versions(script.python),
        lambda: environments.why_not(environment), path, path is not None, is_peer=True,
    )  # fmt: skip


def _mlserver(workers: int) -> Script:
    return Script(
        ("{bin}/mlserver", "start", "{folder}"),
        environment="mlserver",
        variables={"PYTHONPATH": str(SERVING)},
        files={
            "model-settings.json": json.dumps({"name": "dbl", "implementation": "on_mlserver.Doubler"}),
            "settings.json": '{"host": "127.0.0.1", "http_port": <port>, "grpc_port": <spare0>, '
            f'"metrics_port": <spare1>, "debug": false, "parallel_workers": {workers}}}',
        },
    )


def _bentoml(service: str) -> Script:
    command = ("{bin}/bentoml", "serve", f"on_bentoml:{service}", "--host", "127.0.0.1", "--port", "{port}")
    return Script(command, environment="bentoml", variables={"BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": "{folder}"})


def _litserve(max_batch: int) -> Script:
    return Script((str(SERVING / "on_litserve.py"), "{port}", str(max_batch)), environment="litserve")


def _ray(**variables: str) -> Script:
    command = (str(SERVING / "on_ray.py"), "{port}")
    return Script(command, environment="ray", variables={"RAY_TMPDIR": "{folder}", **variables})


_ALL = (Form.JSON, Form.BINARY, Form.GRPC)
_KSERVE = Script(
    (
        *(str(SERVING / "on_kserve.py"), "--http_port", "{port}"),
        *("--enable_grpc", "false", "--enable_latency_logging", "false"),
    ),
    environment="kserve",
)
HAPROXY_VARIABLES: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "{folder}/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "{folder}/admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "{folder}",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "{folder}/state",
    "RAY_SERVE_HAPROXY_METRICS_PORT": "{spare0}",
    "RAY_SERVE_HAPROXY_STATS_PORT": "{spare1}",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": "{spare2}",
}
"""Ray Serve's HAProxy and throughput mode, with what they keep in the folder of a `Script`."""

_HAPROXY = _ray(**HAPROXY_VARIABLES)


def gateway_versions() -> Mapping[str, str]:
    """What the gateway is made of."""
    return environments.versions(Path(sys.executable))


SERVERS: Mapping[str, Server] = {
    server.name: server
    for server in (
        Server("gateway", "one process", _ALL, _gateway("{shared_memory: {enabled: true}}"), gateway_versions),
        Server("gateway-2", "two workers", _ALL, _gateway("{workers: 2}"), gateway_versions),
        Server(
            "gateway-grpcio", "gRPC on grpcio", (Form.GRPC,), _gateway("{grpc_transport: grpcio}"), gateway_versions
        ),
        Server("triton", "Python backend, dynamic batching", _ALL, _triton, triton_versions, why_no_triton),
        _ours("uvicorn", "ASGI, orjson and NumPy alone", "on_uvicorn", Form.JSON),
        _ours("grpc.aio", "a servicer and NumPy alone", "on_grpc_aio", Form.GRPC),
        _peer("kserve", "SDK, custom predictor", _KSERVE),
        _peer("mlserver", "custom runtime in a worker, as by default", _mlserver(1)),
        _peer("mlserver-inline", "custom runtime, no worker", _mlserver(0)),
        _peer("litserve", "no batching, as by default", _litserve(1), "/predict"),
        _peer("litserve-batched", "up to 64", _litserve(64), "/predict"),
        _peer("bentoml", "no batching, as by default", _bentoml("Doubler"), "/infer"),
        _peer("bentoml-batched", "adaptive batching, up to 64", _bentoml("BatchedDoubler"), "/infer"),
        _peer("ray", "Ray Serve, default HTTP proxy", _ray(), "/"),
        _peer("ray-haproxy", "Ray Serve, HAProxy and throughput mode", _HAPROXY, "/"),
    )
}
"""All of them by name, in the order of reports."""
