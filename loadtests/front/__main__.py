"""Runs the comparisons, and writes what they say; see the package's documentation for the method."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import loadtests.front
from loadtests.front.goals import goals
from loadtests.front.sides import FORMS, SMALL, WIDE, one_triton, sides
from loadtests.peers.machine import machine
from loadtests.peers.plot import draw
from loadtests.peers.rounds import Extent, compare
from loadtests.peers.servers import Form
from loadtests.peers.told import comparison_told
from tests.conformance.triton import why_not

RESULTS = Path(__file__).parents[1] / "results" / "front.json"
_ORDER = ("triton", "hop", "gateway-http", "gateway-grpc", "gateway-shm", "regions", "gateway-regions")


def main() -> int:
    """Measure, print the goals, and write the result with a plot for each width."""
    parser = argparse.ArgumentParser(description=loadtests.front.__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--widths", nargs="+", choices=(SMALL.name, WIDE.name), default=(SMALL.name, WIDE.name))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, type=Form)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (reason := why_not()) is not None:
        print(reason, file=sys.stderr)
        return 1
    where = machine()
    told, reached = [], []
    for width in (width for width in (SMALL, WIDE) if width.name in options.widths):
        cells = []
        for form in options.forms:
            print(f"{width.name}, {form}", file=sys.stderr, flush=True)
            with (
                tempfile.TemporaryDirectory(prefix="front-", ignore_cleanup_errors=True) as folder,
                one_triton(Path(folder), width) as process,
            ):
                extent = Extent(width.clients, options.rounds, options.seconds)
                found = compare(form, sides(process, width, form), extent)
            for name, reason in found.absent.items():
                print(f"  without {name}: {reason}", file=sys.stderr, flush=True)
            told.append({"width": width.name, **comparison_told(found), "absent": found.absent})
            cells += found.cells
        reached += goals(width, cells)
        title = f"{width.name}, one Triton; {where['cpu']}, {where['cores']} cores, {where['date'][:10]}"
        plot = options.out.with_name(f"{options.out.stem}-{width.numbers}.png")
        if cells:
            draw(cells, title, plot, _ORDER)
    result = {
        "what": (loadtests.front.__doc__ or "").splitlines()[0],
        "machine": where,
        "rounds": options.rounds,
        "seconds_a_run": options.seconds,
        "goals": [asdict(goal) for goal in reached],
        "comparisons": told,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(map(str, reached)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
