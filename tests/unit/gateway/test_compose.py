"""The composition root: what fits is served, and what does not is told before anything listens."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.contract import State, Tensor
from backends.errors import InvalidInput, NotFound, PointsmanError
from gateway.compose import check_models, compose
from gateway.request import JsonInputs, Protocol, Request, TensorInputs
from gateway.settings import Settings, load_settings
from kernels.decode import DECODERS
from tests.integration.process import CONFIG

STRONG = (
    "models:strong\n    inputs: [{name: text, datatype: BYTES, shape: [1]}]\n"
    "    outputs: [{name: probabilities, datatype: FP32, shape: [3]}"
)


def settings_of(folder: Path, text: str) -> Settings:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return load_settings(path)


def request_for(route: str, **inputs: Any) -> Request:
    return Request(route, JsonInputs(inputs, 0), Protocol.V1_HTTP)


async def test_a_configuration_is_served_and_closed_again(tmp_path: Path) -> None:
    async with compose(settings_of(tmp_path, CONFIG)) as gateway:
        pipeline = gateway.pipeline
        models = pipeline.catalog.models
        assert pipeline.is_ready()
        assert pipeline.is_model_ready("words")
        assert set(pipeline.names()) == {"words", "alone", "double"}
        answer = await pipeline.decide(request_for("words", text="fast=0.5 strong=0.97:c"))
        assert (answer.items[0].label, answer.items[0].stage) == ("c", "strong")

    assert all(model.backend.state is State.CLOSED for model in models.values())
    with pytest.raises(PointsmanError):
        await pipeline.decide(request_for("words", text="fast=0.99"))


async def test_an_exposed_model_answers_under_its_own_name_whatever_its_confidence(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    async with compose(settings_of(tmp_path, CONFIG)) as gateway:
        request = Request("double", TensorInputs({"x": Tensor.of(numbers)}), Protocol.OIP_GRPC)

        answer = await gateway.pipeline.decide(request)

    assert [item.status for item in answer.items] == ["final", "final"]
    assert answer.items[1].outputs is not None
    np.testing.assert_array_equal(answer.items[1].outputs["y"].numpy(), 2 * numbers[1:])


async def test_a_draining_gateway_is_not_ready_and_takes_nothing_new(tmp_path: Path) -> None:
    async with compose(settings_of(tmp_path, CONFIG)) as gateway:
        gateway.pipeline.drain()

        assert not gateway.pipeline.is_ready()
        assert not gateway.pipeline.is_model_ready("words")
        with pytest.raises(PointsmanError, match="shutting down"):
            await gateway.pipeline.decide(request_for("words", text="fast=0.99"))


async def test_unknown_routes_and_versions_are_not_found(tmp_path: Path) -> None:
    async with compose(settings_of(tmp_path, CONFIG)) as gateway:
        with pytest.raises(NotFound, match="no route 'word'; known: alone, double, words"):
            gateway.pipeline.metadata("word")
        with pytest.raises(NotFound, match="no version '7'"):
            gateway.pipeline.is_model_ready("words", "7")


async def test_auto_is_no_route_where_no_rules_are_configured(tmp_path: Path) -> None:
    text = "models: {echo: {backend: echo, expose: true}}\nstore: {path: store.db}\n"
    async with compose(settings_of(tmp_path, text)) as gateway:
        with pytest.raises(NotFound, match="no route 'auto'; known: echo"):
            await gateway.pipeline.decide(request_for("auto", x=1))


async def test_a_rule_can_send_requests_straight_to_a_person(tmp_path: Path) -> None:
    straight = CONFIG.replace(
        '  - when: {route: auto, content_type: "text/*"}\n    route: words',
        "  - when: {route: words, parameters: {urgent: true}}\n    route: words\n    to: human",
    )
    async with compose(settings_of(tmp_path, straight)) as gateway:
        request = Request("words", JsonInputs({"text": "fast=0.99"}, 0), Protocol.V1_HTTP, parameters={"urgent": True})

        (item,) = (await gateway.pipeline.decide(request)).items

    assert (item.status, item.reason, item.remarks) == ("pending", "routed_to_person", ("rule 1 of `classify`",))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (STRONG, STRONG + ", {name: extra, datatype: FP32, shape: [1]}", "must have the same outputs"),
        ("cost: 0.1", "cost: 0.1\n    batching: {max_batch: 99}", "max_batch 99 of model 'fast' exceeds.*16"),
        ("labels: [a, b, c]", "labels: [a, b]", r"label"),
        ("tests.integration.models:fast", "tests.integration.models:nothing", "nothing"),
        ("    labels: [a, b, c]", "    preprocess: [chw]\n    labels: [a, b, c]", "chw"),
    ],
)
async def test_what_does_not_fit_is_told_at_start(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CONFIG

    with pytest.raises(PointsmanError, match=message):
        await check_models(settings_of(tmp_path, CONFIG.replace(old, new)))


async def test_a_decoder_that_cannot_work_here_is_told_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        raise ValueError("utf8 needs a typewriter; buy one")

    monkeypatch.setitem(DECODERS, "utf8", replace(DECODERS["utf8"], check=check))

    with pytest.raises(InvalidInput, match=r"route '.*': utf8 needs a typewriter; buy one"):
        await check_models(settings_of(tmp_path, CONFIG))


async def test_what_the_steps_around_a_model_take_is_logged_at_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pointsman.compose"):
        await check_models(settings_of(tmp_path, CONFIG))

    assert re.search(r"model \w+: postprocess takes .* ms an item of .* MB read", caplog.text)


async def test_two_routes_cannot_feed_one_model_differently(tmp_path: Path) -> None:
    config = CONFIG.replace("    decode: utf8\n    cascade: [fast]", "    cascade: [fast]").replace(
        "  alone:\n    input: {text: {datatype: BYTES, shape: [1]}}",
        "  alone:\n    input: {text: {datatype: BYTES, shape: [2]}}",
    )

    with pytest.raises(InvalidInput, match="model 'fast' gets different inputs from route 'words', route 'alone'"):
        await check_models(settings_of(tmp_path, config))


async def test_a_calibration_of_another_version_is_refused(tmp_path: Path) -> None:
    calibration = {
        "format": "pointsman-calibration/1",
        "kind": "temperature",
        "measure": "max",
        "parameters": {"t": 1.5},
        "fitted_on": 1000,
        "model": "fast",
        "version": "2",
    }
    (tmp_path / "fast.json").write_text(json.dumps(calibration))
    config = CONFIG.replace("cost: 0.1", "cost: 0.1\n    calibration: fast.json")

    with pytest.raises(InvalidInput, match="fitted for its version '2', and version '1' is loaded; calibrate again"):
        await check_models(settings_of(tmp_path, config))
