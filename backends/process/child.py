"""One worker process as the gateway sees it: started, asked one call at a time, watched, ended.

    STARTING -> IDLE -> BUSY -> IDLE ...        the caller waits
                          |
                          v
                       OVERRUN -> IDLE          the caller has left or is late; the function still runs
                          |
                          v
    any state          ENDING -> ENDED          killed, or told to leave; then its process is gone and everything closed

**Leaving early.** Nothing stops a running Python function but the end of its process. What it reads lies in the region,
which is the worker's and not the caller's, so a caller that leaves, or is late, is let go at once; the worker gets
`hang_timeout_s` to finish, and is killed then. Rejected: killing at once. A gateway cancels often (a client hangs up, a
deadline is short), and each time would cost a start, a second or a minute of loading, to save the rest of one call.

**Whose fault.** A worker that dies of a signal such as SIGSEGV, or that leaves, while it has a call, probably dies of
that call, and so does every other that gets it: `BackendFailed`, upon which the batcher runs halves and finds the item.
SIGKILL counts as this too: mostly it is the kernel's, out of memory, and large inputs make large arrays; if it was
somebody's hand, the halves are answered. SIGTERM, SIGINT and SIGHUP are sent by somebody, and `Unavailable`. A worker
that dies before it has read the call, as the socket tells (ECONNRESET), is no reason to fail: the next gets the call.

**Ends.** The process leads a session and group of its own: a terminal's Ctrl-C is the gateway's alone, and what the
function has started dies with its worker. The group is killed before the process is waited for, while its number cannot
be another's. The kernel kills the process when the thread that started it ends, which is the event loop's: a child that
an executor's thread has started would die with that thread.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from backends.contract import Deadline, HostArray, Signature, Tensor, Tensors, check_outputs
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, PointsmanError, Unavailable, error_of
from backends.in_process import Workers
from backends.process.memory import MOST_BYTES, Malformed, Placed, Region, nbytes_of, read, told, write
from backends.process.messages import (
    MOST_PACKET_BYTES,
    Answered,
    Broke,
    NeedsRoom,
    Raised,
    Ready,
    Refused,
    Reply,
    packed,
    parse,
)
from backends.process.output import Output

START_S = 300.0
"""What importing the function may take."""

_LEAVE_S = 0.5
"""What a worker that is told to leave gets, before SIGTERM and again before SIGKILL."""

_WORKER = "backends.process.worker"
_WATCH_S = 0.2
_ON_LOOP_BYTES = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ASKED_TO_END = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

log = logging.getLogger("pointsman.backends.process")

T = TypeVar("T")


class Phase(Enum):
    """Where a worker is in its life; see the module."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    OVERRUN = "overrun"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Launch:
    """What every worker of one model is started with.

    Attributes:
        model_name: as errors and the log name it.
        target: "package.module:attribute".
        signature: of the model.
        memory_limit: most bytes of its own memory, None for any; see `WorkerProcess.own_bytes`.
        hang_timeout_s: what a call may still take when its caller is gone.
        copiers: threads that copy what is too large for the event loop.
    """

    model_name: str
    target: str
    signature: Signature
    memory_limit: int | None
    hang_timeout_s: float
    copiers: Workers


class NotAsked(Exception):
    """The worker ended before it was given the call: another may have it."""


