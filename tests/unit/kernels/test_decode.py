"""Decoders: what they make of good bytes, and what they refuse."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import time
import unicodedata
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from kernels.arrays import PIXEL_LIMIT
from kernels.decode import DECODERS, DecodeError, decode
from kernels.normal_forms import MARK_LIMIT


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def png(width: int, height: int, body: bytes = b"", depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def webp(kind: bytes, body: bytes) -> bytes:
    inner = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def refusal(name: str, data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(name, data)
    return str(caught.value)


def text_of(data: bytes) -> str:
    result = decode("utf8", data)
    assert result.shape == (1,)
    assert result.dtype == object
    assert isinstance(result[0], bytes)
    return result[0].decode()


# Text.


def test_text_is_passed_on_as_utf8_bytes() -> None:
    assert text_of("hällo, 世界 🙂".encode()) == "hällo, 世界 🙂"
    assert text_of(b"") == ""


def test_text_is_normalised_to_nfc() -> None:
    assert text_of("e\u0301".encode()) == "é"


def test_a_byte_order_mark_is_dropped() -> None:
    assert text_of(b"\xef\xbb\xbfhello") == "hello"


@pytest.mark.parametrize("data", [b"ab\xff", b"ab\xc3", b"ab\xed\xa0\x80", b"ab\xc0\xaf", "ab\u00e9".encode("latin-1")])
def test_invalid_utf8_is_refused_with_its_place(data: bytes) -> None:
    assert refusal("utf8", data).startswith("invalid UTF-8 at byte 2 (0x")


def test_nul_is_refused() -> None:
    assert refusal("utf8", b"ab\0c") == "NUL at character 2; text must not hold NUL"


def test_a_run_of_combining_marks_is_refused_before_it_takes_quadratic_time() -> None:
    hostile = ("a" + "\u0300\u0316" * 500_000).encode()

    started = time.perf_counter()
    message = refusal("utf8", hostile)

    assert message == "more than 30 combining marks in a row at character 1; shorten the run"
    assert time.perf_counter() - started < 5  # normalising it takes an hour


def test_the_longest_run_of_marks_that_unicode_calls_safe_passes() -> None:
    text = "a" + "\u0316" * MARK_LIMIT

    assert text_of(text.encode()) == unicodedata.normalize("NFC", text)


def test_marks_that_only_decomposition_shows_count_too() -> None:
    assert "combining marks" in refusal("utf8", ("a" + "\u0f73" * 31).encode())


def test_no_combining_mark_lies_beyond_the_planes_that_are_searched() -> None:
    assert not any(unicodedata.combining(chr(code)) for code in range(0x20000, 0x110000))


@given(st.text(alphabet=st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=MARK_LIMIT))
def test_any_text_is_its_own_nfc(text: str) -> None:
    assert text_of(text.encode()) == unicodedata.normalize("NFC", text)


@given(st.binary())
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    for name in ("utf8", "image"):
        with contextlib.suppress(DecodeError):
            assert DECODERS[name].output.admits(decode(name, data).shape)


def test_an_unknown_decoder_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        decode("pickle", b"")


# Images.


def image_of(data: bytes) -> NDArray[Any]:
    result = decode("image", data)
    assert DECODERS["image"].output.admits(result.shape)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    return result


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_lossless_formats_give_the_pixels_that_were_saved(form: str, options: dict[str, Any]) -> None:
    image = picture()

    assert np.array_equal(image_of(encoded(image, form, **options)), np.asarray(image))


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}])
def test_jpeg_gives_what_pillow_gives(options: dict[str, Any]) -> None:
    data = encoded(picture(size=(33, 17)), "JPEG", **options)

    assert np.array_equal(image_of(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_gray_bilevel_and_palette_become_rgb(mode: str, form: str) -> None:
    image = picture(mode)

    assert np.array_equal(image_of(encoded(image, form)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(form: str) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))

    assert image_of(encoded(image, form))[0, 0] == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (255, 0), (51, 204), (128, 127)])
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_shows_white_paper(form: str, alpha: int, expected: int) -> None:
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    data = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, alpha)), form, **options)

    assert image_of(data)[0, 0].tolist() == [expected] * 3


def test_gray_with_alpha_shows_white_paper() -> None:
    assert image_of(encoded(Image.new("LA", (1, 1), (0, 51)), "PNG"))[0, 0].tolist() == [204] * 3


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_transparent_palette_entry_shows_white_paper(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putpixel((1, 0), 1)

    pixels = image_of(encoded(image, "PNG", transparency=transparency))

    assert pixels.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_a_transparent_colour_shows_white_paper() -> None:
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))

    assert image_of(encoded(image, "PNG", transparency=(1, 2, 3))).tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_16_bit_gray_keeps_its_high_byte() -> None:
    body = b"\0" + struct.pack(">3H", 0, 0x1234, 0xFFFF)

    assert image_of(png(3, 1, body, depth=16, colour=0))[0, :, 0].tolist() == [0, 0x12, 0xFF]


def test_16_bit_colour_keeps_its_high_bytes() -> None:
    body = b"\0" + struct.pack(">3H", 0x1234, 0x00FF, 0xFF00)

    assert image_of(png(1, 1, body, depth=16))[0, 0].tolist() == [0x12, 0x00, 0xFF]


def test_a_tiff_of_12_bits_keeps_its_high_8() -> None:
    levels = [0x000, 0x00F, 0x7F0, 0xFFF]
    bits = "".join(f"{level:012b}" for level in levels)
    data = int(bits, 2).to_bytes(len(bits) // 8)
    tags = [(256, len(levels)), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(data))]
    directory = struct.pack("<H", len(tags))
    for tag, value in tags:  # one of type LONG each
        directory += struct.pack("<HHLL", tag, 4, 1, value)
    head = b"II*\0" + struct.pack("<L", 8 + len(data))
    found = image_of(head + data + directory + bytes(4))

    assert found[0, :, 0].tolist() == [0x00, 0x00, 0x7F, 0xFF]


@pytest.mark.parametrize(("depth", "level"), [(1, 1), (1, 0), (2, 1), (4, 9)])
def test_a_transparent_gray_of_few_bits_shows_white_paper(depth: int, level: int) -> None:
    count = 2**depth
    bits = "".join(f"{n:0{depth}b}" for n in range(count)).ljust(-(-count * depth // 8) * 8, "0")
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8)

    found = image_of(png(count, 1, row, depth, 0, chunk(b"tRNS", struct.pack(">H", level))))

    assert found[0, :, 0].tolist() == [255 if n == level else n * 255 // (count - 1) for n in range(count)]


def test_a_transparent_colour_of_16_bits_of_which_8_are_left_is_refused() -> None:
    data = png(1, 1, bytes(7), 16, 2, chunk(b"tRNS", bytes(6)))

    assert refusal("image", data) == (
        "a transparent colour of 16 bits a channel; save it with an alpha channel, or in 8 bits"
    )


def test_a_transparent_16_bit_gray_shows_white_paper() -> None:
    body = b"\0" + struct.pack(">2H", 0x1234, 0x1235)
    data = png(2, 1, body, depth=16, colour=0, extra=chunk(b"tRNS", struct.pack(">H", 0x1234)))

    assert image_of(data)[0, :, 0].tolist() == [255, 0x12]


@pytest.mark.parametrize(("photometric", "expected"), [(0, [0xFF, 0xED, 0x00]), (1, [0x00, 0x12, 0xFF])])
def test_a_16_bit_tiff_whose_white_is_zero_is_not_a_negative(photometric: int, expected: list[int]) -> None:
    image = Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], dtype=np.uint16))

    data = bytearray(encoded(image, "TIFF"))
    entry = data.index(struct.pack("<HHI", 262, 3, 1))
    data[entry + 8 : entry + 10] = struct.pack("<H", photometric)

    assert image_of(bytes(data))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_stated_range_are_refused(mode: str) -> None:
    message = refusal("image", encoded(Image.new(mode, (2, 2)), "TIFF"))

    assert message == f"pixels of mode {mode!r} have no stated range; convert to 8 bits a channel"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = image.transpose(turns[orientation]) if orientation in turns else image
    options = {"lossless": True} if form == "WEBP" else {}

    assert np.array_equal(image_of(encoded(image, form, exif=exif, **options)), np.asarray(upright))


def test_jpeg_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6

    assert image_of(encoded(picture(size=(16, 8)), "JPEG", exif=exif)).shape == (16, 8, 3)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_exif_does_not_know_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert image_of(encoded(picture(), "PNG", exif=exif)).shape == (5, 7, 3)


def test_metadata_that_is_no_exif_leaves_the_picture_upright() -> None:
    assert image_of(encoded(picture(), "PNG", exif=b"Exif\0\0nonsense")).shape == (5, 7, 3)


def test_damaged_metadata_neither_warns_nor_stops_a_good_picture() -> None:
    """In a process of its own: under pytest every warning is an error."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x0f\x01\x02\0\xff\xff\0\0\xff\xff\xff\0"
    data = encoded(picture(), "JPEG", exif=exif)
    program = f"""
import sys
sys.path.insert(0, ".")
from kernels.decode import decode
print(decode("image", {data!r}).shape)
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("(5, 7, 3)\n", "")


def test_a_tiff_of_several_pages_gives_the_first() -> None:
    first, second = Image.new("RGB", (2, 2), (1, 2, 3)), Image.new("RGB", (2, 2), (4, 5, 6))

    assert image_of(encoded(first, "TIFF", save_all=True, append_images=[second]))[0, 0].tolist() == [1, 2, 3]


def test_a_jpeg_of_several_pictures_gives_the_first() -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 200, 0))

    pixels = image_of(encoded(first, "MPO", save_all=True, append_images=[second]))

    assert pixels[0, 0] == pytest.approx([200, 0, 0], abs=3)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_is_refused(form: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])

    assert refusal("image", data) == "an animation is not one picture; send one frame"


def test_an_animated_gif_is_refused_as_another_format() -> None:
    frames = [Image.new("P", (4, 4), colour) for colour in (0, 1)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert refusal("image", data).startswith("not a PNG, JPEG, WebP, BMP or TIFF image (it starts with 0x474946383")


@pytest.mark.parametrize("form", ["GIF", "PPM", "ICO", "PCX", "TGA", "ICNS", "EPS", "JPEG2000", "PDF", "DIB", "SGI"])
def test_other_formats_are_refused(form: str) -> None:
    assert refusal("image", encoded(picture(size=(16, 16)), form)).startswith("not a PNG")


@pytest.mark.parametrize("data", [b"hello", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 64])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refusal("image", data) == (
        f"not a PNG, JPEG, WebP, BMP or TIFF image (it starts with 0x{data[:8].hex()}); convert it"
    )


def test_nothing_is_refused() -> None:
    assert refusal("image", b"") == "empty; send a PNG, JPEG, WebP, BMP or TIFF image"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_refused_wherever_it_ends(form: str) -> None:
    data = encoded(picture(size=(40, 30)), form)
    pixels_end = len(data) - 24  # what follows may be the format's own end mark

    for length in (4, 12, 20, 30, len(data) // 3, len(data) // 2, pixels_end):
        refusal("image", data[:length])


def test_a_damaged_png_is_refused() -> None:
    data = bytearray(encoded(picture(), "PNG"))
    data[45] ^= 0xFF

    assert refusal("image", bytes(data)).startswith("damaged or truncated image: ")


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000),
        png(PIXEL_LIMIT + 1, 1),
        png(1, 70_000),
        png(2**31 - 1, 2**31 - 1),
        webp(b"VP8X", b"\0\0\0\0" + (59_999).to_bytes(3, "little") * 2),
        webp(b"VP8L", b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + b"\0" * 5),
        webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)),
        encoded(picture(), "BMP").replace(struct.pack("<ii", 7, 5), struct.pack("<ii", 60_000, 60_000)),
        encoded(picture(), "JPEG").replace(struct.pack(">HH", 5, 7), struct.pack(">HH", 60_000, 60_000)),
    ],
    ids=["png", "png-long", "png-side", "png-max", "webp-x", "webp-lossless", "webp-lossy", "bmp", "jpeg"],
)
def test_a_declared_size_over_the_limit_is_refused_before_decoding(data: bytes) -> None:
    assert refusal("image", data).endswith("pixels exceeds 36000000 pixels or 65535 on a side; scale it down")


def test_huge_tiles_of_a_small_tiff_are_refused() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[65_000] = tags[65_001] = 60_000
    data = encoded(picture(), "TIFF", tiffinfo=tags)
    for private, tile in ((65_000, 322), (65_001, 323)):
        data = data.replace(struct.pack("<HHI", private, 3, 1), struct.pack("<HHI", tile, 3, 1))

    assert "60000x60000" in refusal("image", data)


def test_rows_that_a_well_formed_png_lacks_are_black_and_not_stale_memory() -> None:
    pixels = image_of(png(4, 4, b"\0" + b"\xff" * 12))

    assert pixels[0].min() == 255
    assert not pixels[1:].any()


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = encoded(picture(size=(64, 64)), "JPEG", progressive=True)

    assert refusal("image", data + b"\xff\xda" * 33) == "JPEG of more than 32 scans; save it as a baseline JPEG"


def test_a_run_length_encoded_bmp_is_refused() -> None:
    data = bytearray(encoded(picture("P"), "BMP"))
    data[30:34] = struct.pack("<I", 1)

    assert refusal("image", bytes(data)) == "run-length encoded BMP; save it as PNG"


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_are_decoded(size: tuple[int, int]) -> None:
    assert image_of(encoded(picture(size=size), "PNG")).shape == (size[1], size[0], 3)


@given(st.data())
def test_any_damage_to_an_image_is_decoded_or_refused(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]))
    hostile = bytearray(encoded(picture(), form))
    for _ in range(data.draw(st.integers(1, 4))):
        hostile[data.draw(st.integers(0, len(hostile) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(DecodeError):
        image_of(bytes(hostile))
