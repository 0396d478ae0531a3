"""The gateway and Triton before the same model, and what becomes of a trace at either."""

from __future__ import annotations

import json
import math
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from loadtests.generator.load import Plan
from loadtests.generator.report import Report, generate
from loadtests.goodput_real.workloads import MODEL, Point, Workload
from tests.conformance.triton import FOLDER as TRITON
from tests.conformance.triton import triton
from tests.integration.process import running

_CONNECTIONS = 1024
_PATIENCE_S = 2.0


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
        return f"{MODEL}-{round(self.delay_s * 1e6)}-{self.preferred}"


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs."""

    url: str
    pid: int

    def replayed(
        self,
        moments: Sequence[float],
        model: str = MODEL,
        *,
        within_s: float = math.inf,
        timeout_s: float | None = None,
        slices: int = 1,
    ) -> Report:
        """What becomes of requests at *moments*, which say that they wait *timeout_s* at most."""
        plan = Plan(
            self.url,
            model,
            seconds=moments[-1] + 0.001,
            moments=tuple(moments),
            within_s=within_s,
            timeout_s=timeout_s,
            connections=_CONNECTIONS,
            patience_s=_PATIENCE_S,
            slices=slices,
        )
        return generate(plan, self.pid)

    def batches(self) -> int:
        """How many have run since the start."""
        with urllib.request.urlopen(f"{self.url}/v2/models/{MODEL}/stats") as reply:  # noqa: S310  # our own
            return int(json.load(reply)["model_stats"][0]["execution_count"])


def ask_gateway(server: Server, point: Point, seed: int, *, slices: int = 1) -> Report:
    """What the gateway makes of *point*, told how long its callers can wait."""
    timeout_s, within_s = point.timeout_s, point.within_s
    return server.replayed(point.moments(seed), within_s=within_s, timeout_s=timeout_s, slices=slices)


def ask_triton(server: Server, point: Point, seed: int, setting: Setting) -> Report:
    """What Triton, batching by *setting*, makes of *point*."""
    timeout_s = None if setting.timeout is None else setting.timeout * point.timeout_s
    return server.replayed(point.moments(seed), setting.model, within_s=point.within_s, timeout_s=timeout_s)


@contextmanager
def servers(workload: Workload, folder: Path) -> Iterator[tuple[Server, Server]]:
    """The gateway and Triton, both warm, with *workload*; they write to *folder*."""
    with ExitStack() as stack:
        (folder / "gateway").mkdir()
        gateway = stack.enter_context(running(folder / "gateway", workload.gateway(), ("--log-level", "WARNING")))
        for delay_s, preferred in product(workload.delays_s, workload.preferred):
            _write(folder / "models", workload, Setting(delay_s, preferred))
        process = stack.enter_context(triton(folder, folder / "models"))
        yield Server(gateway.http, gateway.process.pid), Server(f"http://{process.http}", process.pid)


def _write(repository: Path, workload: Workload, setting: Setting) -> None:
    """A model of Triton's repository."""
    version = repository / setting.model / "1"
    version.mkdir(parents=True)
    shutil.copy(workload.on_triton, version / "model.py")
    for package in workload.packages:
        (version / package.name).symlink_to(package)
    (repository / setting.model / "config.pbtxt").write_text(config(workload, setting))


def config(workload: Workload, setting: Setting) -> str:
    """Triton's configuration of *workload*, batching by *setting*; a request may bring its own timeout."""
    preferred = f"preferred_batch_size: [ {setting.preferred} ]" if setting.preferred else ""
    parameters = {"EXECUTION_ENV_PATH": str(TRITON), **workload.parameters}
    written = "".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n' for key, value in parameters.items()
    )
    return f"""
        name: "{setting.model}"
        backend: "python"
        max_batch_size: {workload.max_batch}
        input [ {{ name: "x" data_type: TYPE_FP32 dims: [16] }} ]
        output [ {{ name: "y" data_type: TYPE_FP32 dims: [16] }} ]
        instance_group [ {{ kind: KIND_CPU count: 1 }} ]
        dynamic_batching {{
            {preferred}
            max_queue_delay_microseconds: {round(setting.delay_s * 1e6)}
            default_queue_policy {{ timeout_action: REJECT allow_timeout_override: true
                                    default_timeout_microseconds: 60000000 }}
        }}
        {written}"""
