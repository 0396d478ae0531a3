"""Pictures decoded on a device: the same are taken, and one that fails fails by itself."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kernels import decode as decoding
from kernels import nvimgcodec
from kernels.arrays import Array
from kernels.decode import DECODERS, DecodeError, decode_image, jpeg_orientation
from kernels.nvimgcodec import Codec

ORIENTATION = 0x0112
NO_DEVICE = -99999  # NVIMGCODEC_DEVICE_CPU_ONLY


def encoded(seed: int = 0, form: str = "JPEG", mode: str = "RGB", orientation: int = 1, **options: Any) -> bytes:
    """A smooth picture, so that decoders differ little."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = small.resize((64, 48), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    image.save(stream, form, **({"exif": exif} if form == "JPEG" else {}), **options)
    return stream.getvalue()


class OnDevice:
    """An `nvimgcodec.Image`."""

    def __init__(self, pixels: Array) -> None:
        self._pixels = pixels

    def cpu(self) -> Array:
        return self._pixels


@dataclass
class Native:
    """An `nvimgcodec.Decoder` as it is documented: Pillow's pixels, unturned, and None for what it cannot do."""

    refuses: frozenset[bytes] = frozenset()
    batches: list[int] = field(default_factory=list)
    until: threading.Event | None = None
    has_begun: threading.Event = field(default_factory=threading.Event)

    def decode(self, items: Sequence[bytes], params: object) -> list[OnDevice | None]:
        self.batches.append(len(items))
        self.has_begun.set()
        if self.until is not None:
            assert self.until.wait(5)
        return [self._one(data) for data in items]

    def _one(self, data: bytes) -> OnDevice | None:
        if data in self.refuses:
            return None
        try:
            with Image.open(io.BytesIO(data)) as image:
                return OnDevice(np.asarray(image.convert("RGB")))
        except OSError:
            return None


def codec(native: Native) -> Codec:
    return Codec(native, params=None)


def test_each_orientation_gives_what_the_cpu_gives() -> None:
    items = [encoded(seed, orientation=seed + 1) for seed in range(8)]

    decoded = codec(Native()).decode_all(items)

    for got, data in zip(decoded, items, strict=True):
        assert isinstance(got, np.ndarray)
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, decode_image(data))


def test_what_fails_fails_by_itself_and_in_the_words_of_the_cpu() -> None:
    good, damaged, text = encoded(1), encoded(2)[:-100], b"no picture"
    too_large = encoded(3).replace((48).to_bytes(2, "big") + (64).to_bytes(2, "big"), b"\xff\xf0\xff\xf0", 1)
    items = [good, damaged, text, too_large, b"", good]
    native = Native()

    decoded = codec(native).decode_all(items)

    for got, expected in zip(decoded, DECODERS["image"].decode_all(items), strict=True):
        if isinstance(expected, DecodeError):
            assert str(got) == str(expected)
        else:
            np.testing.assert_array_equal(got, expected)
    assert [isinstance(got, DecodeError) for got in decoded] == [False, True, True, True, True, False]
    assert native.batches == [3]  # of what its header allows: neither the text nor the giant goes to the device


@pytest.mark.parametrize(
    "data", [encoded(form="PNG"), encoded(form="WEBP"), encoded(mode="CMYK"), encoded(form="TIFF"), encoded(form="BMP")]
)
def test_what_is_no_jpeg_of_colours_or_grey_is_the_cpus(data: bytes) -> None:
    native = Native()

    (got,) = codec(native).decode_all([data])

    np.testing.assert_array_equal(got, decode_image(data))
    assert native.batches == []


def test_grey_jpegs_go_to_the_device() -> None:
    native = Native()
    data = encoded(mode="L")

    (got,) = codec(native).decode_all([data])

    np.testing.assert_array_equal(got, decode_image(data))
    assert native.batches == [1]


def test_what_the_device_refuses_is_decoded_by_the_cpu() -> None:
    first, second = encoded(1), encoded(2)

    decoded = codec(Native(refuses=frozenset({first}))).decode_all([first, second])

    for got, data in zip(decoded, (first, second), strict=True):
        np.testing.assert_array_equal(got, decode_image(data))


def test_a_device_that_fails_leaves_all_to_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Native):
        def decode(self, items: Sequence[bytes], params: object) -> list[OnDevice | None]:
            raise RuntimeError("out of memory")

    (got,) = codec(Broken()).decode_all([encoded()])

    np.testing.assert_array_equal(got, decode_image(encoded()))
    assert "the CPU does" in caplog.text


def test_who_comes_while_the_device_is_busy_is_decoded_together() -> None:
    native = Native(until=threading.Event())
    shared = codec(native)
    items = [encoded(seed) for seed in range(6)]
    found: dict[int, Any] = {}

    def work(place: int) -> None:
        (found[place],) = shared.decode_all([items[place]])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    threads[0].start()
    assert native.has_begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    while len(shared._waiting) < 5:
        pass
    assert native.until is not None
    native.until.set()
    for thread in threads:
        thread.join()

    assert native.batches == [1, 5]
    for place, data in enumerate(items):
        np.testing.assert_array_equal(found[place], decode_image(data))


def test_a_header_is_read_for_its_orientation_alone() -> None:
    assert [jpeg_orientation(encoded(orientation=turned)) for turned in (1, 6)] == [1, 6]
    assert jpeg_orientation(encoded(mode="CMYK")) is None
    assert jpeg_orientation(encoded(form="PNG")) is None
    assert jpeg_orientation(b"\xff\xd8\xff\xff") is None


def test_without_the_library_the_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvimgcodec, "find_spec", lambda name: None)
    decoding._nvimgcodec.cache_clear()

    with pytest.raises(ValueError, match=r"install pointsman\[nvimgcodec-cu13\] or .*decode: image\)$"):
        DECODERS["image-nvimgcodec"].check()


def test_nothing_imports_it_unasked() -> None:
    """In a process of its own: here other tests may have."""
    import subprocess
    import sys

    program = "import sys; sys.path.insert(0, '.'); import kernels.decode; print('nvidia' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


# With the library itself


@pytest.fixture(scope="module", params=["device", "cpu"])
def real(request: pytest.FixtureRequest) -> Codec:
    """The library's decoder of the device, and its own for the CPU, which needs none and tries the same calls."""
    try:
        return Codec.opened() if request.param == "device" else Codec.opened(NO_DEVICE, ("CPU_ONLY",))
    except ValueError as error:
        pytest.skip(str(error))


def test_the_library_decodes_what_the_cpu_decodes_within_a_few_levels(real: Codec) -> None:
    items = [
        *(encoded(seed, orientation=seed % 8 + 1, quality=90, subsampling=0) for seed in range(8)),
        encoded(9, mode="L"),
        encoded(10, progressive=True, subsampling=2),
        encoded(11)[:-100],
        encoded(12, form="PNG"),
        encoded(13, mode="CMYK"),
        b"no picture",
    ]

    decoded = real.decode_all(items)

    for got, data in zip(decoded, items, strict=True):
        (expected,) = DECODERS["image"].decode_all([data])
        if isinstance(expected, DecodeError):
            continue  # a device may read what is cut off as if it were grey
        assert isinstance(got, np.ndarray)
        assert got.shape == expected.shape
        assert np.abs(got.astype(int) - expected).mean() < 3


def test_the_library_says_nothing_of_damaged_files(real: Codec, capfd: pytest.CaptureFixture[str]) -> None:
    real.decode_all([encoded(1)[:-100]])

    assert capfd.readouterr() == ("", "")
