"""How reviews are written for other tools, and how their decisions are read.

- `jsonl`: a review a line, as `/v1/reviews/{id}` has it; a decision is a line with `id`, `label` and `reviewer`.
- `label-studio`: its JSON import, and its JSON export. Text is `$text`, a picture `$image`; the choice is `label`.
- `argilla`: the records that its SDK's `records.from_json` reads, and `to_json` writes; the question is `label`.

What is decided goes out with its label, under the name that the tool itself has for whoever decided it, where they did
so there. Others it does not know: Label Studio takes their annotations for those of whoever imports them, and refuses
an address that is no member's; Argilla wants a number for everybody, which is made of the name. The name itself is in
the task's `meta`, or the record's `metadata`, as `reviewer`, and is read from there.

These tools show text and pictures. What is neither is left out (`NotShown`): as a text of replacement characters it
would be decided like any other. `jsonl` has everything.

Of several people who decided one item elsewhere, all must agree: who is right where they do not is for people to say.

Sources: Label Studio 1.23, "Import data" and "Export annotations", and `_insert_valid_completed_by` of its
`tasks/serializers.py`; argilla 2.8.0, `records/_resource.py` and `responses.py`.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar
from xml.sax.saxutils import quoteattr

from pydantic import BaseModel, ValidationError

from gateway.http.reviews import detail
from gateway.store.contract import Review, ReviewState

# Any, throughout: JSON.

_M = TypeVar("_M", bound=BaseModel)

_QUESTION = "label"
_REVIEW = "pointsman_review"
_REVIEWER = "reviewer"
_PEOPLE = uuid.UUID("4a4bd1d5-8bd3-4fbb-9a0c-5ab6f1a4ab2e")
"""Of Argilla's numbers of people whom only we know."""
_NUMBER = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NotShown(ValueError):
    """A tool has no way to show what a review is about; the message says what that is, and the remedy."""


