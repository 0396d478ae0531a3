"""Environments of the peers: one each, since their requirements exclude each other, outside what the repository keeps.

A requirements file names the peer's exact version, and what else must be held for it to start. What pip chose for the
rest is told in the result, not pinned: the newest release is what a user installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
FOLDER = Path(__file__).parents[1] / ".peers"

_TOLD = (
    "aiohttp", "bentoml", "fastapi", "grpcio", "httptools", "kserve", "litserve", "mlserver", "numpy", "orjson",
    "pydantic", "pygrpc-native", "ray", "starlette", "tritonclient", "uvicorn", "uvloop",
)  # fmt: skip
_ASK = f"""
import importlib.metadata as m, json, platform
found = {{"python": platform.python_version()}}
for name in {_TOLD!r}:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def python_of(name: str) -> Path:
    """The interpreter of peer *name*'s environment, whether or not that is there."""
    return FOLDER / name / "bin" / "python"


def why_not(name: str) -> str | None:
    """Why peer *name* cannot run, or None where it can."""
    said = FOLDER / f"{name}.why-not"
    if said.exists():
        return said.read_text().strip()
    if not _is_current(name):
        return "its environment is not prepared; run with --prepare"
    return None


def prepare(name: str) -> str | None:
    """Make *name*'s environment, if its requirements changed since it was made; why it failed, or None."""
    said = FOLDER / f"{name}.why-not"
    said.unlink(missing_ok=True)
    if _is_current(name):
        return None
    FOLDER.mkdir(exist_ok=True)
    requirements = REQUIREMENTS / f"{name}.txt"
    options = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "-r", str(requirements)]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(FOLDER / name)],
        [str(python_of(name)), "-m", "pip", "install", *options],
    ):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own words
        if ended.returncode:
            said.write_text(f"not installed: {(ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1]}\n")
            return said.read_text().strip()
    (FOLDER / name / ".installed").write_text(requirements.read_text())
    return None


def _is_current(name: str) -> bool:
    mark = FOLDER / name / ".installed"
    return mark.exists() and mark.read_text() == (REQUIREMENTS / f"{name}.txt").read_text()


def versions(python: Path) -> Mapping[str, str]:
    """Of *python* and of those packages beside it that matter here."""
    command = [str(python), "-c", _ASK]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)  # noqa: S603
    return found
