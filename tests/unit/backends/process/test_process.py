"""A Python function in processes of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uvloop

from backends.conformance import exercise_backend
from backends.contract import (
    NO_DEADLINE,
    Backend,
    Batch,
    Datatype,
    Deadline,
    HostArray,
    State,
    Tensor,
    TensorSpec,
)
from backends.errors import BackendFailed, DeadlineExceeded, InvalidInput, NotFound, Unavailable
from backends.process import restarts
from backends.process.backend import PythonProcesses
from backends.process.child import FunctionRaised
from backends.python import PYTHON, open_python
from batching.batcher import Batcher
from batching.options import BatchingOptions
from tests.unit.backends.process.conftest import FUNCTIONS, OPTIONS, Open, until
from tests.unit.backends.process.functions import FORGED, RAISED

PID = (TensorSpec("y", Datatype.INT64, (1,)),)
LINE = (TensorSpec("y", Datatype.FP32, (-1,)),)
TEXT = (TensorSpec("y", Datatype.BYTES, (1,)),)


def of(*rows: float) -> Batch:
    """A batch of items, each its number three times."""
    return Batch.of({"x": Tensor.of(np.repeat(np.array(rows, np.float32)[:, None], 3, axis=1))})


def sample(size: int, rng: np.random.Generator) -> Batch:
    return Batch.of({"x": Tensor.of(rng.normal(size=(size, 3)).astype(np.float32))})


async def asked(backend: Backend, *rows: float, deadline: float = math.inf) -> HostArray:
    return (await backend.infer(of(*rows), Deadline(deadline)))["y"].numpy()


async def pid_of(backend: Backend) -> int:
    return int((await asked(backend, 0))[0, 0])


def soon(seconds: float = 0.2) -> float:
    return time.monotonic() + seconds


# --- the contract ---


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("function", "changes"),
    [("double", {"max_in_flight": 2}), ("give_back", {}), ("biased", {"recycle_after": 3, "memory_limit": 1 << 30})],
)
def test_a_function_in_a_process_keeps_the_contract(
    new_loop: Callable[[], asyncio.AbstractEventLoop], function: str, changes: dict[str, Any]
) -> None:
    options = replace(OPTIONS, target=f"{FUNCTIONS}:{function}", **changes)

    async def open_backend() -> Backend:
        return await PYTHON.open("m", options)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(exercise_backend(open_backend, sample))


async def test_texts_keep_the_contract() -> None:
    def texts(size: int, rng: np.random.Generator) -> Batch:
        array = np.empty((size, 1), object)
        for row in range(size):
            array[row, 0] = rng.bytes(int(rng.integers(0, 50))).lower()
        return Batch.of({"x": Tensor.of(array)})

    text = (TensorSpec("x", Datatype.BYTES, (1,)),)
    options = replace(OPTIONS, target=f"{FUNCTIONS}:upper", inputs=text, outputs=TEXT)

    async def open_backend() -> Backend:
        return await open_python("m", options)

    await exercise_backend(open_backend, texts)


async def test_every_datatype_goes_in_and_comes_out(open_model: Open) -> None:
    rng = np.random.default_rng(0)
    specs = tuple(TensorSpec(datatype.value, datatype, (-1, 2)) for datatype in Datatype)
    backend = await open_model("identity", inputs=specs, outputs=specs)
    arrays = {
        datatype: np.array([[[b"", rng.bytes(9)]]], object)
        if datatype is Datatype.BYTES
        else rng.integers(0, 2, (1, 1, 2)).astype(datatype.numpy)
        for datatype in Datatype
    }
    for given in (arrays, {name: array[:, :0] for name, array in arrays.items()}):  # none of an axis, too
        outputs = await backend.infer(
            Batch.of({name.value: Tensor.of(array, name) for name, array in given.items()}), NO_DEADLINE
        )

        for datatype, array in given.items():
            assert outputs[datatype].datatype is datatype
            assert outputs[datatype].numpy().dtype == array.dtype
            np.testing.assert_array_equal(outputs[datatype].numpy(), array)


async def test_ten_megabytes_go_in_and_come_out_and_leave_the_event_loop_alone(open_model: Open) -> None:
    image = (TensorSpec("x", Datatype.UINT8, (10_000_000,)),)
    backend = await open_model("backwards", inputs=image, outputs=(replace(image[0], name="y"),))
    rng = np.random.default_rng(0)

    for _ in range(3):
        given = rng.integers(0, 256, (1, 10_000_000), np.uint8)
        outputs = await backend.infer(Batch.of({"x": Tensor.of(given)}), NO_DEADLINE)
        np.testing.assert_array_equal(outputs["y"].numpy(), given[:, ::-1])
    copied_by = {thread.name for thread in threading.enumerate()}
    assert "m-copier-worker_0" in copied_by


async def test_an_output_that_the_region_has_no_room_for_gets_room(open_model: Open) -> None:
    backend = await open_model("repeat", outputs=LINE)

    for count in (3, 5_000_000, 7):
        assert (await asked(backend, count, 2)).shape == (2, count)
        np.testing.assert_array_equal((await asked(backend, count))[0], np.arange(count, dtype=np.float32))


async def test_an_output_that_is_a_view_of_inputs_is_not_overwritten_by_itself(open_model: Open) -> None:
    """Nothing is known of the output's size, so the first region has no room for it."""
    line = TensorSpec("x", Datatype.FP32, (-1,))
    backend = await open_model("backwards", inputs=(line,), outputs=LINE)
    given = np.arange(150_000, dtype=np.float32)[None]

    outputs = await backend.infer(Batch.of({"x": Tensor.of(given)}), NO_DEADLINE)

    np.testing.assert_array_equal(outputs["y"].numpy(), given[:, ::-1])


