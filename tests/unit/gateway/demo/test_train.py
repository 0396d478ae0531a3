"""What is trained is the same in every run, and what is exported answers as what was fitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from gateway.certify.files import read_scores
from gateway.demo import models
from gateway.demo.data import Digits, Snippet
from gateway.demo.items import Item, read_items, write_items
from gateway.demo.run import own_configuration
from gateway.demo.train import (
    CONFIG,
    Sizes,
    TrainedModel,
    as_decoded,
    build_digits,
    build_feedback,
    configuration,
    plan_of,
    run_model,
)
from kernels.decode import decode
from router.calibration import Calibration, Temperature
from router.certification import Budget

SMALL = Sizes(digits_train=100, digits_calibration=200, feedback_train=80, feedback_calibration=80)
LENIENT = 0.5
"""An error rate that small models keep too."""

AGREEMENT = 1e-4


def _quiet(step: str) -> None:
    pass


def _texts(snippets: tuple[Snippet, ...]) -> NDArray[Any]:
    return np.stack([decode("utf8", snippet.text.encode()) for snippet in snippets])


def test_digits_are_trained_alike_in_every_run(digits: Digits, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    first, second = (build_digits(folder, digits, SMALL, LENIENT, _quiet) for folder in (one, two))

    assert first.selection == second.selection
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name
    assert len(first.held_out) == 5000 - 100 - 200
    assert {item.content_type for item in first.held_out} == {"image/png"}


def test_feedback_is_built_from_its_two_models(
    snippets: tuple[Snippet, ...], encoder: bytes, tokenizer: bytes, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)

    built = build_feedback(tmp_path, snippets[::10], encoder, SMALL, LENIENT, _quiet)

    assert built.budget == Budget(LENIENT, 0.95)
    assert built.selection.threshold is not None
    scores = read_scores(tmp_path / "feedback.calibration.csv")
    assert (scores.stages, scores.scores.shape, scores.fit.sum()) == (("fast", "strong"), (2, 80), 40)
    assert len(built.held_out) == len(snippets[::10]) - 80 - 80
    assert all(item.votes for item in built.held_out)
    calibration = Calibration.from_dict(json.loads((tmp_path / "feedback-strong.json").read_text()))
    assert isinstance(calibration.calibrator, Temperature)
    assert (calibration.model, calibration.version, calibration.fitted_on) == ("feedback-strong", "1", 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "feedback-fast.json",
        "feedback-fast.onnx",
        "feedback-strong.json",
        "feedback-strong.onnx",
        "feedback.calibration.csv",
        "tokenizer.json",
    ]


def test_exported_linear_digits_answer_as_fitted(digits: Digits, tmp_path: Path) -> None:
    plan = plan_of("digits-fast", tmp_path)
    features = np.asarray(plan({"image": as_decoded(digits.images[::10])})["image"])
    fitted = models.fit_linear(features, digits.labels[::10], strength=0.3)

    exported = TrainedModel("digits-fast", models.export_dense(fitted, "image", 196, 10), plan)

    answers = run_model(exported, as_decoded(digits.images[5::50]))
    expected = fitted.predict_proba(_means(digits.images[5::50]))
    assert np.abs(answers - expected).max() < AGREEMENT


def _means(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """14x14 means as the plan makes them, written down directly: rounded to whole grey levels, halves up."""
    blocks = images.reshape(-1, 14, 2, 14, 2).astype(np.float64).mean(axis=(2, 4))
    levels: NDArray[np.float32] = np.floor(blocks + 0.5).astype(np.float32)
    return levels.reshape(-1, 196) / np.float32(255)


def test_an_exported_perceptron_answers_as_fitted(digits: Digits, tmp_path: Path) -> None:
    plan = plan_of("digits-strong", tmp_path)
    pixels = np.asarray(plan({"image": as_decoded(digits.images[::20])})["image"])
    fitted = models.fit_perceptron(pixels, digits.labels[::20], seed=1)

    exported = TrainedModel("digits-strong", models.export_dense(fitted, "image", 784, 10), plan)

    expected = fitted.predict_proba((digits.images[5::50] / 255).reshape(-1, 784).astype(np.float32))
    assert np.abs(run_model(exported, as_decoded(digits.images[5::50])) - expected).max() < AGREEMENT


def test_exported_words_answer_as_fitted(snippets: tuple[Snippet, ...], tmp_path: Path) -> None:
    odd = (Snippet("", (0,)), Snippet("!!! £ é 1st_place", (0,)))
    labels = np.array([snippet.label for snippet in snippets[::8]])
    fitted = models.fit_words([snippet.text.lower() for snippet in snippets[::8]], labels)

    exported = TrainedModel("feedback-fast", models.export_words(fitted, "text", 3), plan_of("feedback-fast", tmp_path))

    tried = (*snippets[1::40], *odd)
    expected = fitted.predict_proba([snippet.text.lower() for snippet in tried])
    assert np.abs(run_model(exported, _texts(tried)) - expected).max() < AGREEMENT


def test_the_joined_sentence_model_pools_normalises_and_classifies(
    snippets: tuple[Snippet, ...], encoder: bytes, tokenizer: bytes, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    plan = plan_of("feedback-strong", tmp_path)
    texts, labels = _texts(snippets[:24]), np.array([snippet.label for snippet in snippets[:24]])

    pooled = models.with_pooling(encoder)
    embeddings = run_model(TrainedModel("encoder", pooled, plan), texts)
    head = models.fit_linear(embeddings, labels, strength=1.0)
    joined = TrainedModel("feedback-strong", models.with_head(pooled, head), plan)

    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(24), abs=1e-5)
    assert np.abs(run_model(joined, texts) - head.predict_proba(embeddings)).max() < AGREEMENT
    # An answer does not depend on the messages beside it, and so not on how they were padded.
    assert np.abs(run_model(joined, texts[:1]) - run_model(joined, texts)[:1]).max() < AGREEMENT


def test_shifting_moves_by_one_pixel_and_keeps_the_middle() -> None:
    image = np.zeros((1, 3, 3), dtype=np.uint8)
    image[0, 1, 1] = 9

    moved = models.shifted(image)

    assert sorted(np.argwhere(moved == 9)[:, 1:].tolist()) == [[y, x] for y in range(3) for x in range(3)]


def test_items_are_read_as_written(tmp_path: Path) -> None:
    items = (
        Item("digits", "image/png", b"\x89PNG\n\r", "7"),
        Item("feedback", "text/plain", "naïve\n".encode(), "neutral", ("neutral", "positive")),
    )

    write_items(tmp_path / "items.jsonl", items)

    assert read_items(tmp_path / "items.jsonl") == items


def test_a_run_names_files_in_full_and_has_a_store_of_its_own(tmp_path: Path) -> None:
    prepared, run = tmp_path / "prepared", tmp_path / "run"
    prepared.mkdir()
    budgets = {"digits": Budget(0.02, 0.95), "feedback": Budget(0.2, 0.9)}
    (prepared / CONFIG).write_text(yaml.safe_dump(configuration(budgets, certified=True)))

    own = own_configuration(prepared, run)

    assert own["models"]["digits-fast"]["path"] == str(prepared / "digits-fast.onnx")
    assert own["models"]["feedback-strong"]["preprocess"][0]["tokenize"]["file"] == str(prepared / "tokenizer.json")
    assert own["models"]["feedback-fast"]["calibration"] == str(prepared / "feedback-fast.json")
    assert own["store"]["path"] == str(run / "demo.db")
    assert own["routes"]["digits"]["accept"]["certificate"] == str(prepared / "digits.certificate.json")
    assert own["routes"]["intake"] == configuration(budgets)["routes"]["intake"]
