"""Regions: which objects may become one, whose they are, and reading and writing what their owner changes meanwhile."""

from __future__ import annotations

import gc
import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import SharedMemoryWindow
from backends.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    PermissionDenied,
    PointsmanError,
    QuotaExceeded,
    Unavailable,
    Unimplemented,
)
from gateway import shared_memory
from gateway.shared_memory import Region, RegionStatus, SharedMemory, SharedMemoryOptions

ON = SharedMemoryOptions(enabled=True, max_regions=4)
CONTENT = bytes(range(100))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What stands for /dev/shm, with one object in it."""
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "object").write_bytes(CONTENT)
    return tmp_path / "shm"


@pytest.fixture
def memory(folder: Path) -> SharedMemory:
    return SharedMemory(ON, folder=folder)


def read(region: Region, window: SharedMemoryWindow) -> bytes:
    region.check(window)
    buffer = bytearray(window.byte_size)
    region.read(window, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("key", ["/object", "object"])
def test_a_region_is_a_part_of_an_object(memory: SharedMemory, key: str) -> None:
    memory.register("t", "r", key, 10, 20)

    window = SharedMemoryWindow("r", 5, 15)
    assert read(memory.window("t", window), window) == CONTENT[15:30]
    assert memory.status("t") == memory.status("t", "r") == (RegionStatus("r", key, 10, 20),)


def test_off_means_that_nothing_is_registered_or_used_and_the_rest_says_that_there_is_nothing(folder: Path) -> None:
    memory = SharedMemory(folder=folder)

    with pytest.raises(Unimplemented, match=r"off .* set `server: \{shared_memory: \{enabled: true\}\}`"):
        memory.register("t", "r", "/object", 0, 8)
    with pytest.raises(Unimplemented, match="shared memory is off"):
        memory.window("t", SharedMemoryWindow("r", 0, 8))
    memory.unregister("t")
    memory.unregister("t", "r")
    assert memory.status("t") == ()
    with pytest.raises(NotFound, match="no shared memory region 'r'"):
        memory.status("t", "r")


def test_a_name_is_registered_once_until_it_is_unregistered(memory: SharedMemory) -> None:
    memory.register("t", "r", "/object", 0, 8)

    with pytest.raises(AlreadyExists, match="'r' already in manager"):
        memory.register("t", "r", "/object", 0, 16)

    memory.unregister("t", "r")
    memory.register("t", "r", "/object", 0, 16)
    assert [found.byte_size for found in memory.status("t")] == [16]


def test_all_regions_of_a_tenant_can_be_unregistered_and_nobody_else_s(memory: SharedMemory, folder: Path) -> None:
    (folder / "mine").write_bytes(CONTENT)
    memory.register("t", "r", "/object", 0, 8)
    memory.register("t", "s", "/object", 8, 8)
    memory.register("other", "r", "/mine", 0, 8)

    memory.unregister("t")

    assert memory.status("t") == ()
    assert [found.key for found in memory.status("other")] == ["/mine"]


def test_another_tenant_s_region_is_not_there(memory: SharedMemory) -> None:
    memory.register("t", "r", "/object", 0, 8)

    assert memory.status("other") == ()
    for ask in (lambda: memory.status("other", "r"), lambda: memory.window("other", SharedMemoryWindow("r", 0, 8))):
        with pytest.raises(NotFound, match="no shared memory region 'r'"):
            ask()


def test_an_object_of_one_tenant_is_no_other_s_under_any_key(memory: SharedMemory, folder: Path) -> None:
    os.link(folder / "object", folder / "alias")
    memory.register("t", "r", "/object", 0, 8)
    memory.register("t", "s", "/alias", 0, 8)

    for key in ("/object", "object", "/alias"):
        with pytest.raises(PermissionDenied, match="somebody else's"):
            memory.register("other", "r", key, 50, 8)

    memory.unregister("t")
    memory.register("other", "r", "/object", 0, 8)


def test_a_tenant_has_so_many_regions(memory: SharedMemory) -> None:
    for i in range(4):
        memory.register("t", f"r{i}", "/object", 0, 8)

    with pytest.raises(QuotaExceeded, match="4 regions are registered; at most 4"):
        memory.register("t", "r4", "/object", 0, 8)


@pytest.mark.parametrize(
    "key",
    ["", "/", "//object", "///object", "/a/object", "/../object", "../shm/object", "/object/", "/ob\0ject", "/ob ject",
     "/object\n", "/ö", "/" + "x" * 256],
)  # fmt: skip
def test_a_key_is_one_plain_name(memory: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidInput, match="names no shared memory object; write /NAME"):
        memory.register("t", "r", key, 0, 8)


@pytest.mark.parametrize(
    "name",
    ["triton_python_backend_shm_region_1", "sem.x", "psm_1234abcd", "pymp-x", "torch_1_2_3", "nccl-x", "PostgreSQL.7",
     "pulse-shm-1", ".hidden", ".", ".."],
)  # fmt: skip
@pytest.mark.parametrize("slash", ["", "/"])
def test_objects_of_other_programs_are_refused_by_their_prefix(
    memory: SharedMemory, folder: Path, name: str, slash: str
) -> None:
    with suppress(OSError):
        (folder / name).write_bytes(CONTENT)

    with pytest.raises(PermissionDenied, match="reserved prefix"):
        memory.register("t", "r", slash + name, 0, 8)


def test_what_is_no_object_of_shm_open_is_refused(memory: SharedMemory, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        for key in ("link", "folder", "pipe", "socket"):
            with pytest.raises(InvalidInput, match=f"'{key}' is no shared memory object"):
                memory.register("t", "r", key, 0, 8)
    with pytest.raises(NotFound, match="no object '/nothing'"):
        memory.register("t", "r", "/nothing", 0, 8)


def test_another_user_s_object_is_taken_only_where_everybody_may_use_it(
    memory: SharedMemory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for mode in (0o600, 0o660, 0o604):
        (folder / "object").chmod(mode)
        with pytest.raises(PermissionDenied, match="another user's"):
            memory.register("t", "r", "/object", 0, 8)

    (folder / "object").chmod(0o666)
    memory.register("t", "r", "/object", 0, 8)


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\0b"])
def test_a_region_has_a_name_that_can_be_read(memory: SharedMemory, name: str) -> None:
    with pytest.raises(InvalidInput, match="a region is named"):
        memory.register("t", name, "/object", 0, 8)


NUMBERS = st.integers(-2, 130) | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64])


@given(NUMBERS, NUMBERS)
def test_a_region_is_within_its_object_or_refused(
    tmp_path_factory: pytest.TempPathFactory, offset: int, byte_size: int
) -> None:
    folder = tmp_path_factory.mktemp("shm")
    (folder / "object").write_bytes(CONTENT)
    memory = SharedMemory(ON, folder=folder)
    fits = offset >= 0 and byte_size >= 1 and offset + byte_size <= len(CONTENT)

    try:
        memory.register("t", "r", "/object", offset, byte_size)
    except InvalidInput:
        assert not fits
    else:
        assert fits
    assert len(memory.status("t")) == fits


@given(st.integers(0, 99), st.integers(1, 100), st.integers(0, 130) | st.just(2**63 - 1),
       st.integers(0, 130) | st.just(2**63 - 1))  # fmt: skip
def test_a_window_is_within_its_region_or_refused(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, offset: int, byte_size: int
) -> None:
    folder = tmp_path_factory.mktemp("shm")
    (folder / "object").write_bytes(CONTENT)
    memory = SharedMemory(ON, folder=folder)
    length = min(length, 100 - start)
    memory.register("t", "r", "/object", start, length)
    window = SharedMemoryWindow("r", offset, byte_size)

    if offset + byte_size > length:
        with pytest.raises(InvalidInput, match=f"{byte_size} bytes at offset {offset} are beyond .* has {length}"):
            memory.window("t", window)
        return
    region = memory.window("t", window)
    assert read(region, window) == CONTENT[start : start + length][offset : offset + byte_size]
    region.write(window, memoryview(bytes(byte_size)))
    expected = CONTENT[: start + offset] + bytes(byte_size) + CONTENT[start + offset + byte_size :]
    assert (folder / "object").read_bytes() == expected


def test_an_object_that_was_shortened_is_told_in_both_directions_and_does_not_grow(
    memory: SharedMemory, folder: Path
) -> None:
    memory.register("t", "r", "/object", 10, 80)
    window = SharedMemoryWindow("r", 0, 80)
    region = memory.window("t", window)

    os.truncate(folder / "object", 50)

    with pytest.raises(InvalidInput, match=r"has been shortened: 90 bytes of it are needed, and it has 50"):
        read(region, window)
    with pytest.raises(InvalidInput, match=r"has been shortened: 90 bytes of it are needed, and it has 50"):
        region.write(window, memoryview(bytes(80)))
    assert (folder / "object").stat().st_size == 50
    short = SharedMemoryWindow("r", 0, 40)
    assert read(region, short) == CONTENT[10:50]


def test_an_unregistered_region_serves_who_has_it_and_is_closed_after_that(memory: SharedMemory, folder: Path) -> None:
    def opened() -> int:
        links = list(Path("/proc/self/fd").iterdir())
        return sum(link.exists() and link.samefile(folder / "object") for link in links)

    memory.register("t", "r", "/object", 0, 100)
    window = SharedMemoryWindow("r", 0, 100)
    region = memory.window("t", window)

    memory.unregister("t", "r")

    assert read(region, window) == CONTENT
    assert opened() == 1
    del region
    gc.collect()
    assert opened() == 0


def test_a_refused_registration_leaves_nothing_open(memory: SharedMemory, folder: Path) -> None:
    def opened() -> set[Path]:
        return set(Path("/proc/self/fd").iterdir())

    before = opened()
    for key, size in (("/object", 101), ("/nothing", 1)):
        with pytest.raises(PointsmanError):
            memory.register("t", "r", key, 0, size)
    gc.collect()

    assert opened() == before


def test_a_region_that_cannot_be_written_says_so(folder: Path) -> None:
    descriptor = os.open(folder / "object", os.O_RDONLY)
    region = Region(RegionStatus("r", "/object", 0, 100), descriptor)

    with pytest.raises(InvalidInput, match="region 'r' cannot be used: Bad file descriptor; register it again"):
        region.write(SharedMemoryWindow("r", 0, 8), memoryview(bytes(8)))


# --- what servers are told of ---


def test_a_server_finds_the_object_that_was_registered_whatever_its_name_means_by_now(
    memory: SharedMemory, folder: Path
) -> None:
    memory.register("t", "r", "/object", 0, 8)
    region = memory.region("t", "r")
    (folder / "object").rename(folder / "moved")
    (folder / "object").write_bytes(b"another tenant's")

    with region.key() as key:
        assert (folder / key[1:]).read_bytes() == CONTENT

    assert sorted(path.name for path in folder.iterdir()) == ["moved", "object"]  # the name was there for that alone


def test_an_object_without_a_name_cannot_be_told_of_and_is_read_still(memory: SharedMemory, folder: Path) -> None:
    memory.register("t", "r", "/object", 0, 8)
    region = memory.region("t", "r")
    (folder / "object").unlink()

    with pytest.raises(OSError, match="No such file"), region.key():
        pass

    assert read(region, SharedMemoryWindow("r", 0, 8)) == CONTENT[:8]


def test_names_that_killed_gateways_left_are_removed_once_nobody_can_need_them(folder: Path) -> None:
    left = folder / "pointsman-region-0123"
    left.write_bytes(b"")

    SharedMemory(ON, folder=folder)
    assert left.exists()  # it may be in use this moment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_memory, "_LINKED_S", -1.0)
        SharedMemory(ON, folder=folder)

    assert not left.exists()
    assert (folder / "object").exists()


@pytest.mark.parametrize("prefix", ["pointsman-region-", "pointsman-tensors-"])
def test_the_gateways_own_objects_are_no_clients(memory: SharedMemory, folder: Path, prefix: str) -> None:
    (folder / f"{prefix}1").write_bytes(CONTENT)

    with pytest.raises(PermissionDenied, match="reserved prefix"):
        memory.register("t", "r", f"/{prefix}1", 0, 8)


def test_whoever_was_told_of_a_region_hears_that_it_is_given_up(memory: SharedMemory) -> None:
    heard: list[str] = []
    for name in ("r", "s"):
        memory.register("t", name, "/object", 0, 8)
        memory.region("t", name).when_given_up(partial(heard.append, name))
    region = memory.region("t", "r")

    memory.unregister("t", "r")
    assert heard == ["r"]
    memory.unregister("t", "r")  # twice is harmless
    memory.unregister("t")
    region.when_given_up(partial(heard.append, "late"))

    assert heard == ["r", "s", "late"]


@given(st.integers(0, 90), st.integers(0, 10), st.integers(0, 90), st.integers(0, 10))
def test_an_output_goes_nowhere_where_a_call_may_still_write(start: int, size: int, at: int, length: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "object").write_bytes(CONTENT)
        memory = SharedMemory(ON, folder=folder)
        memory.register("t", "r", "/object", 0, 100)
        region = memory.region("t", "r")
        give_back = region.withhold(SharedMemoryWindow("r", start, size))
        wanted = SharedMemoryWindow("r", at, length)

        if set(range(start, start + size)) & set(range(at, at + length)):
            with pytest.raises(Unavailable, match="given up may still write") as raised:
                region.check_place(wanted)
            assert raised.value.retry_after_s
        give_back()

        region.check_place(wanted)
        region.check_length(wanted)
