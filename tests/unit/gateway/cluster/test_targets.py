"""What Prometheus is told of replicas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cluster.targets import reached_at, told
from tests.integration.process import ROOT

_HOLD = """
import sys
from pathlib import Path
from gateway.cluster.targets import told
with told(Path(sys.argv[1]), "killed", "127.0.0.1:1", {}):
    print("told", flush=True)
    sys.stdin.read()
"""


def found(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.json")}


def test_a_replica_is_told_of_as_long_as_it_lives(tmp_path: Path) -> None:
    with told(tmp_path / "targets", "one", "127.0.0.1:8002", {"replica": "one"}):
        (file,) = (tmp_path / "targets").glob("*.json")
        assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:8002"], "labels": {"replica": "one"}}]
    assert found(tmp_path / "targets") == set()


@pytest.mark.parametrize(
    ("bound", "node", "reached"),
    [
        ("0.0.0.0:8002", "10.0.0.7", "10.0.0.7:8002"),
        ("[::]:8002", "10.0.0.7", "10.0.0.7:8002"),
        ("[::]:8002", "fd00::7", "[fd00::7]:8002"),
        ("127.0.0.1:8002", "10.0.0.7", "127.0.0.1:8002"),
        ("[fd00::9]:8002", "fd00::7", "[fd00::9]:8002"),
    ],
)
def test_a_replica_on_every_interface_is_reached_at_its_nodes_address(bound: str, node: str, reached: str) -> None:
    assert reached_at(bound, node) == reached


def test_nothing_is_told_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with told(None, "one", "127.0.0.1:8002", {}):
        assert list(tmp_path.iterdir()) == []


def test_the_next_replica_removes_what_a_killed_one_has_left_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as killed,
        told(tmp_path, "living", "127.0.0.1:2", {}),
    ):
        assert killed.stdout is not None
        assert killed.stdout.readline() == "told\n"
        with told(tmp_path, "next", "127.0.0.1:3", {}):
            assert found(tmp_path) == {"pointsman-killed.json", "pointsman-living.json", "pointsman-next.json"}

        killed.kill()
        killed.wait()

        with told(tmp_path, "last", "127.0.0.1:4", {}):
            assert found(tmp_path) == {"pointsman-living.json", "pointsman-last.json"}
