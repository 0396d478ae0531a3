"""Optimised graphs on disk answer as the model does, and a cache that is broken costs nothing but time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import magika
import numpy as np
import onnx
import pytest

from backends.contract import NO_DEADLINE, Batch, Tensor
from backends.onnx import OnnxOptions, open_onnx
from backends.onnx_cache import KEPT_S, default_folder, open_cached
from backends.ort import ort

REAL = Path(magika.__file__).parent / "models" / "standard_v3_3" / "model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "graphs"


def options() -> Any:
    made = ort.SessionOptions()
    made.log_severity_level = 4
    made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return made


def graphs(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def answer(session: Any) -> Any:
    items = np.random.default_rng(3).integers(0, 257, (4, 2048)).astype(np.int32)
    return session.run(None, {session.get_inputs()[0].name: items})[0]


def test_a_real_model_answers_the_same_from_the_cache_bit_by_bit(folder: Path) -> None:
    plain = answer(ort.InferenceSession(str(REAL), options(), ["CPUExecutionProvider"]))

    first = answer(open_cached(REAL, options, folder))
    again = answer(open_cached(REAL, options, folder))

    assert len(graphs(folder)) == 1
    np.testing.assert_array_equal(first, plain)
    np.testing.assert_array_equal(again, plain)


def test_the_second_load_is_from_the_cache(linear: Path, folder: Path) -> None:
    open_cached(linear, options, folder)
    (kept,) = graphs(folder)
    weights = onnx.load(kept)
    weights.graph.initializer[0].raw_data = np.full((4, 3), 7, np.float32).tobytes()
    onnx.save(weights, kept)

    found = open_cached(linear, options, folder).run(None, {"x": np.ones((1, 4), np.float32)})[0]

    np.testing.assert_array_equal(found, [[28.0, 28.0, 28.0]])


def test_another_content_of_the_same_file_is_another_graph(linear: Path, folder: Path) -> None:
    open_cached(linear, options, folder)
    changed = onnx.load(linear)
    changed.graph.initializer[0].raw_data = np.full((4, 3), 2, np.float32).tobytes()
    onnx.save(changed, linear)

    found = open_cached(linear, options, folder).run(None, {"x": np.ones((1, 4), np.float32)})[0]

    np.testing.assert_array_equal(found, [[8.0, 8.0, 8.0]])
    assert len(graphs(folder)) == 2


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
def test_a_broken_graph_is_passed_over_and_replaced(linear: Path, folder: Path, content: bytes) -> None:
    open_cached(linear, options, folder)
    (kept,) = graphs(folder)
    whole = kept.read_bytes()
    kept.write_bytes(content)

    session = open_cached(linear, options, folder)

    np.testing.assert_allclose(session.run(None, {"x": np.ones((1, 4), np.float32)})[0], [[1.5, 11 / 6, 13 / 6]])
    assert kept.read_bytes() == whole


def test_a_folder_that_others_may_write_to_is_not_used(linear: Path, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)

    open_cached(linear, options, folder)

    assert graphs(folder) == []


def test_where_nothing_can_be_written_the_model_is_loaded_all_the_same(linear: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")

    session = open_cached(linear, options, file)

    assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].shape == (1, 3)


def test_a_model_with_data_in_other_files_is_not_cached(linear: Path, folder: Path) -> None:
    whole = onnx.load(linear)
    onnx.save(whole, linear, save_as_external_data=True, location="weights.bin", size_threshold=0)

    session = open_cached(linear, options, folder)

    assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].shape == (1, 3)
    assert not folder.exists()


def test_what_cannot_be_loaded_leaves_nothing_behind(tmp_path: Path, folder: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")

    with pytest.raises(Exception, match=r"broken\.onnx"):
        open_cached(broken, options, folder)

    assert graphs(folder) == []


def test_graphs_that_nobody_has_used_for_long_are_deleted(linear: Path, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    old, used = folder / "old.onnx", folder / "used.onnx"
    for file, age_s in ((old, KEPT_S + 60), (used, KEPT_S - 60)):
        file.touch()
        os.utime(file, (time.time() - age_s,) * 2)

    open_cached(linear, options, folder)

    assert not old.exists()
    assert used.exists()


async def test_a_model_that_says_so_is_kept_in_the_users_cache(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    batch = Batch.of({"x": Tensor.of(np.ones((2, 4), np.float32))})

    for _ in range(2):
        backend = await open_onnx("m", OnnxOptions(linear, graph_cache=True))
        outputs = await backend.infer(batch, NO_DEADLINE)
        await backend.aclose()
        assert outputs["y"].shape == (2, 3)

    assert default_folder() == tmp_path / "cache" / "pointsman" / "graphs"
    assert len(graphs(default_folder())) == 1
