"""Models that a real Triton has in memory only while they are open here: `model_control: explicit`."""

from __future__ import annotations

import asyncio
import shutil
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as client
import yaml

from backends.contract import NO_DEADLINE, Backend, Batch, State, Tensor
from backends.errors import BackendFailed, InvalidInput, NotFound
from backends.replicas import ReplicaOptions, ReplicasStatistics, ReplicaState
from backends.told import loaded_of, statistics_of
from backends.triton.model import ModelControl, TritonOptions, open_triton
from backends.warm.entry import Ladder, WarmOptions
from backends.warm.pool import WarmPool
from backends.warm.report import IgnorePool, Step, StepReport
from tests.conformance.conftest import Servers
from tests.conformance.repository import only, write_repository
from tests.conformance.triton import TritonProcess, triton, why_not
from tests.faults.oracle import wait_for
from tests.integration.process import running

EXPLICIT = "--model-control-mode=explicit"
BATCH = Batch.of({"x": Tensor.of(np.ones((2, 16), np.float32))})
ENSEMBLE = """
name: "both"
platform: "ensemble"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 16 ] } ]
ensemble_scheduling { step [
  { model_name: "dbl" model_version: -1
    input_map { key: "x" value: "x" } output_map { key: "y" value: "once" } },
  { model_name: "dbl2" model_version: -1
    input_map { key: "x" value: "once" } output_map { key: "y" value: "y" } }
] }
"""


def write_models(folder: Path) -> Path:
    """`dbl`, which doubles, `dbl2`, which does the same, `both`, which is made of them, `animals`, and `broken`."""
    models = write_repository(folder, only("dbl", "animals"))
    for name in ("dbl2", "broken"):
        shutil.copytree(models / "dbl", models / name)
        config = models / name / "config.pbtxt"
        config.write_text(config.read_text().replace('"dbl"', f'"{name}"'))
    (models / "broken/1/model.py").write_text("raise ValueError('the weights are gone')")
    (models / "both/1").mkdir(parents=True)
    (models / "both/config.pbtxt").write_text(ENSEMBLE)
    return models


