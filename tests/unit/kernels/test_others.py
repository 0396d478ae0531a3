"""Conventions that are said to be another library's, against what that library made: see `others/make.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import audio, images, outputs


@pytest.fixture(scope="module")
def others() -> Any:
    """Arrays by name."""
    with np.load(Path(__file__).parent / "others" / "others.npz") as found:
        return dict(found)


def levels_apart(first: Any, second: Any) -> float:
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max())


@pytest.mark.parametrize("picture", ["wide", "tall"])
def test_resize_shortest_is_torchvisions(others: Any, picture: str) -> None:
    assert levels_apart(images.resize_shortest(others[f"of_{picture}"], 24), others[f"resize_shortest_{picture}"]) <= 1


@pytest.mark.parametrize("picture", ["wide", "tall"])
@pytest.mark.parametrize("library", ["center_crop", "timm_crop"])
def test_a_crop_that_rounds_to_even_is_torchvisions_and_timms(others: Any, picture: str, library: str) -> None:
    cropped = images.center_crop(others[f"resize_shortest_{picture}"], (21, 21), rounding="even")

    assert np.array_equal(cropped, others[f"{library}_{picture}"])


@pytest.mark.parametrize("picture", ["wide", "tall"])
@pytest.mark.parametrize(
    ("name", "antialias", "align_corners"),
    [("plain", False, False), ("antialias", True, False), ("corners", False, True)],
)
def test_bilinear_is_pytorchs(others: Any, picture: str, name: str, antialias: bool, align_corners: bool) -> None:
    resized = images.resize(others[f"of_{picture}"], (19, 45), antialias=antialias, align_corners=align_corners)

    assert levels_apart(resized, others[f"interpolate_{name}_{picture}"]) <= 0.501  # that one is not rounded


def test_normalize_is_torchvisions(others: Any) -> None:
    floats = images.scale(others["of_wide"], 1 / 255)

    normalized = images.normalize(floats, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    np.testing.assert_allclose(normalized, others["normalize"], rtol=1e-5, atol=1e-6)


def test_suppression_is_torchvisions_batched_nms(others: Any) -> None:
    boxes, scores, classes = (others[f"of_{name}"] for name in ("boxes", "scores", "classes"))
    by_class = np.full((len(boxes), 4), -1.0, np.float32)
    by_class[np.arange(len(boxes)), classes] = scores
    expected = others["batched_nms"]

    kept, rated, kinds = outputs.non_maximum_suppression(boxes[None], by_class[None], overlap=0.4, limit=len(boxes))

    assert (kinds[0] >= 0).sum() == len(expected)
    assert np.array_equal(kept[0, : len(expected)], boxes[expected])
    assert np.array_equal(rated[0, : len(expected)], scores[expected])
    assert np.array_equal(kinds[0, : len(expected)], classes[expected])


def test_l2_normalize_is_pytorchs(others: Any) -> None:
    np.testing.assert_allclose(outputs.l2_normalize(others["of_vectors"]), others["l2_normalize"], rtol=1e-6)


def test_bfloat16_is_pytorchs(others: Any) -> None:
    ours, theirs = images.bfloat16(others["of_bfloat16"]), others["bfloat16"]

    is_number = ~np.isnan(others["of_bfloat16"])
    assert np.array_equal(ours[is_number], theirs[is_number])
    assert np.isnan(images.from_bfloat16(ours[~is_number])).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("whisper", {}), ("odd", {"window": 401, "hop": 133, "mels": 40, "low_hz": 50.0, "high_hz": 7000.0})],
)
def test_log_mel_is_librosas(others: Any, name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = audio.log_mel(others["of_sound"], rate=16_000, **arguments), others[f"log_mel_{name}"]

    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_frames_are_librosas(others: Any) -> None:
    assert np.array_equal(audio.frame(others["of_sound"][:100], 16, 7), others["frames"])
