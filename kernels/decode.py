"""Decoders: one item's bytes, as a caller sent them, into an array.

The bytes are hostile. Hence, for images:
- The format is told by its first bytes, and that format's reader is called directly. `PIL.Image.open` is not used:
  it can reach every installed plugin (even with `formats=`, a JPEG may turn into an MPO), and it warns about large
  pictures where we refuse them.
- The declared size is checked before memory is taken for pixels: for WebP, whose reader allocates its canvas when
  opened, from the header's own bytes.
- An animation is refused rather than judged by its first frame. A TIFF of several pages gives its first page.
- Pillow's warnings and log lines (about damaged metadata) are silenced when this module is imported, for the whole
  process: `warnings.catch_warnings` changes state that all threads share, and decoders run in several. What libtiff
  writes to stderr about a damaged TIFF cannot be silenced from Python.

And for text: NFC makes "é" one code point however it was typed, so that models and caches see one spelling.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kernels.arrays import PIXEL_LIMIT, Array, ArraySpec
from kernels.normal_forms import nfc_of

SIDE_LIMIT = 65_535
"""Most pixels along one side: what JPEG can express."""

JPEG_SCAN_LIMIT = 32
"""Most scans of a progressive JPEG: each is a pass over all pixels, however few bytes it takes; encoders use ten."""

warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class DecodeError(ValueError):
    """The bytes are not what the decoder reads; the message says what to send instead."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """How items' bytes become arrays.

    Attributes:
        output: what `decode_all` gives for each.
        decode_all: the function, which gives a `DecodeError` for an item that is none.
        check: raises ValueError, with the remedy, where it cannot work on this machine; takes time.
    """

    output: ArraySpec
    decode_all: Callable[[Sequence[bytes]], list[Array | DecodeError]]
    check: Callable[[], object] = lambda: None


def decode(name: str, data: bytes) -> Array:
    """Decode one item's *data* with the decoder *name*, one of `DECODERS`.

    Returns:
        an array that `DECODERS[name].output` describes; it may be read-only.

    Raises:
        DecodeError: *data* is damaged, too large, or of another format.
        KeyError: there is no such decoder.
    """
    (found,) = DECODERS[name].decode_all([data])
    if isinstance(found, DecodeError):
        raise found
    return found


def one_by_one(decode_one: Callable[[bytes], Array]) -> Callable[[Sequence[bytes]], list[Array | DecodeError]]:
    """*decode_one*, which raises `DecodeError`, as a `Decoder.decode_all`."""

    def decoded(data: bytes) -> Array | DecodeError:
        try:
            return decode_one(data)
        except DecodeError as error:
            return error

    return lambda items: [decoded(data) for data in items]


def decode_utf8(data: bytes) -> NDArray[np.object_]:
    """Validate UTF-8 and normalise it to NFC; a byte order mark at its start is dropped.

    NUL is refused: it ends a string in C libraries and PostgreSQL cannot store it, so that what a model, a log and a
    reviewer see would differ.

    Returns:
        (1,), object: the text as UTF-8 `bytes`.

    Raises:
        DecodeError: invalid UTF-8, NUL, or more combining marks in a row than `normal_forms.MARK_LIMIT`.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError(
            f"invalid UTF-8 at byte {error.start} (0x{error.object[error.start]:02x}): {error.reason}; send UTF-8"
        ) from error
    if "\0" in text:
        raise DecodeError(f"NUL at character {text.index(chr(0))}; text must not hold NUL")
    try:
        text = nfc_of(text)
    except ValueError as error:
        raise DecodeError(str(error)) from error
    result = np.empty(1, dtype=object)
    result[0] = text.encode()
    return result


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, WebP, BMP or TIFF (first page) picture into RGB.

    Transparency is composited on white, EXIF orientation applied, 12 or 16 bits a channel reduced to their high 8.
    CMYK is converted by formula; colour profiles are ignored, as the training pipelines of most models do.

    Returns:
        (height, width, 3), uint8, RGB, C-contiguous.

    Raises:
        DecodeError: another format, damaged or truncated, an animation, over `PIXEL_LIMIT` pixels or `SIDE_LIMIT` on
            a side, or integer or float pixels whose range is unknown.
    """
    try:
        with _open(data) as image:
            _check_size(*image.size)
            if getattr(image, "is_animated", False) and not isinstance(image, TiffImageFile):
                raise DecodeError("an animation is not one picture; send one frame")
            bits = _bits_of_a_sample(image, data)
            image.load()
            pixels = _rgb(image, bits)
            return np.ascontiguousarray(upright(pixels, _orientation(image)))
    except DecodeError:
        raise
    except Exception as error:  # on hostile bytes Pillow raises from a dozen unrelated classes
        raise DecodeError(f"damaged or truncated image: {error}; send it again from the original") from error


def jpeg_orientation(data: bytes) -> int | None:
    """The EXIF orientation, 1 to 8, of a JPEG of three colours or of grey; None: *data* is something else, or damaged.

    Reads the header alone.

    Raises:
        DecodeError: it is refused, as `decode_image` does.
    """
    if not data.startswith(_JPEG):
        return None
    try:
        with _open(data) as image:
            _check_size(*image.size)
            return _orientation(image) if image.mode in ("RGB", "L") else None
    except DecodeError:
        raise
    except Exception:  # as in `decode_image`, which says what it is
        return None


def _open(data: bytes) -> ImageFile:
    """Read the header only."""
    stream = BytesIO(data)
    # The cases: what the first bytes say. A format that is not named here cannot be reached.
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(stream)
    if data.startswith(_JPEG):
        # Inside compressed data 0xff is always followed by 0x00 or a restart marker, so this counts scans
        # (and those of thumbnails in the metadata).
        if data.count(b"\xff\xda") > JPEG_SCAN_LIMIT:
            raise DecodeError(f"JPEG of more than {JPEG_SCAN_LIMIT} scans; save it as a baseline JPEG")
        return JpegImageFile(stream)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_webp_header(data)
        return WebPImageFile(stream)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        image = TiffImageFile(stream)
        _check_size(image.tag_v2.get(_TILE_WIDTH, 1), image.tag_v2.get(_TILE_LENGTH, 1))
        return image
    if data.startswith(b"BM"):
        picture = BmpImageFile(stream)
        if picture.tile[0][0] == "bmp_rle":  # decoded in Python, a byte at a time: seconds for a few kilobytes
            raise DecodeError("run-length encoded BMP; save it as PNG")
        return picture
    raise DecodeError(
        f"not a PNG, JPEG, WebP, BMP or TIFF image (it starts with 0x{data[:8].hex()}); convert it"
        if data
        else "empty; send a PNG, JPEG, WebP, BMP or TIFF image"
    )


_JPEG = b"\xff\xd8\xff"
# TIFF 6.0, section 15. A reader allocates whole tiles, however small the picture.
_TILE_WIDTH, _TILE_LENGTH = 322, 323


def _check_webp_header(data: bytes) -> None:
    """Refuse by the first chunk of a WebP (RFC 9649, section 2.7): its size, and whether it is an animation."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10 or kind not in (b"VP8 ", b"VP8L", b"VP8X"):
        raise DecodeError("damaged or truncated image: no WebP header; send it again from the original")
    if kind == b"VP8X":
        if body[0] & 0b10:
            raise DecodeError("an animation is not one picture; send one frame")
        _check_size(int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
    elif kind == b"VP8L":
        (bits,) = struct.unpack("<I", body[1:5])
        _check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    else:
        width, height = struct.unpack("<HH", body[6:10])
        _check_size(width & 0x3FFF, height & 0x3FFF)


def _check_size(width: int, height: int) -> None:
    if width * height > PIXEL_LIMIT or max(width, height) > SIDE_LIMIT:
        raise DecodeError(
            f"image of {width}x{height} pixels exceeds {PIXEL_LIMIT} pixels or {SIDE_LIMIT} on a side; scale it down"
        )


def _bits_of_a_sample(image: ImageFile, data: bytes) -> int:
    """As the file states them: Pillow's modes know 8 and 16 alone."""
    if isinstance(image, PngImageFile):
        return data[_PNG_DEPTH]
    if isinstance(image, TiffImageFile):
        return int(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))[0])
    return 8


