"""Do certified thresholds keep their promise, and what do they cost? On real labelled data, over many random splits.

    python -m loadtests.experiments.certification [--only NAME]... [--splits N] [--scores DIR] [--out DIR]

**Protocol.** A table's rows that fitted neither models nor calibrators are the population. A split draws labelled items
from it, independently and with replacement, and every method chooses a threshold on them; what that is worth is then
computed on the whole population, so that its true error and coverage are known exactly. A method *violates* the budget
in a split where the true error of what it accepts exceeds `max_error`; accepting nothing violates nothing. The share of
splits with a violation must be at most 1 - `confidence`; exact binomial intervals tell what the number of splits can
tell. All methods see the same splits.

**Methods** choose one threshold for the route as one: the strong stage alone, and the cascade. **Practices** choose one
for each stage of the cascade; for those it is also told how often what some stage accepts is over the budget, which is
what certifying stage by stage promises.

Limits: draws from a table are independent by construction; real traffic is not, and drifts. Nothing here tells of that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtests.experiments.baselines import (
    CANDIDATES,
    METHODS,
    SGR,
    Practice,
    as_one,
    as_one_unseen,
    each_on_all,
    each_on_its_own,
    empirical,
)
from loadtests.experiments.certification_report import draw_curves, draw_methods, text_of
from loadtests.experiments.scores_data import Population, census_population, demo_population, prepared_folder
from router.binomial import is_rejected, upper_bound
from router.certification import Budget, Scores, accepted_and_wrong, risk_coverage

SEED = 20_250_103
CONFIDENCE = 0.95
PROCESSES = 2
CHUNK = 50  # splits a task
PRACTICE_LABELS = 5_000  # practices are compared up to so many labels
UNSEEN_SHARES = (0.15, 0.3)  # of the items that the first stage kept to itself while labels were gathered
SGR_WEAK, SGR_FACTOR = 0.8, 1.1  # where SGR covers less of the oracle's, ours must cover so many times SGR's


class Study(NamedTuple):
    """What one table is asked: budgets, and numbers of labelled items."""

    max_errors: tuple[float, ...]
    labels: tuple[int, ...]


STUDIES = {
    "digits": Study((0.02,), (1_000, 5_000)),
    "feedback": Study((0.2,), (1_000, 5_000)),
    "census": Study((0.05, 0.1), (1_000, 5_000, 50_000)),
}


class Case(NamedTuple):
    """Who chose thresholds for what: one row of a result."""

    system: str
    max_error: float
    labels: int
    who: str


Chosen = dict[Case, list[tuple[float, ...]]]
"""By case, the thresholds of each split: one for all stages, or one for each."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Some splits of one size."""

    population: Population
    max_errors: tuple[float, ...]
    labels: int
    splits: range


def systems(population: Population) -> dict[str, Population]:
    """What is certified: the strong stage alone, and the cascade."""
    return {"strong alone": population.stage(-1), "cascade": population}


def practices(population: Population) -> dict[str, Practice]:
    """How the cascade's thresholds are chosen stage by stage, or as one, on labels that are whole or not."""
    found: dict[str, Practice] = {"as one": as_one}
    for share in UNSEEN_SHARES:
        passed_below = float(np.quantile(population.scores.confidence[0], 1.0 - share))
        found[f"as one, stage 2 never saw the surest {share:.0%} of stage 1"] = as_one_unseen(passed_below)
    return {
        **found,
        "each stage on what it sees, at a share of the level": each_on_its_own,
        "wrong: each stage on all items": each_on_all,
    }


def choose(task: Task) -> Chosen:
    """Draw the splits of *task*, and let everybody choose."""
    chosen: Chosen = {}
    for split in task.splits:
        rng = np.random.default_rng((SEED, task.labels, split))
        drawn = rng.integers(0, task.population.scores.items, task.labels)
        for case, thresholds in _choices(task, drawn):
            chosen.setdefault(case, []).append(thresholds)
    return chosen


def _choices(task: Task, drawn: NDArray[np.int64]) -> Iterator[tuple[Case, tuple[float, ...]]]:
    for system, population in systems(task.population).items():
        curve = risk_coverage(_items(population.scores, drawn))
        for max_error in task.max_errors:
            for name, method in METHODS.items():
                threshold = method(curve, Budget(max_error, CONFIDENCE))
                yield Case(system, max_error, task.labels, name), (threshold,)
    if task.labels <= PRACTICE_LABELS:
        scores = _items(task.population.scores, drawn)
        for max_error in task.max_errors:
            for name, practice in practices(task.population).items():
                yield Case("practice", max_error, task.labels, name), practice(scores, Budget(max_error, CONFIDENCE))


def _items(scores: Scores, drawn: NDArray[np.int64]) -> Scores:
    return Scores(scores.confidence[:, drawn], scores.right[:, drawn])


class Truth(NamedTuple):
    """What thresholds are worth: (splits,) each.

    Attributes:
        coverage: share of the population that is accepted.
        violated: whether the error of all that is accepted is above the budget.
        stage_violated: whether the error of what some stage accepts is; as *violated* where stages have no say.
    """

    coverage: NDArray[np.float64]
    violated: NDArray[np.bool_]
    stage_violated: NDArray[np.bool_]


def worth(population: Population, max_error: float, thresholds: NDArray[np.float64]) -> Truth:
    """The truth about (splits, 1) thresholds of the route as one, or (splits, stages) of its stages."""
    known, position = np.unique(thresholds, axis=0, return_inverse=True)
    if known.shape[1] == 1:
        accepted, wrong = (counts[:, None] for counts in accepted_and_wrong(population.scores, known[:, 0]))
    else:
        accepted, wrong = _by_stage(population.scores, known)
    accepted_in_all: NDArray[np.int64] = accepted.sum(axis=1)
    violated = np.greater(wrong.sum(axis=1), max_error * accepted_in_all)
    by_stage = np.greater(wrong, max_error * accepted).any(axis=1)
    return Truth((accepted_in_all / population.scores.items)[position], violated[position], by_stage[position])


