"""Private folders, and those that killed gateways leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.folders import private_folder, remove_left_over, used

OWNER = """
import sys
from pathlib import Path
from gateway.folders import private_folder, used
with private_folder("test", 500) as folder:
    (folder / "socket").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""
USER = """
import sys
from pathlib import Path
from gateway.folders import used
with used(Path(sys.argv[1])):
    print("used", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@contextmanager
def process(program: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that runs *program* until it is killed, and the line that it has printed."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().strip()
        finally:
            kill(running)


def kill(running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGKILL)
    running.wait()


def test_a_folder_is_private_and_goes_with_its_use(temporary: Path) -> None:
    with private_folder("test", 500) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "socket").touch()

    assert list(temporary.iterdir()) == []


def test_a_folder_that_cannot_be_made_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(OSError, match="too long a name; set TMPDIR"), private_folder("test", 5):
        pass

    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_before_that(temporary: Path) -> None:
    with process(OWNER) as (owner, name):
        left = Path(name)
        with private_folder("test", 500) as folder:
            assert set(temporary.iterdir()) == {left, folder}

        kill(owner)
        assert (left / "socket").exists()
        with private_folder("test", 500) as folder:
            assert set(temporary.iterdir()) == {folder}


def test_what_a_process_that_lives_still_uses_outlives_who_made_it(temporary: Path) -> None:
    with process(OWNER) as (owner, name), process(USER, name) as (user, _):
        kill(owner)
        remove_left_over()
        assert (Path(name) / "socket").exists()

        kill(user)
        remove_left_over()
        assert not Path(name).exists()


def test_nothing_else_is_removed(temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    (temporary / "pointsman-grpc-12345678").mkdir()
    (temporary / "pointsman-grpc-1234567.held").mkdir()
    (temporary / "pointsman-grpc-abcdefgh.held").symlink_to(elsewhere)
    (temporary / "pointsman-grpc-file1234.held").write_text("a file")
    before = set(temporary.rglob("*"))

    remove_left_over()

    assert set(temporary.rglob("*")) == before


def test_the_folders_of_other_users_are_left_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = temporary / "pointsman-grpc-abcdefgh.held"
    left.mkdir()
    me = os.geteuid()

    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    remove_left_over()
    assert left.exists()

    monkeypatch.setattr(os, "geteuid", lambda: me)
    remove_left_over()
    assert not left.exists()


def test_a_folder_in_use_can_be_used_by_several(temporary: Path) -> None:
    with private_folder("test", 500) as folder, used(folder), used(folder):
        remove_left_over()
        assert folder.exists()
    assert not folder.exists()
