"""A kernel that is wrong costs speed, not answers, and is heard of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import fused
from kernels.arrays import Array, ArraySpec, ItemError
from kernels.guard import (
    CHECKER,
    LEVELS_APART,
    SHAPES_LIMIT,
    Fault,
    KernelChecked,
    KernelDemoted,
    Kernels,
    KernelStatistics,
    Logged,
)
from kernels.images import Filter
from kernels.plan import Plan
from kernels.recipe import Exact, Operation, Recipe, store

STEPS = [{"resize_shortest": 8}, {"center_crop": [8, 8]}, {"scale": 0.5}, "chw"]
IMAGE = ArraySpec(np.dtype(np.uint8), (-1, -1, 3), ragged=True)


@dataclass
class Watched:
    """An observer that remembers."""

    checked: list[KernelChecked] = field(default_factory=list)
    demoted: list[KernelDemoted] = field(default_factory=list)

    def on_checked(self, record: KernelChecked) -> None:
        self.checked.append(record)

    def on_demoted(self, record: KernelDemoted) -> None:
        self.demoted.append(record)


def wrong_for_wide(recipe: Recipe, pictures: Sequence[Array] | Array) -> Array | None:
    """The fused kernel, but for pictures 20 pixels wide, of which one number is off."""
    result = fused.run(recipe, pictures)
    assert result is not None
    for item, one in zip(result, pictures, strict=True):
        if one.shape[1] == 20:
            item.flat[5] += 3 * 0.5
    return result


def plan(watched: Watched, kernel: Any = fused.run, check: float = 1.0) -> Plan:
    kernels = Kernels(check=check, smallest=0, observer=watched, kernel=kernel)
    return Plan.from_spec(STEPS, {"x": IMAGE}, base=Path(), kernels=kernels)


def reference(*pictures: Array) -> Array:
    made = Plan.from_spec(STEPS, {"x": IMAGE}, base=Path(), kernels=Kernels(fuse=False))
    return np.asarray(made({"x": pictures})["x"])


@pytest.fixture
def pictures(rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    wide, wider = (rng.integers(0, 256, (12, width, 3), dtype=np.uint8) for width in (20, 30))
    yield wide, wider
    CHECKER.wait_idle()


def test_a_good_kernel_is_checked_and_stays(pictures: tuple[Array, Array]) -> None:
    watched = Watched()
    made = plan(watched)

    for _ in range(3):
        made({"x": pictures[:1]})
        CHECKER.wait_idle()

    assert [(record.kernel, record.shape) for record in watched.checked] == [("kernels.fused", (12, 20, 3))] * 3
    assert all(record.levels_apart <= LEVELS_APART for record in watched.checked)
    assert watched.demoted == []
    assert made.statistics() == (KernelStatistics(fused=3, plain=0, checked=3, demoted={}),)


def test_a_wrong_kernel_is_demoted_for_that_shape_alone_and_serving_goes_on(pictures: tuple[Array, Array]) -> None:
    watched = Watched()
    made = plan(watched, wrong_for_wide)

    first = np.asarray(made({"x": pictures[:1]})["x"])
    CHECKER.wait_idle()
    second = np.asarray(made({"x": pictures})["x"])
    CHECKER.wait_idle()

    assert not np.array_equal(first, reference(*pictures)[:1])
    assert np.abs(second - reference(*pictures)).max() <= 0.5
    assert np.array_equal(second[0], reference(*pictures)[0])
    (record,) = watched.demoted
    assert (record.shape, record.fault) == ((12, 20, 3), Fault.MISMATCH)
    assert record.detail == "a result is 3 levels of uint8 from the reference"
    (statistics,) = made.statistics()
    assert (statistics.fused, statistics.plain, statistics.demoted) == (2, 1, {Fault.MISMATCH: 1})


@pytest.mark.parametrize(
    ("error", "fault", "detail"),
    [
        (MemoryError(), Fault.OUT_OF_MEMORY, "no memory"),
        (MemoryError("Unable to allocate 3 GiB"), Fault.OUT_OF_MEMORY, "Unable to allocate 3 GiB"),
        (RuntimeError("illegal address"), Fault.FAILED, "RuntimeError: illegal address"),
        (ValueError("a bug"), Fault.FAILED, "ValueError: a bug"),
    ],
)
def test_a_kernel_that_fails_is_replaced_within_the_call(
    error: Exception, fault: Fault, detail: str, pictures: tuple[Array, Array]
) -> None:
    calls = []

    def failing(recipe: Recipe, given: Sequence[Array] | Array) -> Array | None:
        calls.append(len(given))
        raise error

    watched = Watched()
    made = plan(watched, failing)

    for _ in range(2):
        assert np.array_equal(np.asarray(made({"x": pictures})["x"]), reference(*pictures))

    assert calls == ([2, 1, 1] if fault is Fault.OUT_OF_MEMORY else [2])  # one alone is asked of memory
    assert [(record.shape, record.fault, record.detail) for record in watched.demoted] == [
        ((12, 20, 3), fault, detail),
        ((12, 30, 3), fault, detail),
    ]


def test_a_picture_that_is_refused_is_named_by_its_place_in_a_mixed_batch(pictures: tuple[Array, Array]) -> None:
    made = plan(Watched(), wrong_for_wide)
    made({"x": pictures[:1]})
    CHECKER.wait_idle()
    empty = np.zeros((0, 9, 3), np.uint8)

    with pytest.raises(ItemError, match=r"^item 1: cannot resize an image of shape \[0, 9, 3\]") as caught:
        made({"x": (pictures[0], empty)})

    assert caught.value.item == 1


def test_a_refusal_is_no_fault_of_the_kernel() -> None:
    watched = Watched()
    made = plan(watched)

    with pytest.raises(ItemError):
        made({"x": (np.zeros((0, 9, 3), np.uint8),)})

    assert watched.demoted == []


def test_small_pictures_are_left_to_the_steps_which_are_quicker(rng: np.random.Generator) -> None:
    made = Plan.from_spec(STEPS, {"x": IMAGE}, base=Path(), kernels=Kernels(smallest=30 * 12 * 3))
    small, large = (rng.integers(0, 256, (12, width, 3), dtype=np.uint8) for width in (29, 30))

    made({"x": (small, small)})
    made({"x": np.stack([small] * 3)})
    made({"x": (small, large)})

    (statistics,) = made.statistics()
    assert (statistics.plain, statistics.fused) == (5, 2)


def test_only_a_share_is_checked(pictures: tuple[Array, Array]) -> None:
    watched = Watched()
    never, half = plan(watched, check=0.0), plan(watched, check=0.5)
    for _ in range(20):
        never({"x": pictures[:1]})
    CHECKER.wait_idle()
    assert watched.checked == []

    for _ in range(40):
        half({"x": pictures[:1]})
        CHECKER.wait_idle()
    assert 5 <= len(watched.checked) <= 35  # 1 in 10**6 runs is outside


def test_the_callers_arrays_may_change_as_soon_as_the_call_is_over(pictures: tuple[Array, Array]) -> None:
    watched = Watched()
    made = plan(watched)
    mine = pictures[1].copy()

    result = np.asarray(made({"x": (mine,)})["x"])
    mine[:] = 0
    result[:] = 0
    CHECKER.wait_idle()

    assert [record.levels_apart <= LEVELS_APART for record in watched.checked] == [True]


def test_after_many_shapes_a_kernel_is_used_for_none_and_no_more_is_remembered_or_said() -> None:
    calls = []

    def failing(recipe: Recipe, given: Sequence[Array] | Array) -> Array | None:
        calls.append(len(given))
        raise RuntimeError("no such device")

    watched = Watched()
    made = plan(watched, failing)

    for width in range(8, 8 + 2 * SHAPES_LIMIT):
        picture = np.full((8, width, 3), width, np.uint8)
        assert np.array_equal(np.asarray(made({"x": (picture,)})["x"]), reference(picture))

    assert len(calls) == SHAPES_LIMIT
    assert [record.shape for record in watched.demoted] == [(8, 8 + n, 3) for n in range(SHAPES_LIMIT)] + [None]
    assert watched.demoted[-1].detail == (
        f"{SHAPES_LIMIT} shapes are left out; the last, [8, {7 + SHAPES_LIMIT}, 3]: RuntimeError: no such device"
    )
    (statistics,) = made.statistics()
    assert (statistics.plain, statistics.demoted) == (2 * SHAPES_LIMIT, {Fault.FAILED: SHAPES_LIMIT})


def test_memory_that_lacks_for_a_batch_alone_demotes_nothing(rng: np.random.Generator) -> None:
    def frugal(recipe: Recipe, given: Sequence[Array] | Array) -> Array | None:
        if len(given) > 2:
            raise MemoryError("for so many")
        return fused.run(recipe, given)

    watched = Watched()
    made = plan(watched, frugal)
    pictures = tuple(rng.integers(0, 256, (12, 20 + width, 3), dtype=np.uint8) for width in range(7))

    for batch in (pictures, np.stack(pictures[:1] * 5)):
        assert np.abs(np.asarray(made({"x": batch})["x"]) - reference(*batch)).max() <= 0.5
    CHECKER.wait_idle()

    assert watched.demoted == []
    (statistics,) = made.statistics()
    assert (statistics.fused, statistics.plain) == (12, 0)


def test_memory_that_lacks_once_for_one_costs_its_shape_alone(rng: np.random.Generator) -> None:
    calls = []

    def failing_once(recipe: Recipe, given: Sequence[Array] | Array) -> Array | None:
        calls.append(len(given))
        if len(calls) <= 4:
            raise MemoryError
        return fused.run(recipe, given)

    watched = Watched()
    made = plan(watched, failing_once)
    pictures = tuple(rng.integers(0, 256, (12, 20 + width, 3), dtype=np.uint8) for width in range(8))

    for _ in range(2):
        assert np.abs(np.asarray(made({"x": pictures})["x"]) - reference(*pictures)).max() <= 0.5
    CHECKER.wait_idle()

    assert calls == [8, 4, 2, 1, 7]
    assert [record.shape for record in watched.demoted] == [(12, 20, 3)]


def test_a_small_picture_that_is_resampled_to_a_large_one_is_not_left_to_the_steps() -> None:
    made = Plan.from_spec(STEPS, {"x": IMAGE}, base=Path(), kernels=Kernels(check=0))
    thin = np.zeros((1, 549, 3), np.uint8)  # to 8 x 4392, of which 8 x 8 stay

    made({"x": (thin,)})

    (statistics,) = made.statistics()
    assert (statistics.plain, statistics.fused) == (0, 1)


def test_a_batch_of_many_shapes_is_bounded_too() -> None:
    def failing(recipe: Recipe, given: Sequence[Array] | Array) -> Array | None:
        raise RuntimeError

    watched = Watched()
    pictures = tuple(np.zeros((8, 8 + width, 3), np.uint8) for width in range(SHAPES_LIMIT + 20))

    plan(watched, failing)({"x": pictures})

    assert len(watched.demoted) == SHAPES_LIMIT + 1


def test_a_check_that_cannot_be_made_costs_no_answer(
    pictures: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(*given: Any) -> None:
        raise MemoryError("for a copy")

    monkeypatch.setattr(CHECKER, "offer", no_room)
    watched = Watched()

    result = np.asarray(plan(watched)({"x": pictures})["x"])

    assert np.abs(result - reference(*pictures)).max() <= 0.5
    assert watched.demoted == []
    assert "could not be copied to be checked" in caplog.text


def test_a_demotion_is_logged_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pointsman.kernels"):
        Logged().on_checked(KernelChecked("kernels.fused", (1, 2, 3), 0.0))
        Logged().on_demoted(KernelDemoted("kernels.fused", (1, 2, 3), Fault.MISMATCH, "far off"))
        Logged().on_demoted(KernelDemoted("kernels.fused", None, Fault.MISMATCH, "far off"))

    line, of_all = caplog.records
    assert of_all.getMessage().startswith("kernel 'kernels.fused' is not used any more for items of any shape (mis")
    assert line.levelno == logging.ERROR
    assert line.getMessage() == (
        "kernel 'kernels.fused' is not used any more for items of shape [1, 2, 3] (mismatch): far off; answers go "
        "on, more slowly; report it with this line"
    )


# How far apart two results are

RECIPE = Recipe(Exact((1, 2)), Filter(), (1, 2), (0, 1), (Operation("multiply", (0.5, 2.0)),), "float32", planar=True)


def test_differences_are_told_in_levels_of_each_channel() -> None:
    one = np.zeros((2, 1, 2), np.float32)
    other = one.copy()
    other[0, 0, 1] = 0.5
    assert RECIPE.levels_apart(one, other) == pytest.approx(1, rel=1e-4)
    other[1, 0, 0] = 6
    assert RECIPE.levels_apart(one, other) == pytest.approx(3, rel=1e-4)
    assert RECIPE.levels_apart(one, one) == 0


@pytest.mark.parametrize("element", ["float16", "bfloat16"])
def test_what_a_narrow_element_rounds_off_does_not_count(element: Any) -> None:
    recipe = replace(RECIPE, element=element)
    one, other = (np.empty((2, 1, 2), recipe.dtype) for _ in range(2))
    store(np.full((2, 1, 2), 100.0, np.float32), one, element)
    store(
        np.full((2, 1, 2), 100.0 * (1 + 2.0 ** -(11 if element == "float16" else 8)) + 0.5, np.float32), other, element
    )

    assert recipe.levels_apart(one, other) <= LEVELS_APART


@pytest.mark.parametrize(("one", "other", "apart"), [(np.nan, 1, np.inf), (np.inf, np.inf, 0), (np.nan, np.nan, 0)])
def test_what_is_no_number_equals_itself_alone(one: float, other: float, apart: float) -> None:
    sides = (np.full((2, 1, 2), side, np.float32) for side in (one, other))

    assert RECIPE.levels_apart(*sides) == apart
