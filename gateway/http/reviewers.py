"""`/v1/reviewers`: how far reviewers can be relied on, for operators.

GET /v1/reviewers?queue=NAME&since=2026-11-26T10:00:00Z        both optional; of the last 90 days by default
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.errors import InvalidInput
from gateway.http.messages import HttpRequest, HttpResponse, PathParameters, json_response
from gateway.http.paths import PathEntry
from gateway.http.reviews import query_of, queue_name
from gateway.moments import rfc3339
from gateway.request import Caller, Role
from gateway.reviewers.figures import RECENT_S, read_figures
from gateway.settings.units import unix_time_s
from gateway.store.contract import Store


def reviewer_endpoints(store: Store, clock: Callable[[], float] = time.time) -> Sequence[PathEntry]:
    """The entry of `/v1/reviewers`, for callers with the role operator.

    Args:
        clock: Unix time, in seconds.
    """
    return (PathEntry("GET", "/v1/reviewers", _Reviewers(store, clock).figures, role=Role.OPERATOR),)


@dataclass(frozen=True, slots=True)
class _Reviewers:
    """The endpoint over one store."""

    store: Store
    clock: Callable[[], float]

    async def figures(self, caller: Caller, request: HttpRequest, path: PathParameters) -> HttpResponse:
        """What the opinions of the caller's tenant come to."""
        query = query_of(request.query, {"queue", "since"})
        queue = queue_name(query.get("queue"))
        since_s = _since_s(query["since"]) if "since" in query else self.clock() - RECENT_S
        found = await read_figures(self.store, caller.tenant, queue, since_s)
        return json_response({"queue": queue, "since": rfc3339(since_s), **found.to_dict()})


def _since_s(text: str) -> float:
    try:
        return unix_time_s(text)
    except ValueError as error:
        raise InvalidInput(f"`since` {error}") from error
