"""NVRTC, by way of CuPy; needs no device."""

from __future__ import annotations

from collections.abc import Sequence

from cupy.cuda import nvrtc


def compile_cubin(code: str, options: Sequence[str]) -> bytes:
    """Compile CUDA C++ for the architecture that *options* name.

    Raises:
        RuntimeError: it does not compile; holds the compiler's log.
    """
    program = nvrtc.createProgram(code, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, tuple(options))
        return bytes(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{error}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


def compiler_version() -> str:
    """NVRTC's."""
    return ".".join(str(part) for part in nvrtc.getVersion())
