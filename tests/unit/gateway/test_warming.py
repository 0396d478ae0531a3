"""A gateway with less memory than its models take answers all requests, and says what is warm."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from backends.contract import Deadline, State, Tensor
from backends.errors import InvalidInput, NotFound, Unavailable
from backends.warm.entry import WarmOptions
from backends.warm.policy import Phase
from backends.warm.pool import Pooled
from gateway.answer import Answer
from gateway.catalog import Model
from gateway.compose import Gateway, check_models, compose
from gateway.request import JsonInputs, Protocol, Request, TensorInputs
from gateway.settings import Settings, SettingsError, load_settings
from router.contract import Residency
from tests.integration.process import CONFIG

POOLED = """
models:
  one: {backend: onnx, path: one.onnx, max_batch: 4, expose: true, warm: {keep: 0, memory: 60KiB}}
  two: {backend: onnx, path: two.onnx, max_batch: 4, expose: true, warm: {keep: 0, memory: 60KiB}}
pool: {memory: 100KiB}
store: {path: store.db}
"""


def write_times(file: Path, factor: float) -> None:
    """A model that multiplies by *factor*."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "times",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.array([factor], np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[[str], Settings]:
    write_times(tmp_path / "one.onnx", 1.0)
    write_times(tmp_path / "two.onnx", 2.0)

    def load(text: str) -> Settings:
        (tmp_path / "gateway.yaml").write_text(text)
        return load_settings(tmp_path / "gateway.yaml")

    return load


def request_for(route: str, *, within_s: float = 10.0, now: float | None = None) -> Request:
    inputs = TensorInputs({"x": Tensor.of(np.array([[3.0, 4.0]], np.float32))})
    deadline = Deadline(math.inf if now is None else now + within_s)
    return Request(route, inputs, Protocol.OIP_GRPC, deadline=deadline)


async def ask(gateway: Gateway, route: str) -> list[float]:
    return values_of(await gateway.pipeline.decide(request_for(route)))


def values_of(answer: Answer) -> list[float]:
    outputs = answer.items[0].outputs
    assert outputs is not None
    values: list[float] = outputs["y"].numpy()[0].tolist()
    return values


def phases(gateway: Gateway) -> dict[str, Phase]:
    models = gateway.pipeline.catalog.models.values()
    return {model.name: warmth.phase for model in models if (warmth := model.warmth()) is not None}


def one_and_two(gateway: Gateway) -> tuple[Model, Model]:
    models = gateway.pipeline.catalog.models
    cold = next(name for name, phase in phases(gateway).items() if phase is Phase.COLD)
    return models[cold], next(model for name, model in models.items() if name != cold)


async def test_models_that_do_not_fit_together_take_turns_and_all_requests_are_answered(
    settings_of: Callable[[str], Settings],
) -> None:
    async with compose(settings_of(POOLED)) as gateway:
        assert gateway.pipeline.is_ready()
        assert sorted(phases(gateway).values()) == [Phase.COLD, Phase.WARM]

        for _ in range(3):
            assert await ask(gateway, "one") == [3.0, 4.0]
            assert await ask(gateway, "two") == [6.0, 8.0]
        many = await asyncio.gather(*(ask(gateway, name) for name in ("one", "two") * 10))

        assert many == [[3.0, 4.0], [6.0, 8.0]] * 10
        models = tuple(gateway.pipeline.catalog.models.values())

    assert all(model.backend.state is State.CLOSED for model in models)


async def test_a_cold_model_says_what_its_load_takes_and_its_load_is_not_taken_for_a_batch(
    settings_of: Callable[[str], Settings],
) -> None:
    async with compose(settings_of(POOLED)) as gateway:
        cold, warm = one_and_two(gateway)

        state = cold.state()
        assert (state.ready, state.residency, warm.state().residency) == (True, Residency.COLD, Residency.HOT)
        assert state.expected_load_s > 0.0
        assert warm.state().expected_load_s == 0.0
        await ask(gateway, cold.name)

        assert cold.state().residency is Residency.HOT
        assert cold.batcher.statistics().latency_s < state.expected_load_s + 0.1


