"""ONNX models, run in this process by ONNX Runtime, on the CPU or on a CUDA device.

**Batch axis.** Axis 0 of every input and output. Where the file leaves it open, batches of 1 to `max_batch` run as
they are. Where the file fixes it at N, the model runs N items and nothing else: a smaller batch is filled up with
copies of its last row, whose outputs are cut off again, and the limit is N.

**Threads.** One thread an operator (`threads`) by default. More threads shorten a single call, yet each waits in a
loop for its next piece of work, which costs the event loop and every other model of the process more than it gains
while calls arrive side by side. Keep `max_in_flight * threads`, over all models and workers, near the number of cores;
raise `threads` only where one large model has the machine to itself, `max_in_flight` where requests come side by side.

**Memory.** ONNX Runtime's arena and its memory patterns, a plan kept per input shape seen, are off: both grow with
the largest batch and with the number of shapes, and give nothing back. Measured with a small convolutional network
over 150 image sizes: resident memory unchanged without them, 34 MiB up with the arena, 52 MiB with both; in
exchange large activations run 5 to 30 % faster, small ones the same. `arena: true` makes that trade.

**Ending early.** `RunOptions.terminate` ends a run at the next operator: a call that is cancelled or late frees its
thread within one operator's time.

**On a device** (`device: cuda:0`, with onnxruntime-gpu in place of onnxruntime): inputs that preprocessing has left on
that device are read there, and outputs that postprocessing begins with a softmax of stay there for it; all others come
and go by the host (`backends.onnx_binding`). A model with a fixed batch axis or texts takes arrays of the host alone.

**Refused when loading**, with the remedy: sequence and map outputs, types that NumPy lacks (BF16, float8, complex),
inputs without a batch axis, data files outside the model's folder (ONNX Runtime checks that, symbolic links included).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backends.contract import (
    Backend,
    Batch,
    Datatype,
    Deadline,
    DeviceArray,
    HostArray,
    Limits,
    Memory,
    Signature,
    State,
    Tensor,
    Tensors,
    TensorSpec,
    check_batch,
)
from backends.errors import BackendFailed, InvalidInput, NotFound, PointsmanError
from backends.in_process import Workers, host_array
from backends.onnx_binding import Processor, Wanted, run_bound
from backends.onnx_cache import default_folder, open_cached
from backends.ort import InvalidArgument, open_session, ort
from backends.registry import BackendType
from kernels.dlpack import spec_of

# Any, here and below: ONNX Runtime has no types of its own.

_SILENT = 4  # of ONNX Runtime's log severities: errors are raised, and its log lines would quote callers' values

_DATATYPES = {
    "tensor(bool)": Datatype.BOOL,
    "tensor(uint8)": Datatype.UINT8,
    "tensor(uint16)": Datatype.UINT16,
    "tensor(uint32)": Datatype.UINT32,
    "tensor(uint64)": Datatype.UINT64,
    "tensor(int8)": Datatype.INT8,
    "tensor(int16)": Datatype.INT16,
    "tensor(int32)": Datatype.INT32,
    "tensor(int64)": Datatype.INT64,
    "tensor(float16)": Datatype.FP16,
    "tensor(float)": Datatype.FP32,
    "tensor(double)": Datatype.FP64,
    "tensor(string)": Datatype.BYTES,
}

# Element by element, object array to object array: NumPy's own conversions would drop trailing NUL characters.
# Any: their results are arrays wherever their arguments are, which NumPy's types do not tell.
_decoded: Any = np.frompyfunc(bytes.decode, 1, 1)
_encoded: Any = np.frompyfunc(str.encode, 1, 1)


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """What a model with `backend: onnx` can set.

    Attributes:
        path: the .onnx file; its external data, if any, lies in the same folder or below.
        version: as clients see it.
        max_batch: most items in one call; a model whose batch axis is fixed may allow fewer.
        max_in_flight: calls that run at once, each on a thread of its own.
        threads: threads that one operator of one call may use.
        parallel_branches: independent branches of the graph that one call runs side by side.
        graph_cache: keep the optimised graph on disk, so that later loads are quicker; see `backends.onnx_cache`. For
            the CPU alone.
        arena: keep freed memory for the next call: faster on large tensors, never gives memory back. A CUDA device
            always does.
        device: what computes: `cpu`, or `cuda`, `cuda:1` and so on.
    """

    path: Path
    version: str = "1"
    max_batch: int = 64
    max_in_flight: int = 1
    threads: int = 1
    parallel_branches: int = 1
    arena: bool = False
    graph_cache: bool = False
    device: str = "cpu"


class Onnx:
    """An ONNX Runtime session as a backend; `open_onnx` builds it."""

    def __init__(self, model_name: str, options: OnnxOptions, session: Any) -> None:
        """Args:
        model_name: names the threads, and the model in errors.
        options: as configured; the session was built from them.
        session: an `onnxruntime.InferenceSession`.

        Raises:
            InvalidInput: the model's inputs or outputs are not what this module serves.
        """
        self._name = model_name
        self._fixed_batch = _fixed_batch([*session.get_inputs(), *session.get_outputs()])
        self._signature = Signature(
            tuple(_spec(node, "input") for node in session.get_inputs()),
            tuple(_spec(node, "output") for node in session.get_outputs()),
        )
        self._version = options.version
        self._processor = Processor.parse(options.device)
        everything = (*self._signature.inputs, *self._signature.outputs)
        self._is_bound = not self._processor.is_cpu and all(spec.datatype is not Datatype.BYTES for spec in everything)
        takes_there = self._is_bound and not self._fixed_batch
        self._limits = Limits(
            min(options.max_batch, self._fixed_batch or options.max_batch),
            options.max_in_flight,
            frozenset({Memory.HOST, Memory.DEVICE} if takes_there else {Memory.HOST}),
        )
        self._output_names = [spec.name for spec in self._signature.outputs]
        self._workers = Workers(model_name, options.max_in_flight)
        self._session = [session]  # emptied by aclose

    def __repr__(self) -> str:
        return f"<Onnx {self._name!r} version {self._version}: {self.state}>"

    @property
    def signature(self) -> Signature:
        """As the model file declares it."""
        return self._signature

    @property
    def version(self) -> str:
        """As configured."""
        return self._version

    @property
    def limits(self) -> Limits:
        """As configured, and no more than a fixed batch axis allows."""
        return self._limits

    @property
    def state(self) -> State:
        """Ready until closed."""
        return self._workers.state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Run the model on a worker thread; see `Backend.infer`."""
        check_batch(self._signature, batch, self._limits)
        run_options = ort.RunOptions()
        run_options.log_severity_level = _SILENT

        def terminate() -> None:
            run_options.terminate = True

        return await self._workers.run(lambda: self._run(batch, run_options), deadline, terminate)

    def _run(self, batch: Batch, run_options: Any) -> Tensors:
        feed = {name: self._fed(name, tensor) for name, tensor in batch.inputs.items()}
        try:
            if self._is_bound:
                wanted = self._wanted(batch)
                found = run_bound(self._session[0], self._processor, feed, wanted, run_options)
            else:
                found = self._session[0].run(self._output_names, feed, run_options)
            rows = slice(batch.size if self._fixed_batch else None)
            specs = self._signature.outputs
            return {spec.name: _from_onnx(spec, array, rows) for spec, array in zip(specs, found, strict=True)}
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base
            raise _translated(self._name, error) from error

    def _wanted(self, batch: Batch) -> list[Wanted]:
        rows = self._fixed_batch or batch.size
        return [
            Wanted(
                spec.name,
                spec.datatype.numpy,
                None if -1 in spec.shape else (rows, *spec.shape),
                there=spec.name in batch.there and -1 not in spec.shape and Memory.DEVICE in self._limits.memory,
            )
            for spec in self._signature.outputs
        ]

    def _fed(self, name: str, tensor: Tensor) -> HostArray | DeviceArray:
        if tensor.memory is not Memory.DEVICE:
            return self._fill(_to_onnx(name, tensor))
        array = tensor.on_device()
        dtype, shape = spec_of(array)
        if (dtype, shape) != (tensor.datatype.numpy, tensor.shape):
            raise InvalidInput(
                f"tensor {name!r} states {tensor.datatype} {list(tensor.shape)} and holds {dtype} {list(shape)}"
            )
        return array

    def _fill(self, array: HostArray) -> HostArray:
        """*array* with as many rows as the model insists on."""
        missing = (self._fixed_batch or 0) - len(array)
        return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing > 0 else array

    async def aclose(self) -> None:
        """Wait for calls in flight and free the session."""
        await self._workers.aclose(self._session.clear)


