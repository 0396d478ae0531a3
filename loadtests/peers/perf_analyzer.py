"""The same servers, measured by Triton's own load generator."""

from __future__ import annotations

import csv
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests.peers.rounds import Extent, forth_or_back
from loadtests.peers.servers import SERVERS, Form, Running
from loadtests.ratios import Spread, ratio

NAMES = ("gateway", "triton")
MODES: Mapping[str, tuple[Form, str]] = {
    "http sync": (Form.BINARY, "-i http --sync"),
    "http async": (Form.BINARY, "-i http --async"),
    "http sync, shared memory": (Form.BINARY, "-i http --sync --shared-memory system"),
    "grpc sync": (Form.GRPC, "-i grpc --sync"),
    "grpc async": (Form.GRPC, "-i grpc --async"),
    "grpc sync, shared memory": (Form.GRPC, "-i grpc --sync --shared-memory system"),
}
_WINDOWS = 3
"""What perf_analyzer measures at the least."""

_STABLE = ("-s", "999", "-r", str(_WINDOWS + 1))
"""It is to take its windows as they come, where it would try until three agree: what differs, the rounds tell."""

_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """What perf_analyzer says of one server; *fault* where it says nothing."""

    server: str
    mode: str
    clients: int
    rate: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    fault: str | None = None


def command_of(folder: Path) -> list[str]:
    """How the perf_analyzer in *folder* is run: by the loader that lies beside it, if one does.

    Raises:
        ValueError: there is none.
    """
    program = folder / "perf_analyzer"
    if not program.is_file():
        raise ValueError(f"{folder} has no perf_analyzer; unpack the wheel perf-analyzer and name the folder of it")
    loaders = sorted(folder.glob("ld-linux-*.so.*"))
    return [*([str(loaders[0]), "--library-path", str(folder)] if loaders else []), str(program)]


def measure(folder: Path, names: Sequence[str], extent: Extent) -> list[Row]:
    """Every mode and number of clients, in rounds over those of `NAMES` that are among *names*.

    Raises:
        ValueError: *folder* has no perf_analyzer.
    """
    command = command_of(folder)
    rows: list[Row] = []
    with ExitStack() as stack:
        servers: dict[str, Running] = {}
        for name in (name for name in NAMES if name in names):
            if (reason := SERVERS[name].why_not()) is not None:
                rows.append(Row(name, "all", 0, fault=reason))
                continue
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peer-")))
            servers[name] = stack.enter_context(SERVERS[name].start(place))
        for number in range(extent.rounds):
            rows += _round(command, servers, number, extent)
    return rows


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The gateway over Triton, by mode and clients: ratios of rates and p50."""
    cells: dict[tuple[str, int], dict[str, list[Row]]] = {}
    for row in rows:
        if row.fault is None:
            cells.setdefault((row.mode, row.clients), {}).setdefault(row.server, []).append(row)
    return [
        {
            "mode": mode,
            "clients": clients,
            **{figure: asdict(_ratio(sides, figure)) for figure in ("rate", "p50_ms")},
        }
        for (mode, clients), sides in cells.items()
        if len(sides) == len(NAMES)
    ]


def _ratio(sides: Mapping[str, Sequence[Row]], figure: str) -> Spread:
    own, other = ([float(getattr(row, figure)) for row in sides[name]] for name in NAMES)
    return ratio(own, other)


def _round(command: Sequence[str], servers: dict[str, Running], number: int, extent: Extent) -> Iterator[Row]:
    for mode, (form, options) in MODES.items():
        for clients in extent.clients:
            for name in forth_or_back(tuple(servers), number):
                address = servers[name].urls[form].partition("://")[2]
                window = ["--measurement-interval", str(round(1000 * extent.seconds / _WINDOWS)), *_STABLE]
                arguments = ["-m", "dbl", "-u", address, *options.split(), "--concurrency-range", str(clients), *window]
                yield _run([*command, *arguments], name, mode, clients)


def _run(command: Sequence[str], name: str, mode: str, clients: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "table.csv")
        try:
            ended = subprocess.run(  # noqa: S603  # nobody else's words are in it
                [*command, "-f", str(table)], capture_output=True, text=True, check=False, timeout=_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return Row(name, mode, clients, fault=f"perf_analyzer did not end in {_LIMIT_S:g} s")
        if not table.exists():
            said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
            return Row(name, mode, clients, fault=said[-1] if said else f"it ended with {ended.returncode}")
        return row_of(table.read_text(), name, mode, clients)


def row_of(table: str, name: str, mode: str, clients: int) -> Row:
    """The one line of perf_analyzer's CSV; its latencies are in microseconds."""
    (line,) = csv.DictReader(table.splitlines())
    p50, p99 = (float(line[f"p{q} latency"]) / 1e3 for q in (50, 99))
    return Row(name, mode, clients, float(line["Inferences/Second"]), p50, p99)