@contextmanager
def served(folder: Path, *options: str) -> Iterator[TritonProcess]:
    if reason := why_not():
        pytest.skip(reason)
    folder.mkdir()
    with triton(folder, write_models(folder / "models"), *options) as server:
        yield server


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A Triton under explicit control that has loaded nothing."""
    with served(tmp_path_factory.mktemp("one") / "triton", EXPLICIT) as server:
        yield server


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """Another, where `animals` and `dbl2` take seconds to load."""
    folder = tmp_path_factory.mktemp("other") / "triton"
    with served(folder, EXPLICIT) as server:
        for name in ("animals", "dbl2"):
            file = folder / "models" / name / "1/model.py"
            file.write_text(file.read_text().replace("import importlib", "import importlib, time; time.sleep(2.5)", 1))
        yield server


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def ready(server: TritonProcess) -> set[str]:
    """The models that are in its memory, in whole or in part."""
    with client.InferenceServerClient(server.http) as asked:
        index = asked.get_model_repository_index()
    return {model["name"] for model in index if model.get("state") in ("READY", "LOADING", "UNLOADING")}


def controlled(url: str | tuple[str, ...], model: str = "dbl", **more: Any) -> TritonOptions:
    return TritonOptions(url, model=model, model_control=ModelControl.EXPLICIT, **more)


@asynccontextmanager
async def opened(options: TritonOptions) -> AsyncIterator[Backend]:
    backend = await open_triton("mine", options)
    try:
        yield backend
    finally:
        await backend.aclose()


async def factor_of(backend: Backend) -> float:
    return float((await backend.infer(BATCH, NO_DEADLINE))["y"].numpy()[0, 0])


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_opening_loads_and_closing_unloads(one: TritonProcess, protocol: str) -> None:
    async with opened(controlled(f"{protocol}://{getattr(one, protocol)}")) as backend:
        assert ready(one) == {"dbl"}
        assert await factor_of(backend) == 2.0
        loaded = loaded_of(backend)
        assert loaded is not None
        assert loaded.nbytes is None  # Triton's Python backend keeps no account

    assert ready(one) == set()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_load_that_fails_is_told_in_the_server_s_words(one: TritonProcess, protocol: str) -> None:
    url = f"{protocol}://{getattr(one, protocol)}"

    with pytest.raises(BackendFailed, match="the weights are gone"):
        await open_triton("mine", controlled(url, "broken"))
    with pytest.raises(NotFound, match="no model 'nowhere'"):
        await open_triton("mine", controlled(url, "nowhere"))


async def test_a_server_without_explicit_control_is_refused_with_the_remedy(servers: Servers) -> None:
    for url in (f"http://{servers.triton.http}", f"grpc://{servers.triton.grpc}"):
        with pytest.raises(InvalidInput, match="start it with --model-control-mode=explicit"):
            await open_triton("mine", controlled(url))


async def test_who_closes_first_leaves_the_model_to_the_other(one: TritonProcess) -> None:
    url = f"http://{one.http}"
    async with opened(controlled(url)) as second:
        async with opened(controlled(url)):
            pass
        assert await factor_of(second) == 2.0

    assert ready(one) == set()


async def test_many_that_open_at_once_load_once_and_the_last_unloads(one: TritonProcess) -> None:
    backends = await asyncio.gather(*(open_triton("mine", controlled(f"http://{one.http}")) for _ in range(4)))

    await asyncio.gather(*(backend.aclose() for backend in backends[1:]))
    assert await factor_of(backends[0]) == 2.0
    await backends[0].aclose()
    assert ready(one) == set()


async def test_what_somebody_else_has_loaded_stays(one: TritonProcess) -> None:
    with client.InferenceServerClient(one.http) as other:
        other.load_model("dbl")
        async with opened(controlled(f"http://{one.http}")) as backend:
            assert await factor_of(backend) == 2.0
        assert ready(one) == {"dbl"}
        other.unload_model("dbl")
    wait_for(lambda: not ready(one))


async def test_the_parts_of_an_ensemble_go_with_it_but_those_that_somebody_else_uses(one: TritonProcess) -> None:
    url = f"http://{one.http}"
    async with opened(controlled(url, "dbl2")) as part:
        async with opened(controlled(url, "both")) as both:
            assert ready(one) == {"both", "dbl", "dbl2"}
            assert await factor_of(both) == 4.0
        assert ready(one) == {"dbl2"}
        assert await factor_of(part) == 2.0

    assert ready(one) == set()


async def test_a_part_that_another_ensemble_needs_is_not_taken_from_it(one: TritonProcess) -> None:
    url = f"http://{one.http}"
    part = await open_triton("mine", controlled(url))
    with client.InferenceServerClient(one.http) as other:
        other.load_model("both")
        await part.aclose()
        assert ready(one) >= {"both", "dbl"}
        for name in ("both", "dbl", "dbl2"):
            other.unload_model(name)
    wait_for(lambda: not ready(one))


async def test_a_model_that_is_unloaded_behind_its_back_is_loaded_anew(
    one: TritonProcess, caplog: pytest.LogCaptureFixture
) -> None:
    options = controlled(f"http://{one.http}", replicas=ReplicaOptions(probe_every_s=0.2, eject_s=0.2))
    async with opened(options) as backend:
        with client.InferenceServerClient(one.http) as other:
            other.unload_model("dbl")
        await until(lambda: backend.state is not State.READY)
        await until(lambda: backend.state is State.READY)
        assert await factor_of(backend) == 2.0

    assert "is unloaded at" in caplog.text
    assert ready(one) == set()


class Steps(IgnorePool):
    """What was told of loads."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.left = asyncio.Event()

    def on_load_step(self, report: StepReport) -> None:
        self.reports.append(report)

    def on_unload(self, model: str, error: BaseException | None) -> None:
        self.left.set()


def servers_of(backend: Backend) -> list[tuple[ReplicaState, int]]:
    """The state of every server, and what it has answered."""
    found = statistics_of(backend, ReplicasStatistics)
    assert found is not None
    return [(replica.state, replica.answered) for replica in found.replicas]


async def test_a_pool_loads_and_unloads_it_and_counts_over_its_lives(one: TritonProcess) -> None:
    steps = Steps()
    ahead_s = 0.0
    loop = asyncio.get_running_loop()
    options = controlled(f"http://{one.http}")
    async with WarmPool(100.0, clock=lambda: loop.time() + ahead_s, observer=steps) as pool:
        model = await pool.open("mine", Ladder(lambda: open_triton("mine", options)), WarmOptions(0, 60))
        await factor_of(model)

        ahead_s += 1e6
        pool.poke()
        await asyncio.wait_for(steps.left.wait(), 30)
        assert ready(one) == set()
        assert servers_of(model) == [(ReplicaState.UNLOADED, 1)]

        assert await factor_of(model) == 2.0
        assert servers_of(model) == [(ReplicaState.HEALTHY, 2)]
        loads_s = [report.duration_s for report in steps.reports if report.step is Step.OPEN]
        assert len(loads_s) == 2
        assert min(loads_s) > 0.05  # a process that starts, and NumPy that it imports
        await model.aclose()
    assert ready(one) == set()


