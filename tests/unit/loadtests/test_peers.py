"""What the comparison with peers makes of its samples: ratios, goals, and the order of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.generator.callers import http_callers
from loadtests.generator.load import Plan
from loadtests.generator.shots import Form as Body
from loadtests.generator.shots import http_shots, is_right_http
from loadtests.peers import environments
from loadtests.peers.__main__ import planned
from loadtests.peers.environments import REQUIREMENTS
from loadtests.peers.goals import LEAST_ROUNDS, Cell, Goal, Sample, Verdict, goals, ratios
from loadtests.peers.perf_analyzer import Row, command_of, compared, row_of
from loadtests.peers.plot import lines
from loadtests.peers.rounds import Extent, compare, forth_or_back
from loadtests.peers.servers import SERVERS, Form, Script, Server
from loadtests.ratios import Spread, ratio, spread

FIGURES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=12)


def samples(*rates: float, p50_ms: float = 1.0, cpu_us: float = 100.0) -> list[Sample]:
    """One for each of *rates*; of a single rate, as many as a goal needs."""
    each = rates if len(rates) > 1 else rates * LEAST_ROUNDS
    return [Sample(rate, p50_ms, 2 * p50_ms, cpu_us, 0.5) for rate in each]


def cell(form: Form, clients: int | None = 8, **servers: Sequence[Sample]) -> Cell:
    return Cell(form, clients, None if clients else 100.0, servers)


@given(FIGURES, FIGURES)
def test_a_ratio_lies_in_its_interval_which_lies_between_the_extremes(own: list[float], other: list[float]) -> None:
    found = ratio(own, other)

    assert min(own) / max(other) - 0.001 <= found.low <= found.median + 0.001
    assert found.median - 0.001 <= found.high <= max(own) / min(other) + 0.001


def test_a_ratio_is_the_same_again() -> None:
    assert ratio([1.0, 5.0, 9.0], [2.0, 3.0]) == ratio([1.0, 5.0, 9.0], [2.0, 3.0])


def test_one_value_is_its_own_spread() -> None:
    assert spread([4.25], 2) == Spread(4.25, 4.25, 4.25)


def test_every_gateway_is_compared_with_every_other_server_of_its_cell() -> None:
    found = ratios([cell(Form.JSON, gateway=samples(20.0), triton=samples(10.0), uvicorn=samples(40.0))])

    assert {(each.ours, each.theirs): each.figures["rate"].median for each in found} == {
        ("gateway", "triton"): 2.0,
        ("gateway", "uvicorn"): 0.5,
    }


def test_a_figure_of_nothing_has_no_ratio() -> None:
    (found,) = ratios([cell(Form.JSON, gateway=samples(20.0), triton=samples(10.0, cpu_us=0.0))])

    assert "server_cpu_us" not in found.figures
    assert found.figures["rate"].median == 2.0


@pytest.mark.parametrize("form", list(Form))
def test_throughput_is_to_be_at_least_tritons(form: Form) -> None:
    (goal,) = goals(ratios([cell(form, gateway=samples(20.0), triton=samples(10.0))]))

    assert (goal.figure, goal.bound, goal.at_most, goal.verdict) == ("rate", 1.0, False, Verdict.HOLDS)


@pytest.mark.parametrize("peer", ["kserve", "mlserver-inline", "litserve-batched", "bentoml"])
def test_throughput_is_to_be_ten_times_that_of_a_peer_in_each_of_its_variants(peer: str) -> None:
    nine, eleven = (
        goals(ratios([Cell(Form.JSON, 8, None, {"gateway": samples(10.0 * times), peer: samples(10.0)})]))
        for times in (9.0, 11.0)
    )

    assert [goal.verdict for goal in (*nine, *eleven)] == [Verdict.FAILS, Verdict.HOLDS]


def test_half_of_tritons_latency_is_asked_for_over_grpc_at_one_client() -> None:
    servers = {"gateway": samples(20.0, p50_ms=0.4), "triton": samples(10.0)}

    one = [goal.figure for goal in goals(ratios([cell(Form.GRPC, 1, **servers)]))]
    eight = [goal.figure for goal in goals(ratios([cell(Form.GRPC, 8, **servers)]))]
    http = [goal.figure for goal in goals(ratios([cell(Form.JSON, 1, **servers)]))]

    assert (one, eight, http) == (["rate", "p50_ms"], ["rate"], ["rate"])


def test_an_open_loop_is_compared_but_holds_no_goal() -> None:
    found = ratios([cell(Form.JSON, None, gateway=samples(20.0), triton=samples(10.0))])

    assert len(found) == 1
    assert goals(found) == []


@pytest.mark.parametrize(
    ("low", "high", "at_most", "verdict"),
    [
        (1.0, 2.0, False, Verdict.HOLDS),
        (0.9, 1.1, False, Verdict.OPEN),
        (0.8, 0.9, False, Verdict.FAILS),
        (0.8, 1.0, True, Verdict.HOLDS),
        (0.9, 1.1, True, Verdict.OPEN),
        (1.1, 1.2, True, Verdict.FAILS),
    ],
)
def test_a_goal_holds_only_if_all_of_its_interval_does(
    low: float, high: float, at_most: bool, verdict: Verdict
) -> None:
    goal = Goal("gateway", "triton", Form.GRPC, 1, "p50_ms", Spread(low, (low + high) / 2, high), 1.0, at_most, 5)

    assert goal.verdict is verdict
    assert str(goal).startswith(verdict)


def test_a_goal_is_open_on_few_rounds() -> None:
    (goal,) = goals(ratios([cell(Form.JSON, gateway=samples(20.0, 21.0), triton=samples(10.0, 11.0))]))

    assert goal.ratio.low > goal.bound
    assert goal.verdict is Verdict.OPEN


def test_two_rounds_go_forth_and_back() -> None:
    assert [*forth_or_back("ABC", 0), *forth_or_back("ABC", 1)] == list("ABCCBA")


def test_a_peer_is_measured_beside_the_gateway_alone() -> None:
    found = [(form, [server.name for server in servers]) for form, servers in planned(["triton", "gateway", "kserve"])]

    assert found == [
        (Form.JSON, ["gateway", "triton"]),
        (Form.BINARY, ["gateway", "triton"]),
        (Form.GRPC, ["gateway", "triton"]),
        (Form.JSON, ["gateway", "kserve"]),
    ]


def test_every_peer_has_exact_requirements_without_addresses() -> None:
    peers = {name.partition("-")[0] for name, server in SERVERS.items() if server.is_peer}

    pinned = {file.stem: file.read_text().split() for file in REQUIREMENTS.glob("*.txt")}

    assert set(pinned) == peers
    assert all("==" in line and "/" not in line for written in pinned.values() for line in written)


def test_a_peer_without_its_environment_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    nothing = environments.why_not("ray")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / ".installed").write_text((REQUIREMENTS / "ray.txt").read_text())
    prepared = environments.why_not("ray")
    (tmp_path / "ray" / ".installed").write_text("ray==1.0")
    of_other_versions = environments.why_not("ray")
    (tmp_path / "ray.why-not").write_text("not installed: no such release\n")
    failed = environments.why_not("ray")

    assert nothing == of_other_versions == "its environment is not prepared; run with --prepare"
    assert prepared is None
    assert failed == "not installed: no such release"


def test_a_server_that_cannot_run_is_named_with_why_and_the_others_are_still_started() -> None:
    absent = Server("absent", "", (Form.JSON,), SERVERS["triton"].start, dict, lambda: "not here")
    mute = Server("mute", "", (Form.JSON,), Script(("-c", "raise SystemExit('gone')")).start, dict)

    found = compare(Form.JSON, [absent, mute, SERVERS["uvicorn"]], Extent([1], 1, 0.1))

    assert found.absent["absent"] == "not here"
    assert "did not start" in found.absent["mute"]
    assert "gone" in found.absent["mute"]
    assert set(found.idle_cpu) == {"uvicorn"}
    assert found.cells == []


def test_two_servers_are_asked_in_closed_loops_and_an_open_one() -> None:
    twin = replace(SERVERS["uvicorn"], name="twin")

    found = compare(Form.JSON, [SERVERS["uvicorn"], twin], Extent([1, 2], 2, 0.2))

    assert found.absent == {}
    assert [each.clients for each in found.cells] == [1, 2, None]
    assert all(len(each.samples[name]) == 2 for each in found.cells for name in ("uvicorn", "twin"))
    assert all(sample.errors == 0 for each in found.cells for sample in each.samples["twin"])


def test_a_line_is_the_medians_of_the_first_comparison_that_has_them() -> None:
    cells = [
        cell(Form.JSON, 8, gateway=samples(1.0, 2.0, 9.0)),
        cell(Form.JSON, 1, gateway=samples(3.0)),
        cell(Form.JSON, 8, gateway=samples(70.0), kserve=samples(7.0)),
        cell(Form.GRPC, 8, gateway=samples(5.0)),
        cell(Form.JSON, None, gateway=samples(6.0)),
    ]

    assert lines(cells, Form.JSON, "rate") == {"gateway": [(1, 3.0), (8, 2.0)], "kserve": [(8, 7.0)]}


def test_perf_analyzers_table_is_read() -> None:
    table = (
        "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency\n"
        "8,1253.32,46,666,933,1371,3325\n"
    )

    row = row_of(table, "triton", "grpc sync", 8)

    assert (row.rate, row.p50_ms, row.p99_ms, row.fault) == (1253.32, 0.666, 3.325, None)


def test_perf_analyzers_runs_are_compared_where_both_servers_have_some() -> None:
    rows = [
        Row("gateway", "grpc sync", 8, 20.0, 0.5, 1.0),
        Row("triton", "grpc sync", 8, 10.0, 1.0, 2.0),
        Row("gateway", "http sync", 8, 20.0, 0.5, 1.0),
        Row("triton", "http sync", 8, fault="it ended with 1"),
    ]

    (found,) = compared(rows)

    assert (found["mode"], found["rate"]["median"], found["p50_ms"]["median"]) == ("grpc sync", 2.0, 0.5)


def test_perf_analyzer_is_run_by_the_loader_beside_it(tmp_path: Path) -> None:
    (tmp_path / "perf_analyzer").touch()
    alone = command_of(tmp_path)
    (tmp_path / "ld-linux-x86-64.so.2").touch()

    assert alone == [str(tmp_path / "perf_analyzer")]
    assert command_of(tmp_path) == [
        str(tmp_path / "ld-linux-x86-64.so.2"), "--library-path", str(tmp_path), str(tmp_path / "perf_analyzer"),
    ]  # fmt: skip


def test_a_folder_without_perf_analyzer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unpack the wheel"):
        command_of(tmp_path)


# --- what the generator learnt for it ---


@pytest.mark.parametrize("wrapped", ["%s", '{"y":%s}'])
def test_rows_are_right_if_they_are_twice_their_request(wrapped: str) -> None:
    shot, other = http_shots("h", "/predict", Body.ROWS, (1, 0))[:2]
    reply = (wrapped % str(shot.y)).encode()

    assert shot.sent.startswith(b"POST /predict HTTP/1.1\r\n")
    assert shot.sent.partition(b"\r\n\r\n")[2].startswith(b'{"x":[[')
    assert is_right_http(shot, b"", reply)
    assert not is_right_http(other, b"", reply)
    assert not is_right_http(shot, b"", b'{"z":[]}')


def test_rows_cannot_be_binary() -> None:
    with pytest.raises(ValueError, match="leave out binary, or rows"):
        Plan("http://h", binary=True, rows=True)


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_chunked_reply_is_read_however_it_comes_in_pieces(piece: int) -> None:
    (caller,) = http_callers("127.0.0.1", 1, 1)
    shot = http_shots("h", "/", Body.ROWS, (1, 0))[0]
    body = str(shot.y).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:], b""))
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    ended: list[str] = []
    receive = caller.data_received  # type: ignore[attr-defined]  # an asyncio.Protocol

    class Sink:
        def write(self, data: bytes) -> None:
            pass

    caller.connection_made(Sink())  # type: ignore[attr-defined]
    caller.ask(shot, ended.append)
    for start in range(0, len(reply), piece):
        assert ended == []
        receive(reply[start : start + piece])

    assert ended == [""]
