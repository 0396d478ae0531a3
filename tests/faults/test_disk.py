"""A disk that takes writes and fails to flush them, and one that is read-only from some moment on, as a file system is
that found a fault in itself: nothing is acknowledged that is not durable.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.process import running
from tests.integration.test_v1 import UNSURE, call, decide

SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_there(const char *name) { return access(getenv(name), F_OK) == 0; }
static int failed(int error) { errno = error; return -1; }

int fsync(int fd) { return is_there("FLUSH_FAILS") ? failed(EIO) : syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return is_there("FLUSH_FAILS") ? failed(EIO) : syscall(SYS_fdatasync, fd); }

ssize_t pwrite(int fd, const void *from, size_t count, off_t at) {
    return is_there("READ_ONLY") ? failed(EROFS) : syscall(SYS_pwrite64, fd, from, count, at);
}
ssize_t pwrite64(int fd, const void *from, size_t count, off_t at) { return pwrite(fd, from, count, at); }
"""
"""Stands before the C library's: flushes fail while the file that `FLUSH_FAILS` names is there, and writes to places in
files, which are SQLite's, while the one that `READ_ONLY` names is."""


@pytest.fixture(params=["FLUSH_FAILS", "READ_ONLY"])
def failing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that makes the disk of the processes started from here fail, as long as it is there."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("makes the disk fail by a shim in C, and there is no compiler")
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, source], check=True, timeout=60)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    for fault in ("FLUSH_FAILS", "READ_ONLY"):
        monkeypatch.setenv(fault, str(tmp_path / fault))
    return tmp_path / str(request.param)


def test_what_cannot_be_kept_is_503_and_everything_acknowledged_is_there(tmp_path: Path, failing: Path) -> None:
    with running(tmp_path) as gateway:
        acknowledged = [decide(gateway, UNSURE).body["answer_id"]]
        failing.touch()
        for _ in range(3):
            refused = decide(gateway, UNSURE)
            assert refused.status == 503
            assert "the store cannot write now; nothing was acknowledged, try again" in refused.body["detail"]
            assert not {"I/O", "readonly", "read-only"} & set(refused.body["detail"].split())
        assert call(f"{gateway.http}/v2/health/live").status == 200
        failing.unlink()
        acknowledged.append(decide(gateway, UNSURE).body["answer_id"])
        gateway.kill()

    with running(tmp_path) as gateway:
        reviews = call(f"{gateway.control}/v1/reviews?queue=words").body["reviews"]
    assert [review["answer_id"] for review in reviews] == acknowledged