_PNG_DEPTH = 24  # PNG, 11.2.1: behind the signature, the length and the name of IHDR, and two sides
_BITS_PER_SAMPLE = 258


def _rgb(image: ImageFile, bits: int) -> NDArray[np.uint8]:
    """(height, width, 3) of a loaded image, whatever its mode; *bits* as `_bits_of_a_sample` has them."""
    if image.mode.startswith("I;16"):
        return _rgb_of_deep_gray(image, bits)
    if image.mode not in _MODES:
        raise DecodeError(f"pixels of mode {image.mode!r} have no stated range; convert to 8 bits a channel")
    if bits != 8 and isinstance(image, PngImageFile) and "transparency" in image.info:
        if image.mode in ("1", "L"):
            return _rgb_of_few_grays(image, bits)
        if image.mode == "RGB":  # of which 8 bits are left, and many colours may share those of the transparent one
            raise DecodeError("a transparent colour of 16 bits a channel; save it with an alpha channel, or in 8 bits")
    # Converting to the mode that an image has would copy it.
    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(layer, mask=layer)
    return np.asarray(paper)


_TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_MODES = _TRANSPARENT | {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"}


def _rgb_of_few_grays(image: ImageFile, bits: int) -> NDArray[np.uint8]:
    """Of levels of 1, 2 or 4 bits, one of them transparent: Pillow spreads the levels to 255, and leaves that one."""
    gray = np.array(image.convert("L"))
    gray[gray == image.info["transparency"] * (255 // (2**bits - 1))] = 255
    return np.repeat(gray[:, :, np.newaxis], 3, axis=2)


def _rgb_of_deep_gray(image: ImageFile, bits: int) -> NDArray[np.uint8]:
    # Pillow's own conversion clips at 255 instead of scaling. The high bits are what it takes of 16-bit colour.
    values = np.asarray(image)
    gray = (values >> (bits - 8)).astype(np.uint8)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = ~gray  # Pillow inverts 8 bits, but not 16
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = 255
    return np.repeat(gray[:, :, np.newaxis], 3, axis=2)


_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ORIENTATION = 0x0112


def _orientation(image: ImageFile) -> int:
    """EXIF's orientation, 1 to 8. Damaged metadata does not make the picture damaged: it is upright then."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as many classes as Pillow's parsers have
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF 2.32 orientation: 2 mirrored, 3 turned by 180°, 4 flipped, 5 to 8 the same on the side."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


@lru_cache
def _nvimgcodec() -> Any:
    """The `kernels.nvimgcodec.Codec` of the first device (Any: imported when somebody asks for it).

    Raises:
        ValueError: it cannot be used.
    """
    return import_module("kernels.nvimgcodec").Codec.opened()


def _by_nvimgcodec(items: Sequence[bytes]) -> list[Array | DecodeError]:
    found: list[Array | DecodeError] = _nvimgcodec().decode_all(items)
    return found


_TEXT = ArraySpec(np.dtype(object), (1,))
_PICTURE = ArraySpec(np.dtype(np.uint8), (-1, -1, 3), ragged=True)

DECODERS: Mapping[str, Decoder] = {
    "utf8": Decoder(_TEXT, one_by_one(decode_utf8)),
    "image": Decoder(_PICTURE, one_by_one(decode_image)),
    "image-nvimgcodec": Decoder(_PICTURE, _by_nvimgcodec, check=_nvimgcodec),
}
"""The decoders by name, as `decode:` of a route names them; `{image: nvimgcodec}` there is `image-nvimgcodec`."""