async def open_onnx(model_name: str, options: OnnxOptions) -> Backend:
    """Load a model file off the event loop.

    Raises:
        NotFound: there is no such file.
        InvalidInput: the file is no ONNX model that can be served here.
    """
    return await asyncio.to_thread(_load, model_name, options)


def _load(model_name: str, options: OnnxOptions) -> Onnx:
    for name in ("threads", "parallel_branches"):
        if (value := getattr(options, name)) < 1:
            raise InvalidInput(f"model {model_name!r}: {name} is {value}; it must be at least 1")
    if not options.path.exists():
        raise NotFound(f"model {model_name!r}: there is no file {options.path}; correct its path")
    if not options.path.is_file():
        raise InvalidInput(f"model {model_name!r}: {options.path} is not a file; name the .onnx file itself")
    try:
        processor = Processor.parse(options.device)
        session = _session(options, processor)
        processor.check(session)
        return Onnx(model_name, options, session)
    except PointsmanError as error:
        raise InvalidInput(f"model {model_name!r}: {options.path}: {error}") from error
    except Exception as error:  # as in _run; what ONNX Runtime says is for the operator, and loading is an operator's
        raise InvalidInput(
            f"model {model_name!r}: {options.path} cannot be loaded: {error}; export it again"
        ) from error


