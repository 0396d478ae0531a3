"""A run of ONNX Runtime by IO binding: inputs from where they are, outputs to where they are wanted.

`InferenceSession.run` takes arrays of the host, and gives such. Bound by address, an array on the session's device is
read there, and outputs are written at once to memory that is theirs in the end: of the host, or of the device, for
whoever goes on with them there. An output whose size nobody knows before the run is the runtime's, and copied to the
host.

**Order.** Inputs are whole before the run starts (`kernels.dlpack.borrowed`), since ONNX Runtime's stream for them is
nobody else's to name; a run ends with its stream synchronised, by ONNX Runtime's default, so that afterwards nothing
reads an input and every output may be read on any stream. Where a run fails, its device is waited for before the inputs
are let go.

Rejected: binding outputs of sessions on the CPU, where the same code runs. It was meant to save a copy, and there is
none to save: measured with outputs from 64 bytes to 16 MiB, a bound run took 33 to 73 us more than `run` at every size
(36 instead of 3 us, 61 instead of 24 for 1 MiB, 964 instead of 892 for 16 MiB).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import numpy as np

from backends.contract import DeviceArray, HostArray
from backends.errors import InvalidInput
from backends.ort import CPU, CUDA, ort
from kernels import dlpack
from kernels.devices import device_number
from kernels.dlpack import borrowed, place_of, to_host

# Any, here and below: ONNX Runtime and CuPy have no types of their own.


@dataclass(frozen=True, slots=True)
class Processor:
    """What a session computes on: `cpu`, or `cuda` and a device's number, as CUDA counts."""

    kind: str = "cpu"
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `cpu`, `cuda` or `cuda:1`.

        Raises:
            InvalidInput: it is none of these.
        """
        try:
            number = device_number(text)
        except ValueError as error:
            raise InvalidInput(f"device: {error}") from error
        return cls() if number is None else cls("cuda", number)

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU."""
        return self.kind == "cpu"

    def providers(self) -> Sequence[object]:
        """What ONNX Runtime is to compute with; what it cannot do on the device, it does on the CPU.

        Raises:
            InvalidInput: this ONNX Runtime has no such thing.
        """
        if self.is_cpu:
            return (CPU,)
        if CUDA not in ort.get_available_providers():
            raise InvalidInput(
                f"device {self}: the installed onnxruntime computes on the CPU alone; put onnxruntime-gpu in its place "
                "(pip uninstall onnxruntime, then pip install onnxruntime-gpu)"
            )
        options = {
            "device_id": str(self.number),
            "arena_extend_strategy": "kSameAsRequested",  # else each step doubles what it takes
            "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE, its default, takes seconds at each new size of batch
            "use_tf32": "0",  # else products round their factors to 10 bits, and what was certified on the CPU differs
        }
        return ((CUDA, options), CPU)

    def check(self, session: Any) -> None:
        """Refuse a *session* that was to compute here and does not: ONNX Runtime falls back without an error.

        Raises:
            InvalidInput: it does not.
        """
        if not self.is_cpu and CUDA not in session.get_providers():
            raise InvalidInput(
                f"device {self} cannot be used by ONNX Runtime; check the device with nvidia-smi, and that CUDA and "
                "cuDNN are there in the versions that onnxruntime-gpu was built for (its log says which it looked for)"
            )

    def __str__(self) -> str:
        return self.kind if self.is_cpu else f"{self.kind}:{self.number}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output of a run.

    Attributes:
        shape: as far as it is known before the run; None: it is not.
        there: whether it is to stay on the session's device; of a known shape only.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    there: bool = False


def run_bound(
    session: Any,
    processor: Processor,
    feed: Mapping[str, HostArray | DeviceArray],
    outputs: Sequence[Wanted],
    run_options: Any,
) -> list[HostArray | DeviceArray]:
    """Run *session* on *feed*.

    Args:
        processor: what *session* computes on.
        feed: by name; numbers, row-major. Arrays on another device than *processor*'s are copied by way of the host.
        outputs: in the order of the result; all of numbers.
        run_options: an `onnxruntime.RunOptions`.

    Returns:
        one for each of *outputs*, in memory that nothing else holds.

    Raises:
        ValueError: an array on a device cannot be read.
        Exception: ONNX Runtime's own, which share no base.
    """
    binding = session.io_binding()
    with ExitStack() as held:
        for name, array in feed.items():
            _bind_input(binding, processor, name, array, held)
        made = [_bind_output(binding, processor, output) for output in outputs]
        try:
            session.run_with_iobinding(binding, run_options)
        except BaseException:
            binding.synchronize_outputs()
            raise
    given = binding.get_outputs()
    return [given[place].numpy() if array is None else array for place, array in enumerate(made)]


def _bind_input(binding: Any, processor: Processor, name: str, array: HostArray | DeviceArray, held: ExitStack) -> None:
    if not isinstance(array, np.ndarray):
        if place_of(array) == _place(processor):
            found = held.enter_context(borrowed(array))
            _bind_address(binding.bind_input, name, processor, found.dtype, found.shape, found.address)
            return
        array = to_host(array)
    held.callback(lambda kept: None, array)  # the binding has its address alone
    _bind_address(binding.bind_input, name, Processor(), array.dtype, array.shape, array.ctypes.data)


def _bind_output(binding: Any, processor: Processor, output: Wanted) -> HostArray | DeviceArray | None:
    """The memory of *output*; None where it is ONNX Runtime's."""
    if output.shape is None:
        binding.bind_output(output.name, "cpu")
        return None
    if output.there and not processor.is_cpu:
        cupy = import_module("cupy")
        with cupy.cuda.Device(processor.number):
            array = cupy.empty(output.shape, output.dtype)
        address = array.data.ptr
    else:
        processor, array = Processor(), np.empty(output.shape, output.dtype)
        address = array.ctypes.data
    _bind_address(binding.bind_output, output.name, processor, output.dtype, output.shape, address)
    found: HostArray | DeviceArray = array
    return found


def _bind_address(
    bind: Any, name: str, processor: Processor, dtype: np.dtype[Any], shape: tuple[int, ...], address: int
) -> None:
    bind(name, processor.kind, processor.number, dtype.type, shape, address)


def _place(processor: Processor) -> dlpack.Place:
    """The memory that *processor* reads without a copy, in DLPack's words."""
    return dlpack.Place(dlpack.HOST if processor.is_cpu else dlpack.CUDA, processor.number)
