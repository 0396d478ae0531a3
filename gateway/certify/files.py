"""Files of labelled scores: what every stage of a cascade said of items whose truth is known.

    score_fast,right_fast,score_strong,right_strong,split
    0.91,1,0.97,1,certify
    0.40,0,,,fit

One row an item. For each stage, from cheap to strong in the order of the columns, `score_STAGE` says how sure it was
and `right_STAGE` whether it was right (1 or 0, true or false); a single stage may go by `score` and `right` alone. An
empty score means that the stage never saw the item, `nan` that it saw it and had no confidence. `split`, where there is
one, says `fit` of the rows that calibrators are fitted on, and `certify` of the others. Other columns are ignored.

CSV is read by the standard library, JSON Lines by orjson, Parquet by pyarrow where it is installed.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

FIT, CERTIFY = "fit", "certify"

_SCORE, _RIGHT = "score", "right"
_TRUE, _FALSE = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false"})


class ScoresError(ValueError):
    """A file of scores cannot be used; the message names the file, the row and the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledScores:
    """The rows of a file.

    Attributes:
        stages: their names, from cheap to strong.
        scores: (stages, n), as the file states them, calibrated or not; NaN where there is none.
        right: (stages, n), whether the stage was right.
        ran: (stages, n), whether the stage saw the item.
        fit: (n,), rows that calibrators may be fitted on, and that certify nothing.
        has_split: the file says which those are.
    """

    stages: tuple[str, ...]
    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    ran: NDArray[np.bool_]
    fit: NDArray[np.bool_]
    has_split: bool


def read_scores(path: Path) -> LabelledScores:
    """Read *path*, whose suffix says what it is: `.csv`, `.jsonl` or `.parquet`.

    Raises:
        ScoresError: it cannot be read, or a cell is not what its column says.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ScoresError(f"{path}: {path.suffix or 'no suffix'} is not read; write .csv, .jsonl or .parquet")
    try:
        columns = reader(path)
    except OSError as error:
        raise ScoresError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise ScoresError(f"{path} is not UTF-8; save it as UTF-8") from error
    return _labelled(path, columns)


def _labelled(path: Path, columns: Mapping[str, Sequence[Any]]) -> LabelledScores:
    stages = _stages(path, columns)
    if not next(iter(columns.values())):
        raise ScoresError(f"{path} has no rows; write one for each labelled item")
    scores, right, ran = (np.array(rows) for rows in zip(*(_stage(path, columns, s) for s in stages), strict=True))
    return LabelledScores(stages, scores, right, ran, _fit_rows(path, columns), "split" in columns)


def _stages(path: Path, columns: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    if _SCORE in columns and _RIGHT in columns:
        return ("",)
    stages = tuple(name.removeprefix(f"{_SCORE}_") for name in columns if name.startswith(f"{_SCORE}_"))
    if not stages:
        raise ScoresError(f"{path} has no column score_STAGE or score; its columns are {', '.join(columns) or 'none'}")
    for stage in stages:
        if f"{_RIGHT}_{stage}" not in columns:
            raise ScoresError(f"{path} has score_{stage} and no right_{stage}; add it: 1 where the stage was right")
    return stages


def _stage(
    path: Path, columns: Mapping[str, Sequence[Any]], stage: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Scores (n,), whether the stage was right (n,), and whether it saw the item (n,)."""
    suffix = f"_{stage}" if stage else ""
    score_column, right_column = f"{_SCORE}{suffix}", f"{_RIGHT}{suffix}"
    written = columns[score_column]
    ran = np.array([not _is_empty(cell) for cell in written])
    scores = [_score(path, score_column, row, cell) for row, cell in enumerate(written)]
    right = [
        seen and _right(path, right_column, row, cell)
        for row, (seen, cell) in enumerate(zip(ran.tolist(), columns[right_column], strict=True))
    ]
    return np.array(scores, dtype=np.float64), np.array(right, dtype=bool), ran


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == ""


def _score(path: Path, column: str, row: int, cell: Any) -> float:
    if _is_empty(cell):
        return math.nan
    try:
        score = float(cell)
    except (TypeError, ValueError):
        raise _wrong(path, column, row, cell, "a number, nan or nothing") from None
    if math.isinf(score):
        raise _wrong(path, column, row, cell, "a finite number")
    return score


def _right(path: Path, column: str, row: int, cell: Any) -> bool:
    text = str(cell).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise _wrong(path, column, row, cell, "1 or 0: whether the stage was right")


def _fit_rows(path: Path, columns: Mapping[str, Sequence[Any]]) -> NDArray[np.bool_]:
    count = len(next(iter(columns.values())))
    if "split" not in columns:
        return np.zeros(count, dtype=bool)
    for row, cell in enumerate(columns["split"]):
        if cell not in (FIT, CERTIFY):
            raise _wrong(path, "split", row, cell, f"{FIT} or {CERTIFY}")
    return np.array([cell == FIT for cell in columns["split"]])


def _wrong(path: Path, column: str, row: int, cell: Any, wanted: str) -> ScoresError:
    shown = repr(cell) if len(repr(cell)) <= 60 else repr(cell)[:57] + "..."
    return ScoresError(f"{path}: row {row + 1}, column {column} is {shown}; write {wanted}")


# --- formats: columns by name, cells as they stand (Any) ---


def _read_csv(path: Path) -> Mapping[str, Sequence[Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        try:
            names = [name.strip() for name in next(rows, [])]
            _check_names(path, names)
            return _by_column(path, names, list(rows))
        except csv.Error as error:
            raise ScoresError(f"{path}: line {rows.line_num} is no CSV ({error}); correct it") from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ScoresError(f"{path} has the column {twice[0]!r} twice; keep one of them")


def _by_column(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Mapping[str, Sequence[Any]]:
    rows = [row for row in rows if row]
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ScoresError(f"{path}: row {number + 1} has {len(row)} cells, and there are {len(names)} columns")
    return {name: [row[index].strip() for row in rows] for index, name in enumerate(names)}


def _read_json_lines(path: Path) -> Mapping[str, Sequence[Any]]:
    rows = list(_objects(path, path.read_bytes().splitlines()))
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _objects(path: Path, lines: Iterable[bytes]) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ScoresError(f"{path}: line {number + 1} is no JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise ScoresError(f"{path}: line {number + 1} is no JSON object; write one object a line")
        yield row


def _read_parquet(path: Path) -> Mapping[str, Sequence[Any]]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ScoresError(f"{path}: Parquet needs pyarrow: pip install 'pointsman[certify]'") from error
    try:
        table: Mapping[str, Sequence[Any]] = parquet.read_table(path).to_pydict()
    except arrow.ArrowException as error:
        raise ScoresError(f"{path} is no Parquet file ({error}); write it again") from error
    return table


_READERS = {".csv": _read_csv, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".parquet": _read_parquet}
