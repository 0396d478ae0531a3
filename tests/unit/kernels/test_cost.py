"""What a plan takes is found by running it, counted nowhere, and told in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.arrays import ArraySpec
from kernels.cost import sample_of
from kernels.guard import Kernels
from kernels.plan import Plan

IMAGE = ArraySpec(np.dtype(np.uint8), (-1, -1, 3), ragged=True)
TEXT = ArraySpec(np.dtype(object), (1,))
CLASSIFIER: list[Any] = [{"resize_shortest": 256}, {"center_crop": [224, 224]}, {"scale": 1 / 255}, "chw"]


def test_a_fused_plan_reads_the_picture_and_writes_the_result_and_nothing_between() -> None:
    cost = Plan.from_spec(CLASSIFIER, {"image": IMAGE}, base=Path()).cost()

    assert cost is not None
    assert (cost.read_bytes, cost.between_bytes, cost.written_bytes) == (1024 * 1024 * 3, 0, 3 * 224 * 224 * 4)
    assert cost.sample == "image uint8[1024, 1024, 3]"
    assert str(cost).endswith(" ms an item of image uint8[1024, 1024, 3]: 3.15 MB read, 0 MB between, 0.602 MB written")


def test_plain_steps_leave_arrays_between() -> None:
    cost = Plan.from_spec(CLASSIFIER, {"image": IMAGE}, base=Path(), kernels=Kernels(fuse=False)).cost()

    assert cost is not None
    assert cost.between_bytes >= 256 * 256 * 3 + 224 * 224 * 3 * 4  # resized, and scaled before it is turned
    assert cost.seconds > 0


def test_the_trial_is_counted_nowhere_and_nothing_of_it_is_checked() -> None:
    plan = Plan.from_spec(CLASSIFIER, {"image": IMAGE}, base=Path(), kernels=Kernels(check=1.0))
    before = plan.statistics()

    assert plan.cost() is not None

    assert plan.statistics() == before
    plan({"image": (np.zeros((300, 300, 3), np.uint8),)})
    assert plan.statistics()[0].fused == 1


def test_texts_count_by_their_characters(tokenizer_file: Path) -> None:
    steps = [{"tokenize": {"file": tokenizer_file.name, "max_length": 32}}]
    cost = Plan.from_spec(steps, {"text": TEXT}, base=tokenizer_file.parent).cost()

    assert cost is not None
    assert 300 < cost.read_bytes < 500
    assert cost.written_bytes == 3 * 32 * 8


def test_a_plan_without_steps_or_that_refuses_the_sample_has_no_cost() -> None:
    assert Plan.from_spec([], {"x": TEXT}, base=Path()).cost() is None
    too_large = Plan.from_spec([{"center_crop": [5000, 5000]}], {"x": IMAGE}, base=Path())

    assert too_large.cost() is None


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint8", "float16", "float64"])
def test_a_sample_is_what_the_plan_takes(dtype: str) -> None:
    specs = {
        "fixed": ArraySpec(np.dtype(dtype), (2, 3)),
        "open": ArraySpec(np.dtype(dtype), (-1, 3)),
        "ragged": ArraySpec(np.dtype(dtype), (-1,), ragged=True),
    }
    sample = sample_of(specs)

    assert Plan.from_spec([], specs, base=Path())(sample).keys() == specs.keys()
    assert [value[0].shape for value in sample.values()] == [(2, 3), (128, 3), (128,)]