def _session(options: OnnxOptions, processor: Processor) -> Any:
    if options.graph_cache:
        if not processor.is_cpu:
            raise InvalidInput(f"graph_cache keeps graphs for the CPU; leave it out with device {processor}")
        return open_cached(options.path, partial(_session_options, options), default_folder())
    return open_session(options.path, _session_options(options), processor.providers())


def _session_options(options: OnnxOptions) -> Any:
    session_options = ort.SessionOptions()
    session_options.log_severity_level = _SILENT
    session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session_options.intra_op_num_threads = options.threads
    session_options.inter_op_num_threads = options.parallel_branches
    if options.parallel_branches > 1:
        session_options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    session_options.enable_cpu_mem_arena = options.arena
    session_options.enable_mem_pattern = options.arena
    # Idle threads sleep: they would otherwise take the cores that the event loop and other models need.
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return session_options


# Any: nodes are ONNX Runtime's NodeArg, with a name, a type such as "tensor(float)", and a shape whose axes are an
# int where fixed, a str where symbolic and None where nothing is known; [] stands for a scalar and for no shape.


def _spec(node: Any, what: str) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        remedy = "cast it to a float or integer type in the model"
        if node.type.startswith(("seq(", "map(")):
            remedy = "export tensors instead (skl2onnx: the option zipmap=False)"
        raise InvalidInput(f"{what} {node.name!r} is a {node.type}, which cannot be served; {remedy}")
    if not node.shape:
        raise InvalidInput(f"{what} {node.name!r} has no batch axis; export it with the shape [N, ...]")
    return TensorSpec(node.name, datatype, tuple(axis if isinstance(axis, int) else -1 for axis in node.shape[1:]))


def _fixed_batch(nodes: Sequence[Any]) -> int | None:
    """The length that the model fixes for the batch axis; None where it is open.

    Raises:
        InvalidInput: two inputs or outputs fix different lengths.
    """
    fixed = {node.name: node.shape[0] for node in nodes if node.shape and isinstance(node.shape[0], int)}
    if len(set(fixed.values())) > 1:
        raise InvalidInput(
            f"first axes are fixed at different lengths ({fixed}), so they are no batch axis; export it as [N, ...]"
        )
    length = next(iter(fixed.values()), None)
    if length == 0:
        raise InvalidInput("the batch axis is fixed at 0; export it as [N, ...]")
    return length


def _to_onnx(name: str, tensor: Tensor) -> HostArray:
    array = host_array(name, tensor)
    if tensor.datatype is not Datatype.BYTES:
        return array
    try:
        texts: HostArray = _decoded(array)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} is not valid UTF-8; the model takes text") from error
    return texts


def _from_onnx(spec: TensorSpec, array: HostArray | DeviceArray, rows: slice) -> Tensor:
    """*rows* of the array as ONNX Runtime gave it, whose memory nothing else holds; strings as bytes. What is on the
    device has as many rows as the batch.
    """
    if not isinstance(array, np.ndarray):
        return Tensor(spec.datatype, spec_of(array)[1], array)
    array = array[rows]
    return Tensor.of(_encoded(array) if spec.datatype is Datatype.BYTES else array, spec.datatype)


def _translated(model_name: str, error: Exception) -> PointsmanError:
    """What a caller may know of *error*: ONNX Runtime's own words name nodes and quote values."""
    if isinstance(error, InvalidArgument):
        return InvalidInput(
            f"model {model_name!r} refuses these values, though datatypes and shapes fit; "
            "check their ranges, and lengths that belong together"
        )
    return BackendFailed(f"model {model_name!r} failed on this batch; its operator's log has the cause")


_RUNNING_ONLY = frozenset(
    {"threads", "parallel_branches", "arena", "graph_cache", "max_batch", "max_in_flight", "device"}
)
ONNX = BackendType("onnx", OnnxOptions, open_onnx, _RUNNING_ONLY)
