"""`/v1` on the control port, where workers have the models.

Reviews and reviewers are answered from the store here. Whatever else `/v1` has is handed on, as it came, to a worker,
which authenticates and counts it as if it had come to a port of its own. A worker replies whole: an event stream,
which is never whole, is for the data plane's port.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from backends.errors import PointsmanError, Unimplemented
from gateway.http import events
from gateway.http.handler import Handler
from gateway.http.messages import HttpRequest, HttpResponse
from gateway.http.paths import PathEntry
from gateway.workers.crew import Crew

_OURS = ("/v1/reviews", "/v1/reviewers")
_ANSWER = re.compile(r"/v1/answers/[^/:]+")
_NO_EVENTS = (
    "several workers have no event streams on the control port; ask for them at the HTTP port of the data plane, or "
    "here with `Prefer: wait=N`"
)


class ControlHandler(Handler):
    """Answers what the supervisor can, and hands on the rest."""

    def __init__(self, crew: Crew, entries: Iterable[PathEntry], *args: Any, **named: Any) -> None:
        """As `Handler`, whose other arguments follow *entries* (Any: they are told there), beside *crew*."""
        super().__init__(entries, *args, **named)
        self._crew = crew

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """See `Handler.handle`."""
        if request.path.startswith(_OURS):
            return await super().handle(request)
        if request.method in ("GET", "HEAD") and _ANSWER.fullmatch(request.path) and events.are_wanted(request.headers):
            return self.refuse(request, Unimplemented(_NO_EVENTS))
        try:
            return await self._crew.forward(request)
        except PointsmanError as error:
            return self.refuse(request, error)
