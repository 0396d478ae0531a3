"""Models as deployments, held to the contract of backends on the Serve of the folder's cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import magika
import numpy as np
import pytest
from numpy.typing import NDArray

from backends.conformance import exercise_backend
from backends.contract import Backend, Batch, Datatype, Deadline, Tensor, TensorSpec
from backends.echo import EchoOptions
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound, PointsmanError, Unavailable
from backends.python import PythonOptions
from backends.ray_serve.backend import RayServeOptions, open_deployment, open_ray_serve
from gateway.compose import Gateway, compose, open_configured
from gateway.request import Protocol, Request, TensorInputs
from gateway.serve import background, maintaining
from gateway.settings import load_settings
from tests.integration.ray.clusters import Cluster, joined

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of which there are many

Sample = Callable[[int, np.random.Generator], Batch]
_APP = "kit"


_MEETING = threading.Barrier(2)
_MEET, _SLEEP, _FAIL = 5e5, 1e6, -1e6


def double(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Numbers in, twice as much out; some make it fail, sleep so many seconds, or wait for another such call."""
    if (inputs["x"] < _FAIL).any():
        raise ValueError("secret-internal-detail")
    if (inputs["x"] == _MEET).any():
        _MEETING.wait(timeout=20)
    time.sleep(float(max(0.0, inputs["x"].max() - _SLEEP)))
    return {"y": inputs["x"] * 2}


def _floats(size: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.normal(size=(size, 4)).astype(np.float32))})


def _large(size: int, rng: np.random.Generator) -> Batch:
    """1 MB an item: through the node's shared memory."""
    return Batch.of({"input": Tensor.of(rng.normal(size=(size, 250_000)).astype(np.float32))})


def _texts(size: int, rng: np.random.Generator) -> Batch:
    texts = np.array([[rng.bytes(int(rng.integers(0, 40)))] for _ in range(size)], object)
    return Batch.of({"input": Tensor.of(texts)})


_X, _Y = (TensorSpec(name, Datatype.FP32, (4,)) for name in "xy")
_DOUBLE = PythonOptions("tests.integration.ray.test_backend:double", (_X,), (_Y,), max_batch=8, max_in_flight=2)

MODELS: dict[str, tuple[str, Any, Sample]] = {
    "floats": ("python", _DOUBLE, _floats),
    "texts": ("echo", EchoOptions(Datatype.BYTES, (1,), max_batch=8), _texts),
    "large": ("echo", EchoOptions(Datatype.FP32, (250_000,), max_batch=3), _large),
}


