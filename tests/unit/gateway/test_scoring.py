"""How sure a model is, whoever shares its batch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from backends.contract import NO_DEADLINE, Batch, HostArray, Tensor
from gateway.compose import compose
from gateway.settings import Settings, load_settings

CONFIG = """
models:
  span:
    backend: python
    target: tests.unit.gateway.test_scoring:span
    inputs: [{name: weights, datatype: FP32, shape: [-1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [-1]}]
    max_batch: 8
    expose: true
    CONFIDENCE
    batching: {padding: {weights: 0.0}, trim: {probabilities: weights}}
store: {path: store.db}
"""
SHORT = np.array([[3.0, 1.0]], np.float32)
LONG = np.array([[1.0, 1.0, 1.0, 1.0, 4.0]], np.float32)

sizes: list[int] = []


def span(inputs: Mapping[str, HostArray]) -> dict[str, HostArray]:
    """Where something begins, as probabilities over the positions of a text; 0 where there is padding."""
    weights = inputs["weights"]
    sizes.append(len(weights))
    return {"probabilities": weights / weights.sum(axis=1, keepdims=True)}


def settings(folder: Path, confidence: str) -> Settings:
    file = folder / "gateway.yaml"
    file.write_text(CONFIG.replace("CONFIDENCE", confidence))
    return load_settings(file)


def own(weights: HostArray) -> float:
    """1 - entropy / log(positions), of the item alone."""
    rows = weights[0] / weights.sum()
    return float(1.0 + (rows * np.log(rows)).sum() / np.log(rows.size))


async def test_a_confidence_does_not_depend_on_the_padding_that_company_brings(tmp_path: Path) -> None:
    sizes.clear()
    async with compose(settings(tmp_path, "confidence: entropy")) as gateway:
        model = gateway.pipeline.catalog.models["span"]

        answers = await asyncio.gather(
            *(model.run(Batch.of({"weights": Tensor.of(weights)}), NO_DEADLINE) for weights in (SHORT, LONG))
        )

    assert sizes == [2]
    for weights, (outputs, sure) in zip((SHORT, LONG), answers, strict=True):
        assert outputs.keys() == {"probabilities"}
        np.testing.assert_allclose(outputs["probabilities"].numpy(), weights / weights.sum())
        assert sure == pytest.approx([own(weights)])


async def test_items_of_unequal_length_in_one_request_are_measured_each_by_itself(tmp_path: Path) -> None:
    async with compose(settings(tmp_path, "confidence: entropy")) as gateway:
        model = gateway.pipeline.catalog.models["span"]
        rows = Tensor.ragged(Tensor.of(SHORT).datatype, (SHORT[0], LONG[0], SHORT[0]))

        _, sure = await model.run(Batch.of({"weights": rows}), NO_DEADLINE)

    assert sure == pytest.approx([own(SHORT), own(LONG), own(SHORT)])
