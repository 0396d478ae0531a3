"""`pointsman certify` and `pointsman calibrate`, as they are typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gateway.certificates import subject_of
from gateway.cli import main
from gateway.settings import load_settings
from router.calibration import Calibration, Isotonic
from router.certificate import Certificate
from router.confidence import Measure
from tests.unit.gateway.test_certificates import CERTIFIED


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_scores(
    path: Path, count: int = 3000, *, raw: bool = False, stages: tuple[str, ...] = ("fast", "strong")
) -> Path:
    """Items whose stages are right as often as they say: the square of what they say where *raw*."""
    rng = np.random.default_rng(7)
    columns, header = [], []
    for stage in stages:
        confidence = 1.0 - rng.random(count) ** 2 * 0.6
        columns += [np.sqrt(confidence) if raw else confidence, rng.random(count) < confidence]
        header += [f"score_{stage},right_{stage}"]
    rows = [",".join(f"{float(cell):.6f}" if isinstance(cell, float) else f"{cell:d}" for cell in row) for row in
            zip(*(column.tolist() for column in columns), strict=True)]  # fmt: skip
    path.write_text("\n".join([",".join(header), *rows]) + "\n")
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return write_scores(tmp_path / "scores.csv")


def test_a_threshold_is_certified_with_what_proves_it(scores: Path) -> None:
    result = run("certify", scores, "--max-error", "5%", "--confidence", "95%")

    assert result.exit_code == 0, result.output
    assert "3,000 labelled items, 2 stages (fast, strong)" in result.output
    assert "certified: of what is accepted at most 5.00% is wrong, 95.0% sure" in result.output
    assert "accept from confidence 0.8" in result.output
    assert "answered by fast" in result.output


def test_json_tells_the_choice_the_curves_and_the_stages(scores: Path) -> None:
    told = json.loads(run("certify", scores, "--max-error", "0.05", "--json").output)

    assert told["certified"] is True
    assert told["wrong"] / told["accepted"] <= told["bound"] <= told["max_error"] == 0.05
    assert told["coverage"] == pytest.approx(sum(told["by_stage"].values()))
    curve = told["risk_coverage"]
    assert len(curve["threshold"]) == len(curve["risk"]) == len(curve["coverage"]) <= 200
    assert curve["coverage"] == sorted(curve["coverage"])
    assert sum(told["reliability"]["fast"]["count"]) == 3000
    assert told["certificate"] is None


def test_a_budget_that_cannot_be_proven_ends_with_1_and_says_what_would_do(scores: Path) -> None:
    result = run("certify", scores, "--max-error", "0.01%")

    assert result.exit_code == 1
    assert result.output.splitlines()[1].startswith("not certified: ")
    assert json.loads(run("certify", scores, "--max-error", "0.01%", "--json").output)["threshold"] is None


def test_a_plot_is_drawn(scores: Path, tmp_path: Path) -> None:
    result = run("certify", scores, "--max-error", "5%", "--plot", tmp_path / "plot.png")

    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 800
    assert "cannot be written" in run("certify", scores, "--max-error", "5%", "--plot", tmp_path / "plot.none").output


def test_raw_scores_are_calibrated_on_rows_of_their_own(tmp_path: Path) -> None:
    raw = write_scores(tmp_path / "raw.csv", raw=True)

    told = json.loads(run("certify", raw, "--max-error", "5%", "--fit", "50%", "--seed", "3", "--json").output)

    assert (told["items"], told["certified"]) == (1500, True)
    bins = told["reliability"]["fast"]
    gaps = [count * abs(stated - true) for stated, true, count in zip(*bins.values(), strict=True)]
    assert sum(gaps) / 1500 < 0.04


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        (
            "score,right\n3,1\n2,0\n",
            (),
            "calibrate the scores first: mark rows as fit in a column split, or give --fit",
        ),
        ("score,right,split\n.3,1,fit\n", (), "all rows fit calibrators, and none is left to certify"),
        ("score,right,split\n.3,1,fit\n.3,1,certify\n", ("--fit", "50%"), "leave --fit out"),
        ("score,right,split\nnan,1,fit\n.3,1,certify\n", (), "stage 'score' has no score among the rows that fit"),
    ],
)
def test_scores_that_cannot_certify_say_why(tmp_path: Path, text: str, arguments: tuple[str, ...], told: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)

    result = run("certify", path, "--max-error", "5%", *arguments)

    assert result.exit_code == 2
    assert told in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give SCORES, or --route and --config, or all of them"),
        (("--route", "words"), "give SCORES, or --route and --config, or all of them"),
        (("none.csv",), "--max-error is missing"),
        (("none.csv", "--max-error", "2"), "use a share between 0% and 100%"),
        (("none.csv", "--max-error", "1%"), "none.csv cannot be read"),
        (("none.csv", "--confidence", "90%"), "--confidence belongs to --max-error"),
        (("--route", "r", "--config", "none.yaml", "--valid", "soon"), "is not a duration"),
        (("--route", "r", "--config", "none.yaml", "--valid", "0"), "--valid is 0; give a time"),
        (("none.csv", "--max-error", "1%", "--out", "c.json"), "--out belongs to --route; leave it out"),
        (("none.csv", "--max-error", "1%", "--missing", "drop"), "--missing is about the store; leave it out"),
        (("--route", "r", "--config", "none.yaml", "--fit", "50%"), "--fit is about SCORES; leave it out"),
    ],
)
def test_what_is_typed_wrongly_is_told(arguments: tuple[str, ...], told: str) -> None:
    result = run("certify", *arguments)

    assert result.exit_code != 0
    assert told in result.output


# --- for a route ---


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(CERTIFIED)
    return path


def test_a_file_certifies_a_route_before_it_has_ever_served(tmp_path: Path, scores: Path, config: Path) -> None:
    out = tmp_path / "words.certificate.json"

    result = run("certify", scores, "--route", "words", "--config", config, "--valid", "7d", "--out", out, "--json")

    assert result.exit_code == 0, result.output
    certificate = Certificate.from_dict(json.loads(out.read_text()))
    settings = load_settings(config)
    subject = subject_of(settings.routes["words"], settings.models, {"fast": "1", "strong": "1"})
    assert certificate.covers(subject, certificate.created_s) is None
    assert (certificate.max_error, certificate.valid_until_s - certificate.created_s) == (0.05, 7 * 86_400.0)
    assert certificate.evidence.startswith("scores.csv, sha256 ")
    assert json.loads(result.output)["certificate"]["id"] == certificate.id
    config.write_text(CERTIFIED.replace("max_error: 5%", f"max_error: 5%, certificate: {out.name}"))
    assert run("check", config, "--load").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--route", "nowhere"), "there is no route 'nowhere' with models; known: words, alone"),
        (("--route", "alone"), "route 'alone' states no max_error; give --max-error"),
        (("--route", "words", "--fit", "50%"), "a route's scores go through its models' own calibrations"),
    ],
)
def test_a_route_that_cannot_be_certified_says_why(
    scores: Path, config: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = run("certify", scores, "--config", config, *arguments)

    assert result.exit_code == 2
    assert told in result.output


def test_scores_of_other_stages_are_refused(tmp_path: Path, config: Path) -> None:
    other = write_scores(tmp_path / "other.csv", 100, stages=("fast", "slow"))

    result = run("certify", other, "--config", config, "--route", "words")

    assert "has scores of fast, slow; route 'words' runs fast, strong" in result.output


# --- calibrate ---


def test_a_calibration_is_fitted_and_tested_on_other_rows(tmp_path: Path) -> None:
    raw = write_scores(tmp_path / "raw.csv", raw=True)
    lines = raw.read_text().splitlines()
    split = [f"{line},{'fit' if number % 2 else 'certify'}" for number, line in enumerate(lines[1:])]
    raw.write_text("\n".join([lines[0] + ",split", *split]))
    out = tmp_path / "fast.json"

    result = run("calibrate", raw, "--stage", "fast", "--model", "fast", "--version", "1", "--out", out)

    assert result.exit_code == 0, result.output
    fitted = Calibration.from_dict(json.loads(out.read_text()))
    assert isinstance(fitted.calibrator, Isotonic)
    assert (fitted.how, fitted.fitted_on, fitted.model, fitted.version) == (Measure(), 1500, "fast", "1")
    found = re.search(r"calibration error (\S+) before, (\S+) after, on 1,500 rows", result.output)
    assert found is not None
    assert float(found[2]) < float(found[1])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "has several stages; name one with --stage: fast, strong"),
        (("--stage", "slow"), "has no stage 'slow'; known: fast, strong"),
        (("--stage", "fast", "--measure", "best"), "confidence 'best' is unknown"),
    ],
)
def test_a_calibration_that_cannot_be_fitted_says_why(scores: Path, arguments: tuple[str, ...], told: str) -> None:
    result = run("calibrate", scores, "--model", "m", "--version", "1", "--out", scores.parent / "c.json", *arguments)

    assert result.exit_code == 1
    assert told in result.output


def test_a_certificate_counts_only_when_everything_else_is_done(tmp_path: Path, scores: Path, config: Path) -> None:
    nowhere = tmp_path / "nowhere" / "plot.png"

    result = run("certify", scores, "--route", "words", "--config", config, "--plot", nowhere)

    assert result.exit_code == 2
    assert "cannot be written" in result.output
    assert not (tmp_path / "store.db").exists()
