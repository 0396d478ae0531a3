"""Image operations against hand-computed values, their definitions, and Pillow where equality is claimed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import cv2
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from kernels import images

Uint8 = NDArray[np.uint8]
METHODS: tuple[images.Method, ...] = ("nearest", "bilinear", "area")

sides = st.integers(1, 24)
pictures = npst.arrays(np.uint8, st.tuples(sides, sides, st.sampled_from([1, 3])))


def row(*values: int) -> Uint8:
    """A picture of one row and one channel."""
    return np.array(values, dtype=np.uint8).reshape(1, -1, 1)


def by_definition(image: Uint8, size: tuple[int, int], method: str, antialias: bool) -> NDArray[np.float64]:
    """Resampling pixel by pixel, from the formulae."""
    down, across = (
        np.array([weights(i, length, target, method, antialias) for i in range(target)])
        for length, target in zip(image.shape[:2], size, strict=True)
    )
    result: NDArray[np.float64] = np.einsum("ih,hwc,jw->ijc", down, image.astype(np.float64), across)
    return result


def weights(i: int, length: int, target: int, method: str, antialias: bool) -> list[float]:
    """How much of each of *length* pixels is in pixel *i* of *target*."""
    step = length / target
    if method == "area":
        found = [max(0.0, min(x + 1, (i + 1) * step) - max(x, i * step)) for x in range(length)]
    else:
        reach = max(step, 1.0) if antialias else 1.0
        found = [max(0.0, 1 - abs(x + 0.5 - (i + 0.5) * step) / reach) for x in range(length)]
    return [weight / sum(found) for weight in found]


def pillow_resize(image: Uint8, size: tuple[int, int], resample: Image.Resampling) -> Uint8:
    flat = image[:, :, 0] if image.shape[2] == 1 else image
    return np.asarray(Image.fromarray(flat).resize(size[::-1], resample)).reshape(*size, image.shape[2])


def largest_difference(first: NDArray[Any], second: NDArray[Any]) -> float:
    assert first.shape == second.shape
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max())


# gray


def test_gray_weighs_as_itu_r_601_and_rounds_halves_up() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]], dtype=np.uint8)

    assert images.gray(image).ravel().tolist() == [76, 150, 29, 255, 0]


@given(npst.arrays(np.uint8, st.tuples(sides, sides, st.just(3))))
def test_gray_is_pillows_to_the_bit(image: Uint8) -> None:
    assert np.array_equal(images.gray(image)[:, :, 0], np.asarray(Image.fromarray(image).convert("L")))


def test_gray_needs_uint8_rgb() -> None:
    with pytest.raises(ValueError, match=r"^gray needs 3 channels \(RGB\); got 1$"):
        images.gray(row(1))
    with pytest.raises(
        ValueError, match=r"^gray needs uint8 \(\.\.\., height, width, channels\); got float32\[1, 3\]$"
    ):
        images.gray(np.zeros((1, 3), dtype=np.float32))


# resize


def test_area_averages_blocks() -> None:
    assert images.resize(row(0, 10, 20, 40), (1, 2), method="area").ravel().tolist() == [5, 30]


def test_area_counts_fractions_of_pixels() -> None:
    # Each output covers 1.5 pixels: (0 + 30/2) / 1.5 and (30/2 + 90) / 1.5.
    assert images.resize(row(0, 30, 90), (1, 2), method="area").ravel().tolist() == [10, 70]


def test_halves_round_up() -> None:
    assert images.resize(row(0, 1), (1, 1), method="area").item() == 1


def test_bilinear_places_centres_at_halves_and_clamps_edges() -> None:
    assert images.resize(row(0, 100), (1, 4)).ravel().tolist() == [0, 25, 75, 100]


def test_bilinear_without_antialias_skips_pixels() -> None:
    assert images.resize(row(0, 10, 20, 255, 255, 255), (1, 2), antialias=False).ravel().tolist() == [10, 255]


def test_nearest_takes_the_pixel_under_the_centre() -> None:
    assert images.resize(row(1, 2, 3, 4, 5), (1, 3), method="nearest").ravel().tolist() == [1, 3, 5]
    assert images.resize(row(1, 2), (1, 4), method="nearest").ravel().tolist() == [1, 1, 2, 2]


@given(pictures, st.tuples(sides, sides), st.sampled_from(["bilinear", "area"]), st.booleans())
def test_resize_is_its_definition_rounded(
    image: Uint8, size: tuple[int, int], method: Literal["bilinear", "area"], antialias: bool
) -> None:
    result = images.resize(image, size, method=method, antialias=antialias)

    assert largest_difference(result, by_definition(image, size, method, antialias)) <= 0.501


@given(pictures, st.tuples(sides, sides))
def test_antialiased_bilinear_is_pillows_within_one_level(image: Uint8, size: tuple[int, int]) -> None:
    expected = pillow_resize(image, size, Image.Resampling.BILINEAR)

    assert largest_difference(images.resize(image, size), expected) <= 1


@given(st.integers(1, 5), st.integers(1, 5), st.tuples(sides, sides), st.integers(0, 2**32 - 1))
def test_area_is_pillows_box_for_whole_factors(down: int, across: int, size: tuple[int, int], seed: int) -> None:
    shape = (size[0] * down, size[1] * across, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    expected = pillow_resize(image, size, Image.Resampling.BOX)

    assert largest_difference(images.resize(image, size, method="area"), expected) <= 1


@given(pictures, st.tuples(sides, sides))
def test_nearest_is_pillows_except_between_two_pixels(image: Uint8, size: tuple[int, int]) -> None:
    down, across = (
        [(2 * i + 1) * length % (2 * target) != 0 for i in range(target)]
        for length, target in zip(image.shape[:2], size, strict=True)
    )
    expected = pillow_resize(image, size, Image.Resampling.NEAREST)

    assert np.array_equal(images.resize(image, size, method="nearest")[down][:, across], expected[down][:, across])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 1), (5000, 1, 3), (1, 20_000, 3), (3, 257, 4)])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (1, 300), (300, 1)])
def test_a_constant_picture_stays_constant_whatever_its_shape(
    method: images.Method, shape: tuple[int, int, int], size: tuple[int, int]
) -> None:
    result = images.resize(np.full(shape, 201, dtype=np.uint8), size, method=method)

    assert result.shape == (*size, shape[2])
    assert (result == 201).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_resized_as_its_pictures_are(method: images.Method, rng: np.random.Generator) -> None:
    batch = rng.integers(0, 256, (4, 2, 31, 17, 3), dtype=np.uint8)

    together = images.resize(batch, (9, 40), method=method)

    assert together.shape == (4, 2, 9, 40, 3)
    assert largest_difference(together[2, 1], images.resize(batch[2, 1], (9, 40), method=method)) == 0


def test_a_resize_to_the_same_size_changes_nothing(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)

    assert all(np.array_equal(images.resize(image, (5, 4), method=method), image) for method in METHODS)


# What OpenCV makes of the weights: 11 bits each.
@given(pictures, st.tuples(sides, sides))
def test_bilinear_without_antialias_is_opencvs_within_one_level(image: Uint8, size: tuple[int, int]) -> None:
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, image.shape[2])

    assert largest_difference(images.resize(image, size, antialias=False), expected) <= 1


@given(st.tuples(sides, sides), st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1))
def test_area_is_opencvs_when_reducing(size: tuple[int, int], down: int, across: int, seed: int) -> None:
    shape = (size[0] + down, size[1] + across, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)

    assert largest_difference(images.resize(image, size, method="area"), expected) <= 1


def test_aligned_corners_keep_the_corners_and_step_evenly() -> None:
    def aligned(image: Uint8, size: tuple[int, int]) -> list[int]:
        return images.resize(image, size, antialias=False, align_corners=True).ravel().tolist()

    # At 0, 2/3, 4/3 and 2 of 0, 30, 90; a single output is the first pixel.
    assert aligned(row(0, 30, 90), (1, 4)) == [0, 20, 50, 90]
    assert aligned(row(10, 99, 20), (1, 2)) == [10, 20]
    assert aligned(row(10, 99, 20), (1, 1)) == [10]
    assert aligned(row(7), (2, 3)) == [7] * 6


@given(pictures, st.tuples(st.integers(2, 24), st.integers(2, 24)))
def test_aligned_corners_are_interpolated_between_pixels(image: Uint8, size: tuple[int, int]) -> None:
    result = images.resize(image, size, antialias=False, align_corners=True)

    at = [np.linspace(0, length - 1, target) for length, target in zip(image.shape[:2], size, strict=True)]
    rows, columns = (np.minimum(place.astype(int), length - 1) for place, length in zip(at, image.shape, strict=False))
    below, right = np.minimum(rows + 1, image.shape[0] - 1), np.minimum(columns + 1, image.shape[1] - 1)
    down, across = (at[0] - rows)[:, None, None], (at[1] - columns)[None, :, None]
    exact = image.astype(np.float64)
    upper = exact[rows][:, columns] * (1 - across) + exact[rows][:, right] * across
    lower = exact[below][:, columns] * (1 - across) + exact[below][:, right] * across
    assert largest_difference(result, upper * (1 - down) + lower * down) <= 0.501


@pytest.mark.parametrize("arguments", [{"method": "area"}, {"method": "nearest"}, {"antialias": True}])
def test_corners_are_aligned_by_plain_bilinear_alone(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^align_corners goes with method bilinear and antialias false"):
        images.resize(row(1, 2), (1, 3), align_corners=True, **{"antialias": False, **arguments})


def test_resize_refuses_what_it_cannot_make() -> None:
    with pytest.raises(
        ValueError, match=r"^cannot make an image of 6001x6000 pixels; 1 to 36000000 pixels are allowed$"
    ):
        images.resize(row(1), (6001, 6000))
    with pytest.raises(ValueError, match=r"^cannot make an image of 0x3 pixels"):
        images.resize(row(1), (0, 3))
    with pytest.raises(ValueError, match=r"^cannot resize an image of shape \[0, 3, 3\], which has no pixels$"):
        images.resize(np.zeros((0, 3, 3), dtype=np.uint8), (2, 2))
    with pytest.raises(ValueError, match=r"^resize needs uint8"):
        images.resize(np.zeros((2, 3, 3)), (2, 2))  # type: ignore[arg-type]


# The rest of geometry


@pytest.mark.parametrize(
    ("shape", "expected"), [((100, 50), (20, 10)), ((50, 100), (10, 20)), ((7, 7), (10, 10)), ((3, 10), (10, 33))]
)
def test_resize_shortest_keeps_the_aspect_ratio(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert images.resize_shortest(np.zeros((*shape, 3), dtype=np.uint8), 10).shape == (*expected, 3)


def test_resize_shortest_refuses_to_blow_up_a_thread() -> None:
    with pytest.raises(ValueError, match=r"^cannot make an image of 256x2560000 pixels"):
        images.resize_shortest(np.zeros((1, 10_000, 3), dtype=np.uint8), 256)
    with pytest.raises(ValueError, match=r"which has no pixels$"):
        images.resize_shortest(np.zeros((0, 5, 3), dtype=np.uint8), 256)


def test_center_crop_cuts_the_larger_part_at_the_end() -> None:
    assert images.center_crop(row(1, 2, 3, 4, 5), (1, 2)).ravel().tolist() == [2, 3]


@pytest.mark.parametrize(("margin", "left"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4)])
def test_center_crop_rounds_to_even_as_torchvision_does(margin: int, left: int) -> None:
    """`int(round(margin / 2.0))`, by hand."""
    cropped = images.center_crop(row(*range(3 + margin)), (1, 3), rounding="even")

    assert cropped.ravel().tolist() == [left, left + 1, left + 2]


def test_center_crop_refuses_a_smaller_picture() -> None:
    with pytest.raises(ValueError, match=r"^image of 1x2 is smaller than the crop of 1x3; resize it first$"):
        images.center_crop(row(1, 2), (1, 3))


def test_letterbox_puts_the_picture_in_the_middle() -> None:
    result = images.letterbox(np.full((2, 4, 1), 9, dtype=np.uint8), (5, 4), fill=7)

    assert result[:, :, 0].tolist() == [[7] * 4, [9] * 4, [9] * 4, [7] * 4, [7] * 4]


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1)])
def test_letterbox_keeps_at_least_a_line_of_a_thread(shape: tuple[int, int]) -> None:
    result = images.letterbox(np.full((*shape, 3), 200, dtype=np.uint8), (32, 16))

    assert result.shape == (32, 16, 3)
    assert (result == 200).any()


def test_letterbox_refuses_a_picture_without_pixels() -> None:
    with pytest.raises(ValueError, match=r"^cannot letterbox an image of shape"):
        images.letterbox(np.zeros((3, 0, 3), dtype=np.uint8), (2, 2))


@pytest.mark.parametrize("degrees", [-90, 0, 90, 180, 270, 450])
def test_rotate_turns_as_pillow_does(degrees: int, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (3, 5, 3), dtype=np.uint8)

    expected = np.asarray(Image.fromarray(image).rotate(degrees, expand=True))

    assert np.array_equal(images.rotate(image, degrees), expected)
    assert np.array_equal(images.rotate(image[np.newaxis], degrees)[0], expected)


def test_rotate_refuses_other_angles() -> None:
    with pytest.raises(ValueError, match=r"^cannot rotate by 45 degrees"):
        images.rotate(row(1), 45)


# Numbers


def test_bgr_reverses_channels() -> None:
    assert images.bgr(np.array([[[1, 2, 3]]])).tolist() == [[[3, 2, 1]]]


def test_scale_gives_float32() -> None:
    result = images.scale(row(0, 51, 255), 1 / 255)

    assert result.dtype == np.float32
    assert result.ravel() == pytest.approx([0, 0.2, 1])


def test_normalize_works_by_channel() -> None:
    image = np.array([[[1.0, 2.0, 3.0]]], dtype=np.float32)

    result = images.normalize(image, [1, 1, 1], [1, 2, 4])

    assert result.dtype == np.float32
    assert result.tolist() == [[[0, 0.5, 0.5]]]
    assert images.normalize(image, [1], [2]).tolist() == [[[0, 0.5, 1]]]


def test_chw_and_flatten_move_axes() -> None:
    batch = np.arange(24).reshape(2, 2, 2, 3)

    planes = images.chw(batch)

    assert planes.shape == (2, 3, 2, 2)
    assert planes.flags.c_contiguous
    assert planes[0, 0].tolist() == [[0, 3], [6, 9]]
    assert images.flatten(planes)[1].tolist() == [12, 15, 18, 21, 13, 16, 19, 22, 14, 17, 20, 23]


def test_cast_converts_and_refuses_what_does_not_fit() -> None:
    assert images.cast(row(1), np.dtype("int64")).dtype == np.int64
    assert images.cast(np.array([1e300]), np.dtype("float32")).tolist() == [np.inf]
    assert images.cast(np.array([127]), np.dtype("int8")).tolist() == [127]
    with pytest.raises(ValueError, match=r"^values from -1 to 300 do not fit int8; cast to a wider one$"):
        images.cast(np.array([300, -1]), np.dtype("int8"))


@given(npst.arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32)))
def test_bfloat16_is_what_others_make_of_it(values: NDArray[np.float32]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)

    result = images.bfloat16(values)

    assert result.dtype == np.uint16
    numbers = ~np.isnan(values)
    assert np.array_equal(result[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(result[~numbers].view(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_bfloat16_rounds_halves_to_even_and_takes_integers_and_wider_floats() -> None:
    assert images.bfloat16(np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)).tolist() == [0x3F80, 0x3F82]
    assert images.bfloat16(np.array([[255]], np.uint8)).tolist() == [[0x437F]]
    assert images.bfloat16(np.array([1e300, -0.0])).tolist() == [0x7F80, 0x8000]


OPERATIONS: dict[str, Callable[[Any], NDArray[Any]]] = {
    "gray": images.gray,
    "nearest": lambda x: images.resize(x, (4, 9), method="nearest"),
    "bilinear": lambda x: images.resize(x, (4, 9)),
    "area": lambda x: images.resize(x, (4, 9), method="area"),
    "shortest": lambda x: images.resize_shortest(x, 3),
    "crop": lambda x: images.center_crop(x, (2, 2)),
    "letterbox": lambda x: images.letterbox(x, (8, 9)),
    "rotate": lambda x: images.rotate(x, 90),
    "bgr": images.bgr,
    "scale": lambda x: images.scale(x, 0.5),
    "normalize": lambda x: images.normalize(x, [1, 2, 3], [1, 2, 3]),
    "chw": images.chw,
    "flatten": images.flatten,
    "cast": lambda x: images.cast(x, np.dtype("int32")),
    "bfloat16": images.bfloat16,
    "aligned": lambda x: images.resize(x, (4, 9), antialias=False, align_corners=True),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_read_only_and_scattered_arrays_give_the_same(
    operation: str, rng: np.random.Generator, unfriendly: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    batch = rng.integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    before = batch.copy()

    plain = OPERATIONS[operation](batch)

    assert np.array_equal(OPERATIONS[operation](unfriendly(batch)), plain)
    assert np.array_equal(batch, before)
