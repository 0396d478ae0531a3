"""The fused path: what a plan hands to it, and that it gives what the plain steps give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import fused
from kernels.arrays import Array, ArraySpec, ItemError, Values
from kernels.guard import LEVELS_APART, Kernels
from kernels.plan import Plan
from kernels.recipe import Boxed, Exact, Operation, Recipe, Shortest

HERE = Path()
PAGE = "{resize_shortest: 16}, {center_crop: [14, 12]}"
PLAIN = Kernels(fuse=False)
UNWATCHED = Kernels(check=0, smallest=0)
MEAN = (0.485, 0.456, 0.406)


def spec(channels: int = 3) -> ArraySpec:
    return ArraySpec(np.dtype(np.uint8), (-1, -1, channels), ragged=True)


def plans(steps: str | list[Any], channels: int = 3) -> tuple[Plan, Plan]:
    """The same steps, fused and plain."""
    parsed = yaml.safe_load(steps) if isinstance(steps, str) else steps
    inputs = {"x": spec(channels)}
    one, other = (Plan.from_spec(parsed, inputs, base=HERE, kernels=kernels) for kernels in (UNWATCHED, PLAIN))
    return one, other


def recipe_of(steps: str, channels: int = 3) -> Recipe:
    (recipe,) = plans(steps, channels)[0].recipes
    return recipe


def picture(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def results(steps: str | list[Any], pictures: Values, channels: int = 3) -> tuple[Array, Array, Recipe]:
    """What both make of *pictures*, and the recipe."""
    one, other = plans(steps, channels)
    (recipe,) = one.recipes
    got, expected = (made({"x": pictures})["x"] for made in (one, other))
    assert isinstance(got, np.ndarray)
    assert isinstance(expected, np.ndarray)
    assert (got.dtype, got.shape, got.flags.c_contiguous) == (expected.dtype, expected.shape, True)
    return got, expected, recipe


def levels_apart(steps: str | list[Any], pictures: Values, channels: int = 3) -> float:
    got, expected, recipe = results(steps, pictures, channels)
    return max(recipe.levels_apart(*pair) for pair in zip(got, expected, strict=True))


# What is fused


def test_the_recipe_of_a_page_model_is_one_kernel() -> None:
    recipe = recipe_of(
        "[{resize_shortest: 256}, {center_crop: [224, 224]}, {scale: 0.5},"
        " {normalize: {mean: [1, 2, 3], std: 4}}, chw, {cast: float16}]"
    )

    assert recipe.fit == Shortest(256)
    assert recipe.size == (224, 224)
    assert recipe.shape == (3, 224, 224)
    assert recipe.operations == (
        Operation("multiply", (0.5,)),
        Operation("subtract", (1, 2, 3)),
        Operation("divide", (4,)),
    )
    assert (recipe.element, recipe.planar, recipe.order) == ("float16", True, (0, 1, 2))


def test_numbers_follow_their_channels_through_changes_of_order() -> None:
    recipe = recipe_of("[bgr, {resize: [2, 2]}, {scale: 1}, {normalize: {mean: [3, 2, 1], std: 1}}, bgr]")

    assert recipe.order == (0, 1, 2)
    assert recipe.operations[1] == Operation("subtract", (1, 2, 3))


@pytest.mark.parametrize(
    ("steps", "fits"),
    [
        ("[{resize: [4, 4]}]", [Exact((4, 4))]),
        ("[{letterbox: {size: [4, 6], fill: 9}}, {scale: 1}]", [Boxed((4, 6), 9)]),
        ("[{resize: [9, 9]}, {center_crop: [4, 4]}, {center_crop: [2, 2]}]", [Exact((9, 9))]),
        ("[{resize: [9, 9]}, {resize: [4, 4]}]", [Exact((9, 9)), Exact((4, 4))]),
        ("[gray, {resize: [4, 4]}, {scale: 1}, flatten]", [Exact((4, 4))]),
        ("[{resize: [4, 4]}, {cast: int32}]", [Exact((4, 4))]),
        ("[{resize: [4, 4]}, {cast: float16}, {cast: float32}]", [Exact((4, 4))]),
        ("[{resize: [4, 3]}, chw, {scale: 1}, {normalize: {mean: [1, 2, 3], std: 1}}]", [Exact((4, 3))]),
        ("[{resize_shortest: 4}]", []),
        ("[{center_crop: [2, 2]}, {scale: 1}]", []),
        ("[{scale: 1}, chw]", []),
        ("[]", []),
    ],
)
def test_as_many_steps_are_fused_as_a_kernel_can_do(steps: str, fits: list[Any]) -> None:
    one, other = plans(steps)
    pictures = (np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3),) * 2

    assert [recipe.fit for recipe in one.recipes] == fits
    assert one.outputs == other.outputs
    assert np.array_equal(one({"x": pictures})["x"], other({"x": pictures})["x"])


def test_a_plan_that_is_not_to_be_fused_has_no_recipes() -> None:
    assert plans("[{resize: [4, 4]}]")[1].recipes == ()


# That it is right

SIDES = st.integers(1, 40)
RESIZES = st.one_of(
    st.builds(lambda h, w: {"resize": {"size": [h, w]}}, SIDES, SIDES),
    st.builds(lambda h, w, fill: {"letterbox": {"size": [h, w], "fill": fill}}, SIDES, SIDES, st.integers(0, 255)),
    st.builds(lambda h, w: {"resize": {"size": [h, w], "antialias": False, "align_corners": True}}, SIDES, SIDES),
)
FILTERS = st.sampled_from(
    [{"method": "nearest"}, {"method": "area"}, {"antialias": True}, {"antialias": False}, {"method": "bilinear"}]
)
TAILS = st.sampled_from(
    [
        [],
        ["bgr"],
        ["chw"],
        [{"scale": 1 / 255}, {"normalize": {"mean": list(MEAN), "std": [0.229, 0.224, 0.225]}}, "chw"],
        [{"scale": 1 / 255}, "bgr", {"normalize": {"mean": list(MEAN), "std": 0.5}}, {"cast": "float16"}, "chw"],
        [{"cast": "bfloat16"}],
        [{"scale": -3.0}, {"cast": "bfloat16"}, "chw"],
        [{"cast": "float32"}, "bgr", "chw", {"scale": 2.0}],
        [{"scale": 1000.0}, {"cast": "float16"}],
    ]
)


@settings(max_examples=150)
@given(RESIZES, FILTERS, TAILS, st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_any_chain_gives_what_its_steps_give(
    resize: dict[str, Any], filtering: dict[str, Any], tail: list[Any], sizes: list[tuple[int, int]], seed: int
) -> None:
    (name, arguments), rng = *resize.items(), np.random.default_rng(seed)
    step = {name: arguments if "align_corners" in arguments else {**arguments, **filtering}}

    assert levels_apart([step, *tail], tuple(picture(rng, *size) for size in sizes)) <= LEVELS_APART


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), FILTERS, TAILS, st.tuples(SIDES, SIDES), st.integers(0, 2**32 - 1))
def test_any_crop_gives_what_its_steps_give(
    side: int, inner: int, filtering: dict[str, Any], tail: list[Any], size: tuple[int, int], seed: int
) -> None:
    steps = [
        {"resize_shortest": {"side": side, **filtering}},
        {"center_crop": [min(side, inner), max(1, side - inner)]},
        *tail,
    ]

    assert levels_apart(steps, (picture(np.random.default_rng(seed), *size),)) <= LEVELS_APART


@pytest.mark.parametrize("method", ["nearest", "area", "bilinear"])
@pytest.mark.parametrize("antialias", ["true", "false"])
@pytest.mark.parametrize("size", [(2339, 1654), (1, 9000), (9000, 1), (1, 1), (2, 40_000), (300, 257)])
def test_pages_and_threads_give_what_the_steps_give(
    method: str, antialias: str, size: tuple[int, int], rng: np.random.Generator
) -> None:
    steps = (
        f"[{{resize: {{size: [56, 64], method: {method}, antialias: {antialias}}}}}, {{scale: 0.00392156862745098}},"
        " {normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}, chw]"
    )
    got, expected, recipe = results(steps, (picture(rng, *size),))

    assert recipe.levels_apart(got[0], expected[0]) <= LEVELS_APART
    assert np.mean(got != expected) < 0.001  # sums that fall on the other side of a half are rare


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_of_other_channels(channels: int, rng: np.random.Generator) -> None:
    for filtering in ("antialias: true", "antialias: false"):
        steps = f"[{{letterbox: {{size: [9, 12], {filtering}}}}}, {{scale: 0.5}}, chw]"
        assert levels_apart(steps, (picture(rng, 31, 22, channels),), channels) <= LEVELS_APART


@pytest.mark.parametrize("filtering", ["method: nearest", "method: area", "antialias: true", "antialias: false"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: x[..., ::-1],
        lambda x: x[2:-3, 1:-4],
        lambda x: x.transpose(1, 0, 2),
        lambda x: np.asfortranarray(x),
        lambda x: np.broadcast_to(x[:1], x.shape),
    ],
)
def test_views_are_read_as_they_are(
    filtering: str, view: Callable[[Array], Array], rng: np.random.Generator, unfriendly: Any
) -> None:
    steps = f"[{{resize: {{size: [7, 9], {filtering}}}}}, {{scale: 0.5}}, chw]"
    image = view(picture(rng, 40, 30))
    before = image.copy()

    for given_image in (image, unfriendly(image)):
        assert levels_apart(steps, (given_image,)) <= LEVELS_APART
    assert np.array_equal(image, before)
    assert np.array_equal(results(steps, (unfriendly(image),))[0], results(steps, (before,))[0])


def test_a_picture_is_the_same_in_any_batch_and_as_an_array(rng: np.random.Generator) -> None:
    steps = f"[{PAGE}, {{scale: 0.1}}, chw]"
    batch = np.stack([picture(rng, 50, 41) for _ in range(5)])
    made = plans(steps)[0]

    together = made({"x": batch})["x"]

    assert np.array_equal(together, made({"x": tuple(batch)})["x"])
    for index in range(5):
        assert np.array_equal(together[index], made({"x": (batch[index],)})["x"][0])


def test_what_the_steps_refuse_is_refused_in_their_words(rng: np.random.Generator) -> None:
    made = plans("[{resize_shortest: 8}, {center_crop: [8, 20]}]")[0]

    with pytest.raises(ItemError, match=r"^item 1: image of 8x8 is smaller than the crop of 8x20; resize it first$"):
        made({"x": (picture(rng, 10, 30), picture(rng, 10, 10))})
    with pytest.raises(ItemError, match=r"^item 0: cannot resize an image of shape \[0, 3, 3\], which has no pixels$"):
        made({"x": (np.zeros((0, 3, 3), np.uint8),)})
    with pytest.raises(ItemError, match=r"^item 0: cannot make an image of 8x40000000 pixels"):
        plans("[{resize_shortest: 8}, {center_crop: [8, 8]}]")[0]({"x": (np.zeros((1, 5_000_000, 3), np.uint8),)})


def test_many_threads_at_once_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    made = plans(f"[{PAGE}, {{scale: 0.1}}, chw]")[0]
    pictures = [picture(rng, 700, 500 + 10 * i) for i in range(4)]
    expected = [made({"x": (one,)})["x"] for one in pictures]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(
            index for _ in range(8) if not np.array_equal(made({"x": (pictures[index],)})["x"], expected[index])
        )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_a_failure_on_any_thread_is_the_callers(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    def fail(*given: Any) -> None:
        if given[-1].start > 0:
            raise MemoryError("no more")

    monkeypatch.setattr(fused, "_gather", fail)
    monkeypatch.setattr(fused, "_cores", lambda: 4)

    with pytest.raises(MemoryError, match="no more"):
        fused.run(recipe_of("[{resize: {size: [400, 400], method: nearest}}]"), [picture(rng, 500, 500)])


def test_little_memory_is_taken_beside_the_output(rng: np.random.Generator) -> None:
    """Read from the allocator: a page takes megabytes, its widened copy four times as many."""
    import tracemalloc

    recipe = recipe_of("[{resize_shortest: 256}, {center_crop: [224, 224]}, {scale: 0.1}, chw]")
    page = picture(rng, 2339, 1654)
    fused.run(recipe, [page])

    tracemalloc.start()
    fused.run(recipe, [page] * 4)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 4 * 3 * 224 * 224 * 4 + 500_000
