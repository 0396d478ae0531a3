"""The model of what clusters carry: what it says by its assumptions, and that the committed results can feed it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from loadtests.capacity import BUSY, RESULTS, SPARE, Measured, carried, measured, report

FIGURES = Measured(gateway_us=200.0, model_us=9800.0, deferrals_per_s=4000.0, records_per_s=40_000.0)


def test_nodes_carry_what_their_cores_have_time_for() -> None:
    found = carried(replace(FIGURES, records_per_s=1e9), 10, 16, 0.0, has_model=False)

    assert found.nodes_per_s == pytest.approx(10 * (1 - SPARE) * 16 * BUSY / 200e-6)
    assert found.per_s == found.nodes_per_s


@pytest.mark.parametrize(("deferred", "per_s"), [(0.0, 40_000), (1.0, 4000), (0.1, 1 / (0.1 / 4000 + 0.9 / 40_000))])
def test_a_store_keeps_up_with_what_it_has_time_for(deferred: float, per_s: float) -> None:
    assert carried(FIGURES, 10, 16, deferred, has_model=False).store_per_s == pytest.approx(BUSY * per_s)


def test_the_store_is_the_limit_from_where_more_nodes_carry_nothing_more() -> None:
    few, many, more = (carried(FIGURES, nodes, 16, 0.05, has_model=True) for nodes in (10, 100, 1000))

    assert (few.limit, few.per_s) == ("nodes", few.nodes_per_s)
    assert (many.limit, more.limit) == ("store", "store")
    assert many.per_s == more.per_s == more.store_per_s


def test_a_faster_store_carries_as_many_times_more() -> None:
    one, other = (carried(FIGURES, 1000, 16, 0.05, has_model=False, store_times=times) for times in (1.0, 4.0))

    assert other.per_s == pytest.approx(4 * one.per_s)


def results() -> list[Any]:
    return [json.loads((RESULTS / f"{name}.json").read_text()) for name in ("peers", "latency_curves", "store")]


def test_what_is_written_down_follows_from_the_results_beside_it() -> None:
    written = json.loads((RESULTS / "capacity.json").read_text())
    cores, times = written["assumed"]["cores"], written["assumed"]["store_times"]
    figures = measured(*results())
    kinds = [(row["nodes"], row["deferred"], row["has_model"]) for row in written["rows"]]
    rows = [carried(figures, n, cores, part, has_model=has, store_times=times) for n, part, has in kinds]

    assert [row["per_s"] for row in written["rows"]] == pytest.approx([row.per_s for row in rows])
    assert (RESULTS / "capacity.md").read_text() == report(figures, cores, times, rows)


def test_a_figure_that_is_missing_is_named_with_the_remedy() -> None:
    peers, curves, store = results()
    store["cells"] = [cell for cell in store["cells"] if cell.get("callers") != 64]

    told = r"store\.json tells nothing of \('callers', 64\); run python -m loadtests\.store"
    with pytest.raises(ValueError, match=told):
        measured(peers, curves, store)