def _by_stage(scores: Scores, thresholds: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Accepted and wrong items, (rows of *thresholds*, stages) each."""
    accepted = np.zeros(thresholds.shape, dtype=np.int64)
    wrong = np.zeros_like(accepted)
    for row, by_stage in enumerate(thresholds):
        still_open = np.ones(scores.items, dtype=bool)
        for stage, threshold in enumerate(by_stage):
            accepts = still_open & (scores.confidence[stage] >= threshold)
            accepted[row, stage] = accepts.sum()
            wrong[row, stage] = (accepts & ~scores.right[stage]).sum()
            still_open &= ~accepts
    return accepted, wrong


def row_of(population: Population, case: Case, thresholds: list[tuple[float, ...]]) -> dict[str, Any]:
    """One row of the results (Any: JSON)."""
    judged = systems(population).get(case.system, population)
    truth = worth(judged, case.max_error, np.array(thresholds))
    best = empirical(risk_coverage(judged.scores), Budget(case.max_error, CONFIDENCE))
    oracle = worth(judged, case.max_error, np.array([[best]]))
    splits, violations = len(thresholds), int(truth.violated.sum())
    return {
        "table": population.name,
        **case._asdict(),
        "splits": splits,
        "violations": violations,
        "violations_low": 1.0 - upper_bound(splits - violations, splits, 0.975),
        "violations_high": upper_bound(violations, splits, 0.975),
        "stage_violations": int(truth.stage_violated.sum()),
        "keeps_promise": not is_rejected(violations, splits, 1.0 - CONFIDENCE),
        "coverage": float(truth.coverage.mean()),
        "coverage_p5": float(np.quantile(truth.coverage, 0.05)),
        "coverage_p95": float(np.quantile(truth.coverage, 0.95)),
        "nothing": float(np.isinf(thresholds).all(axis=1).mean()),
        "oracle": float(oracle.coverage[0]),
    }


def study(population: Population, asked: Study, splits: int, workers: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """All rows of one table."""
    tasks = [
        Task(population, asked.max_errors, labels, range(start, min(start + CHUNK, splits)))
        for labels in asked.labels
        for start in range(0, splits, CHUNK)
    ]
    chosen: Chosen = {}
    for part in workers.map(choose, tasks):
        for case, thresholds in part.items():
            chosen.setdefault(case, []).extend(thresholds)
    return [row_of(population, case, thresholds) for case, thresholds in chosen.items()]


def goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside SGR, case by case, and what was aimed at."""
    by_case = {tuple(row[name] for name in ("table", *Case._fields)): row for row in rows}
    compared = []
    for row in rows:
        if row["who"] not in CANDIDATES:
            continue
        place = {name: row[name] for name in ("table", "system", "max_error", "labels")}
        covered = by_case[*place.values(), SGR]["coverage"]
        share = covered / row["oracle"] if row["oracle"] else 1.0
        aimed_at = SGR_FACTOR if share < SGR_WEAK else 1.0
        compared.append(
            {
                **place,
                "who": row["who"],
                "keeps_promise": row["keeps_promise"],
                "sgr_of_oracle": share,
                "times_sgr": row["coverage"] / covered if covered else None,
                "aimed_at": aimed_at,
                "reached": row["coverage"] >= aimed_at * covered,
            }
        )
    return compared


def machine() -> dict[str, Any]:
    """Where and with what the results came about."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "pyarrow")},
    }


def populations(only: Sequence[str], folder: Path | None) -> Iterator[Population]:
    """The tables that are asked for; the demo is prepared only where one of its own is and no *folder* is given."""
    for name in only:
        if name == "census":
            yield census_population()
        else:
            folder = folder or prepared_folder()
            yield demo_population(name, folder)


def measure(tables: Sequence[Population], splits: int) -> dict[str, Any]:
    """The whole experiment."""
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    # Training has started threads, which a forked process would not have.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as workers:
        for population in tables:
            rows += study(population, STUDIES[population.name], splits, workers)
            print(f"{population.name}: done after {time.monotonic() - started:.0f} s", flush=True)
    return {
        **machine(),
        "seed": SEED,
        "confidence": CONFIDENCE,
        "splits": splits,
        "seconds": round(time.monotonic() - started),
        "tables": [
            {
                "name": population.name,
                "stages": population.stages,
                "items": population.scores.items,
                "fitted_on": population.fitted_on,
                "accuracy": population.accuracy,
            }
            for population in tables
        ],
        "goals": goals(rows),
        "rows": rows,
    }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(STUDIES), help="a table (default: all)")
    parser.add_argument("--splits", type=int, default=1_000, metavar="N")
    parser.add_argument("--scores", type=Path, metavar="DIR", help="what the demo prepared (default: it is asked to)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="a folder")
    arguments = parser.parse_args()
    tables = list(populations(arguments.only or tuple(STUDIES), arguments.scores))
    report = measure(tables, arguments.splits)
    arguments.out.mkdir(parents=True, exist_ok=True)
    place = arguments.out / "certification"
    place.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    place.with_suffix(".md").write_text(text_of(report))
    draw_methods(report, place.with_suffix(".png"))
    draw_curves(
        tables, {name: asked.max_errors for name, asked in STUDIES.items()}, arguments.out / "certification-curves.png"
    )
    print(place.with_suffix(".md"))


if __name__ == "__main__":
    main()
