"""`pointsman cluster up` in a process of its own, as an operator starts it, and what runs below it."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import yaml

from gateway.cluster.launch import LOOPBACK
from gateway.store import Postgres
from tests.integration.process import CONFIG, ROOT, listens, wait_for

READY_S = 170.0
GATEWAY, MODEL = "gateway", "model-double"
NODE_CPUS = 3
"""Of a node that has room for one replica of each kind, where they ask for two cores and one."""

CLUSTER_CONFIG = (
    CONFIG.replace(
        "    target: tests.integration.models:double\n",
        "    target: tests.integration.models:double\n    serve: {replicas: 2, num_cpus: 0.1}\n",
    )
    + "cluster: {replicas: 2, num_cpus: 0.1, targets: targets}\n"
)


def shared_config(place: Postgres, models: str = CONFIG) -> str:
    """*models*, served by two gateways whose store is at *place*."""
    document = yaml.safe_load(models)
    document["store"] = {"postgres": {"url_file": str(place.url_file)}, "retention": "1d"}
    # What a client's shared memory is registered with is one process, so a cluster has none.
    document["server"] = {}
    document["cluster"] = {"replicas": 2, "num_cpus": 0.1, "targets": "targets"}
    return yaml.safe_dump(document)


def why_not() -> str | None:
    """Why no cluster can run here, or None where one can."""
    if importlib.util.find_spec("ray") is not None:
        return None
    if (ROOT / ".venv-ray/.installed").exists():
        return "this environment has no Ray; make test-ray runs these tests in one that has"
    reason = ROOT / ".venv-ray/why-not"
    said = reason.read_text().strip().splitlines() if reason.exists() else []
    return f"there is no Ray here: {said[-1] if said else 'run make test-ray, which says why'}"


@dataclass(slots=True)
class Cluster:
    """A cluster that is ready.

    Attributes:
        folder: that `up` was given.
        config: its configuration file, to be changed and given to another `up`.
        control: of one of the replicas; after an upgrade of another.
    """

    process: subprocess.Popen[str]
    folder: Path
    config: Path
    http: str
    grpc: str
    control: str
    log: list[str] = field(default_factory=list)

    def replicas(self, deployment: str) -> set[int]:
        """The processes that run *deployment*."""
        return replicas_below(self.process.pid, deployment)

    def serving(self, deployment: str) -> set[int]:
        """Those of them that serve: whose initialisation is over."""
        return {pid for pid in self.replicas(deployment) if _serves(pid)}

    def processes(self) -> list[psutil.Process]:
        """All that run below `up`."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def targets(self) -> set[str]:
        """The metrics addresses that Prometheus is told."""
        return targets_of(self.config.parent)

    def serve(self, config: str) -> None:
        """Have it serve *config*, if it does not yet."""
        if self.config.read_text() != config:
            self.upgrade(config)

    def up(self, config: str) -> subprocess.CompletedProcess[str]:
        """Another `up`, with *config*, and what came of it."""
        self.config.write_text(config)
        return subprocess.run(
            command("up", str(self.config), "--folder", str(self.folder)), capture_output=True, text=True, cwd=ROOT,
            env=environment(), timeout=READY_S, check=False,
        )  # fmt: skip

    def upgrade(self, config: str) -> None:
        """Another `up`, with *config*; returns when that is served."""
        done = self.up(config)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert "pointsman ready" in done.stdout
        wait_for(lambda: len(self.replicas(GATEWAY)) == len(self.targets()) == 2)  # those before them have left
        wait_for(self.answers_at_control)

    def answers_at_control(self) -> bool:
        """Whether one of the replicas answers at the control port that the first `up` announced."""
        where = urlsplit(self.control)
        assert where.hostname is not None
        assert where.port is not None
        return listens(where.hostname, where.port)

    def down(self) -> None:
        """End it as an operator does."""
        words = command("down", "--folder", str(self.folder))
        subprocess.run(words, check=True, cwd=ROOT, env=environment(), timeout=120)


def replicas_below(root: int, deployment: str) -> set[int]:
    """The processes below *root* that run *deployment*."""
    found = set()
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            name = " ".join(process.cmdline())
            if name.startswith("ray::ServeReplica") and f":{deployment}" in name:
                found.add(process.pid)
    return found


def _serves(pid: int) -> bool:
    try:
        return "initialize" not in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def targets_of(folder: Path) -> set[str]:
    """The metrics addresses that Prometheus is told where a configuration in *folder* is served."""
    files = (folder / "targets").glob("*.json")
    return {address for file in files for address in re.findall(r'"(127\.0\.0\.1:\d+)"', file.read_text())}


CLI = ("-m", "gateway.cli")
"""The program whose group `cluster` it is, to Python."""


def command(*words: str, program: Sequence[str] = CLI) -> list[str]:
    """Of the group `cluster`."""
    return [sys.executable, *program, "cluster", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def running(
    folder: Path, config: str = CLUSTER_CONFIG, arguments: Sequence[str] = (), program: Sequence[str] = CLI
) -> Iterator[Cluster]:
    """A cluster on *config*, which is written to *folder*; nothing of it is left afterwards."""
    path = folder / "gateway.yaml"
    path.write_text(config)
    short = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp"))  # Ray's sockets are below it, with long names
    ports = ("--http-port", "0", "--grpc-port", "0", "--control-port", "0")
    process = subprocess.Popen(
        command("up", str(path), "--folder", str(short), *ports, *arguments, program=program), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), start_new_session=True,
    )  # fmt: skip
    log: list[str] = []
    assert process.stderr is not None
    assert process.stdout is not None
    stderr, stdout = process.stderr, process.stdout
    readers = [threading.Thread(target=lambda: log.extend(stderr), daemon=True)]
    readers[0].start()
    try:
        ready = _ready_line(process, stdout, log)
        readers.append(threading.Thread(target=lambda: log.extend(stdout), daemon=True))  # replicas may write there
        readers[1].start()
        found = dict(re.findall(r"(\w+)=(\S+)", ready))
        cluster = Cluster(process, short, path, found["http"], found["grpc"], found["control"], log)
        yield cluster
    finally:
        end_all(process)
        for reader in readers:
            reader.join(timeout=5)
        stdout.close()
        stderr.close()
        shutil.rmtree(short, ignore_errors=True)


def end_all(process: subprocess.Popen[str]) -> None:
    """End *process*, and whatever is left below it."""
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
    if process.poll() is None:
        process.kill()
    process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=10)


def _ready_line(process: subprocess.Popen[str], stdout: Iterator[str], log: list[str]) -> str:
    timer = threading.Timer(READY_S, process.kill)
    timer.start()
    try:
        for line in stdout:
            if line.startswith("pointsman ready"):
                return line
            log.append(line)
        process.wait(timeout=10)
        raise AssertionError(f"the cluster did not start: {''.join(log[-60:])}")
    finally:
        timer.cancel()


@contextlib.contextmanager
def joined(cluster: Cluster) -> Iterator[None]:
    """Make this process one of *cluster*'s drivers, as an operator's script is, until the end of the block.

    Nothing of Ray may have been imported before: it looks at its environment once.
    """
    os.environ |= {**LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.folder / "token")}
    import ray

    address = json.loads((cluster.folder / "running").read_text())["ray"]
    ray.init(address=address, namespace="serve", log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray leaves files to the collector
            gc.collect()
