"""Models are loaded anew and unloaded under way: no request is lost, and no certificate outlives what it proves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from grpc import aio
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backends.contract import Batch, Deadline, State, Tensor, Tensors
from backends.errors import BackendFailed, Conflict, InvalidInput, NotFound, PointsmanError, Unavailable
from gateway import loading
from gateway.answer import Answer, Status
from gateway.certificates import subject_of
from gateway.compose import Gateway, compose
from gateway.http.messages import HttpRequest
from gateway.loading import Loader
from gateway.request import Protocol, Request, TensorInputs
from gateway.serve import background
from gateway.settings import Settings, SettingsError, load_settings
from router.certificate import Certificate
from router.contract import Certified, Reason, Uncertified

CONFIG = """
models:
  small: {backend: onnx, path: small.onnx, labels: [a, b, c], expose: true}
  large: {backend: onnx, path: large.onnx, labels: [a, b, c]}
  other: {backend: onnx, path: other.onnx, labels: [a, b, c]}
routes:
  numbers:
    input: {x: {datatype: FP32, shape: [3]}}
    cascade: [small, large]
    accept: {max_error: 5%}
    human: {queue: numbers, due: 1h, form: labels}
    slo: {deadline: 10s}
  second:
    input: {x: {datatype: FP32, shape: [3]}}
    cascade: [large, other]
    accept: {min_confidence: 0.1}
    slo: {deadline: 10s}
  people:
    input: {text: {datatype: BYTES, shape: [1]}}
    cascade: []
    human: {queue: people, due: 1h, form: text}
server: {model_control: explicit}
"""


def write(path: Path, factor: float, outputs: int = 3) -> None:
    """A model of three numbers x: the softmax of *factor* times x."""
    scale = numpy_helper.from_array(np.full(outputs, factor, np.float32), "scale")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["z"]), helper.make_node("Softmax", ["z"], ["probabilities"], axis=1)],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", outputs])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", outputs])],
        [scale],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("small", "large", "other"):
        write(tmp_path / f"{name}.onnx", 10.0)
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    return tmp_path


def settings_of(folder: Path) -> Settings:
    return load_settings(folder / "gateway.yaml")


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Gateway]:
    async with compose(settings_of(folder)) as gateway:
        yield gateway


def asking(route: str = "small") -> Request:
    tensor = Tensor.of(np.array([[0.0, 1.0, 0.0]], np.float32))
    return Request(route, TensorInputs({"x": tensor}), Protocol.OIP_GRPC)


async def decide(gateway: Gateway, route: str = "small") -> Answer:
    return await gateway.pipeline.decide(asking(route))


def confidence(answer: Answer) -> float:
    (item,) = answer.items
    assert item.confidence is not None
    return item.confidence


def files_in(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.iterdir())


async def settled(loader: Loader) -> None:
    """Every change has ended, and what it put out is closed."""
    if loader._changes:
        await asyncio.wait(loader._changes)


class Gate:
    """Holds a model's calls until it is opened."""

    def __init__(self, infer: Callable[[Batch, Deadline], Any]) -> None:
        self._infer = infer
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, batch: Batch, deadline: Deadline) -> Tensors:
        self.reached.set()
        await self.opened.wait()
        found: Tensors = await self._infer(batch, deadline)
        return found


