"""The control plane: status page, metrics, the review inbox, and the `/v1` API beside them. Nothing here is hot.

Every request must name a host that is ours (DNS rebinding), and every page is sent with headers that allow nothing but
its own files. `/v1/*` is handed on untouched, for it authenticates by itself.

With API keys, the status page is for operators (a session of the inbox, or a key) and the inbox for reviewers.
`/metrics` stays open, as Prometheus and Triton have it: it holds counts and configured names, never a caller's data.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backends.errors import PermissionDenied, PointsmanError, Unauthenticated
from gateway.control import pages
from gateway.control.inbox import Inbox, Waits
from gateway.control.overview import Overview
from gateway.control.plots import AXES, HEIGHT, WIDTH, model_plots
from gateway.control.session import Session, Sessions
from gateway.request import Caller, Role
from gateway.reviewers.figures import RECENT_S, read_figures
from gateway.security import LOOPBACK_ONLY, Authenticator, TrustedHosts, require_role
from gateway.status import refusal_of
from gateway.store.contract import Store

_HERE = Path(__file__).parent


def _nobody_knows(tenant: str) -> Mapping[str, float]:
    return {}


def control_app(
    store: Store,
    authenticator: Authenticator,
    v1: ASGIApp,
    metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
    overview: Callable[[], Awaitable[Overview]],
    hosts: TrustedHosts = LOOPBACK_ONLY,
    waits: Waits = _nobody_knows,
) -> Starlette:
    """The application of the control port.

    Args:
        v1: serves `/v1/*`, authentication and errors included.
        metrics: the exposition in the format that an Accept header asks for, and its content type.
        overview: what is served, at this moment.
        hosts: the Host headers that are answered.
        waits: how long people of a tenant will take.
    """
    sessions = Sessions(authenticator, store)
    status = _StatusPage(store, authenticator, sessions, overview)

    async def expose(request: Request) -> Response:
        body, content_type = await metrics(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    app = Starlette(
        routes=[
            Route("/", status.show, methods=["GET"]),
            Route("/metrics", expose, methods=["GET"]),
            *Inbox(store, authenticator, sessions, waits).routes(),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ],
        middleware=[Middleware(_Front, v1=v1, hosts=hosts)],
        exception_handlers={HTTPException: _no_page, PointsmanError: _refuse, Exception: _refuse},
    )
    app.router.redirect_slashes = False  # it would build addresses from the Host header
    return app


class _StatusPage:
    """What the gateway is doing, for operators."""

    def __init__(
        self,
        store: Store,
        authenticator: Authenticator,
        sessions: Sessions,
        overview: Callable[[], Awaitable[Overview]],
    ) -> None:
        self._store = store
        self._authenticator = authenticator
        self._sessions = sessions
        self._overview = overview

    async def show(self, request: Request) -> Response:
        """Routes, models, review queues, reviewers of the operator's own tenant, and the store."""
        session = await self._sessions.read(request.cookies)
        operator = self._operator(request, session)
        if operator is None:
            return RedirectResponse("/login?next=/", 303)
        overview = await self._overview()
        return pages.page(
            "status.html",
            session=session,
            token="" if session is None else self._sessions.form_token(session),
            overview=overview,
            plots=[plot for model in overview.models for plot in model_plots(model.name, model.batching)],
            plot_size=(WIDTH, HEIGHT),
            plot_axes=AXES,
            queues=await self._store.queue_depths(),
            people=await read_figures(self._store, operator.tenant, None, time.time() - RECENT_S),
            store=self._store.statistics(),
        )

    def _operator(self, request: Request, session: Session | None) -> Caller | None:
        """The operator who asks; None where nobody has said who they are.

        Raises:
            PermissionDenied: somebody has, and is none.
        """
        try:
            caller = session.caller if session else self._authenticator.authenticate(request.headers)
        except Unauthenticated:
            return None
        require_role(caller, Role.OPERATOR)
        return caller


async def _no_page(request: Request, error: Exception) -> Response:
    """A path or method that the routes do not have."""
    assert isinstance(error, HTTPException)
    words = {404: "There is no page here.", 405: "This page does not take that method."}
    response = _error_page(error.status_code, words.get(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    return response


async def _refuse(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    return _error_page(refusal.wire.http, refusal.message)


def _error_page(status: int, message: str) -> Response:
    return pages.page("error.html", status, session=None, message=message)


class _Front:
    """What every request passes: the Host check, our headers, our errors; `/v1/*` leaves here."""

    def __init__(self, app: ASGIApp, v1: ASGIApp, hosts: TrustedHosts) -> None:
        self._app = app
        self._v1 = v1
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] == "http":
            await self._choose(scope)(scope, receive, send)

    def _choose(self, scope: Scope) -> ASGIApp:
        try:
            self._hosts.check(Headers(scope=scope).get("host", ""))
        except PermissionDenied as error:
            return _error_page(403, str(error))
        return self._v1 if scope["path"].startswith("/v1/") else self._pages

    async def _pages(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, _with_headers(send, pages.HEADERS.items()))


def _with_headers(send: Send, defaults: Iterable[tuple[str, str]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in defaults:
                headers.setdefault(name, value)
        await send(message)

    return sending
