"""Writes every generated file of the repository anew, or with --check tells which differ from their sources."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import orjson

ROOT = Path(__file__).parent.parent
STUBS = Path("proto/pointsman_pb")
SCHEMA = Path("gateway/pointsman.schema.json")


def generate(root: Path) -> None:
    """Write the stubs of `proto/` and the schema of the configuration below *root*."""
    (root / STUBS).mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, ROOT / "proto/generate.py", root / STUBS.parent], check=True)  # noqa: S603
    from gateway.settings import settings_schema

    (root / SCHEMA).parent.mkdir(parents=True, exist_ok=True)
    (root / SCHEMA).write_bytes(orjson.dumps(settings_schema(), option=orjson.OPT_INDENT_2) + b"\n")


def stale() -> list[Path]:
    """The generated files that are not what their sources give."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        written = {path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file()}
        kept = {path.relative_to(ROOT) for path in (ROOT / STUBS).rglob("*.py*") if "__pycache__" not in path.parts}
        return sorted(
            path
            for path in written | kept
            if not (ROOT / path).exists() or not (fresh / path).exists() or _differ(ROOT / path, fresh / path)
        )


def _differ(kept: Path, fresh: Path) -> bool:
    return kept.read_bytes() != fresh.read_bytes()


def main() -> int:
    """Generate, or check."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return 0
    if found := stale():
        print(f"generated files are stale: {', '.join(map(str, found))}; run `make generate`", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
