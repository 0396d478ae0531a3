"""The errors of every layer, each with a code that the edges translate to HTTP and gRPC.

A message names the value and the remedy, and is fit for a caller to read: nothing internal belongs in it. What an
operator needs beyond that travels as the exception's cause (`raise ... from exc`) and is logged, never sent.
`gateway.status` maps every `Code`; a test walks all of them through it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Code(StrEnum):
    """What went wrong, in terms that both transports can express."""

    INVALID_ARGUMENT = "invalid_argument"
    UNSUPPORTED_MEDIA = "unsupported_media"
    TOO_LARGE = "too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    UNMET_EXPECTATION = "unmet_expectation"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    CONFLICT = "conflict"
    ALREADY_EXISTS = "already_exists"
    KEY_REUSED = "key_reused"
    QUOTA_EXCEEDED = "quota_exceeded"
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    UNIMPLEMENTED = "unimplemented"
    BACKEND_FAILED = "backend_failed"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"


class PointsmanError(Exception):
    """Base of every error that a caller may see.

    Attributes:
        code: what went wrong.
        retry_after_s: when another try may succeed; None where it cannot, or nobody knows.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvalidInput(PointsmanError):
    """The request, or a tensor in it, is not what was asked for; the same request can never succeed."""

    code = Code.INVALID_ARGUMENT


class SequenceUnknown(InvalidInput):
    """A request goes on with a sequence that nobody has begun; once somebody has, the same request may succeed."""


class UnsupportedMedia(PointsmanError):
    """The body is of a kind that nothing here reads."""

    code = Code.UNSUPPORTED_MEDIA


class TooLarge(PointsmanError):
    """Something exceeds a limit on size or number."""

    code = Code.TOO_LARGE


class HeadersTooLarge(PointsmanError):
    """The headers of a request are longer than what is read of them, or too many."""

    code = Code.HEADERS_TOO_LARGE


class UnmetExpectation(PointsmanError):
    """The request expects of its server what is not done here."""

    code = Code.UNMET_EXPECTATION


class Unauthenticated(PointsmanError):
    """No credentials, or wrong ones."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(PointsmanError):
    """The caller is known, and may not do this."""

    code = Code.PERMISSION_DENIED


class NotFound(PointsmanError):
    """No such route, model, version, answer or review item."""

    code = Code.NOT_FOUND


class MethodNotAllowed(PointsmanError):
    """The path exists, and this method on it does not."""

    code = Code.METHOD_NOT_ALLOWED


class RequestTimeout(PointsmanError):
    """The caller took too long to send its request."""

    code = Code.REQUEST_TIMEOUT


class Conflict(PointsmanError):
    """Somebody else holds or has changed what this call is about."""

    code = Code.CONFLICT


class AlreadyExists(PointsmanError):
    """What is to be made is there already, under that name."""

    code = Code.ALREADY_EXISTS


class SequenceOver(Conflict):
    """The state of a sequence is lost, or nobody knows what it is; only a new sequence can go on."""


class KeyReused(PointsmanError):
    """The idempotency key was used before, with another request."""

    code = Code.KEY_REUSED


class QuotaExceeded(PointsmanError):
    """The caller has used up what it may use."""

    code = Code.QUOTA_EXCEEDED


class Cancelled(PointsmanError):
    """The caller left, or took its request back."""

    code = Code.CANCELLED


class Unimplemented(PointsmanError):
    """A part of a protocol that is not served here."""

    code = Code.UNIMPLEMENTED


class BackendFailed(PointsmanError):
    """A model failed on what it was given, or gave back what its signature does not allow."""

    code = Code.BACKEND_FAILED


class Unavailable(PointsmanError):
    """Not now: overloaded, draining, not ready, or no stage was sure and no person is there to ask."""

    code = Code.UNAVAILABLE


class Overloaded(Unavailable):
    """Too much waits already; `retry_after_s` says when less should."""


class ReplicaFailed(Unavailable):
    """One server of a model failed where another may not: it refused, hung up, was silent, or answered nonsense.

    Only this is tried again elsewhere and counted against a replica; what a caller did wrong never is.
    """


class DeadlineExceeded(PointsmanError):
    """The deadline passed, or would pass before an answer."""

    code = Code.DEADLINE_EXCEEDED


def error_of(code: Code, message: str) -> PointsmanError:
    """The error with *code*, for a refusal that was stored and is raised again."""
    kinds = {kind.code: kind for kind in PointsmanError.__subclasses__()}
    return kinds.get(code, PointsmanError)(message)
