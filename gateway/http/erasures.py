"""`/v1/erasures`: what is known of somebody, or of one answer, goes.

    POST /v1/erasures   {"subject": "..."} or {"answer_id": "..."}   200 what was erased; again: nothing more

For operators, of their tenant alone. `gateway.store.erasure` says what goes, and what stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.errors import InvalidInput, TooLarge, UnsupportedMedia
from gateway.http import headers
from gateway.http.messages import HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.paths import PathEntry
from gateway.http.strict_json import loads, members
from gateway.keys import parse_answer_id, parse_subject
from gateway.request import Caller, Role
from gateway.store.contract import Erasure, Known, Store

_MAX_BODY_BYTES = 4096


def erasure_endpoints(store: Store, known: Known) -> Sequence[PathEntry]:
    """The entry of `/v1/erasures`; *known* has the labels of routes."""
    return (PathEntry("POST", "/v1/erasures", _Erasures(store, known).erase, role=Role.OPERATOR),)


@dataclass(frozen=True, slots=True)
class _Erasures:
    """The endpoint over one store."""

    store: Store
    known: Known

    async def erase(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """Erase, and tell how much there was."""
        erased = await self.store.erase(_asked(caller, request), self.known)
        return json_response(
            {
                "answers": erased.answers,
                "reviews_cancelled": erased.reviews,
                "gold_items": erased.gold,
                "overwritten": erased.is_overwritten,
            }
        )


def _asked(caller: Caller, request: HttpRequest) -> Erasure:
    if headers.content_type(request.headers).name != "application/json":
        raise UnsupportedMedia('an erasure is application/json: {"subject": "..."} or {"answer_id": "..."}')
    if len(request.body) > _MAX_BODY_BYTES:
        raise TooLarge(f"the body has {len(request.body)} bytes; at most {_MAX_BODY_BYTES} are read")
    given = members(loads(request.octets), "the body", frozenset({"subject", "answer_id"}))
    if len(given) != 1:
        raise InvalidInput('say what is to be erased by one of them: {"subject": "..."} or {"answer_id": "..."}')
    by = f"operator:{caller.name}"
    if "subject" in given:
        subject = parse_subject(given["subject"])
        if not subject:
            raise InvalidInput("the subject is null; send the id that its requests came with")
        return Erasure(caller.tenant, by, subject=subject)
    answer_id = given["answer_id"]
    if not isinstance(answer_id, str):
        raise InvalidInput("answer_id is no text; send an answer's id")
    return Erasure(caller.tenant, by, answer_id=parse_answer_id(answer_id))