def held(gateway: Gateway, name: str, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The model *name*, as it is served now, held."""
    kind = type(gateway.pipeline.catalog.models[name].backend)
    one = gateway.pipeline.catalog.models[name].backend
    original = kind.infer
    gate = Gate(lambda batch, deadline: original(one, batch, deadline))

    async def infer(self: Any, batch: Batch, deadline: Deadline) -> Tensors:
        return await (gate(batch, deadline) if self is one else original(self, batch, deadline))

    monkeypatch.setattr(kind, "infer", infer)
    return gate


async def test_a_model_whose_file_was_replaced_answers_by_the_new_one(folder: Path) -> None:
    async with serving(folder) as gateway:
        before, old = confidence(await decide(gateway)), gateway.pipeline.catalog
        write(folder / "small.onnx", 1.0)

        await gateway.loader.load("small")
        after, new = confidence(await decide(gateway)), gateway.pipeline.catalog
        await settled(gateway.loader)

        assert before > 0.99
        assert after == pytest.approx(np.e / (np.e + 2), abs=1e-5)
        assert new.version > old.version
        assert old.models["small"].backend.state is State.CLOSED
        assert new.models["large"] is old.models["large"]
        assert new.routes["second"] is old.routes["second"]

    assert new.models["small"].backend.state is State.CLOSED


async def test_a_request_in_flight_finishes_on_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(folder) as gateway:
        old = gateway.pipeline.catalog.models["small"]
        gate = held(gateway, "small", monkeypatch)
        in_flight = asyncio.create_task(decide(gateway))
        await gate.reached.wait()
        write(folder / "small.onnx", 1.0)

        await gateway.loader.load("small")
        meanwhile = confidence(await decide(gateway))
        state = old.backend.state
        gate.opened.set()
        finished = confidence(await in_flight)
        await settled(gateway.loader)

        assert state is State.READY
        assert meanwhile < 0.6
        assert finished > 0.99
        assert old.backend.state is State.CLOSED


@pytest.mark.parametrize("damage", ["corrupt", "missing", "another signature"])
async def test_what_cannot_be_opened_changes_nothing_and_names_no_file(folder: Path, damage: str) -> None:
    async with serving(folder) as gateway:
        before = gateway.pipeline.catalog
        match damage:
            case "corrupt":
                (folder / "small.onnx").write_bytes(b"no model")
            case "missing":
                (folder / "small.onnx").unlink()
            case _:
                write(folder / "small.onnx", 1.0, outputs=4)

        with pytest.raises(PointsmanError) as told:
            await gateway.loader.load("small")

        assert gateway.pipeline.catalog is before
        assert confidence(await decide(gateway)) > 0.99
        assert "served still" in str(told.value)
        assert str(folder) not in str(told.value)
        assert ".onnx" not in str(told.value)
        assert "onnxruntime" not in str(told.value).lower()
        assert not gateway.loader._departing


async def test_a_certified_route_falls_back_to_people_when_its_model_file_was_replaced(folder: Path) -> None:
    settings = settings_of(folder)
    subject = subject_of(settings.routes["numbers"], settings.models, {"small": "1", "large": "1"})
    now = time.time()
    certificate = Certificate(subject, 0.05, 0.95, 0.5, 1000, 500, 5, 0.03, now, now + 3600, "a test")
    original = (folder / "small.onnx").read_bytes()
    async with serving(folder) as gateway:
        await gateway.store.add_certificate(certificate)
        await gateway.maintain()
        certified = await decide(gateway, "numbers")
        await gateway.loader.load("small")
        same_file = gateway.pipeline.catalog.routes["numbers"].accept

        write(folder / "small.onnx", 9.0)
        await gateway.loader.load("small")
        at_once = gateway.pipeline.catalog.routes["numbers"].accept
        replaced = await decide(gateway, "numbers")
        await gateway.maintain()
        later = gateway.pipeline.catalog.routes["numbers"].accept
        (folder / "small.onnx").write_bytes(original)
        await gateway.loader.load("small")
        restored = gateway.pipeline.catalog.routes["numbers"].accept

    assert (certified.items[0].status, certified.certified) == (Status.FINAL, True)
    assert isinstance(same_file, Certified)
    assert isinstance(at_once, Uncertified)
    assert (replaced.items[0].decided_by, replaced.items[0].reason) == (None, Reason.NO_CERTIFICATE)
    assert isinstance(later, Uncertified)
    assert isinstance(restored, Certified)


async def test_another_models_file_on_the_disk_is_not_taken_for_what_is_loaded(folder: Path) -> None:
    """`large` is replaced on the disk, and not loaded: what serves is still what was certified."""
    settings = settings_of(folder)
    subject = subject_of(settings.routes["numbers"], settings.models, {"small": "1", "large": "1"})
    now = time.time()
    certificate = Certificate(subject, 0.05, 0.95, 0.5, 1000, 500, 5, 0.03, now, now + 3600, "a test")
    async with serving(folder) as gateway:
        await gateway.store.add_certificate(certificate)
        write(folder / "large.onnx", 3.0)

        await gateway.loader.load("small")
        others = gateway.pipeline.catalog.routes["numbers"].accept
        await gateway.loader.load("large")
        own = gateway.pipeline.catalog.routes["numbers"].accept

    assert isinstance(others, Certified)
    assert isinstance(own, Uncertified)


async def test_files_that_change_while_they_are_opened_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(folder) as gateway:
        before = gateway.pipeline.catalog
        kind = type(gateway.loader._opener)
        original = kind.open

        async def slow(self: Any, name: str) -> Any:
            found = await original(self, name)
            write(folder / "small.onnx", 2.0)
            return found

        monkeypatch.setattr(kind, "open", slow)
        with pytest.raises(Conflict, match="changed while they were loaded; load again"):
            await gateway.loader.load("small")

        assert gateway.pipeline.catalog is before


async def test_an_unloaded_model_is_refused_and_passed_over_until_it_is_loaded_again(folder: Path) -> None:
    async with serving(folder) as gateway:
        pipeline, old = gateway.pipeline, gateway.pipeline.catalog.models["large"]

        await gateway.loader.unload("small", dependents=False)
        await gateway.loader.unload("large", dependents=False)
        await gateway.loader.unload("large", dependents=False)
        with pytest.raises(Unavailable, match="no stage of route 'small' is available"):
            await decide(gateway, "small")
        passed_over = await decide(gateway, "second")
        states = {name: pipeline.why_not_ready(name) for name in pipeline.names()}
        described = pipeline.metadata("small")
        ready = pipeline.is_ready()
        await settled(gateway.loader)
        await gateway.loader.load("small")
        again = await decide(gateway, "small")

        assert states == {"small": "unloaded", "numbers": "unloaded", "second": None, "people": None}
        assert passed_over.items[0].stage == "other"
        assert passed_over.items[0].trail[0].reason is Reason.STAGE_UNAVAILABLE
        assert described.inputs[0].name == "x"
        assert ready
        assert again.items[0].status is Status.FINAL
        assert old.backend.state is State.CLOSED


async def test_no_request_fails_while_models_are_loaded_and_only_unloaded_ones_are_refused(folder: Path) -> None:
    failed: list[Unavailable] = []
    unloaded = asyncio.Event()
    answered = 0
    stop = asyncio.Event()

    async def client(gateway: Gateway) -> None:
        nonlocal answered
        while not stop.is_set():
            before = unloaded.is_set()
            try:
                await decide(gateway)
                answered += 1
            except Unavailable as error:
                if not (before or unloaded.is_set()):
                    failed.append(error)
            await asyncio.sleep(0.001)  # or the threads in which models are opened would hardly get a turn

    async with serving(folder) as gateway, asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(client(gateway))
        for cycle in range(20):
            write(folder / "small.onnx", 10.0 if cycle % 2 else 8.0)
            await gateway.loader.load("small")
        assert failed == []
        for _ in range(8):
            unloaded.set()
            await gateway.loader.unload("small", dependents=False)
            await gateway.loader.load("small")
            unloaded.clear()
            await asyncio.sleep(0)
        stop.set()

    assert failed == []
    assert answered > 100


def break_down(gateway: Gateway, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the backend of the model *name*, as it is served now, have failed."""
    kind = type(gateway.pipeline.catalog.models[name].backend)
    broken, state = gateway.pipeline.catalog.models[name].backend, kind.state
    told = property(lambda self: State.FAILED if self is broken else state.fget(self))  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "state", told)