async def test_an_output_without_bounds_fails_its_batch_alone(open_model: Open) -> None:
    backend = await open_model("repeat", outputs=LINE, max_batch=200)

    with pytest.raises(BackendFailed, match="returned more than 1073741824 bytes"):
        await asked(backend, *([2_000_000] * 200))
    assert (await asked(backend, 2)).tolist() == [[0, 1]]
    assert backend.statistics().died == 0


# --- what a function must not do ---


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (0, "broke its signature: output 'y' is missing"),
        (1, "output 'y' as list; FP32 is a NumPy array of float32"),
        (2, "output 'y' as float64; FP32 is a NumPy array of float32"),
        (3, r"has shape \[1, 4\]; expected \[-1, 3\]"),
        (4, r"output 'y' has shape \[2, 3\] for a batch of 1"),
        (5, "returned a NoneType, not a mapping of arrays"),
        (6, "output 'y' as float32; FP32 is a NumPy array of float32"),
    ],
)
async def test_what_a_function_must_not_return_fails_the_batch(open_model: Open, which: int, message: str) -> None:
    backend = await open_model("wrong")

    with pytest.raises(BackendFailed, match=message):
        await asked(backend, which)
    assert backend.statistics().died == 0


async def test_elements_of_bytes_outputs_must_be_bytes(open_model: Open) -> None:
    backend = await open_model("not_bytes", outputs=TEXT)

    with pytest.raises(BackendFailed, match="elements that are not bytes"):
        await asked(backend, 0)


async def test_an_exception_fails_the_batch_and_its_message_is_neither_told_nor_logged(open_model: Open) -> None:
    backend = await open_model("fail")

    with pytest.raises(BackendFailed) as raised:
        await asked(backend, 0)

    cause = raised.value.__cause__
    assert isinstance(cause, FunctionRaised)
    assert (cause.kind, cause.said) == ("KeyError", "'/etc/secret'")
    assert "functions.py" in str(cause)
    assert "in fail" in str(cause)
    assert "secret" not in f"{raised.value} {cause}"
    for which in range(1, RAISED):  # SystemExit and the like: the process goes on
        with pytest.raises(BackendFailed, match="failed on this batch"):
            await asked(backend, which)
    assert backend.statistics().died == 0


async def test_a_function_cannot_write_to_its_inputs_whatever_it_tries(open_model: Open) -> None:
    backend = await open_model("write_to_inputs")

    assert (await asked(backend, 1)).tolist() == [[0, 0, 0]]


# --- crashes ---


@pytest.mark.parametrize(
    ("poison", "how"), [(-1, "ended with status 3"), (-2, "was killed by SIGSEGV"), (-3, "was killed by SIGKILL")]
)
async def test_a_crash_fails_its_batch_and_the_next_call_is_answered(
    open_model: Open, caplog: pytest.LogCaptureFixture, poison: int, how: str
) -> None:
    caplog.set_level(logging.INFO)
    backend = await open_model("die_of_negative")

    with pytest.raises(BackendFailed, match=f"failed on this batch: its process {how}"):
        await asked(backend, poison)

    assert (await asked(backend, 4)).tolist() == [[8, 8, 8]]
    assert backend.statistics().died == 1
    assert how in caplog.text
    if poison == -2:
        assert "wrote: about to crash" in caplog.text
        assert "Fatal Python error: Segmentation fault" in caplog.text
        assert "in die_of_negative" in caplog.text


