"""The workers of a supervisor: started, asked, started again when they end, and told to end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backends.errors import Code, PointsmanError, Unavailable
from gateway.control.overview import Overview, WorkerRow, together
from gateway.http.messages import HttpRequest, HttpResponse
from gateway.settings import Settings
from gateway.workers import metrics
from gateway.workers.link import Failed, Order, Question, Ready, Report, Start, Tell, ask, check_sendable, receive, send
from gateway.workers.metrics import Family, Sample

SUPERVISOR = "supervisor"
"""The value of the label `worker` for the supervisor itself."""

ASK_S = 1.0
"""What a worker gets to tell of itself; one that does not is as it was."""

HUNG_S = 15.0
"""A worker that has answered nothing for so long, whose event loop hangs, is killed, and so started again."""

HUNG_MISSES = 5
"""Questions in a row that it must have left unanswered meanwhile: the supervisor itself may have been stopped."""

BACKOFF_S, MOST_BACKOFF_S = 0.1, 5.0
_MOST_ROW = 10  # failures in a row that are counted: the pause has long stopped growing then
"""A worker is started again after a random part of the one, doubled with every end in a row, up to the other."""

LAST_WORDS_S = 0.5
"""What a process that has ended may take to be heard to the end."""

STABLE_S = 10.0
"""A worker that was ready for so long begins a new row."""

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from gateway.workers.worker import main; main()"
"""What a worker's interpreter runs: it looks for modules where this one does, whatever folder it is started in."""

log = logging.getLogger("pointsman.workers")


class WorkerFailed(PointsmanError):
    """A worker cannot start."""

    code = Code.UNAVAILABLE


class Worker:
    """One of the crew: a place, in which a process follows the other."""

    def __init__(self, number: int, settings: Settings, folder: Path, halted: dict[str, str]) -> None:
        """Args:
        halted: canaries that any worker has halted, and why; all workers share it.
        """
        self.number = number
        self._halted = halted
        self.pid: int | None = None
        self.restarts = -1
        self.report: Report | None = None
        self.is_ready = False
        self.was_stable = False
        self.answers = False
        self._misses = 0
        self._silent_since = math.inf
        self._is_over = False
        self._ready_at = math.inf
        self._settings = settings
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.number}: {'ready' if self.is_ready else 'not ready'}, pid {self.pid}>"

    @property
    def row(self) -> WorkerRow:
        """For the status page."""
        pid = None if self._process is None else self.pid
        return WorkerRow(self.number, pid, self.is_ready, max(0, self.restarts), self.answers)

    async def run(self, on_ready: Callable[[], None]) -> str:
        """Start a process, and stay with it until it has ended; how it did.

        Raises:
            WorkerFailed: it cannot start; says why.
        """
        self.restarts += 1
        self._ready_at = math.inf
        # Its temporary files, the socket behind its gRPC port among them, end with it, however that ends.
        temporary = self._folder / f"{self.number}"
        try:
            temporary.mkdir(exist_ok=True)
            return await self._run(on_ready, temporary)
        except OSError as error:  # of memory, processes or descriptors there may be enough again, later
            raise WorkerFailed(f"no process can be started: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    async def _run(self, on_ready: Callable[[], None], temporary: Path) -> str:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", _PROGRAM, f"pointsman worker {self.number}", json.dumps(sys.path)),
                    stdin=theirs.fileno(),
                    start_new_session=True,  # Ctrl-C in a terminal is the supervisor's to hear
                    env={**os.environ, "TMPDIR": str(temporary)},
                )
        except BaseException:
            ours.close()
            raise
        self.pid = process.pid
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours)
            await send(self._writer, Start(self.number, self._settings, self._questions, _level(), self._halted))
            if self._is_over:
                self.kill()
            code = await self._until_it_ends(process, reader, on_ready)
        finally:
            self.is_ready = self.answers = False
            self.was_stable = time.monotonic() - self._ready_at >= STABLE_S
            await self._forget(process)
        if self._ready_at == math.inf:
            raise WorkerFailed(f"a worker ended with exit code {code} before it was ready; it may have logged why")
        return f"process {process.pid} ended with exit code {code}"

    async def _until_it_ends(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, on_ready: Callable[[], None]
    ) -> int:
        """Hear what it says until it has ended; its exit code.

        Its end is not told by the link alone: a process that a model has forked may hold that open.
        """
        hearing = asyncio.create_task(self._hear(reader, on_ready))
        ending = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((hearing, ending), return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():
                await asyncio.wait((hearing,), timeout=LAST_WORDS_S)
            if hearing.done():
                hearing.result()
            return await ending
        finally:
            hearing.cancel()
            ending.cancel()

    async def _hear(self, reader: asyncio.StreamReader, on_ready: Callable[[], None]) -> None:
        while (message := await receive(reader)) is not None:
            match message:
                case Ready():
                    self.is_ready = self.answers = True
                    self._ready_at = time.monotonic()
                    self._misses = 0
                    on_ready()
                case Failed(why):
                    raise WorkerFailed(why)
                case Report():
                    self._take(message)

    def _take(self, report: Report) -> None:
        self.report = report
        self._halted |= report.halted

    async def _forget(self, process: asyncio.subprocess.Process) -> None:
        """Make sure that it has ended, also where this is cancelled."""
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if self._writer is not None:
            self._writer.close()
        self._writer = self._process = None
        self._questions.unlink(missing_ok=True)

    async def order(self, order: Order) -> None:
        """Tell it, as its last process; one that is not ready has accepted nothing, and is ended at once."""
        self._is_over = True
        if self._writer is not None and self.is_ready:
            await send(self._writer, order)
        else:
            self.kill()

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def look(self) -> None:
        """Ask it for a report; one that has hung for too long is killed."""
        if not self.is_ready:
            return
        process, reply = self._process, None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_S):
                reply = await self.ask(Tell(self._halted))
        if process is not self._process or not self.is_ready:
            return
        if isinstance(reply, Report):
            self._take(reply)
            self.answers, self._misses = True, 0
        else:
            self._miss(time.monotonic())

    def _miss(self, now: float) -> None:
        """It has not answered; kill it if that is so for too long, unless it drains, which has a limit of its own."""
        self.answers = False
        self._misses += 1
        if self._misses == 1:
            self._silent_since = now
        silent_s = now - self._silent_since
        if self._misses >= HUNG_MISSES and silent_s >= HUNG_S and not self._is_over:
            log.error(
                "worker %d: process %s has answered nothing for %.0f s, its event loop hangs; it is killed",
                *(self.number, self.pid, silent_s),
            )
            self.kill()
            self._misses = 0  # its end is soon noticed

    async def ask(self, question: Question) -> object | None:
        """Its reply; None where it has none to give any more."""
        return await ask(self._questions, question) if self.is_ready else None

    @property
    def _questions(self) -> Path:
        return self._folder / f"{self.number}-{self.restarts}"


