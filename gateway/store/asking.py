"""The row of a review as it is before anybody has taken it."""

from __future__ import annotations

from gateway.answer import Answer, new_answer_id
from gateway.store import codec
from gateway.store.bulk import Row
from gateway.store.contract import ReviewState, ReviewTask


def new_review(answer: Answer, task: ReviewTask, panel: Row, now_s: float) -> Row:
    """A review of *task*, which is about an item of *answer*, in the order of the table's columns.

    Args:
        answer: whose id, tenant and route it has.
        task: what is asked.
        panel: the columns from `purpose` to `second`.
        now_s: Unix time, in seconds.
    """
    place = (answer.id, task.item, answer.tenant, answer.route, task.queue, float(task.due_s), now_s)
    state = (ReviewState.OPEN.value, 0, None, None, None, None)
    needs = (task.reason.value, task.priority, codec.encode_labels(task.skills))
    so_far = (None, 0, False, None, None, None)
    shown = (codec.encode_labels(task.labels), codec.encode_proposals(task.proposals), task.payload)
    return (new_answer_id(now_s), *place, *state, *panel, *needs, *so_far, task.expires_s, task.content_type, *shown)
