"""Operations on sampled sound: frames, and the log-mel spectrogram that speech models eat.

Conventions: samples are float32, -1 to 1, one channel, the last axis is time; every leading axis is a batch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Array

Float32 = NDArray[np.float32]

_FLOOR = 1e-10


def frame(samples: Array, length: int, hop: int) -> Array:
    """Cut into frames that overlap.

    Args:
        samples: (..., time), any dtype.
        length: of a frame, in samples.
        hop: from the start of one frame to the next, in samples.

    Returns:
        (..., frames, length), a view that must not be written to; 1 + (time - length) // hop frames. What is left at
        the end is dropped.

    Raises:
        ValueError: fewer samples than one frame.

    Source:
        `librosa.util.frame`, with time before the samples of a frame.
    """
    if samples.shape[-1] < length:
        raise ValueError(f"{samples.shape[-1]} samples are fewer than one frame of {length}; send more sound")
    return np.lib.stride_tricks.sliding_window_view(samples, length, axis=-1)[..., ::hop, :]


def log_mel(
    samples: NDArray[np.floating[Any]],
    *,
    rate: int,
    window: int = 400,
    hop: int = 160,
    mels: int = 80,
    low_hz: float = 0.0,
    high_hz: float | None = None,
) -> Float32:
    """log10 of the power in mel bands, not below 1e-10.

    Frames are centred on multiples of *hop*, the ends mirrored without the sample at the edge; the window is a
    periodic Hann window; bands are triangles of unit area on Slaney's mel scale.

    Args:
        samples: (..., time), floating, -1 to 1; more than *window* // 2 samples.
        rate: samples a second.
        window: length of the Fourier transform and of its window, in samples.
        hop: from frame to frame, in samples.
        mels: bands.
        low_hz: where the lowest band begins.
        high_hz: where the highest ends; half of *rate* where it is None.

    Returns:
        (..., mels, frames), float32; 1 + time // hop frames, or 1 + (time - 1) // hop where *window* is odd.

    Raises:
        ValueError: too few samples to mirror.

    Source:
        `numpy.log10(numpy.maximum(librosa.feature.melspectrogram(..., pad_mode="reflect"), 1e-10))`; OpenAI's Whisper
        does the same with window 400, hop 160, and then drops the last frame and scales.
    """
    half = window // 2
    if samples.shape[-1] <= half:
        raise ValueError(f"{samples.shape[-1]} samples are too few for a window of {window}; send more sound")
    padding = [(0, 0)] * (samples.ndim - 1) + [(half, half)]
    frames = frame(np.pad(samples.astype(np.float32), padding, mode="reflect"), window, hop)
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
    spectrum = np.fft.rfft(frames * hann, axis=-1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    bands = power @ mel_filters(rate, window, mels, low_hz, rate / 2 if high_hz is None else high_hz).T
    return np.log10(np.maximum(bands, _FLOOR)).swapaxes(-1, -2).astype(np.float32)


@lru_cache(maxsize=16)
def mel_filters(rate: int, window: int, mels: int, low_hz: float, high_hz: float) -> Float32:
    """How much each frequency of a transform of *window* samples counts in each band.

    Returns:
        (mels, window // 2 + 1), float32.

    Source:
        `librosa.filters.mel(htk=False, norm="slaney")`; the scale is that of Slaney's Auditory Toolbox (1998).
    """
    edges = _hz(np.linspace(_mel(np.array(low_hz)), _mel(np.array(high_hz)), mels + 2))
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    rising = (frequencies - edges[:-2, np.newaxis]) / np.diff(edges)[:-1, np.newaxis]
    falling = (edges[2:, np.newaxis] - frequencies) / np.diff(edges)[1:, np.newaxis]
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters: Float32 = (triangles * (2 / (edges[2:] - edges[:-2]))[:, np.newaxis]).astype(np.float32)
    filters.flags.writeable = False
    return filters


# Linear up to 1000 Hz, 15 mel; from there on 27 mel for each factor of 6.4.
_HZ_PER_MEL, _KNEE_HZ, _KNEE_MEL, _LOG_STEP = 200 / 3, 1000.0, 15.0, np.log(6.4) / 27


def _mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(
        hz < _KNEE_HZ, hz / _HZ_PER_MEL, _KNEE_MEL + np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
    )


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < _KNEE_MEL, mel * _HZ_PER_MEL, _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)))
