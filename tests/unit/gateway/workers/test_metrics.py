"""Many processes' metrics as one exposition."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.catalog import Catalog
from gateway.http.handler import HttpExchange
from gateway.store.contract import QueueDepth, StoreStatistics
from gateway.telemetry import Telemetry, exposition_of
from gateway.workers.metrics import GAUGES, Family, Sample, counted, together
from router.table import RouteTable


def telemetry(responses: int = 0) -> Telemetry:
    """One process's, that has answered so many requests."""
    made = Telemetry()
    made.serve(
        lambda: Catalog(1, RouteTable(frozenset()), {}, {}),
        lambda: StoreStatistics(
            pending_writes=2, commits=0, rows=0, size_bytes=10 + responses, limit_bytes=99, full=False
        ),
    )
    made.on_queues({"desk": QueueDepth(1, 1, 0.0)})
    for _ in range(responses):
        made.on_http(HttpExchange("/v1/answers/{id}", 200, 0.01))
        made.on_lag(0.002)
    return made


def values(families: list[Family], name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {s.labels: s.value for family in families for s in family.samples if s.name == name}


def test_counters_and_histograms_are_summed() -> None:
    families = together({"0": telemetry(3).families(), "1": telemetry(4).families()})

    answered = values(families, "pointsman_http_responses_total")
    assert answered == {(("path", "/v1/answers/{id}"), ("status", "200")): 7}
    assert values(families, "pointsman_event_loop_lag_seconds_count") == {(): 7}
    assert values(families, "pointsman_event_loop_lag_seconds_bucket")[(("le", "0.0025"),)] == 7


def test_gauges_become_one_as_the_table_says() -> None:
    families = together({"0": telemetry(3).families(), "1": telemetry(4).families()})

    assert values(families, "pointsman_store_pending_writes") == {(): 4}
    assert values(families, "pointsman_store_size_bytes") == {(): 14}
    assert values(families, "pointsman_reviews_open") == {(("queue", "desk"),): 2}


def test_readiness_is_the_least_of_all_workers() -> None:
    ready, loading = (
        (Family("pointsman_model_ready", "gauge", "", (Sample("pointsman_model_ready", (("model", "m"),), v),)),)
        for v in (1.0, 0.0)
    )

    assert values(together({"0": ready, "1": loading}), "pointsman_model_ready") == {(("model", "m"),): 0}


def test_what_is_about_a_process_is_told_of_each() -> None:
    families = together({"0": telemetry().families(), "supervisor": telemetry().families()})

    assert set(values(families, "process_cpu_seconds_total")) == {(("worker", "0"),), (("worker", "supervisor"),)}
    assert len(values(families, "python_gc_collections_total")) == 6


def test_a_gauge_that_the_table_does_not_know_is_told_of_each() -> None:
    family = Family("pointsman_new", "gauge", "", (Sample("pointsman_new", (), 1.0),))

    assert set(values(together({"0": [family], "1": [family]}), "pointsman_new")) == {
        (("worker", "0"),),
        (("worker", "1"),),
    }


def test_the_table_knows_every_gauge() -> None:
    gauges = {family.name for family in telemetry().families() if family.kind == "gauge"}

    ours = {name for name in gauges if name.startswith("pointsman_")}
    assert ours
    assert ours <= GAUGES.keys()


def test_both_formats_can_be_read() -> None:
    families = together({"0": telemetry(3).families(), "1": telemetry(4).families()})
    text, _ = exposition_of(families, "text/plain")
    openmetrics, media = exposition_of(families, "application/openmetrics-text; version=1.0.0")

    assert media.startswith("application/openmetrics-text")
    for read in (parse_text(text.decode()), parse_openmetrics(openmetrics.decode())):  # type: ignore[no-untyped-call]
        found = {sample.name: sample.value for family in read for sample in family.samples}
        assert found["pointsman_http_responses_total"] == 7
        assert found["pointsman_store_limit_bytes"] == 99


def test_the_exposition_of_one_process_is_its_own() -> None:
    made = telemetry(3)

    alone, _ = made.exposition("text/plain")
    through, _ = exposition_of(made.families(), "text/plain")

    def ours(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if "pointsman_" in line]

    assert ours(through) == ours(alone)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_what_was_shown_never_falls(lives: list[list[int]]) -> None:
    """Of a worker that counts, is asked, and dies, again and again."""
    shown, kept = [0.0], list[Family]()
    for life in lives:
        report: list[Family] = []
        for count in itertools.accumulate(life):
            report = [Family("c", "counter", "", (Sample("c_total", (), count),))]
            shown.append(values(together({"0": report}, kept), "c_total")[()])
        kept = counted(report, kept)
        shown.append(values(together({}, kept), "c_total")[()])

    assert shown == sorted(shown)
    assert shown[-1] == sum(map(sum, lives))
