"""What reviewers are told: a CloudEvent for a webhook, a few lines for a mailbox; counts, and no input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from gateway.moments import rfc3339
from gateway.notices.options import NotifyOptions
from gateway.store.contract import Message, Notice
from gateway.store.outbox import new_message

NEW = "pointsman.reviews.new"
"""The type of the event that a queue has new reviews."""

DUE = "pointsman.reviews.due"
"""The type of the event that reviews of a queue are due; there may be new ones beside."""


def maker(options: NotifyOptions) -> Callable[[Notice, float], Message]:
    """What makes a message for whom *options* name, of a notice and a Unix time in seconds."""
    body = _mail if options.webhook is None else _event

    def make(notice: Notice, now_s: float) -> Message:
        return new_message(options.target, now_s, lambda message_id: body(message_id, options, notice, now_s))

    return make


def _event(message_id: str, options: NotifyOptions, notice: Notice, now_s: float) -> str:
    moment = rfc3339(now_s)
    data: dict[str, Any] = {  # Any: JSON
        "queue": options.queue,
        "new": notice.new,
        "due": notice.due,
        "waiting": notice.waiting,
        "first_due": rfc3339(notice.first_due_s),
        "href": f"/v1/reviews?queue={options.queue}",
    }
    if options.link:
        data["link"] = options.link
    event = {
        "specversion": "1.0",
        "id": message_id,
        "source": "/v1/reviews",
        "type": DUE if notice.due else NEW,
        "subject": options.queue,
        "time": moment,
        "timestamp": moment,  # as Standard Webhooks names it
        "datacontenttype": "application/json",
        "data": data,
    }
    return orjson.dumps(event).decode()


def _mail(message_id: str, options: NotifyOptions, notice: Notice, now_s: float) -> str:
    """Subject and text, as JSON."""
    news = [f"{count} {what}" for count, what in ((notice.new, "new"), (notice.due, "due")) if count]
    lines = [
        f"The queue {options.queue} has reviews that wait for a person.",
        "",
        f"  new:       {notice.new}",
        f"  due:       {notice.due}",
        f"  waiting:   {notice.waiting}",
        f"  first due: {rfc3339(notice.first_due_s)}",
    ]
    if options.link:
        lines += ["", options.link]
    lines += ["", f"As of {rfc3339(now_s)}."]
    return orjson.dumps({"subject": f"{options.queue}: {', '.join(news)}", "text": "\n".join(lines)}).decode()