async def test_the_batcher_finds_the_item_that_crashes_the_process(open_model: Open) -> None:
    backend = await open_model("die_of_negative", max_batch=8)
    async with Batcher("m", backend, BatchingOptions()) as batcher:
        await batcher.submit(of(0), NO_DEADLINE)  # the others come while nothing is in flight
        rows = [0, 1, 2, -1, 4, 5, 6, 7]

        answers = await asyncio.gather(*(batcher.submit(of(row), NO_DEADLINE) for row in rows), return_exceptions=True)

    for row, answer in zip(rows, answers, strict=True):
        if row == -1:
            assert isinstance(answer, BackendFailed)
        else:
            assert not isinstance(answer, BaseException)
            assert answer["y"].numpy().tolist() == [[2 * row] * 3]


async def test_processes_killed_under_load_cross_no_replies_and_lose_no_call(open_model: Open) -> None:
    backend = await open_model("double", max_in_flight=2)
    rng = np.random.default_rng(0)
    stop = asyncio.Event()
    failed = answered = 0

    async def call_on() -> None:
        nonlocal failed, answered
        while not stop.is_set():
            nonce = int(rng.integers(0, 1 << 20))
            try:
                answer = await asked(backend, nonce, nonce + 1)
            except BackendFailed:
                failed += 1
            else:
                assert answer.tolist() == [[2 * nonce] * 3, [2 * nonce + 2] * 3]
                answered += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(call_on())
        for kill in range(1, 9):
            before = answered
            await until(partial(lambda seen: answered >= seen + 20, before))
            os.kill(workers_of(backend)[0], signal.SIGKILL)
            await until(partial(lambda deaths: backend.statistics().died == deaths, kill))
        stop.set()

    assert failed <= 8
    assert answered >= 160


def workers_of(backend: PythonProcesses) -> list[int]:
    """The numbers of its processes that are ready."""
    return [worker.pid for worker in backend.pool._workers if worker.was_ready]


def has_happened(pid: int, what: int) -> None:
    """Hold up everything until it has."""
    os.waitid(os.P_PID, pid, what | os.WNOWAIT)


async def test_a_process_that_dies_between_calls_fails_none(open_model: Open) -> None:
    backend = await open_model("double", max_in_flight=2)

    for pid in workers_of(backend):
        os.kill(pid, signal.SIGKILL)
        has_happened(pid, os.WEXITED)  # the event loop has not heard of it yet

    answers = await asyncio.gather(*(asked(backend, number) for number in range(4)))
    assert [answer[0, 0] for answer in answers] == [0, 2, 4, 6]


async def test_a_call_that_a_dying_process_has_not_read_goes_to_the_next(open_model: Open) -> None:
    backend = await open_model("who", outputs=PID)
    (pid,) = workers_of(backend)
    os.kill(pid, signal.SIGSTOP)
    has_happened(pid, os.WSTOPPED)
    call = asyncio.create_task(pid_of(backend))
    await until(lambda: backend.statistics().idle == 0)

    os.kill(pid, signal.SIGKILL)

    assert await call == workers_of(backend)[0] != pid


async def asked_of_one_that_dies(open_model: Open, numbers: int) -> asyncio.Task[HostArray]:
    """A call for so many *numbers*, of whose reply and whose process's end the event loop will hear at once."""
    backend = await open_model("answer_and_die", outputs=LINE)
    (pid,) = workers_of(backend)
    call = asyncio.create_task(asked(backend, numbers))
    while backend.statistics().idle:  # noqa: ASYNC110 (nobody sets an event)
        await asyncio.sleep(0)
    has_happened(pid, os.WEXITED)
    return call


async def test_an_answer_is_taken_from_a_process_that_has_died_since(open_model: Open) -> None:
    call = await asked_of_one_that_dies(open_model, 5)

    assert (await call).tolist() == [[1.0] * 5]


async def test_a_process_that_dies_while_it_waits_for_room_has_failed_its_batch(open_model: Open) -> None:
    call = await asked_of_one_that_dies(open_model, 10_000_000)

    with pytest.raises(BackendFailed, match="its process ended"):
        await call


