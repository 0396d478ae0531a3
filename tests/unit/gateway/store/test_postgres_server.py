"""The PostgreSQL of the tests: it says why it does not start, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.postgres import NoPostgres, PostgresServer

ROOT = Path(postgres.__file__).parents[1]
STARTED = "import tests.postgres as p\nwith p.PostgresServer() as server: print(server.folder, flush=True); input()"


@pytest.fixture
def own_server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """One that a test may ruin, where there can be any."""
    with PostgresServer() as server:
        yield server


def test_a_server_that_ends_at_once_is_told_with_the_end_of_its_log(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_START_S", 600.0)  # longer than a test may take
    own_server.stop()
    with (own_server.folder / "data/postgresql.conf").open("a") as file:
        file.write("what is this\n")

    with pytest.raises(AssertionError, match=r"PostgreSQL does not start:\n(.*\n)*.*syntax error in file") as caught:
        own_server.start()

    assert len(str(caught.value).splitlines()) <= 1 + 20


def test_nothing_is_left_of_a_server_whose_process_is_killed(postgres_server: PostgresServer) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    command = [sys.executable, "-c", STARTED]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        server = int((folder / "data/postmaster.pid").read_text().split()[0])
        process.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_why_there_is_none_is_said_in_a_line(own_server: PostgresServer) -> None:
    with pytest.raises(NoPostgres, match=r"^\S*initdb: unrecognized option '--nonsense'$"):
        own_server._run("initdb", "--nonsense")
