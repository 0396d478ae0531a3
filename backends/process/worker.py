"""The worker process: imports the function, and calls it on what the gateway puts into shared memory.

    python -m backends.process.worker DESCRIPTOR PARENT MODEL

It belongs to one gateway process and ends with it: by the signal that the kernel sends when the thread that started it
is gone, and at the end of the control socket.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from backends.contract import Datatype, HostArray, Tensor, TensorSpec
from backends.errors import BackendFailed, Code, PointsmanError
from backends.process.function import Function, answer, import_function
from backends.process.memory import WorkerRegion, place, told, view, windows_of, write
from backends.process.messages import MOST_PACKET_BYTES, packed, plain

_PR_SET_PDEATHSIG = 1
_FRAMES = 16


class _Server:
    """Calls the function for as long as the gateway asks."""

    def __init__(
        self, control: socket.socket, model_name: str, function: Function, outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._control = control
        self._name = model_name
        self._function = function
        self._specs = {spec.name: spec for spec in outputs}
        self._region: WorkerRegion | None = None
        self._capacity = 0
        self._unwritten: dict[str, HostArray] = {}  # the answer to the last call, where the region had no room for it

    def serve(self) -> None:
        """Until the gateway hangs up."""
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self._control, MOST_PACKET_BYTES, 1)
            if not packet:
                return
            said = orjson.loads(packet)
            if descriptors:
                self._region, self._capacity = WorkerRegion(descriptors[0], said["capacity"]), said["capacity"]
            if "write" in said:
                reply = self._written(said["write"], said["start"])
            else:
                reply = self._called(said["call"], said["inputs"], said["start"])
            self._control.send(packed(reply))

    def _called(self, call: int, inputs: Mapping[str, Any], start: int) -> Mapping[str, Any]:  # Any: JSON
        self._unwritten = {}
        try:
            self._unwritten = answer(self._name, self._function, self._specs, self._given(inputs))
        except BackendFailed as failed:
            return _failure(call, failed)
        return self._written(call, start)

    def _given(self, inputs: Mapping[str, Any]) -> dict[str, HostArray]:
        assert self._region is not None
        windows = windows_of(inputs, self._capacity)
        return {name: view(self._region.inputs, tensor) for name, tensor in windows.items()}

    def _written(self, call: int, start: int) -> Mapping[str, Any]:
        """Put the answer behind *start*, if there is room."""
        assert self._region is not None
        arrays = self._unwritten
        placed = place({name: Tensor.of(array, self._specs[name].datatype) for name, array in arrays.items()}, start)
        if placed.end > self._capacity:
            return {"call": call, "room": placed.end - start}
        write(self._region.outputs, placed.windows, arrays)
        self._unwritten = {}
        return {"call": call, "outputs": told(placed.windows)}


def _failure(call: int, failed: BackendFailed) -> Mapping[str, Any]:
    error = failed.__cause__
    if error is None:
        return {"call": call, "broke": plain(str(failed))}
    frames = [f"{f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)[-_FRAMES:]]
    return {
        "call": call,
        "raised": plain(type(error).__qualname__),
        "frames": plain(" < ".join(reversed(frames))),
        "said": plain(_said(error)),
    }


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception class of somebody else's
        return "(its message cannot be told)"


def _end_with(parent: int) -> None:
    """End when the thread of *parent* that started this process does; now, if it has already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(f"process {parent}, which this one is to serve, has ended")


def _be_first_to_go() -> None:
    """Where memory runs out, let the kernel take this process, which can be replaced, before the gateway."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _import_as_told(hello: Mapping[str, Any]) -> Function:
    sys.path[:] = hello["path"]
    if hello["pythonpath"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = hello["pythonpath"]
    return import_function(hello["name"], hello["target"])


def _refusal(hello: Mapping[str, Any], error: BaseException) -> Mapping[str, Any]:
    if isinstance(error, PointsmanError):
        return {"refused": error.code, "why": plain(str(error))}
    where = f"model {hello['name']!r}: target {hello['target']!r}"
    why = f"{where} cannot be imported: {type(error).__name__}: {_said(error)}"
    return {"refused": Code.INVALID_ARGUMENT, "why": plain(why)}


def main() -> None:
    """Be the worker that the command line says."""
    descriptor, parent, _ = sys.argv[1:]
    _end_with(int(parent))
    _be_first_to_go()
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    with socket.socket(fileno=int(descriptor)) as control:
        control.set_inheritable(False)
        hello = orjson.loads(control.recv(MOST_PACKET_BYTES))
        try:
            function = _import_as_told(hello)
        except BaseException as error:  # SystemExit too: a module of somebody else's
            control.send(packed(_refusal(hello, error)))
            return
        control.send(packed({"ready": True}))
        outputs = tuple(
            TensorSpec(name, Datatype(datatype), tuple(shape)) for name, datatype, shape in hello["outputs"]
        )
        _Server(control, hello["name"], function, outputs).serve()


if __name__ == "__main__":
    main()
