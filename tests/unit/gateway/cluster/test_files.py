"""Which files of a configuration are watched over, and what is said of those that are no longer what they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gateway.cluster.files import added, changed, digests
from gateway.settings import Settings, load_settings
from router.calibration import Calibration, Temperature
from router.confidence import Measure

CONFIG = """
models:
  words:
    backend: onnx
    path: models/words.onnx
    labels_file: models/labels.txt
    calibration: words.json
    preprocess: [{tokenize: {file: vocab.txt, max_length: 8}}]
  far: {backend: openai, url: "https://models.example", model: m, api_key_file: key, labels: [no, yes]}
routes:
  words:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [words]
    accept: {min_confidence: 0.9}
    human: none
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    calibration = Calibration(Temperature(1.0), Measure.parse("max"), 10, "words", "1")
    contents = {
        "models/words.onnx": "a graph",
        "models/words.onnx.data": "its weights",
        "models/labels.txt": "no\nyes\n",
        "models/other.onnx": "another's",
        "words.json": json.dumps(calibration.to_dict()),
        "vocab.txt": "[UNK]\n",
        "key": "a secret",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    (folder / "my.yaml").write_text(CONFIG)
    return load_settings(folder / "my.yaml")


def test_what_decides_answers_is_kept_by_its_name_and_nothing_else(folder: Path, settings: Settings) -> None:
    names = ["models/labels.txt", "models/words.onnx", "models/words.onnx.data", "vocab.txt", "words.json"]

    found = digests(settings)

    assert sorted(found) == names
    assert all(found[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names)


def test_files_that_are_as_they_were_are_passed(folder: Path, settings: Settings) -> None:
    kept = digests(settings)

    assert changed(kept, folder) == []
    assert added(kept, settings) == []


def test_each_file_that_is_not_is_told_with_what_to_do(folder: Path, settings: Settings) -> None:
    kept = digests(settings)
    (folder / "vocab.txt").write_text("[UNK]\nnew\n")
    (folder / "models/words.onnx.data").unlink()
    (folder / "models/words.data").write_text("more weights")

    said = changed(kept, folder)

    now = hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest()
    assert said == [
        f"models/words.onnx.data is not there any more; put it back (SHA-256 {kept['models/words.onnx.data']})",
        f"vocab.txt has changed; put back what it was (SHA-256 {kept['vocab.txt']}, and not {now})",
    ]
    assert added(kept, settings) == ["models/words.data was not there; take it away"]