async def test_a_request_with_no_time_for_a_load_is_told_when_to_come_back_and_is_answered_then(
    settings_of: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with compose(settings_of(POOLED)) as gateway:
        cold, _ = one_and_two(gateway)
        assert isinstance(cold.warming, Pooled)
        cold.warming._entry.load_s = 20.0
        now = asyncio.get_running_loop().time()

        with pytest.raises(Unavailable, match="no stage of route") as refused:
            await gateway.pipeline.decide(request_for(cold.name, within_s=5.0, now=now))
        assert refused.value.retry_after_s == pytest.approx(20.0, abs=0.1)

        async with asyncio.timeout(30), cold.warming.hold(Deadline(math.inf)):  # it is loaded, for it was wanted
            assert cold.state().residency is Residency.HOT
        text, _ = gateway.telemetry.exposition("")
        assert f'pointsman_cold_starts_total{{model="{cold.name}"}}'.encode() in text


async def test_a_cold_stage_that_cannot_be_had_in_time_is_passed_over_for_the_next(tmp_path: Path) -> None:
    text = CONFIG.replace("    cost: 0.1", "    cost: 0.1\n    warm: {keep: 0, memory: 1KiB}")
    (tmp_path / "gateway.yaml").write_text(text)
    async with compose(load_settings(tmp_path / "gateway.yaml")) as gateway:
        fast = gateway.pipeline.catalog.models["fast"]
        assert isinstance(fast.warming, Pooled)
        fast.warming._entry.load_s = 60.0
        fast.warming._entry.phase = Phase.UNLOADING

        request = Request("words", JsonInputs({"text": "fast=0.99:a strong=0.97:c"}, 0), Protocol.V1_HTTP)
        (item,) = (await gateway.pipeline.decide(request)).items

        assert (item.label, item.stage) == ("c", "strong")
        assert item.trail[0].stage == "fast"
        assert "not loaded" in item.trail[0].detail
        fast.warming._entry.phase = Phase.WARM


async def test_files_that_have_changed_are_not_served_under_the_proof_of_the_old(
    settings_of: Callable[[str], Settings],
) -> None:
    settings = settings_of(POOLED)
    async with compose(settings) as gateway:
        cold, _ = one_and_two(gateway)
        write_times(settings.file.parent / f"{cold.name}.onnx", 100.0)

        with pytest.raises(Unavailable):
            await ask(gateway, cold.name)

        assert cold.state().ready is False


async def test_loads_residency_and_memory_are_in_the_metrics(settings_of: Callable[[str], Settings]) -> None:
    async with compose(settings_of(POOLED)) as gateway:
        cold, warm = one_and_two(gateway)

        text = gateway.telemetry.exposition("")[0].decode()

        assert f'pointsman_model_residency{{model="{cold.name}",state="cold"}} 1.0' in text
        assert f'pointsman_model_residency{{model="{warm.name}",state="warm"}} 1.0' in text
        assert f'pointsman_model_residency{{model="{warm.name}",state="cold"}} 0.0' in text
        assert f'pointsman_model_memory_bytes{{model="{warm.name}"}} {60 * 1024:.1f}' in text
        for step in ("read", "open", "warm_up"):
            assert f'pointsman_model_load_seconds_count{{model="{warm.name}",step="{step}"}} 1.0' in text
        assert f'pointsman_model_unloads_total{{model="{cold.name}"}} 1.0' in text


async def test_models_that_are_always_kept_must_fit_the_memory(settings_of: Callable[[str], Settings]) -> None:
    kept = POOLED.replace("keep: 0", "keep: 1")

    with pytest.raises(InvalidInput, match="take 122880 bytes, and the pool's memory is 102400"):
        await check_models(settings_of(kept))
    with pytest.raises(InvalidInput, match=r"model '\w+' takes 61440 bytes, and the pool has 40960"):
        await check_models(settings_of(POOLED.replace("keep: 0", "keep: 1", 1)))


async def test_a_model_that_cannot_be_opened_is_told_as_before(settings_of: Callable[[str], Settings]) -> None:
    settings = settings_of(POOLED)
    (settings.file.parent / "two.onnx").unlink()

    with pytest.raises((NotFound, InvalidInput), match=r"two"):
        await check_models(settings)


def test_whoever_says_nothing_keeps_every_model(settings_of: Callable[[str], Settings]) -> None:
    settings = settings_of("models: {echo: {backend: echo, expose: true}}\n")

    assert settings.models["echo"].warm == WarmOptions(keep=1)
    assert settings.pool.memory_bytes == math.inf


def test_what_is_said_comes_to_options(settings_of: Callable[[str], Settings]) -> None:
    settings = settings_of(POOLED)

    assert settings.models["one"].warm == replace(WarmOptions(keep=0), memory_bytes=60 * 1024)
    assert settings.pool.memory_bytes == 100 * 1024


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("keep: 0, memory: 60KiB", "keep: 2", "keep"),
        ("keep: 0, memory: 60KiB", "keep: 0, memory: 60", "a size"),
        ("pool: {memory: 100KiB}", "pool: {memory: 0}", "above 0"),
        ("pool: {memory: 100KiB}", "pool: {memry: 1MiB}", "memory"),
    ],
)
def test_a_fault_is_told_with_its_remedy(settings_of: Callable[[str], Settings], old: str, new: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        settings_of(POOLED.replace(old, new))


async def test_a_model_whose_load_has_failed_is_mended_while_its_backoff_lasts(
    settings_of: Callable[[str], Settings],
) -> None:
    settings = settings_of(POOLED)
    async with compose(settings) as gateway:
        cold, warm = one_and_two(gateway)
        file = settings.file.parent / f"{cold.name}.onnx"
        content = file.read_bytes()
        file.write_bytes(b"no model")
        with pytest.raises(Unavailable):
            await ask(gateway, cold.name)
        assert isinstance(cold.warming, Pooled)
        cold.warming._entry.retry_at_s = math.inf  # it would not try again by itself
        assert [model.backend.state for model in (cold, warm)] == [State.FAILED, State.READY]

        gateway.loader.mend()  # which cannot open it either
        await asyncio.wait(gateway.loader._changes)
        assert gateway.pipeline.catalog.models[cold.name] is cold

        file.write_bytes(content)
        gateway.loader.mend()
        await asyncio.wait(gateway.loader._changes)
        assert await ask(gateway, cold.name) == ([3.0, 4.0] if cold.name == "one" else [6.0, 8.0])
        assert [model.backend.state for model in (cold, warm)] == [State.CLOSED, State.READY]
