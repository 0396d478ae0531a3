"""The CUDA sources compile for the devices they are meant for, without one, and what came of it is kept."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kernels import devices
from kernels.cuda import sources
from kernels.cuda.sources import (
    ELEMENTS,
    SOFTMAX_TOP_K,
    Cache,
    Target,
    Variant,
    cache_folder,
    image_variant,
    variant_of,
)
from kernels.images import Filter
from kernels.recipe import CHANNEL_LIMIT, Exact, Recipe

TARGET = Target("sm_90", "NVIDIA H200", "13000", "13.5")
CUBIN = b"\x7fELF and the rest"

IMAGES = [
    image_variant(channels, element, planar=planar)
    for channels in range(1, CHANNEL_LIMIT + 1)
    for element in ELEMENTS
    for planar in (False, True)
]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("variant", [*IMAGES, SOFTMAX_TOP_K], ids=str)
def test_every_kernel_compiles(variant: Variant, architecture: str) -> None:
    from kernels.cuda.compiler import compile_cubin

    cubin = compile_cubin(variant.code, variant.options(architecture))

    assert cubin.startswith(b"\x7fELF")
    assert variant.function.encode() in cubin


def test_what_does_not_compile_says_where() -> None:
    from kernels.cuda.compiler import compile_cubin

    with pytest.raises(RuntimeError, match=r"kernels\.cu\(1\): error: identifier \"nonsense\" is undefined"):
        compile_cubin('extern "C" __global__ void f() { nonsense; }', ["--gpu-architecture=sm_80"])


def test_a_recipe_has_its_kernel() -> None:
    recipe = Recipe(Exact((2, 2)), Filter(), (2, 2), (2, 1, 0), (), "float16", planar=True)

    assert variant_of(recipe) == image_variant(3, "float16", planar=True)


class Counted:
    """A compiler that counts what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, code: str, options: Sequence[str]) -> bytes:
        self.calls.append(tuple(options))
        return CUBIN + str(len(self.calls)).encode()


def test_a_kernel_is_compiled_once_for_all_processes(tmp_path: Path) -> None:
    compiler = Counted()
    folder = tmp_path / "not" / "yet"

    first = Cache(folder, compiler).load(SOFTMAX_TOP_K, TARGET)
    second = Cache(folder, compiler).load(SOFTMAX_TOP_K, TARGET)

    assert first == second == CUBIN + b"1"
    assert compiler.calls == [("--gpu-architecture=sm_90", "--std=c++17", "-DTHREADS=128")]
    assert [path.suffix for path in folder.iterdir()] == [".cubin"]


@pytest.mark.parametrize("field", ["architecture", "device", "driver", "compiler"])
def test_another_device_driver_or_compiler_compiles_anew(tmp_path: Path, field: str) -> None:
    compiler = Counted()
    cache = Cache(tmp_path, compiler)

    cache.load(SOFTMAX_TOP_K, TARGET)
    cache.load(SOFTMAX_TOP_K, replace(TARGET, **{field: "another"}))

    assert len(compiler.calls) == 2


def test_another_source_compiles_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Cache(tmp_path, Counted()).path(SOFTMAX_TOP_K, TARGET)
    for source in Path(sources.__file__).parent.glob("*.cu"):
        (tmp_path / source.name).write_text(source.read_text() + "// changed\n")
    monkeypatch.setattr(sources, "_FOLDER", tmp_path)

    assert Cache(tmp_path, Counted()).path(SOFTMAX_TOP_K, TARGET) != before


@pytest.mark.parametrize("whole", [False, True], ids=["cut", "of before"])
@pytest.mark.parametrize("kept", [0, 4, 32, 40])
def test_a_damaged_file_is_replaced(tmp_path: Path, kept: int, whole: bool) -> None:
    compiler = Counted()
    cache = Cache(tmp_path, compiler)
    path = cache.path(SOFTMAX_TOP_K, TARGET)
    cache.load(SOFTMAX_TOP_K, TARGET)
    path.write_bytes(CUBIN if whole else path.read_bytes()[:kept])

    for _ in range(2):
        assert cache.load(SOFTMAX_TOP_K, TARGET) == CUBIN + b"2"
    assert len(compiler.calls) == 2


def test_a_disk_that_is_full_costs_time_alone_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)

    assert Cache(tmp_path, Counted()).load(SOFTMAX_TOP_K, TARGET) == CUBIN + b"1"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiler = Counted()

    assert Cache(tmp_path / "file" / "folder", compiler).load(SOFTMAX_TOP_K, TARGET) == CUBIN + b"1"


def test_a_folder_that_others_may_write_to_is_neither_read_nor_written(tmp_path: Path) -> None:
    compiler = Counted()
    cache = Cache(tmp_path, compiler)
    cache.path(SOFTMAX_TOP_K, TARGET).write_bytes(b"\x7fELF of somebody else")
    tmp_path.chmod(0o777)

    assert cache.load(SOFTMAX_TOP_K, TARGET) == CUBIN + b"1"
    assert cache.path(SOFTMAX_TOP_K, TARGET).read_bytes() == b"\x7fELF of somebody else"


def test_a_folder_that_is_made_is_the_users_alone(tmp_path: Path) -> None:
    Cache(tmp_path / "made", Counted()).load(SOFTMAX_TOP_K, TARGET)

    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


def test_many_threads_get_a_whole_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path, lambda code, options: CUBIN * 1000)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(cache.load(SOFTMAX_TOP_K, TARGET))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [CUBIN * 1000] * 8
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_is_the_users_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POINTSMAN_KERNEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pointsman" / "kernels"
    monkeypatch.setenv("POINTSMAN_KERNEL_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


# Where there is no device


def test_without_cupy_a_device_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: None)

    with pytest.raises(ValueError, match=r"need CuPy; install pointsman\[gpu-cu13\] or pointsman\[gpu-cu12\]$"):
        devices.cuda()


def test_a_device_that_is_not_there_says_what_to_check() -> None:
    with pytest.raises(ValueError, match=r"^CUDA device 99 cannot be used: cudaError.*; check it with nvidia-smi$"):
        devices.cuda(99)


def test_nothing_imports_cupy_unasked() -> None:
    """In a process of its own: here other tests may have."""
    import subprocess
    import sys

    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "import kernels.plan, kernels.devices, kernels.cuda.sources, kernels.cuda.layout, backends.preprocessed\n"
        "print('cupy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
