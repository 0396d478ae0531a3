"""The handler: which path is answered by what, who may, and how a refusal reads."""

from __future__ import annotations

import gzip
import logging
import zlib
from functools import partial
from typing import Any

import orjson
import pytest

from gateway.http.handler import Handler
from gateway.http.messages import HttpResponse
from gateway.http.oip import oip_endpoints
from gateway.http.paths import UNMATCHED, PathEntry, PathTable
from gateway.security import Authenticator, TrustedHosts
from tests.unit.gateway.http.conftest import KEY, LIMITS, OPERATOR_KEY, Plane

gzipped = partial(gzip.compress, mtime=0)  # the same bytes, and so the same test, for every process

INFER = "/v2/models/echo/infer"
GOOD = {"inputs": [{"name": "FP32", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}]}


def told(response: HttpResponse) -> Any:
    return orjson.loads(response.body)


def header(response: HttpResponse, name: str) -> str | None:
    return dict(response.headers).get(name)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//v2",
        "/v2/",
        "/v2//models/echo",
        "/v2/health/live/",
        "/v2/%2e%2e/v2",
        "/v2/models/../../etc/infer",
        "/v2/models/a%2Fb/infer",
        "/v2/models/%00/infer",
        "/v2/models/echo\x00/infer",
        "/v2/models//infer",
        "/v2/models/echo/infer/",
        "/v2/models/echo;x/infer",
        "/V2",
        "/v1",
        "/v1/routes/echo",
        "/v1/routes/:decide",
        "v2",
        "*",
        "",
    ],
)
async def test_a_path_that_is_not_in_the_table_is_404(plane: Plane, path: str) -> None:
    for method in ("GET", "POST"):
        response = await plane.send(method, path)

        assert response.status == 404
        assert told(response)["error"] == "there is nothing at this path"


@pytest.mark.parametrize("name", ["..", ".hidden", "-x", "~", "a" * 256])
async def test_a_name_that_no_model_can_have_is_400(plane: Plane, name: str) -> None:
    for method, path in (("GET", f"/v2/models/{name}"), ("POST", f"/v2/models/{name}/infer")):
        response = await plane.send(method, path, GOOD if method == "POST" else b"")

        assert response.status == 400
        assert "names no model" in told(response)["error"]


async def test_ten_thousand_invented_paths_methods_and_models_are_three_templates(plane: Plane) -> None:
    for i in range(1000):
        assert (await plane.send("GET", f"/invented/{i}")).status == 404
        assert (await plane.send(f"VERB{i}", "/v2/health/live")).status == 405
        assert (await plane.send("GET", f"/v2/models/m{i}")).status == 404

    assert {exchange.template for exchange in plane.exchanges} == {
        UNMATCHED,
        "/v2/health/live",
        "/v2/models/{model}",
    }


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v2", "GET, HEAD"), (INFER, "POST"), ("/v1/answers/x/revisions", "GET, HEAD")]
)
async def test_a_wrong_method_is_told_which_are_right(plane: Plane, path: str, allowed: str) -> None:
    for method in ("DELETE", "OPTIONS", "PATCH"):
        response = await plane.send(method, path)

        assert response.status == 405
        assert header(response, "allow") == allowed


async def test_head_is_answered_where_get_is(plane: Plane) -> None:
    head, get = await plane.send("HEAD", "/v2"), await plane.send("GET", "/v2")

    assert (head.status, head.headers, head.body) == (get.status, get.headers, get.body)


def test_two_entries_for_one_method_and_path_are_a_mistake() -> None:
    async def endpoint(*_: object) -> HttpResponse:
        return HttpResponse(200)

    with pytest.raises(ValueError, match="twice"):
        PathTable([PathEntry("GET", "/a", endpoint), PathEntry("GET", "/a", endpoint)])


async def test_readiness_follows_the_service(plane: Plane) -> None:
    assert (await plane.send("GET", "/v2/health/ready")).status == 200
    assert (await plane.send("GET", "/v2/models/echo/ready")).status == 200
    plane.service.ready = False

    for path in ("/v2/health/ready", "/v2/models/echo/ready", "/v2/models/echo/versions/1/ready"):
        response = await plane.send("GET", path)
        assert (response.status, told(response)["ready"]) == (503, False)
    assert (await plane.send("GET", "/v2/health/live")).status == 200


async def test_errors_on_v2_are_an_error_string_and_on_v1_problem_details(plane: Plane) -> None:
    oip = await plane.send("POST", "/v2/models/nowhere/infer", GOOD)
    v1 = await plane.send("POST", "/v1/routes/nowhere:decide", b"hello", {"content-type": "text/plain"})

    assert (oip.status, told(oip)) == (404, {"error": "there is no route 'nowhere'"})
    assert header(v1, "content-type") == "application/problem+json"
    assert told(v1) == {
        "type": "tag:pointsman,2025:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": "there is no route 'nowhere'",
        "error": "there is no route 'nowhere'",
    }


