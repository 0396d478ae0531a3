"""The CUDA sources as libraries of the host, by way of `host.cpp`."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

from kernels.cuda import layout

TILE_H, TILE_W, THREADS = 2, 8, 8
SMALL = {"TILE_H": TILE_H, "TILE_W": TILE_W, "CHUNK": 48, "THREADS": THREADS}
"""Tiles so small that even small pictures take several blocks, and rows several chunks."""

COMPILER = shutil.which("g++")
NEEDS_COMPILER = "needs g++, of C++20, to run the CUDA sources on the host"

Build = Callable[[str, tuple[tuple[str, int], ...]], ctypes.CDLL]
"""From a source and its macros to a library."""


def builder(folder: Path) -> Build:
    """Builds into *folder*, each library once."""

    @cache
    def build(source: str, macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
        assert COMPILER is not None
        target = folder / f"{source}{len(list(folder.iterdir()))}.so"
        path = Path(layout.__file__).parent / f"{source}.cu"
        sizes = {**dict(macros), **{name: SMALL[name] for name, _ in macros if name in SMALL}}
        defined = [f"-D{name}={value}" for name, value in sizes.items()]
        options = ["-std=c++20", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-pthread"]
        host = str(Path(__file__).parent / "host.cpp")
        subprocess.run([COMPILER, *options, *defined, f'-DSOURCE="{path}"', host, "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))

    return build