async def test_a_process_that_somebody_ends_is_nobodys_fault(open_model: Open, held: Held) -> None:
    backend = await open_model("held")
    call = asyncio.create_task(asked(backend, 1))
    os.kill(await held.begun(), signal.SIGTERM)

    with pytest.raises(Unavailable) as refused:
        await call
    assert refused.value.retry_after_s is not None
    assert (await asked(backend, 2)).tolist() == [[4, 4, 4]]


class Held:
    """A function that waits in the middle of a call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("begun", "go", "seen"):
            os.mkfifo(folder / name)

    async def begun(self) -> int:
        """Wait until it does; its process."""
        return int(await asyncio.to_thread((self.folder / "begun").read_text))

    async def go(self) -> str:
        """Let it go on; what its input is now."""
        await asyncio.to_thread((self.folder / "go").write_text, "")
        return await asyncio.to_thread((self.folder / "seen").read_text)


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setenv("HELD_IN", str(tmp_path))
    return Held(tmp_path)


# --- hanging ---


async def test_a_late_call_ends_at_its_deadline_and_its_process_may_finish(open_model: Open, held: Held) -> None:
    backend = await open_model("held", hang_timeout_s=60.0)
    given = of(1)
    call = asyncio.create_task(backend.infer(given, Deadline(soon())))
    pid = await held.begun()

    with pytest.raises(DeadlineExceeded, match="was at work"):
        await call
    given.inputs["x"].numpy()[...] = 7  # the caller's again
    queued = asyncio.create_task(asked(backend, 5))

    assert await held.go() == "[[1.0, 1.0, 1.0]]"
    assert (await queued).tolist() == [[10, 10, 10]]
    assert workers_of(backend) == [pid]
    assert backend.statistics().hung == 0


async def test_a_cancelled_call_ends_at_once_and_its_process_may_finish(open_model: Open, held: Held) -> None:
    backend = await open_model("held", hang_timeout_s=60.0)
    call = asyncio.create_task(asked(backend, 1))
    pid = await held.begun()

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    await held.go()
    assert (await asked(backend, 5)).tolist() == [[10, 10, 10]]
    assert workers_of(backend) == [pid]


async def test_a_process_that_goes_on_hanging_is_killed_and_replaced(
    open_model: Open, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    backend = await open_model("held", hang_timeout_s=0.05)
    call = asyncio.create_task(asked(backend, 1, deadline=soon()))
    pid = await held.begun()

    with pytest.raises(DeadlineExceeded):
        await call

    assert (await asked(backend, 5)).tolist() == [[10, 10, 10]]
    assert not psutil.pid_exists(pid)
    assert backend.statistics().hung == 1
    assert backend.statistics().died == 0
    assert "(hang_timeout_s) after its caller was gone" in caplog.text


async def test_a_call_that_waits_for_a_process_ends_at_its_deadline(open_model: Open, held: Held) -> None:
    backend = await open_model("held")
    first = asyncio.create_task(asked(backend, 1))
    await held.begun()

    with pytest.raises(DeadlineExceeded, match="before model 'm' started"):
        await asked(backend, 2, deadline=soon(0.05))

    await held.go()
    assert (await first).tolist() == [[2, 2, 2]]


async def test_a_process_that_comes_as_its_caller_leaves_is_the_next_ones(open_model: Open) -> None:
    backend = await open_model("double")
    worker = await backend.pool.claim(NO_DEADLINE)
    waiting = asyncio.create_task(backend.pool.claim(NO_DEADLINE))
    await until(lambda: backend.statistics().waiting == 1)

    worker.unclaim()
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await asked(backend, 5)).tolist() == [[10, 10, 10]]


async def test_closing_does_not_wait_for_a_call_whose_caller_is_gone(open_model: Open, held: Held) -> None:
    backend = await open_model("held", hang_timeout_s=1000.0)
    call = asyncio.create_task(asked(backend, 1))
    pid = await held.begun()
    call.cancel()
    await asyncio.wait([call])

    await asyncio.gather(backend.aclose(), backend.aclose())

    assert not psutil.pid_exists(pid)
    assert backend.state is State.CLOSED
    with pytest.raises(Unavailable):
        await asked(backend, 1)


# --- wear ---


async def test_a_process_is_replaced_after_so_many_calls_and_no_call_fails(open_model: Open) -> None:
    backend = await open_model("who", outputs=PID, recycle_after=5)

    pids = []
    while backend.statistics().recycled < 3:
        pids.append(await pid_of(backend))

    first = [pids.index(pid) for pid in dict.fromkeys(pids)]
    assert len(first) >= 3
    assert all(later - earlier >= 5 for earlier, later in pairwise(first))
    assert pids == sorted(pids, key=list(dict.fromkeys(pids)).index)  # one after the other


async def test_a_process_over_its_memory_limit_is_replaced_after_its_call(open_model: Open) -> None:
    backend = await open_model("leak", outputs=PID, memory_limit=150 << 20)

    first = int((await asked(backend, 40))[0, 0])
    assert int((await asked(backend, 0))[0, 0]) == first  # not yet

    assert int((await asked(backend, 120))[0, 0]) == first
    assert await pid_of(backend) != first
    assert backend.statistics().recycled == 1


async def test_a_call_that_takes_twice_the_memory_limit_is_ended(open_model: Open) -> None:
    backend = await open_model("leak", outputs=PID, memory_limit=100 << 20)

    with pytest.raises(BackendFailed, match="its process took more than twice its memory_limit"):
        await asked(backend, 3_000_000)
    await pid_of(backend)


async def test_a_memory_limit_below_what_the_import_takes_is_refused(open_model: Open) -> None:
    with pytest.raises(InvalidInput, match=r"takes \d+ bytes before its first call; memory_limit 1000000 has to be"):
        await open_model("double", memory_limit=1_000_000)


# --- a worker that lies ---


@pytest.mark.parametrize("which", range(FORGED))
async def test_garbage_in_the_control_socket_fails_the_batch_and_costs_the_process(
    open_model: Open, which: int
) -> None:
    backend = await open_model("forge")

    with pytest.raises(BackendFailed):
        await asked(backend, which, deadline=soon(20))

    assert (await asked(backend, -4)).tolist() == [[-8, -8, -8]]
    assert backend.statistics().died == 1


async def test_an_answer_too_many_never_reaches_another_call(open_model: Open) -> None:
    """The first passes for the answer, as it may: it is the function's. The worker's own is one too many."""
    backend = await open_model("answer_twice")

    for call in range(1, 4):
        try:
            answer = await asked(backend, call)
        except BackendFailed:
            continue
        assert answer.tolist() in ([[call] * 3], [[2 * call] * 3])
    await until(lambda: backend.statistics().died >= 1)


# --- how processes are started, and how they end ---


async def test_a_process_has_the_gateways_modules_and_nothing_else_of_it(
    open_model: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.syspath_prepend(tmp_path)
    secret = (tmp_path / "kept").open("w")
    os.set_inheritable(secret.fileno(), True)
    backend = await open_model("surroundings", outputs=TEXT)

    told = json.loads((await asked(backend, 0))[0, 0])

    secret.close()
    assert str(tmp_path) in told["path"]
    assert told["pythonpath"] == "/somewhere"
    assert told["session"] == told["pid"] != os.getsid(0)
    links = {int(number): link for number, link in told["descriptors"].items() if link}
    assert links[0] == "/dev/null"
    assert links[1] == links[2]
    assert links[1].startswith("pipe:")
    assert [link.split(":")[0] for number, link in links.items() if number > 2 and "memfd" not in link] == ["socket"]
    assert told["oom"] == "1000"


async def test_what_the_function_writes_is_logged_and_bounded(
    open_model: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    backend = await open_model("babble")

    await asked(backend, 100_000)
    await backend.aclose()

    lines = [record.getMessage() for record in caplog.records if "wrote" in record.getMessage()]
    assert f"process {lines[0].split()[1]} of model 'm' wrote: line 0" == lines[0]
    assert len(lines) < 500
    assert max(map(len, lines)) < 2_100
    assert any("lines more within a second" in line for line in lines)


async def test_what_the_function_has_started_ends_with_its_process(open_model: Open) -> None:
    backend = await open_model("start_another", outputs=PID)
    other = psutil.Process(int((await asked(backend, 0))[0, 0]))

    await backend.aclose()

    await until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)


_GATEWAY = """
import asyncio, os
from dataclasses import replace
from backends.contract import NO_DEADLINE
from backends.python import open_python
from tests.unit.backends.process.conftest import FUNCTIONS, OPTIONS
from tests.unit.backends.process.test_process import of

