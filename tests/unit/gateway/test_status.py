"""One table tells every error, and nothing internal is told."""

from __future__ import annotations

import logging

import grpc
import pytest

from backends.errors import BackendFailed, Code, InvalidInput, Unavailable
from gateway.answer import AnswerId
from gateway.status import TABLE, AwaitsPerson, refusal_of


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_status_on_both_transports(code: Code) -> None:
    wire = TABLE[code]

    assert 400 <= wire.http < 600
    assert wire.grpc is not grpc.StatusCode.OK
    assert wire.title


def test_the_statuses_that_the_protocols_fix() -> None:
    told = {code: (wire.http, wire.grpc.name) for code, wire in TABLE.items()}

    assert told[Code.INVALID_ARGUMENT] == (400, "INVALID_ARGUMENT")
    assert told[Code.NOT_FOUND] == (404, "NOT_FOUND")
    assert told[Code.HEADERS_TOO_LARGE][0] == 431
    assert told[Code.UNMET_EXPECTATION][0] == 417
    assert told[Code.KEY_REUSED][0] == 422
    assert told[Code.QUOTA_EXCEEDED] == (429, "RESOURCE_EXHAUSTED")
    assert told[Code.UNAVAILABLE] == (503, "UNAVAILABLE")
    assert told[Code.DEADLINE_EXCEEDED] == (504, "DEADLINE_EXCEEDED")


def test_a_bug_is_told_as_an_id_that_the_log_explains(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        refusal = refusal_of(RuntimeError("password=hunter2"))

    assert refusal.code is Code.INTERNAL
    assert "hunter2" not in refusal.message
    assert refusal.error_id is not None
    assert refusal.error_id in refusal.message
    assert refusal.error_id in caplog.text
    assert "hunter2" in caplog.text


def test_a_failed_model_is_told_without_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    error = BackendFailed("model 'digits' failed on this input")
    error.__cause__ = ValueError("/srv/models/digits.onnx: bad tensor")

    refusal = refusal_of(error)

    assert refusal.message.startswith("model 'digits' failed on this input (error id ")
    assert "/srv" not in refusal.message
    assert "/srv" in caplog.text


def test_a_refusal_of_ours_is_told_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert refusal_of(InvalidInput("batch of 70")).message == "batch of 70"
    assert refusal_of(Unavailable("later", retry_after_s=2.0)).retry_after_s == 2.0
    assert not caplog.records


def test_an_answer_that_waits_for_a_person_is_told_with_its_id_and_no_time_to_try_again() -> None:
    refusal = refusal_of(AwaitsPerson(AnswerId("ab12"), "no model was sure"))

    assert (refusal.wire.http, refusal.answer_id) == (503, "ab12")
    assert "GET /v1/answers/ab12" in refusal.message
    assert refusal.retry_after_s is None
