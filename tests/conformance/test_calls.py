"""The same calls, valid and invalid, to a real Triton and to the gateway: replies differ only as `differences` says."""

from __future__ import annotations

import grpc
import pytest

from tests.conformance import grpc_cases, http_cases, streams
from tests.conformance.clients import ACTIONS, FLAVOURS
from tests.conformance.conftest import Servers
from tests.conformance.differences import DIFFERENCES, OURS, faults
from tests.conformance.observed import differing
from tests.conformance.sharing import USES

_FAILS = next(entry.reason for entry in DIFFERENCES if "HTTP: fails" in entry.cases)


@pytest.mark.parametrize("case", http_cases.CASES, ids=lambda case: case.name)
def test_http(case: http_cases.HttpCase, servers: Servers) -> None:
    expected = http_cases.observe(case, servers.triton.http)

    found = http_cases.observe(case, servers.gateway.http)

    assert faults(f"HTTP: {case.name}", differing(expected, found)) == []


@pytest.mark.parametrize("case", grpc_cases.CASES, ids=lambda case: case.name)
def test_grpc(case: grpc_cases.GrpcCase, channels: tuple[grpc.Channel, grpc.Channel]) -> None:
    triton, gateway = channels
    expected = grpc_cases.observe(case, triton)

    found = grpc_cases.observe(case, gateway)

    assert faults(f"gRPC: {case.name}", differing(expected, found)) == []


@pytest.mark.parametrize("script", streams.SCRIPTS, ids=lambda script: script.name)
def test_stream(script: streams.Script, channels: tuple[grpc.Channel, grpc.Channel]) -> None:
    triton, gateway = channels
    expected = streams.observe(script, triton)

    found = streams.observe(script, gateway)

    assert faults(f"stream: {script.name}", differing(expected, found)) == []


def test_the_gateway_says_how_it_decided_beside_what_triton_says(servers: Servers) -> None:
    (case,) = (case for case in http_cases.CASES if case.name == "json")

    found = differing(http_cases.observe(case, servers.triton.http), http_cases.observe(case, servers.gateway.http))

    assert found["parameters.pointsman_status"] == ("absent", "final")
    assert all(facet.startswith(OURS[0].removesuffix("*")) for facet in found)


def test_every_difference_names_cases_that_exist() -> None:
    cases = {f"HTTP: {case.name}" for case in http_cases.CASES} | {f"gRPC: {case.name}" for case in grpc_cases.CASES}
    cases |= {f"shared memory, {flavour}: {use}" for flavour in FLAVOURS for use in USES}
    cases |= {f"stream: {script.name}" for script in streams.SCRIPTS}
    cases |= {f"tritonclient.{flavour}: {action.name}" for flavour in FLAVOURS for action in ACTIONS}

    named = [case for entry in DIFFERENCES for case in entry.cases]

    assert set(named) <= cases
    assert len(cases) > 350


def test_the_table_takes_neither_more_nor_less_than_it_says() -> None:
    said = {"status": (500, 502)}

    assert faults("HTTP: fails", said) == []
    assert faults("HTTP: fails", {"status": (500, 500)}) != []
    assert faults("HTTP: fails", {}) == [f"no longer so, take it out of the table: {_FAILS}"]
    assert faults("HTTP: json", said) == ["status: Triton says 500, the gateway 502"]


def test_no_two_cases_have_one_name() -> None:
    for cases in (http_cases.CASES, grpc_cases.CASES, streams.SCRIPTS, ACTIONS):
        names = [case.name for case in cases]
        assert len(names) == len(set(names))