@pytest.fixture(scope="module")
def handles(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Handles to a deployment of each of `MODELS`; this process joins the cluster as an operator's script does."""
    with joined(cluster):
        from ray import serve

        from backends.ray_serve.deployment import ModelReplica

        found = {}
        for name, (kind, options, _) in MODELS.items():
            deployment = serve.deployment(
                name=name,
                max_ongoing_requests=3,
                ray_actor_options={"num_cpus": 0.1},
                graceful_shutdown_wait_loop_s=0.1,
            )(ModelReplica)
            app = deployment.bind(name, kind, options, f"digest of {name}")
            found[name] = serve.run(app, name=f"{_APP}-{name}", route_prefix=None)
        yield found
        for name in MODELS:
            serve.delete(f"{_APP}-{name}")


def labelled(old: bool, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return {"y": np.tile(np.array([old, not old, 0], np.float32), (len(inputs["x"]), 1))}


def old_label(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The first of three classes."""
    return labelled(True, inputs)


def new_label(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The second."""
    return labelled(False, inputs)


def own_label(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The third."""
    return {"y": np.tile(np.array([0, 0, 1], np.float32), (len(inputs["x"]), 1))}


_RULES = (
    "input: {x: {datatype: FP32, shape: [4]}}, accept: {min_confidence: 0.5}, on_defer: error, slo: {deadline: 20s}"
)
FOLLOWING = f"""
models:
  followed: {{backend: ray_serve, deployment: followed, app: {_APP}-followed, replicas: 2, labels: [old, new, own]}}
  own:
    backend: python
    target: tests.integration.ray.test_backend:own_label
    inputs: [{{name: x, datatype: FP32, shape: [4]}}]
    outputs: [{{name: y, datatype: FP32, shape: [3]}}]
    labels: [old, new, own]
routes:
  alone: {{cascade: [followed], {_RULES}}}
  both: {{cascade: [followed, own], {_RULES}}}
"""


def deployed(target: str) -> None:
    """Have `followed` be *target*, as whoever looks after it would."""
    from ray import serve

    from backends.ray_serve.deployment import ModelReplica

    deployment = serve.deployment(
        name="followed", num_replicas=2, ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_wait_loop_s=0.1
    )(ModelReplica)
    side = TensorSpec("y", Datatype.FP32, (3,))
    options = PythonOptions(f"tests.integration.ray.test_backend:{target}", (_X,), (side,), max_batch=8)
    serve.run(deployment.bind("followed", "python", options, target), name=f"{_APP}-followed", route_prefix=None)


async def asking(gateway: Gateway, route: str, labels: list[str]) -> None:
    """Ask for ever; what comes of it is entered into *labels*."""
    x = Tensor.of(np.ones((1, 4), np.float32))
    while True:
        try:
            answer = await gateway.pipeline.decide(Request(route, TensorInputs({"x": x}), Protocol.OIP_GRPC))
            labels.append(str(answer.items[0].label))
        except PointsmanError as error:
            labels.append(f"{error.code}: {error}")
            await asyncio.sleep(0.01)


async def many_more(labels: list[str], wanted: str) -> None:
    """Return when the last 20 are *wanted*."""
    async with asyncio.timeout(60):
        while set(labels[-20:]) != {wanted} or len(labels) < 20:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.05)


async def test_a_deployment_that_is_upgraded_by_others_is_followed(handles: dict[str, Any], tmp_path: Path) -> None:
    """A route with another stage answers all the time, by that one where need be."""
    (tmp_path / "gateway.yaml").write_text(FOLLOWING)
    await asyncio.to_thread(deployed, "old_label")
    labels: dict[str, list[str]] = {"alone": [], "both": []}
    async with compose(load_settings(tmp_path / "gateway.yaml")) as gateway:
        before = gateway.pipeline.catalog.models["followed"].backend.version
        callers = [asking(gateway, route, found) for route, found in labels.items()]
        async with background(maintaining(gateway.maintain), gateway.loader.watch(), *callers):
            await asyncio.gather(*(many_more(found, "old") for found in labels.values()))

            await asyncio.to_thread(deployed, "new_label")

            await asyncio.gather(*(many_more(found, "new") for found in labels.values()))
        after = gateway.pipeline.catalog.models["followed"].backend.version

    print(*(Counter(found) for found in labels.values()))
    assert set(labels["both"]) <= {"old", "new", "own"}
    assert all(label.startswith("unavailable") for label in set(labels["alone"]) - {"old", "new"})
    assert before.split("-")[0] == after.split("-")[0]
    assert before != after  # or what was proven of one would count for the other


async def opened(name: str) -> Backend:
    return await open_ray_serve(name, RayServeOptions(name, f"{_APP}-{name}"))


@pytest.mark.parametrize("name", MODELS)
async def test_a_deployment_keeps_the_contract(handles: dict[str, Any], name: str) -> None:
    await exercise_backend(lambda: opened(name), MODELS[name][2])


def floats(*values: float) -> Batch:
    return Batch.of({"x": Tensor.of(np.array([[v] * 4 for v in values], np.float32))})


async def test_a_model_that_fails_says_so_and_nothing_of_its_insides(handles: dict[str, Any]) -> None:
    backend = await opened("floats")

    with pytest.raises(BackendFailed) as failed:
        await backend.infer(floats(2 * _FAIL), Deadline(time.monotonic() + 10))

    assert "secret" not in str(failed.value)
    await backend.aclose()


async def test_a_call_ends_at_its_deadline_though_the_model_goes_on(handles: dict[str, Any]) -> None:
    backend = await opened("floats")
    began = time.monotonic()

    with pytest.raises(DeadlineExceeded):
        await backend.infer(floats(_SLEEP + 2), Deadline(began + 0.3))

    assert time.monotonic() - began < 1.5
    assert (await backend.infer(floats(1.0), Deadline(time.monotonic() + 10)))["y"].numpy()[0, 0] == 2.0
    await backend.aclose()


async def test_a_replica_of_another_version_is_not_asked(handles: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match="no replica of the version that is wanted"):
        await open_deployment("floats", handles["floats"], 1, digest="another", timeout_s=0.5)


async def test_a_batch_that_the_model_does_not_take_costs_no_call(handles: dict[str, Any]) -> None:
    backend = await opened("floats")
    with pytest.raises(InvalidInput):
        await backend.infer(floats(*range(9)), Deadline(time.monotonic() + 10))
    await backend.aclose()


async def test_a_deployment_that_is_not_there_is_told(handles: dict[str, Any]) -> None:
    with pytest.raises(NotFound, match="there is no deployment 'nothing'"):
        await open_ray_serve("m", RayServeOptions("nothing", "nowhere"))


async def test_calls_overlap_as_much_as_a_replica_can(handles: dict[str, Any]) -> None:
    backend = await opened("floats")

    await asyncio.gather(*(backend.infer(floats(_MEET), Deadline(time.monotonic() + 20)) for _ in range(2)))

    assert backend.limits.max_in_flight == 2
    await backend.aclose()


_MAGIKA = f"""
models:
  real:
    backend: onnx
    path: {Path(magika.__file__).parent}/models/standard_v3_3/model.onnx
    max_batch: 16
    expose: true
    serve: {{replicas: 3, num_cpus: 0.25}}
"""


class Counted:
    """A handle's method, and how often it was called."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked
        self.calls = 0

    def remote(self, *words: Any) -> Any:
        self.calls += 1
        return self._asked.remote(*words)


async def test_a_real_model_on_a_core_that_replicas_share_answers_as_it_does_here(
    handles: dict[str, Any], cluster: Cluster, tmp_path: Path
) -> None:
    """Bit by bit, and by one call a batch."""
    from ray import serve

    from gateway.cluster.apart import apartments, application_of

    (tmp_path / "gateway.yaml").write_text(_MAGIKA)
    settings = load_settings(tmp_path / "gateway.yaml")
    (apartment,) = apartments(settings)
    ((model, digest),) = apartment.models
    handle = await asyncio.to_thread(serve.run, application_of(apartment), name=apartment.app, route_prefix=None)
    here, there = await open_configured(model), await open_deployment("real", handle, 3, digest=digest)
    counted = there._ask = Counted(there._ask)  # type: ignore[attr-defined]
    rng = np.random.default_rng(1)
    batches = [
        Batch.of({"bytes": Tensor.of(rng.integers(0, 257, (size, 2048), np.int32))}) for size in (1, 3, 16, 7, 16, 2)
    ]
    try:
        within = Deadline(time.monotonic() + 60)
        expected = [await here.infer(batch, within) for batch in batches]
        found = await asyncio.gather(*(there.infer(batch, within) for batch in batches))
        replicas = cluster.replicas(apartment.deployment)
    finally:
        await asyncio.gather(here.aclose(), there.aclose())
        await asyncio.to_thread(serve.delete, apartment.app)

    assert counted.calls == len(batches)
    assert len(replicas) == 3
    for one, other in zip(expected, found, strict=True):
        assert one["target_label"].numpy().tobytes() == other["target_label"].numpy().tobytes()
