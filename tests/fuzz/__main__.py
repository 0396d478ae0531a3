"""A long run of one target, guided by coverage: not part of CI.

    python -m venv .fuzz && .fuzz/bin/pip install atheris
    PYTHONPATH=.:proto:$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \\
        nice -n 19 .fuzz/bin/python -m tests.fuzz TARGET -max_total_time=300 [FOLDER] [options of libFuzzer]

TARGET is one of `tests.fuzz.targets.TARGETS`; FOLDER keeps the corpus. Python of the gateway is instrumented; what
httptools, orjson and protobuf do inside is not seen, and so not searched for, but a crash of theirs ends the run.

atheris (https://github.com/google/atheris) is no dependency of the project: it has wheels for Linux alone, and CI runs
the same targets under hypothesis (`test_fuzz.py`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Fuzz the target that *arguments* name, until libFuzzer has enough."""
    import atheris  # type: ignore[import-untyped]  # no dependency of ours

    with atheris.instrument_imports(include=["gateway", "backends", "tests.fuzz"], enable_loader_override=False):
        from tests.fuzz.targets import SEEDS, TARGETS
    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"name a target: {', '.join(TARGETS)}")
    name, *options = arguments
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate(SEEDS[name]):
        (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options, str(folder)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
