"""What is told, as a CloudEvent: that nothing of an answer is open any more, and what became of it.

A final answer that is corrected, or decided anew after its decision was taken back, is told again, with a greater
`revision`: whoever is told keeps the greatest, as events may overtake each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from gateway.answer import Answer, Status
from gateway.http.v1 import answer_json
from gateway.moments import rfc3339
from gateway.store.contract import Message
from gateway.store.outbox import Announce, new_message
from gateway.webhooks.options import WebhookOptions

TYPES = {
    Status.FINAL: "pointsman.answer.final",
    Status.CANCELLED: "pointsman.answer.cancelled",
    Status.EXPIRED: "pointsman.answer.expired",
}
"""The type of the event, by the status of the answer: all of it was decided; or what was open of it was cancelled by
its caller, or expired."""

CONTENT_TYPE = "application/cloudevents+json"

_MOST_BYTES = 20_000


def announcer(webhooks: Iterable[WebhookOptions]) -> Announce:
    """What tells *webhooks*, each of the answers that it wants."""
    told = tuple(webhooks)

    def announce(answer: Answer, now_s: float) -> Iterator[Message]:
        for webhook in told:
            if webhook.wants(answer.tenant, answer.route):
                yield new_message(webhook.name, now_s, lambda message_id: _body(message_id, answer, now_s))

    return announce


def _body(message_id: str, answer: Answer, now_s: float) -> str:
    """The event; of an answer of very many items, without these: whoever is told can ask for them."""
    event = _event(message_id, answer, now_s)
    encoded = orjson.dumps(event)
    if len(encoded) > _MOST_BYTES:
        event["data"].pop("items", None)
        encoded = orjson.dumps(event)
    return encoded.decode()


def _event(message_id: str, answer: Answer, now_s: float) -> dict[str, Any]:  # Any: JSON
    moment = rfc3339(now_s)
    data = _without_outputs(answer_json(answer)) | {"href": f"/v1/answers/{answer.id}"}
    return {
        "specversion": "1.0",
        "id": message_id,
        "source": f"/v1/routes/{answer.route}",
        "type": TYPES[answer.status],
        "subject": answer.id,
        "time": moment,
        "timestamp": moment,  # as Standard Webhooks names it
        "datacontenttype": "application/json",
        "data": data,
    }


def _without_outputs(answer: dict[str, Any]) -> dict[str, Any]:
    for part in (answer, *answer.get("items", ())):
        part.pop("outputs", None)
    return answer
