"""Keys, ids and labels as callers write them, on every edge."""

from __future__ import annotations

import re

from backends.errors import InvalidInput, NotFound
from backends.quoting import shorten
from gateway.answer import AnswerId

MAX_KEY = 255
"""Longest idempotency key, in characters."""

MAX_SUBJECT = 255
"""Longest name of a subject, in characters."""

SUBJECT = "pointsman_subject"
"""The parameter that names whom a request is about."""

SUBJECT_HEADER = "pointsman-subject"
"""The same as a header, or as metadata of a gRPC call."""

MAX_LABEL = 10_000
"""Longest label of a feedback, in characters."""

_ANSWER_ID = re.compile(r"[0-9a-f]{32}")
_REVIEW_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_PRINTABLE = re.compile(r"[\x20-\x7e]+")
_ESCAPED = re.compile(r"\\(.)")


def parse_idempotency_key(value: str | None) -> str | None:
    """The key in *value*: a structured-field string (`"key"`), or, leniently, the bare key.

    Raises:
        InvalidInput: it is empty, longer than `MAX_KEY`, or has other characters than printable ASCII.
    Source:
        draft-ietf-httpapi-idempotency-key-header-06; RFC 9651, 3.3.3. We differ in accepting bare keys, which most
        clients send.
    """
    if value is None:
        return None
    text = value.strip()
    if text.startswith('"'):
        inner = text[1:-1]
        if len(text) < 2 or not text.endswith('"') or not re.fullmatch(r'(?:[^"\\]|\\["\\])*', inner):
            raise InvalidInput(
                'the idempotency key is no structured string; write it as "key", with \\" and \\\\ escaped'
            )
        text = _ESCAPED.sub(r"\1", inner)
    return check_idempotency_key(text)


def check_idempotency_key(text: str) -> str:
    """*text*, which is a key as it stands.

    Raises:
        InvalidInput: it is empty, longer than `MAX_KEY`, or has other characters than printable ASCII.
    """
    if not 1 <= len(text) <= MAX_KEY or not _PRINTABLE.fullmatch(text):
        raise InvalidInput(
            f"the idempotency key has {len(text)} characters; it needs 1 to {MAX_KEY} of printable ASCII"
        )
    return text


def parse_subject(value: object) -> str:
    """*value* as the name of whom a request is about; "" where it is None.

    Raises:
        InvalidInput: it is no text, empty, longer than `MAX_SUBJECT`, or not printable; the message does not repeat it.
    """
    if value is None:
        return ""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SUBJECT or not value.isprintable():
        raise InvalidInput(f"the subject is not a text of 1 to {MAX_SUBJECT} printable characters; send an opaque id")
    return value


def parse_answer_id(value: str) -> AnswerId:
    """*value* as an answer's id.

    Raises:
        NotFound: no answer can have it.
    """
    if not _ANSWER_ID.fullmatch(value):
        raise NotFound(f"there is no answer {shorten(value)}")
    return AnswerId(value)


def parse_review_id(value: str) -> str:
    """*value* as a review's id.

    Raises:
        NotFound: no review can have it.
    """
    if not _REVIEW_ID.fullmatch(value):
        raise NotFound(f"there is no review {shorten(value)}")
    return value


def parse_label(value: object) -> str:
    """*value* as the label that a caller says an item should have had.

    Raises:
        InvalidInput: it is no text, empty, or longer than `MAX_LABEL`.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_LABEL:
        raise InvalidInput(f"label is {shorten(value)}; it is a text of 1 to {MAX_LABEL} characters")
    return value