async def test_a_model_that_fails_is_opened_anew_at_once_and_one_that_fails_again_by_upkeep(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(folder) as gateway, background(gateway.loader.watch()):
        first = gateway.pipeline.catalog
        break_down(gateway, "small", monkeypatch)
        async with asyncio.timeout(10):
            while (second := gateway.pipeline.catalog) is first:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.01)
        with monkeypatch.context() as again:
            break_down(gateway, "small", again)
            await asyncio.sleep(3 * loading._LOOK_S)
            left_alone = gateway.pipeline.catalog is second

            gateway.loader.mend()
            await settled(gateway.loader)

        assert second.models["small"].backend is not first.models["small"].backend
        assert left_alone
        assert gateway.pipeline.catalog.models["small"].backend is not second.models["small"].backend


async def test_loads_of_one_model_follow_one_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = most = 0
    async with serving(folder) as gateway:
        kind = type(gateway.loader._opener)
        original = kind.open

        async def counted(self: Any, name: str) -> Any:
            nonlocal opening, most
            opening += 1
            most = max(most, opening + len(gateway.loader._departing))
            try:
                return await original(self, name)
            finally:
                opening -= 1

        monkeypatch.setattr(kind, "open", counted)
        before = gateway.pipeline.catalog.version
        await asyncio.gather(*(gateway.loader.load("small") for _ in range(10)))

        assert most == 1
        assert gateway.pipeline.catalog.version >= before + 10