async def test_a_pool_with_a_limit_must_be_told_what_it_takes(one: TritonProcess) -> None:
    options = controlled(f"http://{one.http}")
    async with WarmPool(1e9) as pool:
        with pytest.raises(InvalidInput, match="does not say how much memory it takes"):
            await pool.open("mine", Ladder(lambda: open_triton("mine", options)))
    assert ready(one) == set()


async def test_calls_go_to_the_replica_that_has_loaded_while_the_other_loads(
    one: TritonProcess, other: TritonProcess
) -> None:
    urls = (f"http://{one.http}", f"http://{other.http}")
    options = controlled(urls, "dbl2", replicas=ReplicaOptions(start_grace_s=0.0, probe_every_s=0.2))
    async with opened(options) as backend:
        assert [state for state, _ in servers_of(backend)] == [ReplicaState.HEALTHY, ReplicaState.JOINING]
        for _ in range(10):
            assert await factor_of(backend) == 2.0
        async with asyncio.timeout(30):
            while servers_of(backend)[1][1] < 3:
                assert await factor_of(backend) == 2.0
                await asyncio.sleep(0.02)
        found = statistics_of(backend, ReplicasStatistics)
        assert found is not None
        assert (found.retries, sum(replica.failures for replica in found.replicas)) == (0, 0)
        assert (ready(one), ready(other)) == ({"dbl2"}, {"dbl2"})
    assert (ready(one), ready(other)) == (set(), set())


def stage_of(url: str, timeout_us: int) -> str:
    """The stage that answers the route `either` there."""
    x = client.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.array([[0.0, 1.0, 0.0, 0.0]], np.float32))
    with client.InferenceServerClient(url) as asked:
        reply = asked.infer("either", [x], timeout=timeout_us)
        return str(reply.get_response()["parameters"]["pointsman_stage"])


@pytest.mark.timeout(120)
def test_a_gateway_sends_a_request_to_the_next_stage_while_the_first_is_loaded(
    one: TritonProcess, other: TritonProcess, tmp_path: Path
) -> None:
    """Two Tritons; the first stage's model takes longer to load than the request has."""
    far = {"backend": "triton", "url": f"http://{other.http}", "model_control": "explicit"}
    pooled = {"keep": 0, "memory": "60MiB"}
    config = {
        "models": {
            "far": {**far, "model": "animals", "warm": dict(pooled)},
            "spare": {**far, "model": "dbl", "expose": True, "warm": dict(pooled)},
            "near": {**far, "model": "animals", "url": f"http://{one.http}"},
        },
        "routes": {"either": {
            "input": {"x": {"datatype": "FP32", "shape": [4]}}, "cascade": ["far", "near"],
            "accept": {"min_confidence": 0.0}, "on_defer": "provisional", "slo": {"deadline": "30s"},
        }},
        "pool": {"memory": "100MiB"},
        "store": {"path": "store.db", "retention": "1d", "limit": "1GiB"},
    }  # fmt: skip
    with running(tmp_path, yaml.safe_dump(config)) as gateway:
        at = gateway.http.removeprefix("http://")
        with client.InferenceServerClient(at) as asked:
            x = client.InferInput("x", [1, 16], "FP32")
            x.set_data_from_numpy(np.ones((1, 16), np.float32))
            asked.infer("spare", [x])  # which leaves no room for the first stage's model
        assert ready(other) == {"dbl"}

        assert stage_of(at, 700_000) == "near"
        wait_for(lambda: ready(other) == {"animals"} and stage_of(at, 5_000_000) == "far", within_s=30)

        with urllib.request.urlopen(f"{gateway.control}/metrics") as response:
            told = response.read().decode()
        with urllib.request.urlopen(f"{gateway.control}/") as response:
            page = response.read().decode()
        assert f'pointsman_replica_answers_total{{model="spare",replica="http://{other.http}"}} ' in told
        assert 'pointsman_replica_up{model="far"' in told
        assert 'pointsman_replica_up{model="spare"' not in told
        assert f"<td>http://{other.http}</td>" in page
        assert ">unloaded<" in page
        assert gateway.terminate() == 0
    wait_for(lambda: not ready(one) and not ready(other))  # it need not stay until they are gone
