"""Sound: frames and log-mel spectrograms, against their definitions and known points of Slaney's scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels import audio

RATE = 16_000


def tone(hz: float, seconds: float = 0.5) -> NDArray[np.float32]:
    return np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE).astype(np.float32)


def mel_of(hz: float) -> float:
    """Slaney's scale, from its definition."""
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def hz_of(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def test_frames_overlap_and_drop_the_rest() -> None:
    assert audio.frame(np.arange(9), 4, 2).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert audio.frame(np.zeros((2, 9)), 4, 3).shape == (2, 2, 4)


def test_a_frame_is_not_made_of_less() -> None:
    with pytest.raises(ValueError, match=r"^3 samples are fewer than one frame of 4; send more sound$"):
        audio.frame(np.zeros(3), 4, 2)


def test_filters_are_triangles_between_equal_steps_of_mel() -> None:
    filters = audio.mel_filters(RATE, 400, 40, 0.0, 8000.0)

    edges = [hz_of(mel_of(8000) * i / 41) for i in range(42)]
    expected = [
        [
            max(0.0, min((k * 40 - low) / (mid - low), (high - k * 40) / (high - mid))) * 2 / (high - low)
            for k in range(201)
        ]
        for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    assert filters == pytest.approx(np.array(expected), rel=1e-4, abs=1e-7)


def test_log_mel_is_its_definition(rng: np.random.Generator) -> None:
    """One frame in the middle, by a plain Fourier sum."""
    samples = rng.normal(scale=0.1, size=800).astype(np.float32)

    result = audio.log_mel(samples, rate=RATE, window=64, hop=16, mels=8)

    assert result.shape == (8, 51)
    assert result.dtype == np.float32
    excerpt = samples[20 * 16 - 32 : 20 * 16 + 32].astype(np.float64)
    windowed = excerpt * [0.5 - 0.5 * math.cos(2 * math.pi * i / 64) for i in range(64)]
    phases = np.exp(-2j * np.pi * np.outer(np.arange(33), np.arange(64)) / 64)
    power = np.abs(phases @ windowed) ** 2
    expected = np.log10(audio.mel_filters(RATE, 64, 8, 0.0, 8000.0) @ power)
    assert result[:, 20] == pytest.approx(expected, abs=1e-4)


def test_the_ends_are_mirrored_without_the_sample_at_the_edge(rng: np.random.Generator) -> None:
    samples = rng.normal(size=400).astype(np.float32)
    mirrored = np.concatenate([samples[32:0:-1], samples])

    first = audio.log_mel(samples, rate=RATE, window=64, hop=32, mels=8)[:, 0]

    assert first == pytest.approx(audio.log_mel(mirrored, rate=RATE, window=64, hop=32, mels=8)[:, 1], abs=1e-4)


@pytest.mark.parametrize("hz", [440.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_its_band(hz: float) -> None:
    loudest = audio.log_mel(tone(hz), rate=RATE).mean(axis=-1).argmax()

    low, high = (hz_of(mel_of(8000) * (int(loudest) + step) / 81) for step in (0, 2))
    assert low <= hz <= high


def test_silence_is_the_floor_and_a_batch_is_its_items() -> None:
    batch = np.stack([np.zeros(8000, dtype=np.float32), tone(440)])

    result = audio.log_mel(batch, rate=RATE)

    assert result.shape == (2, 80, 51)
    assert result[0] == pytest.approx(np.full((80, 51), -10.0), abs=1e-5)  # processors differ in the last bit
    assert result[1] == pytest.approx(audio.log_mel(batch[1], rate=RATE), abs=1e-5)


def test_too_little_sound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^200 samples are too few for a window of 400; send more sound$"):
        audio.log_mel(np.zeros(200), rate=RATE)


def test_read_only_and_scattered_sound_gives_the_same(rng: np.random.Generator, unfriendly: Any) -> None:
    samples = rng.normal(size=(2, 900)).astype(np.float32)

    assert np.array_equal(audio.log_mel(unfriendly(samples), rate=RATE), audio.log_mel(samples, rate=RATE))
