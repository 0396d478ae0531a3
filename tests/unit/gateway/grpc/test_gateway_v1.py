"""`pointsman.v1.Gateway`: decisions in two phases over gRPC."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc import aio

from gateway.answer import AnswerId, Status
from gateway.grpc_edge.gateway_v1 import _STATUSES
from gateway.request import Protocol, RawBody, TensorInputs
from pointsman_pb import gateway_pb2 as pb
from pointsman_pb import gateway_pb2_grpc
from tests.unit.gateway.scripted import ScriptedService

DEFER = {"script": pb.Parameter(string_value="defer")}


@pytest.fixture
def stub(channel: Any) -> Any:
    return gateway_pb2_grpc.GatewayStub(channel)


async def replies(call: Any) -> list[pb.Answer]:
    return [reply async for reply in call]


async def test_a_text_is_answered_in_one_reply(stub: Any, service: ScriptedService) -> None:
    (answer,) = await replies(stub.Decide(pb.DecideRequest(route="tickets", text="hi", wait=True)))

    (request,) = service.requests
    assert request.payload == RawBody(b"hi", "text/plain")
    assert request.protocol is Protocol.V1_GRPC
    assert (answer.status, answer.route, answer.max_error) == (pb.STATUS_FINAL, "tickets", 0.01)
    (item,) = answer.items
    assert (item.label, item.confidence, item.decided_by) == ("label-0", 0.9, "model:fast")
    assert not item.HasField("reason")
    (output,) = item.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("text", "BYTES", [1, 1])
    assert output.data == struct.pack("<I", 2) + b"hi"


async def test_a_file_and_tensors_are_taken_as_they_are(stub: Any, service: ScriptedService) -> None:
    tensor = pb.Tensor(name="FP32", datatype="FP32", shape=[2, 1], data=struct.pack("<2f", 1, 2))
    await replies(stub.Decide(pb.DecideRequest(route="echo", file=pb.File(data=b"x", content_type="image/png"))))
    (batch,) = await replies(stub.Decide(pb.DecideRequest(route="echo", tensors=pb.Tensors(tensors=[tensor]))))

    file, tensors = service.requests
    assert file.payload == RawBody(b"x", "image/png")
    assert isinstance(tensors.payload, TensorInputs)
    assert tensors.payload.tensors["FP32"].numpy().tolist() == [[1], [2]]
    assert [item.label for item in batch.items] == ["label-0", "label-1"]


async def test_a_caller_that_waits_gets_the_final_answer_on_the_same_stream(
    stub: Any, service: ScriptedService
) -> None:
    call = stub.Decide(pb.DecideRequest(route="tickets", text="hi", parameters=DEFER, wait=True))
    first = await call.read()
    await service.decide_open(AnswerId(first.answer_id), "spam")

    second = await call.read()

    assert (first.status, first.items[0].HasField("decided_by")) == (pb.STATUS_PROVISIONAL, False)
    assert (second.status, second.items[0].label, second.items[0].decided_by) == (pb.STATUS_FINAL, "spam", "person:ann")
    assert (second.revision, await call.read()) == (2, aio.EOF)


async def test_a_caller_that_waits_gets_every_change_on_the_same_stream(stub: Any, service: ScriptedService) -> None:
    tensor = pb.Tensor(name="text", datatype="BYTES", shape=[2, 1], data=b"\1\0\0\0a\1\0\0\0b")
    tensors = pb.Tensors(tensors=[tensor])
    call = stub.Decide(pb.DecideRequest(route="tickets", tensors=tensors, parameters=DEFER, wait=True))
    answer_id = AnswerId((await call.read()).answer_id)

    for item, status in ((1, pb.STATUS_PROVISIONAL), (0, pb.STATUS_FINAL)):
        await service.decide_open(answer_id, "spam", item)
        told = await call.read()
        assert (told.status, told.items[item].label, told.items[item].status) == (status, "spam", pb.STATUS_FINAL)
    assert (told.revision, await call.read()) == (3, aio.EOF)


async def test_a_cancelled_answer_ends_the_stream_that_waits_for_it(stub: Any, service: ScriptedService) -> None:
    call = stub.Decide(pb.DecideRequest(route="tickets", text="hi", parameters=DEFER, wait=True))
    known = await call.read()

    cancelled = [await stub.Cancel(pb.CancelRequest(answer_id=known.answer_id)) for _ in range(2)]

    told = await call.read()
    assert [answer.status for answer in (*cancelled, told)] == [pb.STATUS_CANCELLED] * 3
    assert {answer.revision for answer in (*cancelled, told)} == {2}
    assert (told.items[0].status, told.items[0].HasField("decided_by")) == (pb.STATUS_CANCELLED, False)
    assert await call.read() == aio.EOF
    assert (await stub.GetAnswer(pb.GetAnswerRequest(answer_id=known.answer_id))).status == pb.STATUS_CANCELLED


def test_every_status_has_a_number() -> None:
    assert set(_STATUSES) == set(Status)
    assert set(_STATUSES.values()) == set(pb.Status.values()) - {pb.STATUS_UNSPECIFIED}


async def test_a_stream_that_waits_for_a_person_ends_when_the_gateway_drains(
    stub: Any, service: ScriptedService
) -> None:
    call = stub.Decide(pb.DecideRequest(route="tickets", text="hi", parameters=DEFER, wait=True))
    known = await call.read()
    await service.drain()

    assert known.status == pb.STATUS_PROVISIONAL
    assert await asyncio.wait_for(call.read(), 2) == aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    assert service.asked <= 2


async def test_a_caller_that_does_not_wait_gets_what_is_known(stub: Any) -> None:
    (answer,) = await replies(stub.Decide(pb.DecideRequest(route="tickets", text="hi", parameters=DEFER)))

    assert answer.status == pb.STATUS_PROVISIONAL


async def test_an_open_answer_tells_how_long_people_take(stub: Any, service: ScriptedService) -> None:
    (open_,) = await replies(stub.Decide(pb.DecideRequest(route="tickets", text="hi", parameters=DEFER)))
    service.kept[AnswerId(open_.answer_id)] = replace(service.kept[AnswerId(open_.answer_id)], predicted_wait_s=90.0)

    known = await stub.GetAnswer(pb.GetAnswerRequest(answer_id=open_.answer_id))

    assert not open_.HasField("predicted_wait_s")
    assert known.predicted_wait_s == 90.0


async def test_an_answer_can_be_waited_for(stub: Any, service: ScriptedService) -> None:
    (answer,) = await replies(stub.Decide(pb.DecideRequest(route="tickets", text="hi", parameters=DEFER)))
    request = pb.GetAnswerRequest(answer_id=answer.answer_id)
    assert (await stub.GetAnswer(request)).status == pb.STATUS_PROVISIONAL

    waiting = asyncio.ensure_future(stub.GetAnswer(pb.GetAnswerRequest(answer_id=answer.answer_id, wait_ms=60_000)))
    await service.decide_open(AnswerId(answer.answer_id), "spam")

    assert (await asyncio.wait_for(waiting, 2)).items[0].label == "spam"


async def test_feedback_is_kept(stub: Any, service: ScriptedService) -> None:
    (answer,) = await replies(stub.Decide(pb.DecideRequest(route="tickets", text="hi")))

    await stub.SendFeedback(pb.SendFeedbackRequest(answer_id=answer.answer_id, item=0, label="ham"))

    assert service.feedbacks == [(answer.answer_id, 0, "ham")]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (pb.DecideRequest(route="tickets"), "INVALID_ARGUMENT", "set text, file or tensors"),
        (pb.DecideRequest(route="../etc", text="a"), "INVALID_ARGUMENT", "names no model"),
        (pb.DecideRequest(route="nowhere", text="a"), "NOT_FOUND", "there is no route 'nowhere'"),
        (pb.DecideRequest(route="tickets", file=pb.File(data=b"x")), "INVALID_ARGUMENT", "is not read here"),
        (
            pb.DecideRequest(route="tickets", file=pb.File(content_type="image/png")),
            "INVALID_ARGUMENT",
            "the file is empty",
        ),
        (pb.DecideRequest(route="tickets", tensors=pb.Tensors()), "INVALID_ARGUMENT", "tensors is empty"),
        (
            pb.DecideRequest(route="tickets", text="a", parameters={"a": pb.Parameter()}),
            "INVALID_ARGUMENT",
            "parameter 'a' has no value",
        ),
        (pb.DecideRequest(route="tickets", text="a", idempotency_key="é"), "INVALID_ARGUMENT", "idempotency key"),
    ],
)
async def test_a_request_that_cannot_be_is_refused(
    stub: Any, request_: pb.DecideRequest, code: str, message: str
) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await replies(stub.Decide(request_))

    assert refused.value.code() is grpc.StatusCode[code]
    assert message in (refused.value.details() or "")


@pytest.mark.parametrize("answer_id", ["", "x", "0" * 32])
async def test_an_unknown_answer_is_not_found(stub: Any, answer_id: str) -> None:
    for call in (
        stub.GetAnswer(pb.GetAnswerRequest(answer_id=answer_id)),
        stub.SendFeedback(pb.SendFeedbackRequest(answer_id=answer_id, label="a")),
        stub.Cancel(pb.CancelRequest(answer_id=answer_id)),
    ):
        with pytest.raises(aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        details = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
        assert b"google.rpc.ErrorInfo" in details
        assert b"NOT_FOUND" in details


async def test_the_same_key_and_input_have_the_same_fingerprint(stub: Any, service: ScriptedService) -> None:
    for text in ("a", "a", "b"):
        await replies(stub.Decide(pb.DecideRequest(route="tickets", text=text, idempotency_key="k", wait=text == "b")))

    first, second, third = [request.fingerprint for request in service.requests]
    assert first == second != third


async def test_whom_a_request_is_about_travels_as_metadata_or_as_a_parameter(
    stub: Any, service: ScriptedService
) -> None:
    named = {"pointsman_subject": pb.Parameter(string_value="bert")}
    await replies(stub.Decide(pb.DecideRequest(route="tickets", text="a"), metadata=(("pointsman-subject", "anna"),)))
    await replies(stub.Decide(pb.DecideRequest(route="tickets", text="b", parameters=named)))

    assert [request.subject for request in service.requests] == ["anna", "bert"]
    assert all(not request.parameters for request in service.requests)
