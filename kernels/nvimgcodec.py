"""JPEG pictures decoded on a CUDA device by nvImageCodec, and all others on the CPU.

    decode: {image: nvimgcodec}

What a picture may be is decided by `kernels.decode` from its header, before the device sees a byte of it. Only JPEGs of
three colours or of grey go there; whatever else comes, and whatever the device cannot decode (arithmetic coding, CMYK,
a damaged file), is decoded or refused by the CPU, for that picture alone and in the CPU's words. So the set of pictures
that are taken is the same, and a picture that fails fails by itself.

Pixels differ by a few levels: nvJPEG's inverse transform and its upsampling of colours are not libjpeg's. Hence it is a
decoder of its own, so that what was calibrated or certified with one does not count for the other.

**Together.** Requests with one picture each are the rule, and a device is made for many. Whoever comes while it is busy
leaves its pictures in a list; who gets the device next decodes all that are there.

Pictures come back to the host, since batches are formed there; what this saves is the CPU's time. What the library
writes to stderr about damaged files is silenced (`PYNVIMGCODEC_VERBOSITY`), as Pillow's is.

Source: nvImageCodec 0.9, Python API, `Decoder.decode`, which gives None for a picture that it could not decode.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from kernels.arrays import Array
from kernels.decode import DecodeError, decode_image, jpeg_orientation, upright

log = logging.getLogger("pointsman.kernels")

ON_THE_DEVICE = ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU")
"""The library's kinds of decoders that use the device; it has others, which would take their place unasked."""


class Codec:
    """A decoder on one device; safe to share between threads."""

    def __init__(self, native: Any, params: Any) -> None:
        """Args:
        native: an `nvimgcodec.Decoder`. Any: it has no types.
        params: its `nvimgcodec.DecodeParams`: RGB, 8 bits, without turning.
        """
        self._native = native
        self._params = params
        self._turn = threading.Lock()
        self._mutex = threading.Lock()
        self._waiting: list[_Request] = []

    @classmethod
    def opened(cls, number: int = 0, kinds: Sequence[str] = ON_THE_DEVICE) -> Codec:
        """The decoder of CUDA device *number*.

        Args:
            kinds: of the library's decoders, by their names in `nvimgcodec.BackendKind`.

        Raises:
            ValueError: nvImageCodec is missing, or nvJPEG, or the device; says the remedy.
        """
        if find_spec("nvidia") is None or find_spec("nvidia.nvimgcodec") is None:
            raise ValueError(
                "the decoder nvimgcodec needs nvImageCodec; install pointsman[nvimgcodec-cu13] or "
                "pointsman[nvimgcodec-cu12], or decode by the CPU (decode: image)"
            )
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
        try:
            library = import_module("nvidia.nvimgcodec")
            backends = [library.Backend(getattr(library.BackendKind, kind)) for kind in kinds]
            # Colours are smoothed as libjpeg smooths them, where the device has a choice.
            native = library.Decoder(device_id=number, backends=backends, options=":fancy_upsampling=1")
            params = library.DecodeParams(
                apply_exif_orientation=False, color_spec=library.ColorSpec.SRGB, allow_any_depth=False
            )
            works = native.decode([_small_jpeg()], params=params)[0] is not None
        except Exception as error:  # its classes are known only where it is
            raise ValueError(
                f"nvImageCodec cannot use CUDA device {number}: {error}; check it with nvidia-smi, or decode by the "
                "CPU (decode: image)"
            ) from error
        if not works:
            raise ValueError(
                "nvImageCodec cannot decode JPEGs on the device; install pointsman[nvimgcodec-cu13] or "
                "pointsman[nvimgcodec-cu12], which bring nvJPEG, or decode by the CPU (decode: image)"
            )
        return cls(native, params)

    def decode_all(self, items: Sequence[bytes]) -> list[Array | DecodeError]:
        """Decode pictures as `decode_image` does: (height, width, 3), uint8, RGB, or what is wrong with it, each."""
        request = _Request(items)
        with self._mutex:
            self._waiting.append(request)
        with self._turn:
            if request.pixels is None:
                with self._mutex:
                    served, self._waiting = self._waiting, []
                self._serve(served)
        assert request.pixels is not None, "pictures were left undecoded. This is a bug."
        return [
            _on_the_cpu(data) if pixels is None else pixels for data, pixels in zip(items, request.pixels, strict=True)
        ]

    def _serve(self, requests: Sequence[_Request]) -> None:
        """Decode what the device can of all *requests*, at once."""
        chosen = [(request, place) for request in requests for place in request.orientations]
        found: Sequence[Any] = []
        try:
            if chosen:
                found = self._native.decode([request.items[place] for request, place in chosen], params=self._params)
                found = [None if image is None else np.asarray(image.cpu()) for image in found]
        except Exception:  # as above; the CPU decodes them all
            log.warning("a batch of pictures could not be decoded on the device; the CPU does", exc_info=True)
            found = []
        for request in requests:
            request.pixels = [None] * len(request.items)
        for (request, place), pixels in zip(chosen, found, strict=False):
            if pixels is not None and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
                assert request.pixels is not None
                request.pixels[place] = np.ascontiguousarray(upright(pixels, request.orientations[place]))


class _Request:
    """Pictures on their way.

    Attributes:
        orientations: of those that go to the device, by place.
        pixels: None each where the CPU decodes; None while nothing is decided.
    """

    def __init__(self, items: Sequence[bytes]) -> None:
        self.items = items
        self.orientations = {place: found for place, data in enumerate(items) if (found := _orientation(data))}
        self.pixels: list[Array | None] | None = None


def _orientation(data: bytes) -> int | None:
    """Of a JPEG that goes to the device; None: the CPU decodes it, or says what is wrong with it."""
    try:
        return jpeg_orientation(data)
    except DecodeError:
        return None


def _small_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    return stream.getvalue()


def _on_the_cpu(data: bytes) -> Array | DecodeError:
    try:
        return decode_image(data)
    except DecodeError as error:
        return error
