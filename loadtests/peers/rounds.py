"""Asks the servers of a comparison in turns."""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from loadtests.generator.load import Plan
from loadtests.generator.report import NotStarted, Report, generate, tree_cpu_s
from loadtests.peers.goals import Cell, Sample
from loadtests.peers.servers import Form, Running, Server

START_S = 90.0
"""What a server gets to answer its first request."""

_WARM_S = 1.0
_IDLE_S = 1.0
_AWAKE_S = 0.2

IDLE_BOUND = 0.02
"""What a server may take of a core while nobody asks it; above that, it is paused while others are asked."""

_SHARE = 0.5  # the open loop's, of what the slowest can do


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    clients: Sequence[int]
    rounds: int
    seconds: float


@dataclass(slots=True)
class Comparison:
    """Servers measured together, in one form.

    Attributes:
        idle_cpu: of a core, while nobody asked.
        paused: servers that were therefore paused while others were asked.
        absent: servers that did not start, or stopped answering, and why.
    """

    form: Form
    servers: Sequence[Server]
    cells: list[Cell] = field(default_factory=list)
    idle_cpu: dict[str, float] = field(default_factory=dict)
    paused: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


class NotServing(Exception):
    """A server does not answer; the message says how it shows."""


def forth_or_back(names: Sequence[str], number: int) -> Sequence[str]:
    """The order of round *number*: A B C, then C B A, and so on."""
    return names if number % 2 == 0 else tuple(reversed(names))


def compare(form: Form, servers: Sequence[Server], extent: Extent) -> Comparison:
    """Start *servers*, warm them, and ask them in all rounds; those that fail are told, not raised."""
    found = Comparison(form, servers)
    with ExitStack() as stack:
        sides = dict(_started(stack, found))
        for name, side in sides.items():
            found.idle_cpu[name] = _idle_cpu(side.pid)
            if found.idle_cpu[name] > IDLE_BOUND:
                found.paused.append(name)
                stack.callback(_signal_tree, side.pid, signal.SIGCONT)  # or it could not be ended
                _signal_tree(side.pid, signal.SIGSTOP)
        if len(sides) > 1:
            closed = [_Loop(form, sides, clients, None) for clients in extent.clients]
            _ask_in_rounds(closed, sides, extent, found)
            rate = round(_SHARE * closed[-1].slowest(), 1)
            apart = {name: side for name, side in sides.items() if not side.server.shared}
            opened = [_Loop(form, apart, None, rate)] if len(apart) > 1 else []
            _ask_in_rounds(opened, apart, extent, found)
            found.cells = [loop.cell() for loop in (*closed, *opened)]
    return found


def _started(stack: ExitStack, found: Comparison) -> Iterator[tuple[str, _Side]]:
    for server in found.servers:
        if (reason := server.why_not()) is not None:
            found.absent[server.name] = reason
            continue
        try:
            yield server.name, stack.enter_context(_serving(server, found.form))
        except (NotServing, AssertionError, OSError) as error:  # AssertionError: how the tests' own starters say it
            found.absent[server.name] = f"did not start: {error}"


@dataclass(frozen=True, slots=True)
class _Side:
    """A server that runs, and how it is asked."""

    server: Server
    url: str
    pid: int
    form: Form

    def ask(self, clients: int | None, rate: float | None, seconds: float) -> Report:
        server, is_http = self.server, self.form is not Form.GRPC
        plan = Plan(
            self.url, rate=rate, clients=clients or 1, seconds=seconds, binary=self.form is Form.BINARY,
            path=server.path if is_http else None, rows=server.rows and is_http, width=server.width,
            shared=server.shared,
        )  # fmt: skip
        return generate(plan, self.pid)


