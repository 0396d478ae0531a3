"""What the tests run in worker processes: well-behaved functions, and all the others."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from backends.contract import HostArray

Arrays = Mapping[str, HostArray]

number = 3


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2}


def give_back(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"], "unasked": inputs["x"]}


def backwards(inputs: Arrays) -> Arrays:
    """A view of the inputs that must not be overwritten while it is copied."""
    return {"y": inputs["x"][:, ::-1]}


class Biased:
    """A model that is an instance."""

    def __init__(self, bias: float) -> None:
        self.bias = np.float32(bias)

    def __call__(self, inputs: Arrays) -> Arrays:
        return {"y": inputs["x"] + self.bias}


biased = Biased(3.0)


async def answer_async(inputs: Arrays) -> Arrays:
    return inputs


def upper(inputs: Arrays) -> Arrays:
    return {"y": np.asarray(np.frompyfunc(bytes.upper, 1, 1)(inputs["x"]), object)}


def identity(inputs: Arrays) -> Arrays:
    return dict(inputs)


def who(inputs: Arrays) -> Arrays:
    """The process that answers."""
    return {"y": np.full((len(inputs["x"]), 1), os.getpid(), np.int64)}


def surroundings(inputs: Arrays) -> Arrays:
    """What the process was started with."""
    return {
        "y": _json(
            path=sys.path,
            pythonpath=os.environ.get("PYTHONPATH"),
            session=os.getsid(0),
            pid=os.getpid(),
            descriptors={int(name): _link(name) for name in os.listdir("/proc/self/fd")},  # noqa: PTH208
            oom=Path("/proc/self/oom_score_adj").read_text().strip(),
        )
    }


def _link(name: str) -> str:
    try:
        return str(Path(f"/proc/self/fd/{name}").readlink())
    except OSError:  # the one that lists them
        return ""


def _json(**fields: Any) -> HostArray:  # Any: JSON
    array = np.empty((1, 1), object)
    array[0, 0] = json.dumps(fields).encode()
    return array


_WRONG: tuple[Any, ...] = (  # Any: anything that is no answer
    {},
    {"y": [[1.0, 2.0, 3.0]]},
    {"y": np.zeros((1, 3))},
    {"y": np.zeros((1, 4), np.float32)},
    {"y": np.zeros((2, 3), np.float32)},
    None,
    {"y": np.float32(1)},
)


def wrong(inputs: Arrays) -> Any:
    """The wrong answer of the number that it is given."""
    return _WRONG[int(inputs["x"][0, 0])]


def not_bytes(inputs: Arrays) -> Arrays:
    return {"y": np.array([["text"]], object)}


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError


_RAISED = (
    KeyError("/etc/secret"),
    SystemExit(1),
    KeyboardInterrupt(),
    MemoryError(),
    Unspeakable(),
    ValueError("\ud800"),
)


def fail(inputs: Arrays) -> NoReturn:
    """The exception of the number that it is given."""
    raise _RAISED[int(inputs["x"][0, 0])]


def write_to_inputs(inputs: Arrays) -> Arrays:
    """Tries what it must not be able to do."""
    array = inputs["x"]
    try:
        array.flags.writeable = True
    except ValueError:
        return {"y": np.zeros((len(array), 3), np.float32)}
    return {"y": np.ones((len(array), 3), np.float32)}


def die_of_negative(inputs: Arrays) -> Arrays:
    """Negative numbers are poison: -1 leaves, -2 crashes, -3 ends its process group."""
    worst = inputs["x"].min()
    if worst == -1:
        os._exit(3)
    if worst == -2:
        print("about to crash", flush=True)
        ctypes.string_at(0)
    if worst == -3:
        os.kill(0, 9)
    return {"y": inputs["x"] * 2}


def answer_and_die(inputs: Arrays) -> Arrays:
    """Its process is gone as soon as it has answered, with as many numbers as the first says."""
    threading.Timer(0.1, os._exit, (3,)).start()
    return {"y": np.ones((1, int(inputs["x"][0, 0])), np.float32)}


def held(inputs: Arrays) -> Arrays:
    """Where the number is 1: says that it has begun, then waits until it may go on, and says what it sees."""
    if inputs["x"][0, 0] == 1:
        folder = Path(os.environ["HELD_IN"])
        (folder / "begun").write_text(str(os.getpid()))
        (folder / "go").read_text()
        (folder / "seen").write_text(str(inputs["x"].tolist()))
    return {"y": inputs["x"] * 2}


def repeat(inputs: Arrays) -> Arrays:
    """As many numbers as it is told."""
    count = int(inputs["x"].max())
    return {"y": np.broadcast_to(np.arange(count, dtype=np.float32), (len(inputs["x"]), count))}


_leak: list[bytes] = []


def leak(inputs: Arrays) -> Arrays:
    """Keeps as many MiB as it is told, in pieces of ten."""
    for _ in range(int(inputs["x"][0, 0]) // 10):
        _leak.append(b"\x01" * (10 << 20))
    return who(inputs)


def babble(inputs: Arrays) -> Arrays:
    """Says more than anybody wants to read."""
    for i in range(int(inputs["x"][0, 0])):
        print("line", i)
    print("a\x00b", "x" * 100_000, file=sys.stderr)
    return double(inputs)


def start_another(inputs: Arrays) -> Arrays:
    """Leaves a process behind; its number."""
    child = subprocess.Popen(["sleep", "1000"])
    return {"y": np.full((len(inputs["x"]), 1), child.pid, np.int64)}


_FORGED: tuple[bytes | None, ...] = (
    b"\xff\xfe",
    b"{}",
    b"[]",
    b'{"ready":true}',
    b'{"call":77,"outputs":{}}',
    b'{"call":1,"outputs":[]}',
    b'{"call":true,"outputs":{}}',
    b'{"call":1}',
    b'{"call":1,"room":-5}',
    b'{"call":1,"outputs":{"y":["FP32",[1,3],4611686018427387904,12]}}',
    b'{"call":1,"outputs":{"y":["FP32",[1,3],-64,12]}}',
    b'{"call":1,"outputs":{"y":["FP32",[1,4294967296,4294967296],0,12]}}',
    b'{"call":1,"outputs":{"y":["OBJECT",[1,3],0,12]}}',
    b'{"call":1,"outputs":{"y":["FP32",[1,3],0,1.5]}}',
    b'{"call":1,"outputs":{"y":["BYTES",[1000000000],0,12]}}',
    b'{"call":1,"outputs":{"y":7}}',
    b"[" * 200_000,
    None,
)


def forge(inputs: Arrays) -> Arrays:
    """Says the thing of the number that it is given to the gateway, in place of the worker; then it waits for ever."""
    which = int(inputs["x"][0, 0])
    if which < 0:
        return double(inputs)
    packet = _FORGED[which]
    if packet is None:
        os.close(int(sys.argv[1]))
    else:
        socket.socket(fileno=os.dup(int(sys.argv[1]))).send(packet)
    threading.Event().wait()
    return {}


_calls = count(1)


def answer_twice(inputs: Arrays) -> Arrays:
    """Answers in place of the worker with its inputs, and then lets that answer as well."""
    packet = b'{"call":%d,"outputs":{"y":["FP32",[1,3],0,12]}}' % next(_calls)
    socket.socket(fileno=os.dup(int(sys.argv[1]))).send(packet)
    return double(inputs)


FORGED = len(_FORGED)
WRONG = len(_WRONG)
RAISED = len(_RAISED)
