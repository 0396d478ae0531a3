"""Runs the comparisons, and writes what they say; see the package's documentation for the method."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import loadtests.peers
from loadtests.peers import environments, perf_analyzer
from loadtests.peers.goals import Goal, goals, ratios
from loadtests.peers.machine import machine
from loadtests.peers.plot import draw
from loadtests.peers.rounds import Comparison, Extent, compare
from loadtests.peers.servers import SERVERS, Form, Server
from loadtests.peers.told import comparison_told

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"


def planned(names: Sequence[str]) -> Iterator[tuple[Form, list[Server]]]:
    """The comparisons over *names*: one a form over all but peers, then the gateway beside each peer."""
    chosen = [SERVERS[name] for name in SERVERS if name in names]
    for form in Form:
        common = [server for server in chosen if form in server.forms and not server.is_peer]
        if len(common) > 1:
            yield form, common
    for peer in (server for server in chosen if server.is_peer):
        yield peer.forms[0], [SERVERS["gateway"], peer]


def main() -> int:
    """Prepare what is asked for, measure, print the goals, and write the result with its plot."""
    options = _arguments()
    names: list[str] = options.only
    if options.prepare:
        _prepare(names)
    extent = Extent(options.clients, options.rounds, options.seconds)
    where = machine()
    comparisons = []
    for form, servers in planned(names):
        print(f"{form}: {', '.join(server.name for server in servers)}", file=sys.stderr, flush=True)
        comparisons.append(compare(form, servers, extent))
        for name, reason in comparisons[-1].absent.items():
            print(f"  without {name}: {reason}", file=sys.stderr, flush=True)
    outside = perf_analyzer.measure(options.perf_analyzer, names, extent) if options.perf_analyzer else []
    cells = [cell for comparison in comparisons for cell in comparison.cells]
    found = ratios(cells)
    reached = goals(found)
    result = {
        "what": (loadtests.peers.__doc__ or "").splitlines()[0],
        "machine": where,
        "rounds": extent.rounds,
        "seconds_a_run": extent.seconds,
        "servers": {name: _server(SERVERS[name]) for name in _measured(comparisons)},
        "absent": [{"form": each.form, **each.absent} for each in comparisons if each.absent],
        "goals": [_goal(goal) for goal in reached],
        "ratios": [asdict(each) for each in found],
        "comparisons": [comparison_told(each) for each in comparisons],
        "perf_analyzer": {
            "ratios": perf_analyzer.compared(outside),
            "runs": [asdict(row) for row in outside],
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    if cells:
        title = f"{where['cpu']}, {where['cores']} cores, {where['python'].split(',')[0]}, {where['date'][:10]}"
        draw(
            cells, f"FP32 [1, 16] doubled; medians of {extent.rounds} rounds; {title}", options.out.with_suffix(".png")
        )
    print("\n".join(map(str, reached)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=loadtests.peers.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, default=list(SERVERS), help=f"of {','.join(SERVERS)}")
    parser.add_argument("--clients", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=3.0, help="of one run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prepare", action="store_true", help="make the environments of the peers first")
    parser.add_argument("--perf-analyzer", type=Path, metavar="FOLDER", help="measure with it as well")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the plot lies beside it")
    options = parser.parse_args()
    if options.perf_analyzer:
        try:
            perf_analyzer.command_of(options.perf_analyzer)
        except ValueError as error:
            parser.error(str(error))
    if options.rounds < 1 or options.seconds <= 0.0 or min(options.clients) < 1:
        parser.error("--rounds and --clients are at least 1, --seconds is above 0")
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(SERVERS)):
        raise argparse.ArgumentTypeError(f"no server is named {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    return names


def _prepare(names: Sequence[str]) -> None:
    for name in sorted(file.stem for file in environments.REQUIREMENTS.glob("*.txt")):
        if any(each.partition("-")[0] == name for each in names):
            print(f"preparing {name} ...", file=sys.stderr, flush=True)
            if reason := environments.prepare(name):
                print(f"  {reason}", file=sys.stderr, flush=True)


def _measured(comparisons: Sequence[Comparison]) -> list[str]:
    seen = {name for comparison in comparisons for cell in comparison.cells for name in cell.samples}
    return [name for name in SERVERS if name in seen]


def _server(server: Server) -> Mapping[str, Any]:
    return {"about": server.about, "versions": server.versions()}


def _goal(goal: Goal) -> Mapping[str, Any]:
    return {"verdict": goal.verdict, **asdict(goal)}


if __name__ == "__main__":
    sys.exit(main())
