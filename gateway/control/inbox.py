"""The review inbox: one item at a time, and the next one as soon as the last is decided.

`/inbox/{queue}/next` claims and shows; deciding redirects there, so that a reviewer who knows the keys never waits for
more than one redirect. An item's own page (`/inbox/reviews/{id}`) claims nothing by being looked at.

Skipping puts an item back and looks behind it: `after` travels in the address, so a skipped item comes up again when
the reviewer starts over, and for others at once.

Of two reviewers, two windows or two clicks, the store lets one decision through; the other gets a page that says so
(409), with a link to the next item.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from backends.errors import Conflict, InvalidInput, NotFound, TooLarge, Unauthenticated, UnsupportedMedia
from gateway.control import media, pages
from gateway.control.session import COOKIE, SESSION_S, Session, Sessions
from gateway.http.reviews import DEFAULT_LEASE_S, check_label, check_reviewer
from gateway.request import Role
from gateway.security import Authenticator, refuse_foreign_pages, require_role
from gateway.store.contract import Review, ReviewState, Store

LISTED = 100
"""Most reviews that the inbox's first page lists."""

_MAX_FORM_BYTES = 256 * 1024
_LOOK_AHEAD = 20  # open reviews tried behind a skipped one, should others be quicker
_CONVERSIONS = 2  # pictures converted at once: each may take hundreds of megabytes for a moment
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_INBOX_PATH = re.compile(r"/inbox(/[0-9A-Za-z._~%-]+)*(\?after=[0-9A-Za-z_-]{1,64})?")