@pytest.mark.parametrize(
    ("script", "status", "retry_after"), [("busy", 503, "3"), ("quota", 429, None), ("defer", 503, None)]
)
async def test_a_refusal_says_when_to_come_back(
    plane: Plane, script: str, status: int, retry_after: str | None
) -> None:
    body = {**GOOD, "parameters": {"script": script, "pointsman_on_defer": "error"}}

    response = await plane.send("POST", INFER, body)

    assert (response.status, header(response, "retry-after")) == (status, retry_after)


async def test_a_deferred_request_that_asked_for_an_error_is_told_the_answers_id(plane: Plane) -> None:
    body = {**GOOD, "parameters": {"script": "pending"}}

    response = await plane.send("POST", INFER, body)

    (answer_id,) = plane.service.kept
    assert response.status == 503
    assert told(response)["pointsman_answer_id"] == answer_id
    assert header(response, "pointsman-answer-id") == answer_id
    assert header(response, "location") == f"/v1/answers/{answer_id}"


async def test_a_bug_is_500_and_nothing_internal(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "gateway.status")

    response = await plane.send("POST", INFER, {**GOOD, "parameters": {"script": "bug"}})

    assert response.status == 500
    assert b"shadow" not in response.body
    assert "quote error id" in told(response)["error"]
    assert (await plane.send("POST", INFER, GOOD)).status == 200


async def test_health_is_open_and_the_rest_needs_a_key_and_a_role(locked_plane: Plane) -> None:
    plane = locked_plane

    assert (await plane.send("GET", "/v2/health/live")).status == 200
    assert (await plane.send("GET", "/v2/health/ready")).status == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
        refused = await plane.send("GET", "/v2", headers=headers)
        assert (refused.status, header(refused, "www-authenticate")) == (401, "Bearer")
    assert (await plane.send("GET", "/v2", headers={"authorization": f"Bearer {KEY}"})).status == 200
    assert (await plane.send("GET", "/v2", headers={"x-api-key": OPERATOR_KEY})).status == 403
    assert (await plane.send("POST", INFER, GOOD)).status == 401
    assert plane.service.requests == []


FOREIGN = [
    {"host": "evil.example"},
    {"host": ""},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_without_keys_a_foreign_page_reaches_nothing_but_health(plane: Plane, headers: dict[str, str]) -> None:
    text = {"content-type": "text/plain", **headers}

    refused = [
        await plane.send("POST", "/v1/routes/tickets:decide", b"hi", text),
        await plane.send("POST", INFER, GOOD, headers),
        await plane.send("GET", "/v2/models/echo", headers=headers),
        await plane.send("GET", f"/v1/answers/{'0' * 32}", headers=headers),
    ]

    assert [response.status for response in refused] == [403] * 4
    assert plane.service.requests == []
    assert (await plane.send("GET", "/v2/health/ready", headers=headers)).status == 200


@pytest.mark.parametrize("headers", FOREIGN)
async def test_with_a_key_nobody_asks_where_a_request_came_from(locked_plane: Plane, headers: dict[str, str]) -> None:
    response = await locked_plane.send("POST", INFER, GOOD, {"x-api-key": KEY, **headers})

    assert response.status == 200


async def test_a_trusted_host_is_served_without_keys(plane: Plane) -> None:
    assert (await plane.send("GET", "/v2", headers={"host": "gate.example:8000"})).status == 403

    plane.handler = Handler(
        oip_endpoints(plane.service, LIMITS),
        Authenticator(plane.options),
        plane,
        hosts=TrustedHosts(["gate.example"]),
    )

    assert (await plane.send("GET", "/v2", headers={"host": "gate.example:8000"})).status == 200


async def test_an_exchange_is_reported_with_its_template_and_status(plane: Plane) -> None:
    await plane.send("POST", INFER, GOOD)

    (exchange,) = plane.exchanges
    assert (exchange.template, exchange.status) == ("/v2/models/{model}/infer", 200)
    assert exchange.duration_s > 0


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", gzipped(orjson.dumps(GOOD)), 200),
        ("deflate", zlib.compress(orjson.dumps(GOOD)), 200),
        ("identity", orjson.dumps(GOOD), 200),
        ("br", orjson.dumps(GOOD), 415),
        ("gzip, gzip", gzipped(gzipped(orjson.dumps(GOOD))), 415),
        ("gzip", gzipped(gzipped(orjson.dumps(GOOD))), 400),
        ("gzip", gzipped(orjson.dumps(GOOD))[:-9], 400),
        ("gzip", gzipped(orjson.dumps(GOOD))[:5], 400),
        ("gzip", orjson.dumps(GOOD), 400),
        ("gzip", gzipped(orjson.dumps(GOOD)) + b"x", 400),
        ("gzip", gzipped(b" " * (LIMITS.body_bytes + 1)), 413),
        ("gzip", gzipped(b" " * 500_000), 413),
    ],
)
async def test_compressed_bodies_are_read_within_limits(plane: Plane, coding: str, body: bytes, status: int) -> None:
    response = await plane.send("POST", INFER, body, {"content-type": "application/json", "content-encoding": coding})

    assert response.status == status
    assert (await plane.send("POST", INFER, GOOD)).status == 200
