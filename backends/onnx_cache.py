"""Optimised graphs on disk, so that a model's graph is optimised once and not at every load.

ONNX Runtime rewrites a graph when it builds a session: it folds constants, fuses operators, lays weights out for the
processor. What comes of that can be saved, and is loaded as it is. Measured (`loadtests.cold_starts`, two busy cores):
opening takes 0.82 of the time for MiniLM with int8 weights (22 MB; its saved graph takes 90) and 0.93 for magika's
3 MB. Building the session alone takes half; the rest is the digest of the model's file, without which a changed file
would be answered from the old graph. ONNX Runtime's own format (`.ort`) is quicker still for magika and no quicker
than the model's file for MiniLM, so that it loses where loading takes long.

**The key** is everything that the saved graph depends on: what is in the model file, ONNX Runtime's version, and the
processor's architecture and features, since the graph may hold instructions of one processor's. The options of a
session that do not change the graph are not in it.

**What is not cached:** a model with data in other files. Its key would have to cover them, and they are named inside.

**Faults.** A cache may cost time, and must never cost a model: whatever fails in it, the model is loaded from its file.
Files come into being under another name and are moved into place, so that no half of one is ever seen; one that
ONNX Runtime cannot read is replaced. A graph is code of a kind, so a folder that others may write to is not used.
What has not been used for `KEPT_S` is deleted when something is added.

Rejected: a digest inside each file, checked at every load (it takes longer than the optimiser saves for large models;
a bit that falls over on disk is as likely in the model's own file).
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from backends.ort import open_session, ort
from kernels.folders import is_private, user_cache

KEPT_S: Final = 30 * 24 * 3600.0
"""Seconds after their last use for which graphs are kept."""

_EXTERNAL: Final = b"location"  # the key under which a tensor names its file; elsewhere it costs the cache, and no more
_SUFFIX: Final = ".onnx"


def default_folder() -> Path:
    """Where graphs are kept: `$XDG_CACHE_HOME` (or `~/.cache`) `/pointsman/graphs`."""
    return user_cache() / "graphs"


def open_cached(model: Path, session_options: Callable[[], Any], folder: Path) -> Any:
    """A session over *model*, from *folder* if its optimised graph is there; otherwise it will be.

    Any: ONNX Runtime has no types of its own.

    Args:
        session_options: makes the options of a session, to be changed by this.

    Raises:
        Exception: ONNX Runtime cannot load *model* itself.
    """
    kept = _place(model, folder)
    if kept is None:
        return open_session(model, session_options())
    if kept.exists():
        with suppress(Exception):  # of ONNX Runtime's, or the file system's; whatever it is, the model's file is there
            return _reopened(kept, session_options())
    return _opened_and_kept(model, session_options, kept)


def _reopened(kept: Path, options: Any) -> Any:
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(kept, options)
    with suppress(OSError):
        os.utime(kept)
    return session


def _opened_and_kept(model: Path, session_options: Callable[[], Any], kept: Path) -> Any:
    fresh = kept.with_name(f".{kept.stem}.{uuid.uuid4().hex}{_SUFFIX}")
    options = session_options()
    options.optimized_model_filepath = str(fresh)
    try:
        session = open_session(model, options)
        fresh.replace(kept)
    except Exception:  # it may have been the disk that was full, and not the model
        fresh.unlink(missing_ok=True)
        return open_session(model, session_options())
    _prune(kept.parent)
    return session


def _place(model: Path, folder: Path) -> Path | None:
    """Where the graph of *model* belongs; None where it cannot be cached."""
    try:
        content = model.read_bytes()
        if _EXTERNAL in content:
            return None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(folder):
            return None
    except OSError:
        return None
    digest = hashlib.sha256(_environment().encode() + b"\0" + content)
    return folder / f"{digest.hexdigest()}{_SUFFIX}"


@cache
def _environment() -> str:
    """What a graph depends on beside the model."""
    return f"{ort.__version__} {platform.machine()} {_features()}"


def _features() -> str:
    """The processor's features, where the system tells them."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() in ("flags", "Features"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _prune(folder: Path) -> None:
    before_s = time.time() - KEPT_S
    with suppress(OSError):
        for file in folder.glob(f"*{_SUFFIX}"):
            if file.stat().st_mtime < before_s:
                file.unlink(missing_ok=True)
