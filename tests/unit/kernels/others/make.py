"""What other libraries make of the same inputs, for conventions that `kernels` says are theirs: writes `others.npz`.

    pip install torch torchvision timm librosa
    python tests/unit/kernels/others/make.py

They take gigabytes, so tests read the file. Inputs are drawn by `drawn`, and are in the file too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import timm.data.transforms
import torch
import torchvision
from torchvision.transforms import InterpolationMode, v2

RNG = np.random.default_rng(8)


def drawn(height: int, width: int) -> Any:
    """A picture, (height, width, 3), uint8: not noise alone, of which every resampling makes grey."""
    rows, columns = np.mgrid[0:height, 0:width]
    stripes = np.cos(columns[..., np.newaxis] / np.array([3, 5, 9]))
    waves = 127 + 80 * np.sin(rows / 5)[..., np.newaxis] * stripes
    return np.clip(waves + RNG.normal(scale=30, size=(height, width, 3)), 0, 255).astype(np.uint8)


def planes(picture: Any) -> Any:
    """As PyTorch has pictures."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def pixels(tensor: Any) -> Any:
    """And back."""
    return tensor.numpy().transpose(1, 2, 0)


def made() -> dict[str, Any]:
    """By name; those that begin with `of_` are inputs."""
    found: dict[str, Any] = {}
    wide, tall = drawn(37, 61), drawn(64, 23)
    found |= {"of_wide": wide, "of_tall": tall}
    for name, picture in (("wide", wide), ("tall", tall)):
        shorter = v2.functional.resize(planes(picture), [24], InterpolationMode.BILINEAR, antialias=True)
        found[f"resize_shortest_{name}"] = pixels(shorter)
        found[f"center_crop_{name}"] = pixels(v2.functional.center_crop(shorter, [21, 21]))
        found[f"timm_crop_{name}"] = pixels(timm.data.transforms.center_crop_or_pad(shorter, [21, 21]))
        floats = planes(picture)[None].float()
        for label, arguments in (
            ("plain", {"antialias": False, "align_corners": False}),
            ("antialias", {"antialias": True, "align_corners": False}),
            ("corners", {"antialias": False, "align_corners": True}),
        ):
            scaled = torch.nn.functional.interpolate(floats, (19, 45), mode="bilinear", **arguments)
            found[f"interpolate_{label}_{name}"] = pixels(scaled[0])
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found["normalize"] = pixels(v2.functional.normalize(planes(wide).float() / 255, mean, std))
    corners = RNG.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + RNG.uniform(1, 40, (200, 2))], axis=1).astype(np.float32)
    scores, classes = RNG.uniform(size=200).astype(np.float32), RNG.integers(0, 4, 200)
    kept = torchvision.ops.batched_nms(*(torch.from_numpy(one) for one in (boxes, scores, classes)), 0.4)
    found |= {"of_boxes": boxes, "of_scores": scores, "of_classes": classes, "batched_nms": kept.numpy()}
    vectors = RNG.normal(size=(5, 7)).astype(np.float32)
    vectors[2] = 0
    found |= {"of_vectors": vectors, "l2_normalize": torch.nn.functional.normalize(torch.from_numpy(vectors)).numpy()}
    wide_range = (RNG.normal(size=400) * 10.0 ** RNG.integers(-40, 39, 400)).astype(np.float32)
    wide_range[:3] = [np.inf, -np.inf, np.nan]
    bits = torch.from_numpy(wide_range).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    found |= {"of_bfloat16": wide_range, "bfloat16": bits}
    sound = (RNG.normal(scale=0.1, size=4000) + np.sin(np.arange(4000) / 7)).astype(np.float32) / 2
    found["of_sound"] = sound
    for label, window, hop, mels, low_hz, high_hz in (
        ("whisper", 400, 160, 80, 0.0, None),
        ("odd", 401, 133, 40, 50.0, 7000.0),
    ):
        mel = librosa.feature.melspectrogram(
            y=sound, sr=16_000, n_fft=window, hop_length=hop, n_mels=mels, fmin=low_hz, fmax=high_hz, pad_mode="reflect"
        )
        found[f"log_mel_{label}"] = np.log10(np.maximum(mel, 1e-10)).astype(np.float32)
    found["frames"] = librosa.util.frame(sound[:100], frame_length=16, hop_length=7).T
    libraries = (torch, torchvision, timm, librosa)
    found["versions"] = np.array([f"{library.__name__} {library.__version__}" for library in libraries])
    return found


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("others.npz"), **made())