@contextmanager
def _serving(server: Server, form: Form) -> Iterator[_Side]:
    """*server*, warm; its log goes into the error if it does not get there."""
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        process: Running = stack.enter_context(server.start(Path(folder)))
        side = _Side(server, process.urls[form], process.pid, form)
        until = time.monotonic() + START_S
        while (said := _said_by(side)) is not None:
            if time.monotonic() > until or not _is_alive(process.pid):
                raise NotServing(f"{said}; its log ends: {_end_of_log(Path(folder))}")
            time.sleep(0.2)
        yield side


def _said_by(side: _Side) -> str | None:
    """What is wrong with a server that is asked for a moment; None, when it answers and is warm."""
    host = urlsplit(side.url)
    try:
        report = side.ask(8, None, _WARM_S)
    except NotStarted as error:
        return f"{host.hostname}:{host.port} does not answer: {error}"
    return f"it answers with {report.errors}" if report.errors or not report.completed else None


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_of_log(folder: Path) -> str:
    log = folder / "log"
    return log.read_text(errors="replace")[-1000:] if log.exists() else "(none)"


class _Loop:
    """A cell while it is measured."""

    def __init__(self, form: Form, sides: Mapping[str, _Side], clients: int | None, rate: float | None) -> None:
        self._form = form
        self._clients = clients
        self._rate = rate
        self._samples: dict[str, list[Sample]] = {name: [] for name in sides}

    def ask(self, name: str, side: _Side, seconds: float) -> None:
        """One sample of *side*; raises NotServing."""
        try:
            report = side.ask(self._clients, self._rate, seconds)
        except NotStarted as error:
            raise NotServing(str(error)) from error
        if report.latency_ms is None:
            raise NotServing(f"no right reply in {seconds} s, but {report.errors}")
        self._samples[name].append(_sample(report))

    def slowest(self) -> float:
        """The least of the median rates; 0 of nobody's."""
        medians = (statistics.median(s.rate for s in samples) for samples in self._samples.values() if samples)
        return min(medians, default=0.0)

    def cell(self) -> Cell:
        """What was measured, without servers that never answered."""
        return Cell(self._form, self._clients, self._rate, {name: s for name, s in self._samples.items() if s})


def _sample(report: Report) -> Sample:
    assert report.latency_ms is not None
    return Sample(
        rate=report.achieved_rate,
        p50_ms=report.latency_ms["p50"],
        p99_ms=report.latency_ms["p99"],
        server_cpu_us=report.server_cpu_us or 0.0,
        generator_busy=round(report.generator_cpu_s / report.plan.seconds, 3),
        errors=sum(report.errors.values()),
        is_late=bool(report.saturated),
    )


def _ask_in_rounds(loops: Sequence[_Loop], sides: dict[str, _Side], extent: Extent, found: Comparison) -> None:
    """All rounds; a side that stops answering is asked no more, and *found* says why."""
    for number in range(extent.rounds):
        for loop in loops:
            for name in forth_or_back(tuple(sides), number):
                try:
                    with _awake(sides[name].pid, name in found.paused):
                        loop.ask(name, sides[name], extent.seconds)
                except NotServing as error:
                    found.absent[name] = f"stopped answering: {error}"
                    del sides[name]
        print(f"  round {number + 1} of {extent.rounds}: {', '.join(sides)}", file=sys.stderr, flush=True)


@contextmanager
def _awake(pid: int, is_paused: bool) -> Iterator[None]:
    """The tree of *pid* runs within the block, if it is paused around it."""
    if is_paused:
        _signal_tree(pid, signal.SIGCONT)
        time.sleep(_AWAKE_S)
    try:
        yield
    finally:
        if is_paused:
            _signal_tree(pid, signal.SIGSTOP)


def _signal_tree(pid: int, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _idle_cpu(pid: int) -> float:
    """CPU seconds a second of the tree of *pid*, which nobody asks anything."""
    before_s = tree_cpu_s(pid)
    time.sleep(_IDLE_S)
    after_s = tree_cpu_s(pid)
    assert before_s is not None
    assert after_s is not None
    return round((after_s - before_s) / _IDLE_S, 3)