class Crew:
    """All workers; an asynchronous context manager that starts them, and leaves none behind."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """As many as *settings* say, with the ports that are in them; questions are asked by sockets in *folder*.

        Raises:
            InvalidInput: a process cannot be given *settings*.
        """
        check_sendable(settings)
        halted: dict[str, str] = {}
        self.workers = [Worker(number, settings, folder, halted) for number in range(settings.server.workers)]
        self._tending: list[asyncio.Task[None]] = []
        self._waiting = set(self.workers)
        self._all_ready = asyncio.Event()
        self._draining = asyncio.Event()
        self._looking = asyncio.Lock()
        self._turn = itertools.count()
        self._kept: list[Family] = []

    async def __aenter__(self) -> Self:
        self._tending = [asyncio.create_task(self._tend(worker)) for worker in self.workers]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)

    async def wait_ready(self, stop: asyncio.Event) -> bool:
        """Whether every worker serves; False where *stop* came first.

        Raises:
            WorkerFailed: the first that cannot start says why.
        """
        await self._until(self._all_ready, stop)
        return self._all_ready.is_set() and not stop.is_set()

    async def watch(self, stop: asyncio.Event) -> None:
        """Return when *stop* is set; workers are started again until then."""
        await self._until(stop)

    async def _until(self, *events: asyncio.Event) -> None:
        """Return when one of *events* is set; raise what ends the tending of a worker, as nothing should."""
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(event.wait()) for event in events]  # Any: nobody looks
        try:
            await asyncio.wait({*waiting, *self._tending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        for task in self._tending:
            if task.done():
                task.result()

    async def drain(self, hurry: asyncio.Event, within_s: float) -> None:
        """Let every worker end, within *within_s* seconds; at once where *hurry* is set meanwhile."""
        self._draining.set()
        await self._order(Order.DRAIN)
        hurrying = asyncio.create_task(self._hurry(hurry))
        _, left = await asyncio.wait(self._tending, timeout=within_s)
        hurrying.cancel()
        if left:
            log.error("%d workers did not end within %g s; they are killed", len(left), within_s)

    async def _hurry(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        await self._order(Order.HURRY)

    async def _order(self, order: Order) -> None:
        await asyncio.gather(*(worker.order(order) for worker in self.workers))

    async def _tend(self, worker: Worker) -> None:
        """Keep *worker* going until the crew drains.

        Raises:
            WorkerFailed: it cannot start, and not all have started yet.
        """
        row = 0
        while True:
            why = await self._life(worker)
            if self._draining.is_set():
                return
            if not self._all_ready.is_set():
                raise WorkerFailed(why)
            row = 0 if worker.was_stable else min(row + 1, _MOST_ROW)
            pause_s = random.uniform(0.0, min(MOST_BACKOFF_S, BACKOFF_S * 2**row))  # noqa: S311  # no secret
            log.error("worker %d: %s; it is started again in %.2f s", worker.number, why, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), pause_s)
                return

    async def _life(self, worker: Worker) -> str:
        """One process of *worker*, from its start to its end; why it ended."""
        try:
            return await worker.run(lambda: self._on_ready(worker))
        except WorkerFailed as error:
            return str(error)
        except Exception:  # a bug, in what it says or in who hears it, that its siblings are not to pay for
            log.exception("worker %d could not be heard", worker.number)
            return "it could not be heard"
        finally:
            if worker.report is not None:
                self._kept = metrics.counted(worker.report.families, self._kept)
                worker.report = None

    def _on_ready(self, worker: Worker) -> None:
        log.info("worker %d is ready (process %d)", worker.number, worker.pid)
        self._waiting.discard(worker)
        if not self._waiting:
            self._all_ready.set()

    async def look(self) -> None:
        """Ask every worker for a report; one at a time does, so that an earlier report never follows a later one."""
        async with self._looking:
            await asyncio.gather(*(worker.look() for worker in self.workers))

    async def families(self, own: Sequence[Family]) -> list[Family]:
        """The metrics of all workers, and the supervisor's *own*, as one."""
        await self.look()
        processes: dict[str, Sequence[Family]] = {
            str(worker.number): worker.report.families for worker in self.workers if worker.report
        }
        return [*metrics.together({**processes, SUPERVISOR: own}, self._kept), *self._about_workers()]

    def _about_workers(self) -> Sequence[Family]:
        rows = [worker.row for worker in self.workers]
        return (
            _of_each("pointsman_worker_ready", "gauge", "Whether the worker serves.", rows, lambda r: r.is_ready),
            _of_each("pointsman_worker_up", "gauge", "Whether it answered just now.", rows, lambda r: r.answers),
            _of_each("pointsman_worker_pid", "gauge", "The worker's process; 0: none.", rows, lambda r: r.pid or 0),
            _of_each("pointsman_worker_restarts", "counter", "Started again.", rows, lambda r: r.restarts, "_total"),
        )

    async def overview(self) -> Overview:
        """What all workers serve, as one."""
        await self.look()
        reports = [worker.report for worker in self.workers]
        return together([report.overview for report in reports if report], [worker.row for worker in self.workers])

    async def forward(self, request: HttpRequest) -> HttpResponse:
        """A worker's reply to *request*: each in turn.

        Raises:
            Unavailable: there is none that serves, or it has ended meanwhile.
        """
        ready = [worker for worker in self.workers if worker.answers] or [w for w in self.workers if w.is_ready]
        if not ready:
            raise Unavailable("no worker serves at this moment; try again", retry_after_s=1.0)
        sendable = replace(request, body=request.octets)  # a view on where a body was put cannot be pickled
        reply = await ready[next(self._turn) % len(ready)].ask(sendable)
        if not isinstance(reply, HttpResponse):
            raise Unavailable("the worker that was asked has just ended; try again", retry_after_s=1.0)
        return reply


def _of_each(
    name: str, kind: str, about: str, rows: Sequence[WorkerRow], value: Callable[[WorkerRow], float], suffix: str = ""
) -> Family:
    samples = (Sample(name + suffix, ((metrics.WORKER, str(row.number)),), float(value(row))) for row in rows)
    return Family(name, kind, about, tuple(samples))


def _level() -> str:
    """What is logged here, and so by workers."""
    return logging.getLevelName(logging.getLogger().level)
