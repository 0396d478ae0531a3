"""The reference works on arrays of any library that has the standard's names, and stays in that library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kernels import images, outputs
from kernels.arrays import as_type, namespace_of
from tests.unit.kernels.strict import NAMESPACE, Strict

PICTURES: dict[str, Callable[[Any], Any]] = {
    "gray": images.gray,
    "nearest": lambda x: images.resize(x, (4, 9), method="nearest"),
    "bilinear": lambda x: images.resize(x, (4, 9)),
    "plain bilinear": lambda x: images.resize(x, (9, 4), antialias=False),
    "aligned": lambda x: images.resize(x, (4, 9), antialias=False, align_corners=True),
    "area": lambda x: images.resize(x, (3, 2), method="area"),
    "shortest": lambda x: images.resize_shortest(x, 3),
    "crop": lambda x: images.center_crop(x, (2, 2)),
    "letterbox": lambda x: images.letterbox(x, (8, 9)),
    "rotate 90": lambda x: images.rotate(x, 90),
    "rotate 180": lambda x: images.rotate(x, 180),
    "rotate 270": lambda x: images.rotate(x, 270),
    "bgr": images.bgr,
    "scale": lambda x: images.scale(x, 1 / 255),
    "normalize": lambda x: images.normalize(images.scale(x, 0.5), [1, 2, 3], [1, 2, 3]),
    "chw": images.chw,
    "flatten": images.flatten,
    "cast": lambda x: images.cast(x, np.dtype("int32")),
    "cast to a float": lambda x: images.cast(x, np.dtype("float32")),
    "bfloat16": images.bfloat16,
    "there and back": lambda x: images.from_bfloat16(images.bfloat16(x)),
    "a whole chain": lambda x: images.chw(
        images.normalize(images.scale(images.center_crop(images.resize_shortest(x, 4), (4, 4)), 1 / 255), [0.5], [0.2])
    ),
}
SCORES: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda x: outputs.softmax(x, temperature=1.5),
    "log_softmax": lambda x: outputs.log_softmax(x, temperature=0.5),
    "margin": outputs.margin,
    "entropy": lambda x: outputs.entropy(outputs.softmax(x)),
    "sigmoid": outputs.sigmoid,
    "l2_normalize": outputs.l2_normalize,
    "first_token": outputs.first_token,
    "values of top_k": lambda x: outputs.top_k(x, 2)[0],
    "places of top_k": lambda x: outputs.top_k(x, 2)[1],
}


def same(operation: Callable[[Any], Any], array: Any) -> None:
    got, expected = operation(Strict(array)), operation(array)

    assert isinstance(got, Strict)
    assert (got.array.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(got.array, expected)


@pytest.mark.parametrize("operation", PICTURES)
def test_pictures_of_another_library_stay_there_and_become_the_same(operation: str, rng: np.random.Generator) -> None:
    same(PICTURES[operation], rng.integers(0, 256, (2, 6, 5, 3), dtype=np.uint8))


@pytest.mark.parametrize("operation", SCORES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_another_library_stay_there_and_become_the_same(
    operation: str, dtype: Any, rng: np.random.Generator
) -> None:
    scores = rng.normal(size=(3, 4, 5)).astype(dtype)
    scores[1, 2, 3] = np.nan
    scores[2, 0] = 1  # equals

    same(SCORES[operation], scores)


def test_states_and_their_mask_of_another_library_are_pooled(rng: np.random.Generator) -> None:
    hidden, mask = rng.normal(size=(2, 3, 4)).astype(np.float32), np.array([[1, 1, 0], [0, 0, 0]])

    got: Any = outputs.mean_pool(Strict(hidden), Strict(mask))  # type: ignore[arg-type]

    assert isinstance(got, Strict)
    np.testing.assert_array_equal(got.array, outputs.mean_pool(hidden, mask))


def test_what_does_not_fit_is_refused_in_any_library() -> None:
    with pytest.raises(ValueError, match=r"^resize needs uint8"):
        images.resize(Strict(np.zeros((2, 3, 3))), (2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"do not fit int8; cast to a wider one$"):
        images.cast(Strict(np.array([300, -1])), np.dtype("int8"))  # type: ignore[arg-type]


def test_an_array_that_names_no_namespace_is_of_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nameless:
        __module__ = "a_library.core"

    monkeypatch.setitem(sys.modules, "a_library", ModuleType("a_library"))

    assert namespace_of(Nameless()) is sys.modules["a_library"]
    assert namespace_of(np.zeros(1)) is np
    assert namespace_of(Strict([1])) is NAMESPACE


def test_an_array_of_that_type_is_not_copied() -> None:
    array = np.zeros(2, np.float32)

    assert as_type(array, np.float32) is array
    assert as_type(array, np.float64).dtype == np.float64


def test_cupy_has_every_name_that_the_reference_asks_for() -> None:
    """Without a device its functions cannot be called, but they can be looked up."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    NAMESPACE.asked.clear()
    rng = np.random.default_rng(0)
    for operation in PICTURES.values():
        operation(Strict(rng.integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)))
    for operation in SCORES.values():
        operation(Strict(rng.normal(size=(3, 4, 5)).astype(np.float32)))

    assert len(NAMESPACE.asked) > 20
    assert [name for name in sorted(NAMESPACE.asked) if not hasattr(cupy, name)] == []
