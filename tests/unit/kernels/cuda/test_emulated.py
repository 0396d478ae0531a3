"""The CUDA kernels' own source, run on the host, against the reference: the same arithmetic, in the same order.

A C++ compiler makes a library of each kernel, with a thread for each of a block's; tiles are small, so that even small
pictures take several blocks, and rows several chunks.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import outputs
from kernels.arrays import Array, ArraySpec
from kernels.cuda import layout
from kernels.cuda.layout import Heads
from kernels.cuda.sources import SOFTMAX_TOP_K, variant_of
from kernels.guard import LEVELS_APART, Kernels
from kernels.plan import Plan
from kernels.recipe import CHANNEL_LIMIT, Recipe
from tests.unit.kernels.cuda.host import COMPILER, NEEDS_COMPILER, TILE_H, TILE_W, Build

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NEEDS_COMPILER)


def emulated(build: Build, recipe: Recipe, pictures: tuple[Array, ...]) -> Array:
    """What a device would make of *pictures*."""
    windows = layout.windows(recipe, pictures)
    assert windows is not None
    heads = Heads.of(recipe, windows)
    memory = np.full(heads.nbytes + sum(window.nbytes for window in windows) + 16, 0xAB, dtype=np.uint8)
    memory = memory[-memory.ctypes.data % 16 :]
    at = heads.nbytes
    for index, window in enumerate(windows):
        window.copy_to(memory[at:])
        tables = [table for axis in (window.down, window.across) for table in (axis.first, axis.weights)]
        addresses = (tables[0].ctypes.data, tables[1].ctypes.data, tables[2].ctypes.data, tables[3].ctypes.data)
        heads.pictures[index] = window.describe(memory.ctypes.data + at, addresses)
        at += window.nbytes
    memory[: heads.nbytes] = heads.packed()
    result = np.empty((len(windows), *recipe.shape), dtype=recipe.dtype)
    variant = variant_of(recipe)
    height, width = recipe.size
    pictures_at, operations_at, order_at = (ctypes.c_void_p(memory.ctypes.data + offset) for offset in heads.offsets)
    build(variant.source, variant.macros).host_resample(
        (ctypes.c_int * 3)(-(-width // TILE_W) * -(-height // TILE_H), 1, len(windows)),
        pictures_at,
        operations_at,
        len(recipe.operations),
        order_at,
        ctypes.c_float(layout.fill(recipe)),
        ctypes.c_void_p(result.ctypes.data),
        height,
        width,
    )
    return result


def levels_apart(build: Build, steps: list[Any], pictures: tuple[Array, ...]) -> float:
    spec = {"x": ArraySpec(np.dtype(np.uint8), (-1, -1, pictures[0].shape[2]), ragged=True)}
    (recipe,) = Plan.from_spec(steps, spec, base=Path()).recipes
    expected = Plan.from_spec(steps, spec, base=Path(), kernels=Kernels(fuse=False))({"x": pictures})["x"]
    got = emulated(build, recipe, pictures)
    assert got.shape == np.shape(expected)
    return max(recipe.levels_apart(*pair) for pair in zip(got, expected, strict=True))


def pictures_of(seed: int, channels: int, *sizes: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 256, (*size, channels), dtype=np.uint8) for size in sizes)


SIDES = st.integers(1, 40)
FILTERS = st.sampled_from(
    [{"method": "nearest"}, {"method": "area"}, {"antialias": True}, {"antialias": False}, {"method": "bilinear"}]
)
FITS = st.one_of(
    st.builds(lambda h, w: {"resize": {"size": [h, w]}}, st.integers(1, 12), st.integers(1, 20)),
    st.builds(lambda h, w: {"letterbox": {"size": [h, w], "fill": 114}}, st.integers(1, 12), st.integers(1, 20)),
)
NORMALISED = [{"scale": 1 / 255}, {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}]


@settings(max_examples=40, deadline=None)
@given(FITS, FILTERS, st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_ragged_batches_give_what_the_steps_give(
    built: Build, fit: dict[str, Any], filtering: dict[str, Any], sizes: list[tuple[int, int]], seed: int
) -> None:
    ((name, arguments),) = fit.items()
    steps = ["bgr", {name: {**arguments, **filtering}}, *NORMALISED, "chw"]

    assert levels_apart(built, steps, pictures_of(seed, 3, *sizes)) <= LEVELS_APART


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 14), st.integers(1, 14), FILTERS, st.tuples(SIDES, SIDES), st.integers(0, 2**32 - 1))
def test_crops_read_no_more_than_their_window(
    built: Build, side: int, inner: int, filtering: dict[str, Any], size: tuple[int, int], seed: int
) -> None:
    crop = {"center_crop": [min(side, inner), max(1, side - inner)]}
    steps = [{"resize_shortest": {"side": side, **filtering}}, crop, *NORMALISED, "chw"]

    assert levels_apart(built, steps, pictures_of(seed, 3, size)) <= LEVELS_APART


@pytest.mark.parametrize(
    ("element", "channels", "planar"),
    [("uint8", 2, False), ("float32", 1, True), ("float16", CHANNEL_LIMIT, True), ("bfloat16", 3, False)],
)
def test_every_element_and_layout(built: Build, element: str, channels: int, planar: bool) -> None:
    cast = [] if element == "uint8" else [{"scale": 1 / 255}, {"cast": element}]
    steps = [{"resize": [5, 11]}, *cast, *["chw"][: int(planar)]]

    assert levels_apart(built, steps, pictures_of(1, channels, (23, 31), (4, 90))) <= LEVELS_APART


def test_half_precision_rounds_to_even_overflows_and_goes_below_normal(built: Build) -> None:
    for factor in (1e-8, 1e-5, 0.1, 257.0, 1e4):
        steps = [{"resize": {"size": [16, 16], "method": "nearest"}}, {"scale": factor}, {"cast": "float16"}, "chw"]
        image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
        assert levels_apart(built, steps, (image,)) == 0


@pytest.mark.parametrize("size", [(3, 3000), (2000, 2), (1, 1)])
def test_extreme_sizes(built: Build, size: tuple[int, int]) -> None:
    for filtering in ({"method": "area"}, {"antialias": True}, {"antialias": False}):
        assert (
            levels_apart(built, [{"resize": {"size": [3, 5], **filtering}}, "chw"], pictures_of(2, 3, size))
            <= LEVELS_APART
        )


def test_views_of_pictures_are_read_as_they_are(built: Build, unfriendly: Any) -> None:
    (image,) = pictures_of(3, 3, (30, 41))
    for view in (image[::-1], image[:, ::-1], image.transpose(1, 0, 2), unfriendly(image)):
        assert levels_apart(built, [{"resize": [6, 9]}, *NORMALISED, "chw"], (view,)) <= LEVELS_APART


# Scores


def softmax_top_k(build: Build, scores: Array, k: int, temperature: float = 1.0) -> tuple[Array, Array, Array]:
    rows, classes = scores.shape
    probabilities = np.empty((rows, classes), np.float32)
    best, indices = np.empty((rows, k), np.float32), np.empty((rows, k), np.int64)
    build(SOFTMAX_TOP_K.source, SOFTMAX_TOP_K.macros).host_softmax_top_k(
        (ctypes.c_int * 3)(rows, 1, 1),
        ctypes.c_void_p(scores.ctypes.data),
        classes,
        ctypes.c_double(temperature),
        k,
        *(ctypes.c_void_p(array.ctypes.data) for array in (probabilities, best, indices)),
    )
    return probabilities, best, indices


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 5), st.floats(0.2, 5), st.integers(0, 2**32 - 1))
def test_scores_become_what_the_reference_makes_of_them(
    built: Build, rows: int, classes: int, k: int, temperature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (rows, classes)).astype(np.float32)  # with ties
    k = min(k, classes)

    probabilities, best, indices = softmax_top_k(built, scores, k, temperature)

    expected = outputs.softmax(scores, temperature=temperature)
    assert np.allclose(probabilities, expected, rtol=1e-6, atol=0)
    values, places = outputs.top_k(probabilities, k)
    assert np.array_equal(best, values)
    assert np.array_equal(indices, places)


def test_scores_that_are_no_numbers_give_no_ranks(built: Build) -> None:
    scores = np.zeros((5, 20), np.float32)
    scores[0, 13], scores[1, 2], scores[2], scores[3, 5] = np.nan, np.inf, -np.inf, -np.inf

    probabilities, best, indices = softmax_top_k(built, scores, 3)

    assert np.isnan(probabilities[:3]).all()
    assert np.isnan(best[:3]).all()
    assert (indices[:3] == -1).all()
    assert probabilities[3, 5] == 0
    assert indices[3].tolist() == [0, 1, 2]