class Format(StrEnum):
    """A tool's file."""

    JSONL = "jsonl"
    LABEL_STUDIO = "label-studio"
    ARGILLA = "argilla"


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody decided elsewhere.

    Attributes:
        reviewer: whoever it was, as that tool names them; "" where it does not.
        why_not: why it is none, in words; "" where it is one.
    """

    review_id: str
    label: str = ""
    reviewer: str = ""
    why_not: str = ""


class Pieces:
    """A file of *form*, a review at a time."""

    def __init__(self, form: Format) -> None:
        self._of = {Format.JSONL: detail, Format.LABEL_STUDIO: _task, Format.ARGILLA: _record}[form]
        self._is_list = form is not Format.JSONL
        self._before = "[\n" if self._is_list else ""

    def of(self, review: Review) -> str:
        """*review*, and what stands before it.

        Raises:
            NotShown: it cannot be in such a file.
        """
        written = json.dumps(self._of(review), ensure_ascii=False)
        before, self._before = self._before, ",\n" if self._is_list else "\n"
        return before + written

    def end(self) -> str:
        """What stands behind the last one."""
        if not self._is_list:
            return self._before
        return "\n]\n" if self._before == ",\n" else "[]\n"


def label_config(labels: Sequence[str], *, image: bool) -> str:
    """The labelling interface that a Label Studio project needs for such tasks, as XML; free text without *labels*."""
    shown = '<Image name="item" value="$image" zoom="true"/>' if image else '<Text name="item" value="$text"/>'
    if not labels:
        return f'<View>{shown}<TextArea name="{_QUESTION}" toName="item" maxSubmissions="1"/></View>'
    choices = "".join(f"<Choice value={quoteattr(label)}/>" for label in labels)
    return f'<View>{shown}<Choices name="{_QUESTION}" toName="item" choice="single">{choices}</Choices></View>'


def read(text: str, form: Format) -> Iterator[Decision]:
    """The decisions in a file of *form*; what is open there is left out.

    Raises:
        ValueError: *text* is no such file; says where.
    """
    if form is Format.JSONL:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield from _from_line(_parsed(line, f"line {number}"), f"line {number}")
        return
    found = _parsed(text, "the file")
    if not isinstance(found, list):
        raise ValueError(f"the file is no list of {'tasks' if form is Format.LABEL_STUDIO else 'records'}")
    one = _from_task if form is Format.LABEL_STUDIO else _from_record
    for number, entry in enumerate(found, start=1):
        yield from one(entry, f"entry {number}")


# --- to ---


def _shown(review: Review) -> dict[str, str]:
    """What a person looks at: `text`, or `image` as a data URI.

    Raises:
        NotShown: it is neither.
    """
    payload, media = review.task.payload, review.task.content_type
    if media.startswith("image/"):
        return {"image": f"data:{media};base64,{base64.b64encode(payload).decode()}"}
    try:
        return {"text": payload.decode()}
    except UnicodeDecodeError as error:
        what = "no text in UTF-8" if media.startswith("text/") else "neither text nor a picture"
        raise NotShown(f"its input, {media}, is {what}, and was left out; --format jsonl has it") from error


def _about(review: Review) -> dict[str, str]:
    about = {_REVIEW: review.id, "route": review.route, "queue": review.task.queue, "reason": review.task.reason.value}
    return {**about, _REVIEWER: review.reviewer} if _is_decided(review) and review.reviewer else about


def _is_decided(review: Review) -> bool:
    return review.state is ReviewState.DECIDED and review.label is not None


def _name_there(review: Review, form: Format) -> str | None:
    """The name that the tool of *form* has for whoever decided *review*; None where they did so elsewhere."""
    before, _, name = (review.reviewer or "").partition(":")
    return name if name and before == form else None


def _task(review: Review) -> dict[str, Any]:
    task = {
        "data": _shown(review),
        "meta": _about(review),
        "predictions": [
            {
                "model_version": proposal.stage,
                "score": proposal.confidence,
                "result": [_choice(proposal.label, free=not review.task.labels)],
            }
            for proposal in review.task.proposals
            if proposal.label is not None
        ],
    }
    return {**task, "annotations": [_annotation(review)]} if _is_decided(review) else task


def _annotation(review: Review) -> dict[str, Any]:
    annotation: dict[str, Any] = {"result": [_choice(review.label or "", free=not review.task.labels)]}
    name = _name_there(review, Format.LABEL_STUDIO) or ""
    if "@" in name:
        return {**annotation, "completed_by": {"email": name}}
    return {**annotation, "completed_by": int(name)} if name.isdecimal() else annotation


def _choice(label: str, *, free: bool) -> dict[str, Any]:
    value = {"text": [label]} if free else {"choices": [label]}
    return {"from_name": _QUESTION, "to_name": "item", "type": "textarea" if free else "choices", "value": value}


def _record(review: Review) -> dict[str, Any]:
    suggestions: dict[str, dict[str, Any]] = {}
    best = max(review.task.proposals, key=lambda proposal: proposal.confidence or 0.0, default=None)
    if best is not None and best.label is not None:
        suggestions[_QUESTION] = {"value": best.label, "score": best.confidence, "agent": best.stage}
    return {
        "id": review.id,
        "fields": _shown(review),
        "metadata": {key: value for key, value in _about(review).items() if key != _REVIEW},
        "suggestions": suggestions,
        "responses": {_QUESTION: [_response(review)]} if _is_decided(review) else {},
        "vectors": {},
    }


def _response(review: Review) -> dict[str, Any]:
    name = _name_there(review, Format.ARGILLA) or ""
    number = name if _NUMBER.fullmatch(name) else _number(review.reviewer or "")
    return {"value": review.label, "user_id": number, "status": "submitted"}


def _number(reviewer: str) -> str:
    """What stands for *reviewer* where people are numbers."""
    return str(uuid.uuid5(_PEOPLE, reviewer))


# --- from ---


class _Annotation(BaseModel):
    """What one person said of a task of Label Studio."""

    result: list[dict[str, Any]] = []
    completed_by: dict[str, Any] | int | str | None = None
    was_cancelled: bool = False

    @property
    def label(self) -> str | None:
        """The one choice, or the one text; None where there is none, or several."""
        for result in self.result:
            value = result.get("value")
            if result.get("from_name") == _QUESTION and isinstance(value, dict):
                chosen = value.get("choices") or value.get("text")
                return str(chosen[0]) if isinstance(chosen, list) and len(chosen) == 1 else None
        return None

    @property
    def person(self) -> str | None:
        """Label Studio names people by number, or by number and address; None where it has not been there."""
        if self.completed_by is None:
            return None
        if isinstance(self.completed_by, dict):
            return str(self.completed_by.get("email") or self.completed_by.get("id"))
        return str(self.completed_by)


class _Task(BaseModel):
    """A task as Label Studio exports it."""

    meta: dict[str, Any] | None = None
    annotations: list[_Annotation] = []


class _Response(BaseModel):
    """What one person said of a record of Argilla."""

    value: Any = None
    user_id: str | None = None


class _Record(BaseModel):
    """A record as Argilla's SDK writes it."""

    id: str = ""
    metadata: dict[str, Any] = {}
    responses: dict[str, list[_Response]] = {}


class _Line(BaseModel):
    """A review as we write it."""

    id: str = ""
    label: str | None = None
    reviewer: str | None = None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error


def _valid(kind: type[_M], value: object, where: str) -> _M:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where} is not as it should be: {place}{': ' if place else ''}{first['msg']}") from error


def _from_line(value: object, where: str) -> Iterator[Decision]:
    line = _valid(_Line, value, where)
    if line.label is not None:
        yield Decision(line.id, line.label, line.reviewer or "")


def _from_task(value: object, where: str) -> Iterator[Decision]:
    task = _valid(_Task, value, where)
    meta = task.meta or {}
    ours = str(meta.get(_REVIEWER, ""))
    said = [
        (one.label, ours if one.person is None else one.person) for one in task.annotations if not one.was_cancelled
    ]
    yield from _agreed(str(meta.get(_REVIEW, "")), said)


def _from_record(value: object, where: str) -> Iterator[Decision]:
    record = _valid(_Record, value, where)
    ours = str(record.metadata.get(_REVIEWER, ""))
    said = [
        (
            one.value if isinstance(one.value, str) else None,
            ours if one.user_id == _number(ours) else one.user_id or "",
        )
        for one in record.responses.get(_QUESTION, ())
    ]
    yield from _agreed(record.id, said)


def _agreed(review_id: str, said: Sequence[tuple[str | None, str]]) -> Iterator[Decision]:
    if not said:
        return
    labels = {label for label, _ in said}
    (first, reviewer), *_ = said
    if first is None or len(labels) > 1:
        told = ", ".join(sorted(label if label is not None else "no single label" for label in labels))
        yield Decision(review_id, why_not=f"those who decided it do not agree: {told}" if len(said) > 1 else told)
    else:
        yield Decision(review_id, first, reviewer)
