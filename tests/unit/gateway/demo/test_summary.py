"""The summary adds up, and the table shows it."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gateway.demo.items import Item
from gateway.demo.summary import Ended, Promise, Result, Summary, summarise, table

PROMISES = {"digits": Promise(("digits-fast", "digits-strong"), 0.02), "feedback": Promise(("fast", "strong"), 0.2)}


def _result(
    route: str = "digits",
    ended: Ended = Ended.ACCEPTED,
    stage: str | None = "digits-fast",
    label: str | None = "7",
    certified: bool | None = None,
    detail: str = "",
) -> Result:
    item = Item(route, "image/png", b"picture", "7")
    return Result(item, ended, 0.01, stage, label, certified, detail)


_RESULTS = st.lists(
    st.builds(
        _result,
        route=st.sampled_from(["digits", "feedback"]),
        ended=st.sampled_from(Ended),
        stage=st.sampled_from(["digits-fast", "digits-strong", "fast", "strong", None]),
        label=st.sampled_from(["7", "1", None]),
    ),
    max_size=60,
)


@given(_RESULTS)
def test_every_request_ended_in_exactly_one_way(results: list[Result]) -> None:
    summary = summarise(results, PROMISES, 1.0)

    assert summary.requests == len(results)
    for route in summary.by_route.values():
        assert route.requests == route.accepted + route.human + route.refused + route.errors
        assert route.escalated <= route.requests
        assert sum(route.by_stage.values()) <= route.accepted


def test_a_route_is_summarised_by_stage_person_and_accuracy() -> None:
    results = [
        *[_result() for _ in range(3)],
        _result(stage="digits-strong", label="1"),
        _result(ended=Ended.HUMAN, stage="digits-strong"),
        _result(ended=Ended.REFUSED, stage=None, label=None, detail="503: overloaded"),
        _result(ended=Ended.ERROR, stage=None, label=None, detail="gone"),
    ]

    summary = summarise(results, PROMISES, 2.0)

    assert summary.to_dict()["by_route"]["digits"] == {
        "requests": 7,
        "accepted": 4,
        "escalated": 2,
        "human": 1,
        "refused": 1,
        "errors": 1,
        "by_stage": {"digits-fast": 3, "digits-strong": 1},
        "accuracy_accepted": 0.75,
        "accuracy_human": 1.0,
        "max_error": 0.02,
        "bound": None,
        "certified": False,
        "kept": True,
    }
    assert summary.to_dict()["requests_per_s"] == 3.5
    assert summary.to_dict()["p50_ms"] == 10.0
    assert summary.details == ("503: overloaded", "gone")


def test_a_promise_that_the_errors_reject_is_broken() -> None:
    results = [_result(label="1") for _ in range(9)] + [_result() for _ in range(91)]

    assert not summarise(results, PROMISES, 1.0).by_route["digits"].kept


def test_a_route_is_certified_only_where_every_answer_that_says_so_agrees() -> None:
    assert summarise([_result(certified=True), _result()], PROMISES, 1.0).by_route["digits"].certified
    assert (
        not summarise([_result(certified=True), _result(certified=False)], PROMISES, 1.0).by_route["digits"].certified
    )
    assert not summarise([_result()], PROMISES, 1.0).by_route["digits"].certified


def _drawn(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(summary))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_shares_promises_and_speed() -> None:
    results = [_result() for _ in range(3)] + [_result(ended=Ended.HUMAN, stage="digits-strong")]

    shown = _drawn(summarise(results, PROMISES, 2.0))

    assert "3 (75%)" in shown
    assert "1 (25%)" in shown
    assert "≤ 2% kept" in shown
    assert "first reply p50 10 ms, p99 10 ms; 2 requests/s" in shown


def test_a_table_of_nothing_is_drawn_too() -> None:
    shown = _drawn(summarise([], PROMISES, 0.0))

    assert "feedback" in shown
    assert "p50 -" in shown


def test_the_table_shows_the_bound_of_a_certified_route_and_nothing_for_people_alone() -> None:
    promises = {"digits": Promise(("digits-fast", "digits-strong"), 0.02, 0.0123), "intake": Promise((), None)}
    results = [_result(certified=True), _result("intake", Ended.HUMAN, None, "7")]

    shown = _drawn(summarise(results, promises, 1.0))

    assert "≤ 1.2%" in shown
    assert "intake" in shown