class WorkerProcess:
    """A worker process; belongs to one event loop."""

    def __init__(self, launch: Launch, on_rest: Callable[[WorkerProcess], None]) -> None:
        """Args:
        launch: what to start.
        on_rest: told when a call is over and the worker idle, or when its process has ended.
        """
        self._launch = launch
        self._on_rest = on_rest
        self._loop = asyncio.get_running_loop()
        self.phase = Phase.STARTING
        self.calls = 0
        self.was_ready = False
        self.is_casualty = False
        """Whether it ended, or had to be ended, though nobody wanted it to."""
        self.is_hung = False
        """Whether it was killed as it did not finish a call."""
        self.why_ended = ""
        self.spent = asyncio.Event()
        """Set by its owner when a successor is due, and when it has ended."""
        self._ended = asyncio.Event()
        self._answer: asyncio.Future[Reply] | None = None
        self._asked = False  # whether it owes a reply
        self._is_unread = False  # whether it ended before it took what it was asked
        self._fault: PointsmanError | None = None  # why it was killed, where that says whose fault it is
        self._region: Region | None = None
        self._is_new_region = False
        self._is_called = False
        self._most_left = 0
        self._timers: set[asyncio.TimerHandle] = set()
        self._statm: int | None = None  # while it is there
        self._buffer = bytearray(MOST_PACKET_BYTES)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid} of {self._launch.model_name!r}: {self.phase.value}, {self.calls} calls>"

    # --- its beginning ---

    async def start(self) -> None:
        """Start the process and wait until the function is imported.

        Raises:
            NotFound, InvalidInput: as `import_function`, or memory_limit is less than the import took.
            BackendFailed: the process ended before, or took too long.
            OSError: the system gives no process.
        """
        try:
            self._spawn()
        except OSError:
            self.phase = Phase.ENDED
            self._ended.set()
            raise
        try:
            self._judge(await self._introduced())
        except BaseException:  # cancelled too
            self.kill("was not taken on")
            raise
        self.phase, self.was_ready = Phase.IDLE, True

    async def _introduced(self) -> Reply:
        """What it says once it has tried to import the function."""
        self._answer = self._loop.create_future()
        timer = self._loop.call_later(START_S, self._condemn, f"took over {START_S:g} s")
        try:
            self._send(self._hello())
            return await self._answer
        except NotAsked:
            raise BackendFailed(f"model {self._launch.model_name!r}: its process ended at once") from None
        finally:
            timer.cancel()
            self._answer = None

    def _judge(self, introduction: Reply) -> None:
        name, limit = self._launch.model_name, self._launch.memory_limit
        if isinstance(introduction, Refused):
            raise error_of(introduction.code, introduction.why)
        if self.phase is not Phase.STARTING:
            raise BackendFailed(f"model {name!r}: its process {self.why_ended} before its first call")
        if limit is not None and (own := self.own_bytes()) > limit:
            raise InvalidInput(
                f"model {name!r} takes {own} bytes before its first call; memory_limit {limit} has to be above that"
            )

    def _spawn(self) -> None:
        name = self._launch.model_name
        with ExitStack() as undo:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._control.close)
            reading, writing = os.pipe()
            undo.callback(os.close, reading)
            try:
                process = subprocess.Popen(  # noqa: S603 (nobody else's words are in it)
                    [sys.executable, "-P", "-m", _WORKER, str(theirs.fileno()), str(os.getpid()), name],
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=writing,
                    pass_fds=(theirs.fileno(),),
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(_import_path())},
                    start_new_session=True,
                )
            finally:
                theirs.close()
                os.close(writing)
            self._process, self.pid = process, process.pid
            undo.callback(_end_now, process)
            self._pidfd = os.pidfd_open(self.pid)
            undo.callback(os.close, self._pidfd)
            self._statm = os.open(f"/proc/{self.pid}/statm", os.O_RDONLY)
            undo.pop_all()
        self._control.setblocking(False)
        self._output = Output(reading, f"process {self.pid} of model {name!r}")
        self._loop.add_reader(self._control.fileno(), self._on_readable)
        self._loop.add_reader(self._pidfd, self._on_exit)

    def _hello(self) -> Mapping[str, Any]:  # Any: JSON
        launch = self._launch
        return {
            "name": launch.model_name,
            "target": launch.target,
            "outputs": [[spec.name, spec.datatype, spec.shape] for spec in launch.signature.outputs],
            "path": _import_path(),
            "pythonpath": os.environ.get("PYTHONPATH"),
        }

    # --- its calls ---

    def claim(self) -> None:
        """Take it for a call, which must follow."""
        assert self.phase is Phase.IDLE, f"{self!r} is claimed. This is a bug."
        self.phase = Phase.BUSY

    def unclaim(self) -> None:
        """No call follows after all."""
        if self.phase is Phase.BUSY:
            self._rest()

    async def call(self, placed: Placed, arrays: Mapping[str, HostArray], size: int, deadline: Deadline) -> Tensors:
        """Have the function answer; the worker was claimed for it.

        Args:
            placed: where the inputs are to lie in the region.
            arrays: the inputs, which nobody looks at any more when this is over.
            size: items in the batch.
            deadline: after which it is over in any case.

        Raises:
            NotAsked: it had ended before.
            BackendFailed, Unavailable: see the module.
            DeadlineExceeded: *deadline* passed.
        """
        if self.phase is not Phase.BUSY:
            raise NotAsked
        self._is_called = True
        try:
            self._make_room(placed.end, self._expected_bytes(size))
            await self._fill(placed, arrays)
            return await self._asked_for(placed, size, deadline)
        finally:
            self._answer, self._is_called = None, False
            self._called()

    def _called(self) -> None:
        """A call is over, in whatever phase it has come to meanwhile."""
        if self.phase is Phase.ENDED:
            self._drop_region()
        elif self.phase is Phase.BUSY:
            self._leave_behind() if self._asked else self._rest()

    async def _fill(self, placed: Placed, arrays: Mapping[str, HostArray]) -> None:
        memory = self._memory()  # which stays, even if the worker does not
        await self._copying(placed.end, lambda: write(memory, placed.windows, arrays))

    async def _asked_for(self, placed: Placed, size: int, deadline: Deadline) -> Tensors:
        self.calls += 1
        self._ask("call", placed.end, inputs=told(placed.windows))
        self._watch()
        reply = await self._replied(deadline)
        if isinstance(reply, NeedsRoom):
            try:
                self._make_room(placed.end, self._allowed(reply.nbytes))
                self._ask("write", placed.end)
                reply = await self._replied(deadline)
            except NotAsked:  # the function has run
                raise self._failed_as("ended before it had answered", is_starting=False) from None
        match reply:
            case Answered(_, windows):
                return await self._taken(windows, size)
            case Raised():
                raise self._failed() from FunctionRaised(reply)
            case Broke(_, why):
                raise BackendFailed(why)
            case _:
                raise self._condemn("asked for more room twice")

    def _ask(self, what: str, start: int, **more: Any) -> None:  # Any: JSON
        assert self._region is not None
        message = {what: self.calls, "start": start, "capacity": self._region.capacity, **more}
        descriptors = [self._region.descriptor] if self._is_new_region else []
        self._send(message, descriptors)
        if self._is_new_region:
            self._region.passed_on()
            self._is_new_region = False
        self._asked = True
        self._answer = self._loop.create_future()

    def _send(self, message: Mapping[str, Any], descriptors: list[int] | None = None) -> None:  # Any: JSON
        if self.phase in (Phase.ENDING, Phase.ENDED):
            raise NotAsked
        try:
            if descriptors:
                socket.send_fds(self._control, [packed(message)], descriptors)
            else:
                self._control.send(packed(message))
        except OSError as error:  # it is gone, or does not read: no worker that owes nothing has a full socket
            if error.errno == errno.EMSGSIZE:
                raise InvalidInput("the tensors' names and shapes take more than a packet; name fewer") from error
            self._condemn("took no message")
            raise NotAsked from error

    async def _replied(self, deadline: Deadline) -> Reply:
        answer = self._answer
        assert answer is not None
        left_s = deadline - time.monotonic()
        timer = None if math.isinf(left_s) else self._loop.call_later(max(0.0, left_s), self._expire, answer)
        try:
            return await answer
        finally:
            if timer is not None:
                timer.cancel()
            del answer  # its error's traceback leads here: a cycle would keep the tensors until a collection

    def _expire(self, answer: asyncio.Future[Reply]) -> None:
        if not answer.done():
            name = self._launch.model_name
            answer.set_exception(
                DeadlineExceeded(f"the deadline passed while model {name!r} was at work; allow more time")
            )

    async def _taken(self, windows: Tensors, size: int) -> Tensors:
        """Copies of the outputs, which must be what the signature says before any is made."""
        name, signature = self._launch.model_name, self._launch.signature
        if fault := check_outputs(signature, windows, size):
            raise BackendFailed(f"model {name!r} broke its signature: {fault}")
        nbytes = sum(map(nbytes_of, windows.values()))
        self._most_left = max(self._most_left, nbytes + 64 * len(windows))
        memory = self._memory()
        try:
            return await self._copying(nbytes, lambda: _copies(memory, windows))
        except Malformed as error:
            raise self._condemn(str(error)) from error

    async def _copying(self, nbytes: int, copy: Callable[[], T]) -> T:
        """Copy here what is small, and on a thread what would hold up everybody."""
        if nbytes <= _ON_LOOP_BYTES:
            return copy()
        return await self._launch.copiers.run(copy, Deadline(math.inf))

    def _failed(self) -> BackendFailed:
        name = self._launch.model_name
        return BackendFailed(f"model {name!r} failed on this batch; its operator's log has the cause")

    # --- its region ---

    def _memory(self) -> mmap.mmap:
        assert self._region is not None, "there is no region. This is a bug."
        return self._region.bytes

    def _expected_bytes(self, size: int) -> int:
        """What the outputs will take: known where no length varies, else what they took at most so far."""
        specs = self._launch.signature.outputs
        sizes = [spec.datatype.itemsize for spec in specs]
        if None in sizes or any(-1 in spec.shape for spec in specs):
            return self._most_left
        return sum(
            64 + size * math.prod(spec.shape) * (itemsize or 0) for spec, itemsize in zip(specs, sizes, strict=True)
        )

    def _make_room(self, inputs: int, outputs: int) -> None:
        """Have a region for both. Outputs never take the place of inputs, which they may be views of."""
        if self.phase is Phase.ENDED:
            raise NotAsked
        needed = inputs + min(outputs, MOST_BYTES)
        if self._region is not None and needed <= self._region.capacity:
            return
        if inputs > MOST_BYTES:
            raise InvalidInput(f"a batch of {inputs} bytes exceeds {MOST_BYTES}, a process's limit; lower max_batch")
        try:
            region = Region(needed)
        except OSError as error:
            raise Unavailable(f"there is no memory for a batch of {needed} bytes now; try again") from error
        self._drop_region()
        self._region, self._is_new_region = region, True

    def _drop_region(self) -> None:
        if self._region is not None and self._is_new_region:
            self._region.passed_on()
        self._region, self._is_new_region = None, False

    def _allowed(self, nbytes: int) -> int:
        if nbytes > MOST_BYTES:
            name = self._launch.model_name
            raise BackendFailed(f"model {name!r} returned more than {MOST_BYTES} bytes, a process's limit")
        return nbytes

    # --- what it does meanwhile ---

    def own_bytes(self) -> int:
        """Resident memory that is its own: not the region, not files that it has mapped. 0 when it has
        ended.
        """
        if self._statm is not None:
            with suppress(OSError, ValueError):
                _, resident, shared = map(int, os.pread(self._statm, 128, 0).split()[:3])
                return (resident - shared) * _PAGE
        return 0

    @property
    def is_over_memory(self) -> bool:
        """Whether it has grown over its limit."""
        limit = self._launch.memory_limit
        return limit is not None and self.own_bytes() > limit

    def _watch(self) -> None:
        if self._launch.memory_limit is not None:
            self._later(_WATCH_S, self._look, self.calls)

    def _look(self, call: int) -> None:
        if not self._asked or self.calls != call:
            return
        assert self._launch.memory_limit is not None
        if self.own_bytes() > 2 * self._launch.memory_limit:
            self._condemn("took more than twice its memory_limit")
        else:
            self._watch()

    def _on_readable(self) -> None:
        if self._hear() == 0:
            self._loop.remove_reader(self._control.fileno())
            # Its process has ended as a rule, and how it did says more.
            self._later(_LEAVE_S, self._hung_up, 0)

    def _hung_up(self, _: int) -> None:
        self._condemn("closed its control socket")

    def _hear(self) -> int:
        """Take a packet; its length, 0 at the end of them all (or an empty one, which nobody sends), -1 for none."""
        try:
            length = self._control.recv_into(self._buffer)
        except BlockingIOError:
            return -1
        except ConnectionResetError:  # it left without having read the last packet
            self._is_unread = True
            return 0
        except OSError:
            return 0
        if length and self.phase is not Phase.ENDING:
            try:
                self._got(parse(memoryview(self._buffer)[:length], self._region.capacity if self._region else 0))
            except Malformed as error:
                self._condemn(str(error))
        return length

    def _got(self, reply: Reply) -> None:
        if self.phase is Phase.STARTING:
            if not isinstance(reply, Ready | Refused) or self._answer is None or self._answer.done():
                raise Malformed("it said something else before it was ready")
            self._answer.set_result(reply)
            return
        if isinstance(reply, Ready | Refused) or not self._asked or reply.call != self.calls:
            raise Malformed("it replied to what it was not asked")
        self._asked = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(reply)
        elif self.phase is Phase.OVERRUN:
            self._rest()

    def _leave_behind(self) -> None:
        """The caller is gone, the function still runs."""
        self.phase = Phase.OVERRUN
        self._later(self._launch.hang_timeout_s, self._give_up, self.calls)

    def _give_up(self, call: int) -> None:
        if self.phase is Phase.OVERRUN and self.calls == call:
            after, self.is_hung = self._launch.hang_timeout_s, True
            self.kill(f"still ran {after:g} s (hang_timeout_s) after its caller was gone")

    def _rest(self) -> None:
        self.phase = Phase.IDLE
        self._on_rest(self)

    def _later(self, delay_s: float, do: Callable[[int], None], call: int) -> None:
        """Call *do* in a while, unless it has ended."""

        def due() -> None:
            self._timers.discard(timer)
            do(call)

        timer = self._loop.call_later(delay_s, due)
        self._timers.add(timer)

    # --- its end ---

    def leave(self, why: str) -> None:
        """Tell it, idle as it is, to end by itself; it is made to if it does not."""
        if self.phase in (Phase.ENDING, Phase.ENDED):
            return
        self.phase, self.why_ended = Phase.ENDING, why
        self._loop.remove_reader(self._control.fileno())
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._later(_LEAVE_S, self._signal, signal.SIGTERM)
        self._later(2 * _LEAVE_S, self._signal, signal.SIGKILL)

    def kill(self, why: str) -> None:
        """End it at once."""
        if self.phase in (Phase.ENDING, Phase.ENDED):
            return
        self.phase, self.why_ended = Phase.ENDING, why
        self._signal(signal.SIGKILL)

    def _condemn(self, why: str) -> PointsmanError:
        """Kill a worker that cannot be trusted any more; the error of the call that it had."""
        if self._fault is None:
            self._fault = self._failed_as(why, is_starting=self.phase is Phase.STARTING)
        if self.phase not in (Phase.ENDING, Phase.ENDED):
            self.is_casualty = True
        self.kill(why)
        return self._fault

    def _failed_as(self, how: str, *, is_starting: bool) -> BackendFailed:
        name, last = self._launch.model_name, self._output.tail
        if not is_starting:
            return BackendFailed(f"model {name!r} failed on this batch: its process {how}")
        said = f"; it wrote last: {last}" if last else ""
        return BackendFailed(f"model {name!r}: its process {how} before {self._launch.target!r} was imported{said}")

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def wait_ended(self) -> None:
        """Until its process is gone and everything closed."""
        await self._ended.wait()

    def _on_exit(self) -> None:
        """The process has ended, and waits to be waited for."""
        while self._hear() > 0:  # what it said before
            pass
        self._signal(signal.SIGKILL)  # what is left of its group, while its number is still taken
        status = self._process.wait()
        self._close()
        if self.phase is not Phase.ENDING:
            self.is_casualty, self.why_ended = True, _ending(status)
        fault = NotAsked() if self._is_unread and self._asked else self._fault or self._death(status)
        self.phase = Phase.ENDED
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(fault)
        self._asked, self._fault = False, None
        self._ended.set()
        self._on_rest(self)

    def _death(self, status: int) -> PointsmanError:
        if self.phase is not Phase.STARTING and -status in _ASKED_TO_END:
            name = self._launch.model_name
            return Unavailable(f"the process of model {name!r} was ended; try again", retry_after_s=1.0)
        return self._failed_as(self.why_ended, is_starting=self.phase is Phase.STARTING)

    def _close(self) -> None:
        for timer in self._timers:
            timer.cancel()
        for descriptor in (self._pidfd, self._control.fileno()):
            self._loop.remove_reader(descriptor)
        self._control.close()
        os.close(self._pidfd)
        if self._statm is not None:
            os.close(self._statm)
            self._statm = None
        self._output.close()
        if not self._is_called:  # else what it has answered may not have been copied yet
            self._drop_region()


class FunctionRaised(BackendFailed):
    """Stands for the exception that the function raised in its process.

    Its text says of which type that was and where, and not what it said: that may quote what callers sent, and this
    text is logged. `said` has it.
    """

    def __init__(self, raised: Raised) -> None:
        super().__init__(f"{raised.kind} at {raised.frames}")
        self.kind = raised.kind
        self.said = raised.said


def _copies(memory: mmap.mmap, windows: Tensors) -> Tensors:
    return {name: Tensor.of(read(memory, window), window.datatype) for name, window in windows.items()}


def _import_path() -> list[str]:
    return [entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str)]


def _end_now(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"
