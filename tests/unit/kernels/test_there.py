"""What kernels make stays on their device where nothing of the host needs it, and scores are taken from there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.arrays import Array, ArraySpec, ItemError, Values
from kernels.dlpack import to_host
from kernels.guard import CHECKER, Fault, KernelDemoted, Kernels, KernelStatistics
from kernels.plan import Plan
from tests.elsewhere import Elsewhere, run_there, scores_there
from tests.unit.kernels.test_guard import Watched

IMAGE = ArraySpec(np.dtype(np.uint8), (-1, -1, 3), ragged=True)
SCORES = ArraySpec(np.dtype(np.float32), (5,))
TO_FOUR: list[Any] = [{"resize": [4, 4]}, {"scale": 0.5}, "chw"]
THERE = Kernels(check=0, smallest=0, there=run_there, scores=scores_there)


def pictures(rng: np.random.Generator, *sizes: tuple[int, int]) -> tuple[Array, ...]:
    return tuple(rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes)


def of_images(steps: list[Any], kernels: Kernels = THERE, *, leave: bool = True) -> Plan:
    return Plan.from_spec(steps, {"x": IMAGE}, base=Path(), kernels=kernels, leave=leave)


def of_scores(steps: list[Any], kernels: Kernels = THERE, labels: list[str] | None = None) -> Plan:
    return Plan.from_spec(steps, {"s": SCORES}, base=Path(), kernels=kernels, labels=labels)


# Results


@pytest.mark.parametrize("behind", [[], [{"rename": {"x": "y"}}], [{"rename": {"x": "y"}}, {"select": ["y"]}]])
def test_a_result_stays_there_and_is_what_the_steps_make(behind: list[Any], rng: np.random.Generator) -> None:
    batch = pictures(rng, (30, 20), (9, 50))

    (value,) = of_images([*TO_FOUR, *behind])({"x": batch}).values()

    assert isinstance(value, Elsewhere)
    (expected,) = of_images([*TO_FOUR, *behind], Kernels(fuse=False))({"x": batch}).values()
    assert np.abs(to_host(value) - np.asarray(expected)).max() <= 0.5


@pytest.mark.parametrize(
    ("steps", "kernels", "leave"),
    [
        ([*TO_FOUR, "flatten"], THERE, True),
        ([*TO_FOUR, {"rename": {"x": "y"}}, {"scale": {"factor": 2.0, "input": "y"}}], THERE, True),
        (TO_FOUR, THERE, False),
        (TO_FOUR, replace(THERE, there=None), True),
        (TO_FOUR, replace(THERE, fuse=False), True),
        (TO_FOUR, replace(THERE, smallest=10**6), True),
    ],
)
def test_a_result_that_is_worked_on_or_not_wanted_there_is_of_the_host(
    steps: list[Any], kernels: Kernels, leave: bool, rng: np.random.Generator
) -> None:
    (value,) = of_images(steps, kernels, leave=leave)({"x": pictures(rng, (30, 20))}).values()

    assert isinstance(value, np.ndarray)


def test_what_stays_there_is_checked_like_all_else(rng: np.random.Generator) -> None:
    def wrong(recipe: Any, batch: Any) -> Elsewhere:
        made: Elsewhere | None = run_there(recipe, batch)
        assert made is not None
        made.array[0, 0, 0, 0] += 50
        return made

    watched = Watched()
    made = of_images(TO_FOUR, replace(THERE, there=wrong, check=1.0, observer=watched))

    first = made({"x": pictures(rng, (30, 20))})["x"]
    CHECKER.wait_idle()
    second = made({"x": pictures(rng, (30, 20))})["x"]

    assert isinstance(first, Elsewhere)
    assert isinstance(second, np.ndarray)
    assert [(record.shape, record.fault) for record in watched.demoted] == [((30, 20, 3), Fault.MISMATCH)]


def test_a_batch_with_a_shape_that_is_left_to_the_steps_is_of_the_host(rng: np.random.Generator) -> None:
    def fails_for_narrow(recipe: Any, batch: Any) -> Any:
        if any(picture.shape[1] == 20 for picture in batch):
            raise RuntimeError("as asked for")
        return run_there(recipe, batch)

    made = of_images(TO_FOUR, replace(THERE, there=fails_for_narrow, observer=Watched()))
    narrow, wide = pictures(rng, (30, 20), (30, 40))
    expected = of_images(TO_FOUR, Kernels(fuse=False))

    for batch in ((narrow,), (narrow, wide)):
        got = made({"x": batch})["x"]
        assert np.abs(np.asarray(got) - np.asarray(expected({"x": batch})["x"])).max() <= 0.5
    assert isinstance(made({"x": (wide,)})["x"], Elsewhere)
    assert made.statistics() == (KernelStatistics(fused=2, plain=2, demoted={Fault.FAILED: 1}),)


# Scores


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        ([{"softmax": 1.5}], None),
        ([{"softmax": 1.5}, {"top_k": 2}], None),
        (["softmax"], list("abcde")),
        (["softmax", {"rename": {"s": "probabilities"}}, {"select": ["probabilities"]}], list("abcde")),
    ],
)
@pytest.mark.parametrize("scores", [[[1, 5, 2, 5, 0], [0, 0, 0, 0, 9]], [[np.nan, 1, 2, 3, 4]]])
def test_scores_from_there_give_what_scores_from_the_host_give(
    steps: list[Any], labels: list[str] | None, scores: list[list[float]]
) -> None:
    made = of_scores(steps, labels=labels)
    given = np.array(scores, np.float32)

    got, expected = made({"s": Elsewhere(given)}), made({"s": given})

    assert made.takes_there == {"s"}
    assert got.keys() == expected.keys() == made.outputs.keys()
    for name in got:
        np.testing.assert_array_equal(np.asarray(got[name]), np.asarray(expected[name]))
    (statistics,) = made.statistics()
    assert (statistics.fused, statistics.plain) == (len(scores), len(scores))


@pytest.mark.parametrize(
    ("steps", "inputs", "kernels"),
    [
        (["sigmoid"], {"s": SCORES}, THERE),
        ([{"scale": 2.0}, "softmax"], {"s": SCORES}, THERE),
        (["softmax"], {"s": ArraySpec(np.dtype(np.float64), (5,))}, THERE),
        (["softmax"], {"s": ArraySpec(np.dtype(np.float32), (-1, 5))}, THERE),
        (["softmax"], {"s": SCORES}, Kernels()),
        (["softmax"], {"s": SCORES}, replace(THERE, fuse=False)),
        ([{"margin": {"input": "s"}}, {"softmax": {"input": "s"}}], {"s": SCORES}, THERE),
    ],
)
def test_what_no_kernel_begins_with_is_not_taken_from_there(
    steps: list[Any], inputs: dict[str, ArraySpec], kernels: Kernels
) -> None:
    assert Plan.from_spec(steps, inputs, base=Path(), kernels=kernels).takes_there == frozenset()


def test_only_the_input_that_is_scores_is_taken_from_there() -> None:
    made = Plan.from_spec(
        [{"softmax": {"input": "s"}}],
        {"s": SCORES, "boxes": ArraySpec(np.dtype(np.float32), (4,))},
        base=Path(),
        kernels=THERE,
    )

    assert made.takes_there == {"s"}


def test_scores_of_another_shape_are_refused() -> None:
    made = of_scores(["softmax"])

    with pytest.raises(ItemError, match=r"value 's' is float32\[4\]; the plan takes float32\[5\]"):
        made({"s": Elsewhere(np.zeros((2, 4), np.float32))})


def test_no_items_are_refused_wherever_they_are_not() -> None:
    made = of_scores(["softmax"])

    for nothing in (np.zeros((0, 5), np.float32), Elsewhere(np.zeros((0, 5), np.float32))):
        with pytest.raises(ValueError, match=r"^value 's' has no items$"):
            made({"s": nothing})


def test_a_kernel_for_scores_that_fails_hands_over_to_the_steps_for_good() -> None:
    calls = []

    def fails(scores: Any, k: int | None, temperature: float) -> tuple[Array, ...]:
        calls.append(scores)
        raise MemoryError

    watched = Watched()
    made = of_scores(["softmax", {"top_k": 1}], replace(THERE, scores=fails, observer=watched))

    for _ in range(2):
        found = made({"s": Elsewhere(np.array([[0, 1, 2, 3, 9]], np.float32))})
        assert np.asarray(found["s_indices"]).tolist() == [[4]]

    assert len(calls) == 1
    assert watched.demoted == [KernelDemoted(__name__, (5,), Fault.OUT_OF_MEMORY, "no memory")]


@pytest.mark.parametrize("wrong", ["probabilities", "values", "indices", None])
def test_a_kernel_for_scores_that_is_wrong_is_found_out(wrong: str | None) -> None:
    def kernel(scores: Any, k: int | None, temperature: float) -> tuple[Array, ...]:
        found = scores_there(scores, k, temperature)
        place = {"probabilities": 0, "values": 0, "indices": 1}.get(wrong or "")
        if place is not None:
            found[place][0, 0] = found[place][0, 0] * 1.001 if place == 0 else 0
        return found

    watched = Watched()
    steps: list[Any] = ["softmax"] if wrong == "probabilities" else ["softmax", {"top_k": 2}]
    made = of_scores(steps, replace(THERE, scores=kernel, check=1.0, observer=watched))

    made({"s": Elsewhere(np.array([[0, 1, 2, 3, 9]], np.float32))})
    CHECKER.wait_idle()

    assert [record.fault for record in watched.demoted] == ([] if wrong is None else [Fault.MISMATCH])
    assert len(watched.checked) == 1


def test_a_kernel_that_ranks_one_of_two_equal_scores_twice_is_found_out() -> None:
    def kernel(scores: Any, k: int | None, temperature: float) -> tuple[Array, ...]:
        values, indices = scores_there(scores, k, temperature)
        return values, np.full_like(indices, indices[0, 0])

    watched = Watched()
    made = of_scores(["softmax", {"top_k": 2}], replace(THERE, scores=kernel, check=1.0, observer=watched))

    made({"s": Elsewhere(np.array([[9, 1, 2, 3, 9]], np.float32))})
    CHECKER.wait_idle()

    assert [record.fault for record in watched.demoted] == [Fault.MISMATCH]


def test_scores_that_cannot_be_copied_to_be_checked_cost_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*given: Any) -> None:
        raise MemoryError("for a copy")

    monkeypatch.setattr(CHECKER, "offer", no_room)
    watched = Watched()
    made = of_scores(["softmax", {"top_k": 1}], replace(THERE, check=1.0, observer=watched))

    found = made({"s": Elsewhere(np.array([[0, 1, 2, 3, 9]], np.float32))})

    assert np.asarray(found["s_indices"]).tolist() == [[4]]
    assert watched.demoted == []


def test_scores_that_cannot_be_ranked_pass_the_check() -> None:
    watched = Watched()
    made = of_scores(["softmax", {"top_k": 2}], replace(THERE, check=1.0, observer=watched))

    made({"s": Elsewhere(np.array([[0, np.nan, 2, 3, 9]], np.float32))})
    CHECKER.wait_idle()

    assert (len(watched.checked), watched.demoted) == (1, [])


def test_values_of_other_kinds_are_as_before() -> None:
    value: Values = np.zeros((1, 5), np.float32)

    assert of_scores([])({"s": value})["s"] is value
