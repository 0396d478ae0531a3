"""What an inference request says beside its tensors: whose business each parameter is.

Some names belong to the protocol or its extensions. Triton's `timeout` counts only while a request queues; here it is
a deadline like every other. `priority` is Triton's too: 1 is the highest, and 0, or a level that a model does not have,
its default (`batching: {priority_levels: ...}`); where it has none, all are alike. `sequence_id` (a number or a text; 0
and "" stand for none), `sequence_start` and `sequence_end` are for models that keep state; others pay no attention to
them, in Triton as here.

`content_type` is ours: tensors have no media type, so a client that wants to be routed by one (rules of `classify` for
`auto`) says here of what it made them, or what its BYTES are. It is taken out of the caller's own parameters, since
rules have a condition for it, and means the same over HTTP and gRPC; an HTTP request's own Content-Type describes its
envelope, and no rule sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field

from backends.contract import NO_DEADLINE, Deadline, ParameterValue, record
from backends.errors import InvalidInput
from backends.quoting import shorten
from gateway.keys import SUBJECT, parse_subject
from gateway.oip.render import take_on_defer
from gateway.request import SequencePlace
from router.contract import OnDefer

MAX_TIMEOUT_S = 24 * 3600.0
"""Longest deadline that a caller can ask for; what is longer means this."""

MAX_PARAMETERS = 256
"""Most parameters of one request, and of one tensor."""

_SEQUENCE = frozenset({"sequence_id", "sequence_start", "sequence_end"})
_LONGEST_ID = 128  # characters of a sequence's id; Triton's limit
_LARGEST_ID = 2**64 - 1
_RESERVED = "triton_"
_EMPTY_FINAL = "triton_enable_empty_final_response"  # every request has one reply here, which is its final one
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")


@record
class Parameters:
    """A request's parameters, sorted by whom they concern.

    Attributes:
        own: for routing rules.
        on_defer: what the caller wants for a deferred item; None: what the route says.
        timeout_s: the caller's `timeout`; None where there is none.
        binary_output: outputs go raw, where not said otherwise for one.
        content_type: what the tensors were made of, lower-case, for rules; "" where the caller does not say.
        priority: the caller's; 0 where there is none.
        sequence: what the request is in one; None where it names none.
        subject: whom the request is about; "" where they do not say.
    """

    own: Mapping[str, ParameterValue] = field(default_factory=dict)
    on_defer: OnDefer | None = None
    timeout_s: float | None = None
    binary_output: bool = False
    content_type: str = ""
    priority: int = 0
    sequence: SequencePlace | None = None
    subject: str = ""


NONE = Parameters()
"""Those of a request that has none."""


def sort(parameters: Mapping[str, ParameterValue]) -> Parameters:
    """Tell the protocol's parameters from the caller's own.

    Raises:
        InvalidInput: a reserved parameter has a value that it cannot have.
    """
    if not parameters:
        return NONE
    on_defer, own = take_on_defer(parameters)
    subject = "" if SUBJECT not in parameters else parse_subject(parameters[SUBJECT])
    sequence = None if _SEQUENCE.isdisjoint(own) else _sequence(own)
    binary_output = own.pop("binary_data_output", False)
    if not isinstance(binary_output, bool):
        raise InvalidInput(f"binary_data_output is {shorten(binary_output)}; it can be true or false")
    if not isinstance(own.pop(_EMPTY_FINAL, False), bool):
        raise InvalidInput(f"{_EMPTY_FINAL} can be true or false")
    if reserved := next((name for name in own if name.startswith(_RESERVED)), None):
        raise InvalidInput(f"parameter {shorten(reserved)} is unknown; {_RESERVED}* are reserved by the protocol")
    content_type = media_type(own.pop("content_type", ""))
    timeout_s, priority = _timeout_s(own.pop("timeout", None)), _priority(own.pop("priority", 0))
    return Parameters(own, on_defer, timeout_s, binary_output, content_type, priority, sequence, subject)


def _sequence(own: dict[str, ParameterValue]) -> SequencePlace | None:
    """What *own*, from which it is taken, says of a sequence."""
    id_, starts, ends = own.pop("sequence_id", 0), own.pop("sequence_start", False), own.pop("sequence_end", False)
    for name, flag in (("sequence_start", starts), ("sequence_end", ends)):
        if not isinstance(flag, bool):
            raise InvalidInput(f"{name} is {shorten(flag)}; it can be true or false")
    if id_ == "" or (type(id_) is int and id_ == 0):
        return None
    is_text = isinstance(id_, str) and len(id_) <= _LONGEST_ID
    is_number = type(id_) is int and 0 < id_ <= _LARGEST_ID
    if not (is_text or is_number):
        raise InvalidInput(
            f"sequence_id is {shorten(id_)}; it is a whole number below 2**64, or a text of at most {_LONGEST_ID} "
            "characters"
        )
    assert isinstance(id_, int | str)
    return SequencePlace(id_, starts is True, ends is True)


def media_type(value: ParameterValue) -> str:
    """*value* as a media type without parameters, lower-case; "" stands for none.

    Raises:
        InvalidInput: it is none.
    """
    if value == "":
        return ""
    if not isinstance(value, str) or not _MEDIA_TYPE.fullmatch(value.lower()):
        raise InvalidInput(f"content_type is {shorten(value)}; it is a media type without parameters, as image/png")
    return value.lower()


def _timeout_s(value: ParameterValue | None) -> float | None:
    """Triton's `timeout`: microseconds, of which 0 means none."""
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InvalidInput(f"timeout is {shorten(value)}; it is a whole number of microseconds")
    return value / 1e6 if value else None


def _priority(value: ParameterValue) -> int:
    if type(value) is not int or value < 0:
        raise InvalidInput(f"priority is {shorten(value)}; it is a whole number, 1 the highest, 0 for the default")
    return value


def deadline_of(now: float, *timeouts_s: float | None) -> Deadline:
    """The earliest deadline that *timeouts_s* set from *now*, on the monotonic clock; None sets none."""
    if timeouts_s.count(None) == len(timeouts_s):
        return NO_DEADLINE
    return Deadline(now + min([MAX_TIMEOUT_S, *[timeout_s for timeout_s in timeouts_s if timeout_s is not None]]))
