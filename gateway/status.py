"""The one table from an error to what a caller is told of it, for HTTP and gRPC alike.

An error of ours carries a message that is fit to be read by its caller. Anything else is a bug: its caller gets an
error id and nothing more, and the id stands beside the traceback in the log, where the operator finds it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc

from backends.errors import Code, PointsmanError, Unavailable
from gateway.answer import AnswerId
from gateway.moments import in_words

_log = logging.getLogger(__name__)

POLL_AFTER_S = 5.0
"""When to look again for an answer that a person still has to give."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How one `Code` is told.

    Attributes:
        http: status code.
        title: of an RFC 9457 problem: the same for every occurrence.
    """

    http: int
    grpc: grpc.StatusCode
    title: str


_G = grpc.StatusCode
TABLE: Mapping[Code, Wire] = MappingProxyType(
    {
        Code.INVALID_ARGUMENT: Wire(400, _G.INVALID_ARGUMENT, "Invalid request"),
        Code.UNSUPPORTED_MEDIA: Wire(415, _G.INVALID_ARGUMENT, "Unsupported media type"),
        Code.TOO_LARGE: Wire(413, _G.RESOURCE_EXHAUSTED, "Too large"),
        Code.HEADERS_TOO_LARGE: Wire(431, _G.RESOURCE_EXHAUSTED, "Headers too large"),
        Code.UNMET_EXPECTATION: Wire(417, _G.INVALID_ARGUMENT, "Expectation failed"),
        Code.UNAUTHENTICATED: Wire(401, _G.UNAUTHENTICATED, "Unauthenticated"),
        Code.PERMISSION_DENIED: Wire(403, _G.PERMISSION_DENIED, "Permission denied"),
        Code.NOT_FOUND: Wire(404, _G.NOT_FOUND, "Not found"),
        Code.METHOD_NOT_ALLOWED: Wire(405, _G.UNIMPLEMENTED, "Method not allowed"),
        Code.REQUEST_TIMEOUT: Wire(408, _G.DEADLINE_EXCEEDED, "Request timeout"),
        Code.CONFLICT: Wire(409, _G.ABORTED, "Conflict"),
        Code.ALREADY_EXISTS: Wire(409, _G.ALREADY_EXISTS, "Already exists"),
        Code.KEY_REUSED: Wire(422, _G.FAILED_PRECONDITION, "Idempotency key reused"),
        Code.QUOTA_EXCEEDED: Wire(429, _G.RESOURCE_EXHAUSTED, "Quota exceeded"),
        Code.CANCELLED: Wire(499, _G.CANCELLED, "Cancelled"),
        Code.INTERNAL: Wire(500, _G.INTERNAL, "Internal error"),
        Code.UNIMPLEMENTED: Wire(501, _G.UNIMPLEMENTED, "Not implemented"),
        Code.BACKEND_FAILED: Wire(502, _G.INTERNAL, "Model failed"),
        Code.UNAVAILABLE: Wire(503, _G.UNAVAILABLE, "Unavailable"),
        Code.DEADLINE_EXCEEDED: Wire(504, _G.DEADLINE_EXCEEDED, "Deadline exceeded"),
    }
)


class AwaitsPerson(Unavailable):
    """The answer waits for a person, and this client cannot be told half of it.

    It says where the answer will be, and not when to try again: a client that repeats the request, as many do when told
    so, would make one more task for a person each time.

    Attributes:
        answer_id: where the final answer will be.
    """

    def __init__(self, answer_id: AnswerId, why: str, wait_s: float | None = None) -> None:
        """Args:
        wait_s: seconds that the person will take; None where nobody knows.
        """
        self.answer_id = answer_id
        when = "" if wait_s is None else f" in about {in_words(wait_s)}"
        super().__init__(f"{why}; a person will decide it{when} as answer {answer_id}: GET /v1/answers/{answer_id}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as its caller may see it.

    Attributes:
        message: names the value and the remedy; nothing internal.
        retry_after_s: when another try may succeed; None where nobody knows.
        answer_id: of the answer that waits for a person; None for every other error.
        error_id: what an operator finds the cause by; None where the message says it all.
    """

    code: Code
    message: str
    retry_after_s: float | None = None
    answer_id: AnswerId | None = None
    error_id: str | None = None

    @property
    def wire(self) -> Wire:
        """Its status on the wire."""
        return TABLE[self.code]


def refusal_of(error: BaseException) -> Refusal:
    """What to tell the caller of *error*; logs, under an id, what the caller is not told."""
    if not isinstance(error, PointsmanError):
        error_id = secrets.token_hex(8)
        _log.error("error %s: an unexpected exception ended a request", error_id, exc_info=error)
        return Refusal(Code.INTERNAL, f"internal error; quote error id {error_id} to the operator", error_id=error_id)
    if error.code in (Code.INTERNAL, Code.BACKEND_FAILED) and error.__cause__ is not None:
        error_id = secrets.token_hex(8)
        _log.warning("error %s: %s", error_id, error, exc_info=error)
        return Refusal(error.code, f"{error} (error id {error_id})", error.retry_after_s, error_id=error_id)
    answer_id = error.answer_id if isinstance(error, AwaitsPerson) else None
    return Refusal(error.code, str(error), error.retry_after_s, answer_id)