async def main():
    backend = await open_python("m", replace(OPTIONS, target=f"{FUNCTIONS}:held", max_in_flight=2))
    call = asyncio.create_task(backend.infer(of(1), NO_DEADLINE))
    print(*(worker.pid for worker in backend.pool._workers), flush=True)
    await call

asyncio.run(main())
"""


async def test_processes_end_with_the_gateway_also_in_the_middle_of_a_call(held: Held) -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _GATEWAY, stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert gateway.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in (await gateway.stdout.readline()).split()]
    await held.begun()

    gateway.kill()
    await gateway.wait()

    assert len(workers) == 2
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, 30)
    assert not alive


# --- opening ---


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (FUNCTIONS, InvalidInput, 'not of the form "package.module:attribute"'),
        ("no_such_module_at_all:function", NotFound, "No module named 'no_such_module_at_all'; install it"),
        (f"{FUNCTIONS}:missing.part", NotFound, "has no attribute 'missing'; correct the part after the colon"),
        (f"{FUNCTIONS}:number", InvalidInput, "is of type int; name a function"),
        (f"{FUNCTIONS}:answer_async", InvalidInput, "is async; name a plain function"),
        ("fails:f", InvalidInput, "cannot be imported: ZeroDivisionError: division by zero"),
        ("leaves:f", InvalidInput, "cannot be imported: SystemExit: 3"),
        ("exits:f", BackendFailed, "its process ended with status 4 before 'exits:f' was imported"),
        ("crashes:f", BackendFailed, r"its process was killed by SIGABRT before .* it wrote last: last words"),
    ],
)
async def test_a_target_that_cannot_serve_is_refused_when_opening(
    open_model: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fails.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    (tmp_path / "exits.py").write_text("import os; os._exit(4)")
    (tmp_path / "crashes.py").write_text("import os; print('last words', flush=True); os.abort()")

    with pytest.raises(error, match=message):
        await open_python("m", replace(OPTIONS, target=target, max_in_flight=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inline": True}, "choose it or process"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
        ({"recycle_after": 0}, "recycle_after is 0"),
        ({"memory_limit": 0}, "memory_limit is 0"),
        ({"hang_timeout_s": -1.0}, "hang_timeout_s is -1"),
        ({"hang_timeout_s": math.inf}, "hang_timeout_s is inf"),
        ({"process": False, "recycle_after": 3}, "recycle_after is about processes; add process"),
        ({"process": False, "memory_limit": 3}, "memory_limit is about processes; add process"),
    ],
)
async def test_options_that_make_no_sense_are_refused(open_model: Open, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await open_model("double", **change)


async def test_a_model_whose_processes_start_no_more_has_failed_until_they_do(
    open_model: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(restarts, "_FIRST_S", 0.01)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    module = tmp_path / "comes_and_goes.py"
    module.write_text("def f(inputs): return {'y': inputs['x']}")
    backend = await open_python("m", replace(OPTIONS, target="comes_and_goes:f"))
    assert isinstance(backend, PythonProcesses)

    module.write_text("1 / 0")
    os.kill(workers_of(backend)[0], signal.SIGKILL)
    await until(lambda: backend.state is State.FAILED)
    await until(lambda: not backend.pool._workers)
    with pytest.raises(Unavailable) as refused:
        await asked(backend, 1)
    module.write_text("def f(inputs): return {'y': inputs['x'] + 1}")
    await until(lambda: backend.state is State.READY)

    assert refused.value.retry_after_s is not None
    assert (await asked(backend, 1)).tolist() == [[2, 2, 2]]
    assert "a process did not start: model 'm': target 'comes_and_goes:f' cannot be imported" in caplog.text
    await backend.aclose()


async def test_a_start_that_cannot_make_the_deadline_is_not_waited_for(open_model: Open) -> None:
    backend = await open_model("double")
    os.kill(workers_of(backend)[0], signal.SIGKILL)
    await until(lambda: backend.state is State.LOADING and bool(backend.pool._workers))

    with pytest.raises(Unavailable, match="no process of model 'm' is running now") as refused:
        await asked(backend, 1, deadline=soon(0.05))

    assert refused.value.retry_after_s is not None
    assert (await asked(backend, 1)).tolist() == [[2, 2, 2]]


async def test_it_tells_of_itself(open_model: Open) -> None:
    backend = await open_model("double")

    assert repr(backend) == "<PythonProcesses 'm' version 7: ready>"
    assert backend.statistics().workers == backend.statistics().idle == 1
