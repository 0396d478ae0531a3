"""A pod that ends is there until its replicas have gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cluster import leave
from gateway.cluster.leave import main, replicas_here, wait_gone


def process(folder: Path, number: int, title: bytes) -> None:
    (folder / str(number)).mkdir()
    (folder / str(number) / "cmdline").write_bytes(title)


def test_serves_replicas_are_counted_and_nothing_else(tmp_path: Path) -> None:
    process(tmp_path, 7, b"ray::ServeReplica:pointsman:gateway\0")
    process(tmp_path, 8, b"ray::IDLE\0")
    process(tmp_path, 9, b"python\0-m\0gateway.cluster.leave\0")
    (tmp_path / "10").mkdir()  # it ends while it is looked at

    assert replicas_here(tmp_path) == 1


def test_the_wait_ends_with_the_last_replica_or_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave, "_LOOK_S", 0.0)
    left = iter([2, 1, 0])

    assert wait_gone(lambda: next(left), 10.0)
    assert not wait_gone(lambda: 1, 0.0)


def test_a_node_without_replicas_is_left_without_asking_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave, "replicas_here", lambda: 0)

    assert main(60.0) is None
