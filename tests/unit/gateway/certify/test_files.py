"""Files of labelled scores are read as they are written, and what is wrong in them is told with its row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.certify.files import ScoresError, read_scores

ROWS: list[dict[str, Any]] = [
    {"id": "a", "score_fast": 0.9, "right_fast": 1, "score_strong": 0.5, "right_strong": 0, "split": "certify"},
    {"id": "b", "score_fast": math.nan, "right_fast": 0, "score_strong": 0.7, "right_strong": 1, "split": "fit"},
    {"id": "c", "score_fast": 0.4, "right_fast": 0, "score_strong": None, "right_strong": None, "split": "certify"},
]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"scores{suffix}"
    if suffix == ".csv":
        lines = [",".join(ROWS[0])]
        lines += [",".join("" if cell is None else str(cell) for cell in row.values()) for row in ROWS]
        path.write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        rows = [{key: "nan" if cell != cell else cell for key, cell in row.items()} for row in ROWS]
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_says_the_same(tmp_path: Path, suffix: str) -> None:
    found = read_scores(write(tmp_path, suffix))

    assert found.stages == ("fast", "strong")
    np.testing.assert_array_equal(found.scores, [[0.9, math.nan, 0.4], [0.5, 0.7, math.nan]])
    np.testing.assert_array_equal(found.right, [[True, False, False], [False, True, False]])
    np.testing.assert_array_equal(found.ran, [[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(found.fit, [False, True, False])
    assert found.has_split


def test_a_single_stage_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("score,right\n0.5,true\n-3,FALSE\n")

    found = read_scores(path)

    assert (found.stages, found.has_split) == (("",), False)
    np.testing.assert_array_equal(found.scores, [[0.5, -3.0]])
    np.testing.assert_array_equal(found.right, [[True, False]])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "a.txt: .txt is not read; write .csv, .jsonl or .parquet"),
        ("a", b"", "a: no suffix is not read; write .csv, .jsonl or .parquet"),
        ("a.csv", b"", "a.csv has no column score_STAGE or score; its columns are none"),
        ("a.csv", b"score,right\n", "a.csv has no rows; write one for each labelled item"),
        ("a.csv", b"x,y\n1,2\n", "a.csv has no column score_STAGE or score; its columns are x, y"),
        ("a.csv", b"score_a\n1\n", "a.csv has score_a and no right_a; add it: 1 where the stage was right"),
        ("a.csv", b"score,score,right\n", "a.csv has the column 'score' twice; keep one of them"),
        ("a.csv", b"score,right\n1,1\n1\n", "a.csv: row 2 has 1 cells, and there are 2 columns"),
        ("a.csv", b"score,right\n1,1\nx,1\n", "row 2, column score is 'x'; write a number, nan or nothing"),
        ("a.csv", b"score,right\ninf,1\n", "row 1, column score is 'inf'; write a finite number"),
        ("a.csv", b"score,right\n1,2\n", "row 1, column right is '2'; write 1 or 0: whether the stage was right"),
        ("a.csv", b"score,right\n1,\n", "row 1, column right is ''; write 1 or 0: whether the stage was right"),
        ("a.csv", b"score,right,split\n1,1,test\n", "row 1, column split is 'test'; write fit or certify"),
        ("a.csv", b"score,right\n\xff,1\n", "is not UTF-8; save it as UTF-8"),
        ("a.csv", b'score,right\n"' + b"1" * 200_000 + b'",1\n', "line 2 is no CSV"),
        ("a.jsonl", b"{}\n[1]\n", "line 2 is no JSON object; write one object a line"),
        ("a.jsonl", b"{", "line 1 is no JSON"),
        ("a.parquet", b"nothing", "is no Parquet file"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ScoresError) as caught:
        read_scores(tmp_path / name)

    assert told in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="cannot be read"):
        read_scores(tmp_path / "none.csv")


def test_parquet_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ".parquet")
    monkeypatch.setattr("gateway.certify.files.import_module", _missing)

    with pytest.raises(ScoresError, match=r"pip install 'pointsman\[certify\]'"):
        read_scores(path)


def _missing(name: str) -> None:
    raise ModuleNotFoundError(name)