async def test_a_caller_that_leaves_does_not_stop_a_load(folder: Path) -> None:
    async with serving(folder) as gateway:
        write(folder / "small.onnx", 1.0)
        loading = asyncio.create_task(gateway.loader.load("small"))
        await asyncio.sleep(0)  # it has begun
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading

        await settled(gateway.loader)

        assert confidence(await decide(gateway)) < 0.6


async def test_a_route_is_loaded_whole_or_not_at_all(folder: Path) -> None:
    async with serving(folder) as gateway:
        before = gateway.pipeline.catalog
        await gateway.loader.load("numbers")
        loaded = gateway.pipeline.catalog
        (folder / "large.onnx").write_bytes(b"no model")
        with pytest.raises(BackendFailed, match="model 'large'"):
            await gateway.loader.load("numbers")

        assert loaded.models["small"] is not before.models["small"]
        assert loaded.models["large"] is not before.models["large"]
        assert gateway.pipeline.catalog is loaded


async def test_unloading_a_route_takes_what_nothing_else_uses_and_only_when_told_so(folder: Path) -> None:
    async with serving(folder) as gateway:
        with pytest.raises(InvalidInput, match=r"'numbers' is a route, .* \(small, large\), or say unload_dependents"):
            await gateway.loader.unload("numbers", dependents=False)

        await gateway.loader.unload("numbers", dependents=True)

        assert {name for name, model in gateway.pipeline.catalog.models.items() if model.loaded} == {"large", "other"}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere", NotFound, "there is no model or route 'nowhere'; known: large, numbers, other"),
        ("auto", NotFound, "there is no model or route 'auto'"),
        ("people", InvalidInput, "has no models, people decide everything"),
    ],
)
async def test_a_name_that_means_no_model_is_told(
    folder: Path, name: str, error: type[PointsmanError], message: str
) -> None:
    async with serving(folder) as gateway:
        with pytest.raises(error, match=message):
            await gateway.loader.load(name)


async def test_a_gateway_that_drains_changes_nothing(folder: Path) -> None:
    async with serving(folder) as gateway:
        gateway.pipeline.drain()

        with pytest.raises(Unavailable, match="shutting down"):
            await gateway.loader.load("small")
        with pytest.raises(Unavailable, match="shutting down"):
            await gateway.loader.unload("small", dependents=False)


async def test_a_calibration_of_another_version_refuses_the_load(folder: Path) -> None:
    async with serving(folder) as gateway:
        kind: Any = gateway.loader._opener
        models = kind.settings.models
        settings = replace(kind.settings, models={**models, "small": _calibrated(models["small"])})
        gateway.loader._opener = replace(kind, settings=settings)

        with pytest.raises(InvalidInput, match=r"was fitted for its version '2', .* calibrate again; what was served"):
            await gateway.loader.load("small")


def _calibrated(model: Any) -> Any:
    class Fitted:
        version = "2"

    return replace(model, calibration=Fitted())


def test_several_workers_cannot_load(folder: Path) -> None:
    text = CONFIG.replace("explicit}", "explicit, workers: 2, shared_memory: {enabled: false}}")
    (folder / "gateway.yaml").write_text(text)

    with pytest.raises(SettingsError, match="set model_control: none, or workers: 1"):
        settings_of(folder)


