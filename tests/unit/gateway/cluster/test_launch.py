"""The folder of a cluster is its user's alone, and so is the token in it; nobody starts a Ray unawares."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.cluster.launch import LOOPBACK, _claimed, _prepare, _write_token


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir(mode=0o755)
    return folder


def test_only_its_user_can_read_the_token_even_where_others_look_into_the_folder(folder: Path) -> None:
    before = os.umask(0)
    try:
        _write_token(folder)
    finally:
        os.umask(before)

    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert len((folder / "token").read_text()) == 64


def test_a_cluster_has_a_token_of_its_own_and_not_one_that_was_there(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.write_text("known to others")
    (folder / "token").symlink_to(elsewhere)

    _write_token(folder)

    assert not (folder / "token").is_symlink()
    assert elsewhere.read_text() == "known to others"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused_with_the_remedy(folder: Path, mode: int) -> None:
    folder.chmod(mode)

    with pytest.raises(OSError, match="chmod go-w it, or name another with --folder"), _claimed(folder):
        pass


def test_the_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    with _claimed(tmp_path / "fresh") as is_ours:
        assert is_ours

    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o700


def test_whoever_has_lost_their_ray_starts_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LOOPBACK, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    _prepare(folder)

    assert os.environ["RAY_ENABLE_AUTO_CONNECT"] == "0"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(folder / "token")
