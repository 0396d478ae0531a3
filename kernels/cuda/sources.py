"""The sources of the kernels, what they are compiled with, and a cache of what came of that.

Compiled code is good for one kind of device, one driver and one source: all three are in a cached file's name, with
the compiler's version and options, so that an upgrade of any of them compiles anew and nothing is ever invalidated.
It is run as it is found, so a folder that others may write to is neither read nor written.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from kernels.folders import is_private, user_cache
from kernels.recipe import Element, Recipe

_FOLDER = Path(__file__).parent

TILE = (8, 32)
"""(height, width) of the pixels that one block makes."""

CHUNK = 768
"""Numbers of a row that a block resamples at a time: with `TILE`, 24 KiB of shared memory."""

ELEMENTS: tuple[Element, ...] = ("uint8", "float32", "float16", "bfloat16")
SCORE_THREADS = 128


@dataclass(frozen=True, slots=True)
class Variant:
    """A source with its macros; one function comes of it.

    Attributes:
        source: the file's name, without `.cu`.
        function: what it defines.
        macros: by name.
    """

    source: str
    function: str
    macros: tuple[tuple[str, int], ...]

    @property
    def code(self) -> str:
        """What the compiler is given."""
        return (_FOLDER / "prelude.cu").read_text() + (_FOLDER / f"{self.source}.cu").read_text()

    def options(self, architecture: str) -> tuple[str, ...]:
        """The compiler's, for `sm_90` and the like."""
        return (
            f"--gpu-architecture={architecture}",
            "--std=c++17",
            *(f"-D{name}={value}" for name, value in self.macros),
        )


def image_variant(channels: int, element: Element, *, planar: bool) -> Variant:
    """The kernel for recipes of so many *channels*, 1 to `recipe.CHANNEL_LIMIT`."""
    return Variant(
        "image",
        "resample",
        (
            ("CHANNELS", channels),
            ("ELEMENT", ELEMENTS.index(element)),
            ("PLANAR", int(planar)),
            ("TILE_H", TILE[0]),
            ("TILE_W", TILE[1]),
            ("CHUNK", CHUNK),
        ),
    )


def variant_of(recipe: Recipe) -> Variant:
    """The kernel for *recipe*."""
    return image_variant(len(recipe.order), recipe.element, planar=recipe.planar)


SOFTMAX_TOP_K = Variant("scores", "softmax_top_k", (("THREADS", SCORE_THREADS),))


@dataclass(frozen=True, slots=True)
class Target:
    """What compiled code is good for.

    Attributes:
        architecture: `sm_90` and the like.
        device: its name.
        driver: its version.
        compiler: its version.
    """

    architecture: str
    device: str
    driver: str
    compiler: str


Compile = Callable[[str, Sequence[str]], bytes]
"""From code and options to a cubin; raises RuntimeError with the compiler's log."""


class Cache:
    """Compiled kernels in a folder; safe to share between threads and processes."""

    def __init__(self, folder: Path, compiler: Compile) -> None:
        """Args:
        folder: made when it is needed; where it cannot be written, or others could write to it, every process
            compiles for itself.
        compiler: used for what is not there.
        """
        self._folder = folder
        self._compile = compiler

    def path(self, variant: Variant, target: Target) -> Path:
        """Where the cubin of *variant* for *target* is, or would be."""
        parts = (*astuple(target), variant.code, *variant.options(target.architecture))
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._folder / f"{variant.function}-{target.architecture}-{digest[:32]}.cubin"

    def load(self, variant: Variant, target: Target) -> bytes:
        """The cubin of *variant* for *target*, compiled if it is not there.

        Raises:
            RuntimeError: it does not compile; holds the compiler's log.
        """
        path = self.path(variant, target)
        with suppress(OSError):
            if is_private(self._folder) and (found := _whole(path.read_bytes())) is not None:
                return found
        cubin = self._compile(variant.code, variant.options(target.architecture))
        with suppress(OSError):
            self._keep(cubin, path)
        return cubin

    def _keep(self, cubin: bytes, path: Path) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(self._folder):
            return
        with NamedTemporaryFile(dir=self._folder, delete=False) as part:
            kept = Path(part.name)
            try:
                part.write(hashlib.sha256(cubin).digest() + cubin)
                part.flush()
                kept.replace(path)
            except BaseException:
                kept.unlink(missing_ok=True)
                raise


def _whole(data: bytes) -> bytes | None:
    """The cubin of what `_keep` wrote; None where it was not written to its end, as at a loss of power."""
    digest, cubin = data[:32], data[32:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None


def cache_folder() -> Path:
    """POINTSMAN_KERNEL_CACHE, or `pointsman/kernels` in the user's cache."""
    if given := os.environ.get("POINTSMAN_KERNEL_CACHE"):
        return Path(given)
    return user_cache() / "kernels"