async def call(gateway: Gateway, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    response = await gateway.http.handle(HttpRequest("POST", path, headers={"host": "localhost"} | headers, body=data))
    return response.status, json.loads(response.body) if response.body else None


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx", "file:../../x", "anything"])
async def test_a_load_that_brings_its_own_model_is_refused_and_nothing_is_written(folder: Path, name: str) -> None:
    async with serving(folder) as gateway:
        before, files = gateway.pipeline.catalog, files_in(folder)

        status, told = await call(
            gateway, "/v2/repository/models/small/load", {"parameters": {name: "http://127.0.0.1:1/x"}}
        )

        assert (status, "as it is configured" in told["error"]) == (400, True)
        assert gateway.pipeline.catalog is before
        assert files_in(folder) == files


async def test_load_unload_and_index_over_http(folder: Path) -> None:
    async with serving(folder) as gateway:
        unloaded = await call(
            gateway, "/v2/repository/models/small/unload", {"parameters": {"unload_dependents": True}}
        )
        _, index = await call(gateway, "/v2/repository/index")
        loaded = await call(gateway, "/v2/repository/models/small/load")
        _, ready = await call(gateway, "/v2/repository/index", {"ready": True})
        wrong, _ = await call(gateway, "/v2/repository/models/small/unload", {"parameters": {"unload_dependents": 1}})

    assert (unloaded, loaded) == ((200, None), (200, None))
    assert {"name": "small", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"} in index
    assert {"name": "small", "version": "1", "state": "READY"} in ready
    assert wrong == 400


async def test_by_default_nothing_is_loaded_and_the_extension_is_not_listed(folder: Path) -> None:
    (folder / "gateway.yaml").write_text(CONFIG.replace("explicit", "none"))
    async with serving(folder) as gateway:
        status, told = await call(gateway, "/v2/repository/models/small/load")
        server = json.loads((await gateway.http.handle(HttpRequest("GET", "/v2", headers={"host": "localhost"}))).body)

    assert (status, "model_control: explicit" in told["error"]) == (501, True)
    assert "model_repository" not in server["extensions"]


async def test_loading_needs_an_operator_over_both_protocols(folder: Path) -> None:
    keys = ", ".join(
        f"{{name: {role}, sha256: {sha256(role.encode()).hexdigest()}, roles: [{role}]}}"
        for role in ("caller", "operator")
    )
    server = "server: {model_control: explicit, http_port: 0, grpc_port: 0, control_port: 0}"
    text = CONFIG.replace("server: {model_control: explicit}", server) + f"security: {{api_keys: [{keys}]}}\n"
    (folder / "gateway.yaml").write_text(text)
    path = "/v2/repository/models/small/load"
    async with serving(folder) as gateway, gateway.grpc, aio.insecure_channel(gateway.grpc.address) as channel:
        refused, _ = await call(gateway, path, None, **{"x-api-key": "caller"})
        loaded, _ = await call(gateway, path, None, **{"x-api-key": "operator"})
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.RepositoryModelUnloadRequest(model_name="small")
        request.parameters["unload_dependents"].bool_param = True
        with pytest.raises(aio.AioRpcError) as denied:
            await stub.RepositoryModelUnload(request, metadata=(("x-api-key", "caller"),))
        before = gateway.pipeline.why_not_ready("small")
        await stub.RepositoryModelUnload(request, metadata=(("x-api-key", "operator"),))
        unloaded = gateway.pipeline.why_not_ready("small")
        override = service_pb2.RepositoryModelLoadRequest(model_name="small")
        override.parameters["config"].string_param = "{}"
        with pytest.raises(aio.AioRpcError) as overridden:
            await stub.RepositoryModelLoad(override, metadata=(("x-api-key", "operator"),))
        request = service_pb2.RepositoryModelLoadRequest(model_name="small")
        await stub.RepositoryModelLoad(request, metadata=(("x-api-key", "operator"),))
        again = gateway.pipeline.why_not_ready("small")
        about = await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=(("x-api-key", "caller"),))

    assert (refused, loaded) == (403, 200)
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert overridden.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (before, unloaded, again) == (None, "unloaded", None)
    assert {"model_repository", "model_repository(unload_dependents)"} <= set(about.extensions)
