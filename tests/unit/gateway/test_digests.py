"""A file is read once while it stays as it is, and again after any change of it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gateway import digests
from gateway.digests import sha256_of


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been read."""
    found: list[str] = []
    file_digest = hashlib.file_digest

    def counted(content: Any, name: str) -> Any:  # Any: a file, and hashlib's own
        found.append(content.name)
        return file_digest(content, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(digests, "_known", type(digests._known)())
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Written long ago, as far as its times say; no program can set when an inode was changed."""
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have that much time pass, as this process sees it."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


def test_a_file_that_stays_as_it_is_is_read_once(file: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, 10.0)

    assert {sha256_of(file) for _ in range(3)} == {hashlib.sha256(b"one").hexdigest()}
    assert len(reads) == 1


def test_one_that_was_changed_just_now_is_read_each_time(file: Path, reads: list[str]) -> None:
    assert sha256_of(file) == sha256_of(file)
    assert len(reads) == 2


@pytest.mark.parametrize("how", ["written", "replaced", "written with the same times"])
def test_a_change_is_seen(file: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    later(monkeypatch, 10.0)
    sha256_of(file)
    times = file.stat()

    if how == "replaced":
        other = file.with_name("other")
        other.write_bytes(b"two")
        other.rename(file)
    else:
        time.sleep(0.02)  # more than a tick of any file system's clock
        file.write_bytes(b"two")
    if how == "written with the same times":
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert sha256_of(file) == hashlib.sha256(b"two").hexdigest()


def test_a_link_that_points_elsewhere_is_another_file(
    file: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch, 10.0)
    other, link = file.with_name("other"), file.with_name("link")
    other.write_bytes(b"two")
    link.symlink_to(file)
    sha256_of(link)

    link.unlink()
    link.symlink_to(other)

    assert sha256_of(link) == hashlib.sha256(b"two").hexdigest()


def test_no_more_is_remembered_than_there_is_room_for(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch, 10.0)
    monkeypatch.setattr(digests, "_MOST", 2)
    files = [tmp_path / str(number) for number in range(3)]
    for number, one in enumerate(files):
        one.write_bytes(bytes([number]))
        sha256_of(one)
    assert len(digests._known) == 2

    sha256_of(files[2])
    assert len(reads) == 3
    sha256_of(files[0])
    assert len(reads) == 4


def test_one_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "none")