Form: TypeAlias = Mapping[str, str]
Page: TypeAlias = Callable[[Request, Session], Awaitable[Response]]
Action: TypeAlias = Callable[[Request, Session, Form], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue in the inbox.

    Attributes:
        reviews: open ones, and those that this reviewer holds, by due time.
        oldest_s: Unix time since when the oldest waits.
    """

    name: str
    reviews: tuple[Review, ...]
    oldest_s: float
    overdue: int


class Inbox:
    """The pages under `/inbox`, and logging in and out."""

    def __init__(self, store: Store, authenticator: Authenticator, sessions: Sessions) -> None:
        self._store = store
        self._authenticator = authenticator
        self._sessions = sessions
        self._converting = asyncio.Semaphore(_CONVERSIONS)

    def routes(self) -> Sequence[BaseRoute]:
        """For a Starlette application."""
        return (
            Route("/login", self.login_page, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self._acts(self.logout, role=None), methods=["POST"]),
            Route("/inbox", self._shows(self.queues), methods=["GET"]),
            Route("/inbox/{queue:path}/next", self._shows(self.next), methods=["GET"]),
            Route("/inbox/reviews/{id}", self._shows(self.item), methods=["GET"]),
            Route("/inbox/reviews/{id}/payload", self._shows(self.payload), methods=["GET"]),
            Route("/inbox/reviews/{id}/claim", self._acts(self.claim), methods=["POST"]),
            Route("/inbox/reviews/{id}/decide", self._acts(self.decide), methods=["POST"]),
            Route("/inbox/reviews/{id}/release", self._acts(self.release), methods=["POST"]),
        )

    # Who is there

    async def login_page(self, request: Request) -> Response:
        """Asks for a key, or a name."""
        return self._login_page(_inbox_path(request.query_params.get("next", "")))

    def _login_page(self, following: str, status: int = 200, fault: str = "") -> Response:
        return pages.page(
            "login.html", status, needs_key=self._authenticator.needs_key, next=following, fault=fault, session=None
        )

    async def login(self, request: Request) -> Response:
        """Opens a session for who shows a key, or says a name where no key is needed."""
        refuse_foreign_pages(request.headers)
        form = await _form(request)
        following = _inbox_path(form.get("next", ""))
        try:
            cookie = self._open_session(form)
        except (Unauthenticated, InvalidInput) as error:
            status, fault = (401, "That key is not known here.") if self._authenticator.needs_key else (400, str(error))
            return self._login_page(following, status, fault)
        response = RedirectResponse(following, 303)
        # Behind a proxy that ends TLS, only the browser's Origin tells.
        secure = "https" in (request.url.scheme, urlsplit(request.headers.get("origin", "")).scheme)
        response.set_cookie(COOKIE, cookie, max_age=SESSION_S, httponly=True, samesite="strict", secure=secure)
        return response

    def _open_session(self, form: Form) -> str:
        if not self._authenticator.needs_key:
            return self._sessions.open(check_reviewer(form.get("name", "")), None)
        key = self._authenticator.identify(form.get("key", "").strip())
        return self._sessions.open(key.name, key)

    async def logout(self, request: Request, session: Session, form: Form) -> Response:
        """Ends the session."""
        self._sessions.end(session)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    # What is there

    async def queues(self, request: Request, session: Session) -> Response:
        """Open reviews by queue and age, and those this reviewer holds."""
        tenant = session.caller.tenant
        open_, claimed = await asyncio.gather(
            self._store.reviews(tenant, None, ReviewState.OPEN, limit=LISTED),
            self._store.reviews(tenant, None, ReviewState.CLAIMED, limit=LISTED),
        )
        mine = [review for review in claimed if review.reviewer == session.reviewer]
        return self._page(
            "inbox.html", session, queues=_by_queue([*mine, *open_]), is_cut=len(open_) == LISTED, listed=LISTED
        )

    async def next(self, request: Request, session: Session) -> Response:
        """Claims the next review of a queue, and shows it."""
        queue, after = _queue(request.path_params["queue"]), request.query_params.get("after")
        if after is None:
            review = await self._store.claim_next(session.caller.tenant, queue, session.reviewer, DEFAULT_LEASE_S)
        else:
            review = await self._claim_behind(queue, _review_id(after), session)
        if review is None:
            return self._page("empty.html", session, queue=queue, skipped=after is not None)
        return await self._item_page(review, session)

    async def _claim_behind(self, queue: str, skipped: str, session: Session) -> Review | None:
        tenant = session.caller.tenant
        candidates = await self._store.reviews(tenant, queue, ReviewState.OPEN, after=skipped, limit=_LOOK_AHEAD)
        for candidate in candidates:
            try:
                return await self._store.claim(tenant, candidate.id, session.reviewer, DEFAULT_LEASE_S)
            except Conflict:
                continue  # somebody was quicker
        return None

    async def item(self, request: Request, session: Session) -> Response:
        """Shows one review."""
        return await self._item_page(await self._review(request, session), session)

    async def _item_page(self, review: Review, session: Session) -> Response:
        view = await asyncio.to_thread(media.view, review.task.payload, review.task.content_type)
        answer = await self._store.answer(review.tenant, review.answer_id)
        labels = review.task.labels
        return self._page(
            "item.html",
            session,
            review=review,
            task=review.task,
            view=view,
            reason=pages.REASONS[review.task.reason],
            remarks=answer.items[review.task.item].remarks if answer else (),
            choices=list(zip(labels, pages.shortcuts(labels), strict=True)),
            is_mine=review.state is ReviewState.CLAIMED and review.reviewer == session.reviewer,
        )

    async def payload(self, request: Request, session: Session) -> Response:
        """The input itself: a picture to show, or a download."""
        review = await self._review(request, session)
        content = review.task.payload
        view = await asyncio.to_thread(media.view, content, review.task.content_type)
        media_type = view.media_type
        if not media_type:
            media_type = "image/png"
            async with self._converting:
                converted = await asyncio.to_thread(media.as_png, content)
            if converted is None:
                return _download(review.id, content, "application/octet-stream")
            content = converted
        if view.kind is not media.Kind.PICTURE:
            return _download(review.id, content, media_type)
        return Response(content, headers=_PAYLOAD_HEADERS, media_type=media_type)

    # What is done

    async def claim(self, request: Request, session: Session, form: Form) -> Response:
        """Takes one review, and shows it."""
        review_id = _review_id(request.path_params["id"])
        await self._store.claim(session.caller.tenant, review_id, session.reviewer, DEFAULT_LEASE_S)
        return RedirectResponse(f"/inbox/reviews/{review_id}", 303)

    async def decide(self, request: Request, session: Session, form: Form) -> Response:
        """Gives a review its label, and goes on to the next."""
        review_id, label = _review_id(request.path_params["id"]), check_label(form.get("label"))
        await self._store.decide(session.caller.tenant, review_id, session.reviewer, _fence(form), label)
        return RedirectResponse(_next_path(form.get("queue", ""), form.get("after")), 303)

    async def release(self, request: Request, session: Session, form: Form) -> Response:
        """Puts a review back, and goes on behind it, or to the list."""
        review_id = _review_id(request.path_params["id"])
        await self._store.release(session.caller.tenant, review_id, session.reviewer, _fence(form))
        skipping = form.get("then") == "skip"
        return RedirectResponse(_next_path(form.get("queue", ""), review_id) if skipping else "/inbox", 303)

    # How it is done

    def _shows(self, show: Page) -> Callable[[Request], Awaitable[Response]]:
        """A page for reviewers; others are asked to log in."""

        async def endpoint(request: Request) -> Response:
            path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                # A strict cookie stays behind when another site links here; a click on our own page brings it along.
                return pages.page("arrive.html", session=None, path=_inbox_path(path))
            session = self._sessions.read(request.cookies)
            if session is None:
                return RedirectResponse("/login?" + urlencode({"next": _inbox_path(path)}), 303)
            require_role(session.caller, Role.REVIEWER)
            return await show(request, session)

        return endpoint

    def _acts(self, act: Action, role: Role | None = Role.REVIEWER) -> Callable[[Request], Awaitable[Response]]:
        """What a form does, if it is one of ours, sent by the reviewer that it was shown to."""

        async def endpoint(request: Request) -> Response:
            refuse_foreign_pages(request.headers)
            session = self._sessions.read(request.cookies)
            if session is None:
                return self._login_page("/inbox", 401, "Your session has ended; nothing was changed.")
            form = await _form(request)
            self._sessions.check_form(session, form.get("token", ""))
            if role is not None:
                require_role(session.caller, role)
            try:
                return await act(request, session, form)
            except Conflict:
                return await self._conflict_page(request, session, form)

        return endpoint

    async def _conflict_page(self, request: Request, session: Session, form: Form) -> Response:
        review = await self._review(request, session)
        return self._page("conflict.html", session, 409, review=review, tried=form.get("label", ""))

    async def _review(self, request: Request, session: Session) -> Review:
        review = await self._store.review(session.caller.tenant, _review_id(request.path_params["id"]))
        if review is None:
            raise NotFound("there is no such review; it may have been deleted with its answer")
        return review

    def _page(self, template: str, session: Session, status: int = 200, **values: object) -> Response:
        token = self._sessions.form_token(session)
        return pages.page(template, status, session=session, token=token, lease_s=DEFAULT_LEASE_S, **values)


_PAYLOAD_HEADERS = {"content-security-policy": "default-src 'none'; sandbox", "cache-control": "no-store"}


def _download(review_id: str, content: bytes, media_type: str) -> Response:
    ending = "txt" if media_type.startswith("text/") else "bin"
    disposition = f'attachment; filename="{review_id}.{ending}"'
    return Response(content, headers={**_PAYLOAD_HEADERS, "content-disposition": disposition}, media_type=media_type)


def _by_queue(reviews: Sequence[Review]) -> list[QueueRow]:
    """*reviews* by queue; the queue whose oldest review waits longest comes first."""
    found: dict[str, list[Review]] = {}
    for review in reviews:
        found.setdefault(review.task.queue, []).append(review)
    rows = [
        QueueRow(
            name,
            tuple(waiting),
            min(review.created_s for review in waiting),
            sum(pages.is_overdue(review.task.due_s) for review in waiting),
        )
        for name, waiting in found.items()
    ]
    return sorted(rows, key=lambda row: row.oldest_s)


async def _form(request: Request) -> Form:
    """The fields of a small urlencoded form."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise UnsupportedMedia("send the form as application/x-www-form-urlencoded")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            raise TooLarge(f"the form exceeds {_MAX_FORM_BYTES} bytes")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=16))
    except ValueError as error:
        raise InvalidInput("the form cannot be read") from error


def _review_id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise NotFound("there is no such review")
    return text


def _queue(name: str) -> str:
    if not (0 < len(name) <= 128 and name.isprintable()):
        raise NotFound("there is no such queue")
    return name


def _fence(form: Form) -> int:
    text = form.get("fence", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 1 << 63):
        raise InvalidInput("the form's `fence` is not a whole number")
    return int(text)


def _next_path(queue: str, after: str | None) -> str:
    if not queue:
        return "/inbox"
    return f"/inbox/{quote(queue, safe='')}/next" + (f"?after={_review_id(after)}" if after else "")


def _inbox_path(path: str) -> str:
    """*path* where it leads into the inbox, and `/inbox` where it leads anywhere else."""
    return path if path == "/" or _INBOX_PATH.fullmatch(path) else "/inbox"
