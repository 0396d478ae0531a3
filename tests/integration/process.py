"""A real gateway in a process of its own, for tests that talk to it as its users do."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.folders import remove_left_over

ROOT = Path(__file__).parents[2]

CONFIG = """
models:
  fast:
    backend: python
    target: tests.integration.models:fast
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [a, b, c]
    cost: 0.1
  strong:
    backend: python
    target: tests.integration.models:strong
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [a, b, c]
  double:
    backend: python
    target: tests.integration.models:double
    inputs: [{name: x, datatype: FP32, shape: [-1]}]
    outputs: [{name: y, datatype: FP32, shape: [-1]}]
    max_batch: 16
    expose: true

routes:
  words:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [fast, strong]
    accept: {min_confidence: 0.9, max_error: 5%}
    human: {queue: words, due: 1h, form: labels}
    on_defer: provisional
    slo: {deadline: 5s}
  alone:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [fast]
    accept: {min_confidence: 0.9}
    on_defer: error
    slo: {deadline: 250ms}

classify:
  - when: {route: auto, content_type: "text/*"}
    route: words
  - otherwise: none

store: {path: store.db, retention: 1d, limit: 1GiB}
"""


@dataclass(slots=True)
class GatewayProcess:
    """A running gateway: where it listens, and what it printed."""

    process: subprocess.Popen[str]
    http: str
    grpc: str
    control: str
    log: list[str] = field(default_factory=list)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM, and wait for the end; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def wait_for(condition: Callable[[], bool], within_s: float = 40.0) -> None:
    """Return when *condition* holds.

    Raises:
        AssertionError: it does not, for *within_s* seconds.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about in {within_s:g} s"
        time.sleep(0.05)


def listens(host: str, port: int) -> bool:
    """Whether connections are accepted there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def running(folder: Path, config: str = CONFIG, arguments: Sequence[str] = ()) -> Iterator[GatewayProcess]:
    """A gateway on *config*, which is written to *folder*; ended on leaving, if it still runs."""
    path = folder / "gateway.yaml"
    path.write_text(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve", str(path), "--http-port", "0", "--grpc-port", "0",
         "--control-port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    )  # fmt: skip
    log: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda stream: log.extend(stream), args=(process.stderr,), daemon=True)
    reader.start()
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if "pointsman ready" not in ready:
            process.wait(timeout=10)
            reader.join(timeout=5)
            raise AssertionError(f"the gateway did not start: {''.join(log)}")
        found = dict(re.findall(r"(\w+)=(\S+)", ready))
        yield GatewayProcess(process, found["http"], found["grpc"], found["control"], log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        remove_left_over()  # what one that was killed could not
        reader.join(timeout=5)
        process.stdout.close() if process.stdout else None
        process.stderr.close()
