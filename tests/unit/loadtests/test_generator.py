"""The load generator: its histogram, its schedule, and what it says of real servers and of itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from loadtests.generator.histogram import GROWTH, Histogram
from loadtests.generator.load import Plan, arrivals
from loadtests.generator.report import LATENESS_BOUND_S, NotStarted, generate
from loadtests.generator.shots import Form, Shot, grpc_shots, http_shots, is_right_grpc, is_right_http
from tests.integration.process import ROOT, GatewayProcess, running

NULL = (ROOT / "loadtests" / "configs" / "null.yaml").read_text()
TIMES = st.lists(st.floats(1e-6, 1000.0), min_size=1, max_size=200)


@given(TIMES, st.floats(0.0, 1.0))
def test_a_quantile_is_that_of_the_times_to_one_buckets_width(times: list[float], q: float) -> None:
    exact = float(np.quantile(times, q, method="inverted_cdf"))

    found = Histogram.of(times).quantile(q)

    assert exact * (1 - 1e-9) <= found <= exact * GROWTH * (1 + 1e-9)


@given(TIMES, TIMES)
def test_histograms_of_two_processes_add_up(ones: list[float], others: list[float]) -> None:
    both = Histogram.of(ones)

    both.add(Histogram.of(others))

    expected = Histogram.of(ones + others)
    assert both.counts.tolist() == expected.counts.tolist()
    assert both.max_s == expected.max_s


def test_a_histogram_of_nothing_has_no_quantiles() -> None:
    assert np.isnan(Histogram().quantile(0.5))


def test_arrivals_are_a_poisson_process_of_the_stated_rate() -> None:
    moments = arrivals(1000.0, 100.0, (1, 0))

    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(100_000, abs=5 * 100_000**0.5)
    assert gaps.min() >= 0.0
    assert moments[-1] < 100.0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)  # as of an exponential distribution


def test_arrivals_are_the_same_again_and_differ_between_processes() -> None:
    assert arrivals(100.0, 5.0, (1, 0)).tolist() == arrivals(100.0, 5.0, (1, 0)).tolist()
    assert arrivals(100.0, 5.0, (1, 0)).tolist() != arrivals(100.0, 5.0, (1, 1)).tolist()


def test_an_output_in_shared_memory_is_looked_for_there_and_taken_away() -> None:
    y = np.arange(16, dtype="<f4").tobytes()
    shot = Shot(b"", y, np.frombuffer(y, np.uint8).copy())

    assert is_right_http(shot, b"", b"")
    assert not is_right_http(shot, b"", b"")  # another answer has to write it again
    assert not is_right_grpc(shot, service_pb2.ModelInferResponse())


def test_every_output_that_goes_to_shared_memory_is_right(tmp_path: Path) -> None:
    with running(tmp_path, f"{NULL}\nserver: {{shared_memory: {{enabled: true}}}}\n") as gateway:
        for url in (gateway.http, f"grpc://{gateway.grpc}"):
            report = generate(Plan(url, clients=2, seconds=0.3, binary=True, shared=True))

            assert report.completed > 0
            assert not report.errors
            with urllib.request.urlopen(f"{gateway.http}/v2/systemsharedmemory/status") as listed:
                assert json.load(listed) == []


def test_the_reply_to_another_request_is_wrong() -> None:
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2"
    text, text_other = http_shots("h", "/infer", Form.JSON, (1, 0))[:2]
    raw, raw_other = http_shots("h", "/infer", Form.BINARY, (1, 0))[:2]
    message, message_other = grpc_shots("dbl", (1, 0))[:2]
    body = json.dumps({"outputs": [{"name": "y", "data": text.y}]}).encode()
    reply = service_pb2.ModelInferResponse(raw_output_contents=[message.y])

    assert is_right_http(text, head, body)
    assert not is_right_http(text_other, head, body)
    assert not is_right_http(text, head, b"no JSON")
    assert is_right_http(raw, head, b"{}" + raw.y)
    assert not is_right_http(raw_other, head, b"{}" + raw.y)
    assert is_right_grpc(message, reply)
    assert not is_right_grpc(message_other, reply)


def test_a_process_sends_no_request_twice_before_it_has_sent_all() -> None:
    shots = grpc_shots("dbl", (1, 0))

    assert len({shot.y for shot in shots}) == len(shots)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running(tmp_path_factory.mktemp("null"), NULL) as process:
        yield process


@pytest.mark.parametrize("way", ["json", "binary", "grpc"])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_reply_of_the_null_route_is_right(gateway: GatewayProcess, way: str, processes: int) -> None:
    url = f"grpc://{gateway.grpc}" if way == "grpc" else gateway.http
    plan = Plan(url, rate=200.0, seconds=1.0, processes=processes, binary=way == "binary")

    report = generate(plan, gateway.process.pid)

    assert report.errors == {}
    # On a busy machine the last arrivals may fall behind the end of the run.
    assert 150 < 0.9 * report.offered_rate <= report.sent <= report.offered_rate
    assert report.completed == report.sent
    assert report.server_cpu_us is not None


def test_a_closed_loop_asks_again_when_it_is_answered(gateway: GatewayProcess) -> None:
    report = generate(Plan(gateway.http, clients=3, processes=2, seconds=0.3))

    assert report.errors == {}
    assert report.completed == report.sent > 3
    assert report.saturated is None


def test_refusals_are_counted_by_kind(gateway: GatewayProcess) -> None:
    http = generate(Plan(gateway.http, model="nobody", rate=50.0, seconds=0.3))
    grpc = generate(Plan(f"grpc://{gateway.grpc}", model="nobody", rate=50.0, seconds=0.3))

    assert (http.completed, http.errors) == (0, {"HTTP 404": http.sent})
    assert (grpc.completed, grpc.errors) == (0, {"gRPC NOT_FOUND": grpc.sent})


def test_requests_come_at_the_moments_that_are_given_and_count_by_slice(gateway: GatewayProcess) -> None:
    moments = (*(number / 200 for number in range(20)), *(0.2 + number / 200 for number in range(20)))

    report = generate(Plan(gateway.http, moments=moments, seconds=2.0, processes=2, within_s=30.0, slices=20))

    assert (report.sent, report.completed, report.errors) == (40, 40, {})
    assert (report.in_time, report.late, report.refused) == (1.0, 0.0, 0.0)
    assert report.in_time_by_slice[0] == report.in_time_by_slice[2] == 1.0
    assert np.isnan([report.in_time_by_slice[1], *report.in_time_by_slice[3:]]).all()


def test_right_replies_after_the_time_count_as_late_and_are_no_refusals(gateway: GatewayProcess) -> None:
    moments = tuple([number / 100 for number in range(20)])

    report = generate(Plan(gateway.http, moments=moments, seconds=1.0, within_s=1e-9))

    assert (report.in_time, report.late, report.refused) == (0.0, 1.0, 0.0)


def test_requests_say_how_long_they_wait_and_who_cannot_make_it_is_refused(gateway: GatewayProcess) -> None:
    """The objective is counted from the scheduled moment either way; here nobody looks at it."""
    moments = tuple([number / 100 for number in range(20)])

    report = generate(Plan(gateway.http, moments=moments, seconds=1.0, timeout_s=1e-6), gateway.process.pid)

    assert report.errors == {"HTTP 504": 20}
    assert (report.in_time, report.late, report.refused) == (0.0, 0.0, 1.0)
    assert report.refusal_ms is not None
    assert (report.server_cpu_us, report.server_cpu_s is not None) == (None, True)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"moments": (0.1,), "rate": 1.0}, "leave out one"),
        ({"moments": (0.1, 0.5), "seconds": 0.5}, "0.1 to 0.5 s leave a run of 0.5 s"),
        ({"url": "grpc://127.0.0.1:1", "timeout_s": 1.0}, "over HTTP"),
        ({"slices": 0}, "at least 1"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        Plan(**{"url": "http://127.0.0.1:1", **wrong})


def answered(gateway: GatewayProcess) -> int:
    with urllib.request.urlopen(f"{gateway.http}/v2/models/dbl/stats") as reply:
        return int(json.load(reply)["model_stats"][0]["inference_count"])


@pytest.mark.parametrize("connections", [1, 128])
def test_a_stall_is_in_the_latency_of_all_who_came_in_it(gateway: GatewayProcess, connections: int) -> None:
    """A tenth of the arrivals fall into it; a closed loop of one client would have seen one slow request."""
    before = answered(gateway)

    with ThreadPoolExecutor(1) as aside:
        running_aside = aside.submit(generate, Plan(gateway.http, rate=100.0, seconds=3.0, connections=connections))
        while answered(gateway) < before + 20:
            time.sleep(0.01)
        gateway.process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)  # the stall itself
        gateway.process.send_signal(signal.SIGCONT)
        report = running_aside.result()

    assert report.errors == {}
    assert report.latency_ms is not None
    assert report.latency_ms["max"] > 200
    assert report.latency_ms["p99"] > 150


def test_a_generator_that_is_asked_for_too_much_says_so(gateway: GatewayProcess) -> None:
    report = generate(Plan(gateway.http, rate=1e6, seconds=0.2))

    assert report.saturated
    assert report.lateness_p99_ms is not None
    assert report.lateness_p99_ms > 1e3 * LATENESS_BOUND_S
    assert "the generator was saturated" in report.note
    assert report.offered_rate > 10 * report.achieved_rate


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(NotStarted, match=r"http://127\.0\.0\.1:1"):
        generate(Plan("http://127.0.0.1:1", rate=10.0, seconds=0.1))


def test_the_command_prints_the_report_and_writes_it_down(gateway: GatewayProcess, tmp_path: Path) -> None:
    out = tmp_path / "report.json"

    ended = subprocess.run(
        [sys.executable, "-m", "loadtests.generator", "--url", gateway.http, "--clients", "1", "--seconds", "0.2",
         "--pid", str(gateway.process.pid), "--json", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    report = json.loads(ended.stdout)
    assert report == json.loads(out.read_text())
    assert report["completed"] > 1
    assert report["wrong"] == 0
