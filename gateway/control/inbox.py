"""The review inbox: one item at a time, and the next one as soon as the last is decided.

`/inbox/{queue}/next` claims and shows; deciding redirects there, so that a reviewer who knows the keys never waits for
more than one redirect. An item's own page (`/inbox/reviews/{id}`) claims nothing by being looked at.

Skipping puts an item back and looks behind it: `after` travels in the address, so a skipped item comes up again when
the reviewer starts over, and for others at once.

Of two reviewers, two windows or two clicks, the store lets one decision through; the other gets a page that says so
(409), with a link to the next item.

Pages that are looked at ask every few seconds what has changed: the list for itself anew (`/inbox/live`), an item for
who holds it (`/inbox/reviews/{id}/live`). A claim is renewed while its holder works at the page. All of that is
`static/inbox.js`; without it, everything else still works.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from backends.errors import Conflict, InvalidInput, NotFound, TooLarge, Unauthenticated, UnsupportedMedia
from gateway.answer import Answer
from gateway.control import alike, history, media, pages
from gateway.control.session import COOKIE, SESSION_S, Session, Sessions
from gateway.control.undo import LastDecisions
from gateway.http.reviews import DEFAULT_LEASE_S, check_label, check_lead, check_reviewer, check_scope
from gateway.keys import parse_review_id
from gateway.request import Role
from gateway.security import Authenticator, refuse_foreign_pages, require_role
from gateway.sight import as_seen_by, hides
from gateway.store.contract import Decided, Proposal, QueueWork, Review, ReviewState, SaidBefore, Store
from router.contract import USUAL_PRIORITY

LISTED = 100
"""Most reviews that the inbox's first page lists."""

_MAX_FORM_BYTES = 256 * 1024
_BULK_LEASE_S = 30.0  # between a claim and a decision that follows at once
_LOOK_AHEAD = 20  # open reviews tried behind a skipped one, should others be quicker
_CONVERSIONS = 2  # pictures converted at once: each may take hundreds of megabytes for a moment
_INBOX_PATH = re.compile(r"/inbox(/[0-9A-Za-z._~%-]+)*(\?after=[0-9A-Za-z_-]{1,64})?")

Waits: TypeAlias = Callable[[str], Mapping[str, float]]
"""Seconds until people of a tenant will have decided what comes now, by queue; of those where that is known."""

Form: TypeAlias = Mapping[str, str]
Page: TypeAlias = Callable[[Request, Session], Awaitable[Response]]
Action: TypeAlias = Callable[[Request, Session, Form], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list: a review, and how many there are that ask the same about the same input, itself included.

    Attributes:
        proposal: the last stage's that had one; None where there is none, or where it must not be seen.
    """

    review: Review
    alike: int
    proposal: Proposal | None


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue in the inbox.

    Attributes:
        work: how much there is in it.
        entries: what is to be decided first, as far as the inbox lists it.
        wait_s: seconds until people will have decided what comes now; None where nobody knows.
    """

    name: str
    work: QueueWork
    entries: tuple[Entry, ...]
    wait_s: float | None


class Inbox:
    """The pages under `/inbox`, and logging in and out."""

    def __init__(self, store: Store, authenticator: Authenticator, sessions: Sessions, waits: Waits) -> None:
        self._waits = waits
        self._store = store
        self._authenticator = authenticator
        self._sessions = sessions
        self._decisions = LastDecisions(store)
        self._converting = asyncio.Semaphore(_CONVERSIONS)

    def routes(self) -> Sequence[BaseRoute]:
        """For a Starlette application."""
        return (
            Route("/login", self.login_page, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self._acts(self.logout, role=None), methods=["POST"]),
            Route("/inbox", self._shows(self.queues), methods=["GET"]),
            Route("/inbox/live", self._shows(self.live_queues), methods=["GET"]),
            Route("/inbox/{queue:path}/next", self._shows(self.next), methods=["GET"]),
            Route("/inbox/reviews/{id}", self._shows(self.item), methods=["GET"]),
            Route("/inbox/reviews/{id}/payload", self._shows(self.payload), methods=["GET"]),
            Route("/inbox/reviews/{id}/live", self._shows(self.live_item), methods=["GET"]),
            Route("/inbox/reviews/{id}/history", self._shows(self.history), methods=["GET"]),
            Route("/inbox/reviews/{id}/alike", self._shows(self.alike), methods=["GET"]),
            Route("/inbox/reviews/{id}/alike", self._acts(self.decide_alike), methods=["POST"]),
            Route("/inbox/reviews/{id}/alike/undo", self._acts(self.undo_alike), methods=["POST"]),
            Route("/inbox/reviews/{id}/claim", self._acts(self.claim), methods=["POST"]),
            Route("/inbox/reviews/{id}/decide", self._acts(self.decide), methods=["POST"]),
            Route("/inbox/reviews/{id}/release", self._acts(self.release), methods=["POST"]),
            Route("/inbox/reviews/{id}/renew", self._acts(self.renew), methods=["POST"]),
            Route("/inbox/reviews/{id}/undo", self._acts(self.undo), methods=["POST"]),
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
        await self._sessions.end(session)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    # What is there

    async def queues(self, request: Request, session: Session) -> Response:
        """What waits, by queue, priority and due time, and who has what."""
        return await self._page("inbox.html", session, **await self._listed(session))

    async def live_queues(self, request: Request, session: Session) -> Response:
        """The list of `queues` alone, to be put in the place of an older one."""
        return await self._page("queues.html", session, **await self._listed(session))

    async def _listed(self, session: Session) -> Mapping[str, Any]:  # Any: what the template shows
        tenant, scope = session.caller.tenant, session.caller.scope
        work, open_, claimed = await asyncio.gather(
            self._store.queue_work(tenant, scope),
            self._store.reviews(tenant, None, ReviewState.OPEN, limit=LISTED, scope=scope),
            self._store.reviews(tenant, None, ReviewState.CLAIMED, limit=LISTED, scope=scope),
        )
        shown = [as_seen_by(session.reviewer, review) for review in (*open_, *claimed)]
        digests = await self._store.input_digests(tenant, [review.id for review in shown])
        rows = _by_queue(shown, work, digests, session.reviewer, self._waits(tenant))
        return {"queues": rows, "is_cut": LISTED in (len(open_), len(claimed)), "listed": LISTED}

    async def next(self, request: Request, session: Session) -> Response:
        """Claims the next review of a queue, and shows it."""
        queue, after = _queue(request.path_params["queue"]), request.query_params.get("after")
        if after is None:
            tenant, scope = session.caller.tenant, session.caller.scope
            review = await self._store.claim_next(tenant, queue, session.reviewer, DEFAULT_LEASE_S, scope)
        else:
            review = await self._claim_behind(queue, parse_review_id(after), session)
        if review is None:
            return await self._page("empty.html", session, queue=queue, skipped=after is not None)
        return await self._item_page(review, session)

    async def _claim_behind(self, queue: str, skipped: str, session: Session) -> Review | None:
        tenant, scope = session.caller.tenant, session.caller.scope
        candidates = await self._store.reviews(
            tenant, queue, ReviewState.OPEN, after=skipped, limit=_LOOK_AHEAD, scope=scope
        )
        for candidate in candidates:
            try:
                return await self._store.claim(tenant, candidate.id, session.reviewer, DEFAULT_LEASE_S, scope)
            except Conflict:
                continue  # somebody was quicker
        return None

    async def item(self, request: Request, session: Session) -> Response:
        """Shows one review."""
        return await self._item_page(await self._review(request, session), session)

    async def _item_page(self, review: Review, session: Session) -> Response:
        view = await asyncio.to_thread(media.view, review.task.payload, review.task.content_type)
        is_hidden = hides(session.reviewer, review)
        answer, same = await asyncio.gather(
            self._answer(review, session),
            self._alike(review, session, alike.MOST + 1),
        )
        review = as_seen_by(session.reviewer, review)
        labels = review.task.labels
        shortcuts = pages.shortcuts(labels)
        return await self._page(
            "item.html",
            session,
            review=review,
            task=review.task,
            view=view,
            reason=pages.REASONS[review.task.reason],
            remarks=answer.items[review.task.item].remarks if answer else (),
            choices=list(zip(labels, shortcuts, strict=True)),
            keys=pages.commands(shortcuts),
            is_mine=review.state is ReviewState.CLAIMED and review.reviewer == session.reviewer,
            is_hidden=is_hidden,
            is_lead=session.caller.scope.is_lead(review.task.queue),
            alike=len(same),
            most_alike=alike.MOST,
        )

    async def _answer(self, review: Review, session: Session) -> Answer | None:
        """The answer that *review* is about; None where there is none, or where it must not be seen."""
        if hides(session.reviewer, review):
            return None
        return await self._store.answer(review.tenant, review.answer_id)

    async def _alike(
        self, review: Review, session: Session, limit: int, among: Sequence[str] | None = None
    ) -> list[Review]:
        """Those like *review*, itself included, that this reviewer may take."""
        same = await self._store.alike(review.tenant, review.id, limit, among=among)
        scope = session.caller.scope
        return [one for one in same if scope.why_not(one.task.queue, one.task.skills) is None]

    async def live_item(self, request: Request, session: Session) -> Response:
        """Who holds one review, as JSON; `lease_s` is what is left of the claim, in seconds."""
        review = as_seen_by(session.reviewer, await self._glance(request, session))
        return _json(
            {
                "state": review.state,
                "reviewer": review.reviewer,
                "fence": review.fence,
                "lease_s": review.lease_s,
                "recalled": review.recalled,
            }
        )

    async def history(self, request: Request, session: Session) -> Response:
        """The way that one item took."""
        found = await self._store.history(session.caller.tenant, parse_review_id(request.path_params["id"]))
        if found is None:
            raise _gone()
        check_scope(session.caller, found.review)
        sees_all = Role.OPERATOR in session.caller.roles
        steps = history.timeline(found, session.reviewer, sees_all=sees_all)
        return await self._page("history.html", session, review=as_seen_by(session.reviewer, found.review), steps=steps)

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
        review_id = parse_review_id(request.path_params["id"])
        caller = session.caller
        await self._store.claim(caller.tenant, review_id, session.reviewer, DEFAULT_LEASE_S, caller.scope)
        return RedirectResponse(f"/inbox/reviews/{review_id}", 303)

    async def decide(self, request: Request, session: Session, form: Form) -> Response:
        """Gives a review its label, and goes on to the next."""
        review_id, label = parse_review_id(request.path_params["id"]), check_label(form.get("label"))
        fence = _fence(form)
        tenant, reviewer = session.caller.tenant, session.reviewer
        await self._store.decide(tenant, review_id, reviewer, fence, label)
        decided = Decided(review_id, fence)
        if decided.stands(await self._store.glance(tenant, review_id)):
            await self._decisions.remember(session, [decided], self._store.undo_s)
        else:  # an opinion that others are asked about, too
            await self._decisions.forget(session)
        return RedirectResponse(_next_path(form.get("queue", ""), form.get("after")), 303)

    async def undo(self, request: Request, session: Session, form: Form) -> Response:
        """Takes back the decision that this reviewer has just made, and shows the item again."""
        review_id, fence = parse_review_id(request.path_params["id"]), _fence(form)
        await self._store.undo(session.caller.tenant, review_id, session.reviewer, fence)
        await self._decisions.forget(session)
        return RedirectResponse(f"/inbox/reviews/{review_id}", 303)

    async def renew(self, request: Request, session: Session, form: Form) -> Response:
        """Holds a review for as long again, unless it is recalled, and tells both as JSON."""
        review_id, fence = parse_review_id(request.path_params["id"]), _fence(form)
        tenant = session.caller.tenant
        held = await self._store.renew(tenant, review_id, session.reviewer, fence, DEFAULT_LEASE_S)
        return _json({"fence": held.fence, "lease_s": held.lease_s, "recalled": held.recalled})

    async def release(self, request: Request, session: Session, form: Form) -> Response:
        """Puts a review back, and goes on behind it, or to the list; for a lead, one that another `reviewer` holds."""
        review_id, reviewer = parse_review_id(request.path_params["id"]), session.reviewer
        if "reviewer" in form:
            review, reviewer = await self._glance(request, session), form["reviewer"]
            check_lead(session.caller, review)
        await self._store.release(session.caller.tenant, review_id, reviewer, _fence(form))
        skipping = form.get("then") == "skip"
        return RedirectResponse(_next_path(form.get("queue", ""), review_id) if skipping else "/inbox", 303)

    # Many at once

    async def alike(self, request: Request, session: Session) -> Response:
        """Asks what all reviews are that ask the same about the same input as one."""
        review = await self._review(request, session)
        same = await self._alike(review, session, alike.MOST)
        free = [one for one in same if alike.is_free(one, session.reviewer)]
        view = await asyncio.to_thread(media.view, review.task.payload, review.task.content_type)
        return await self._page(
            "alike.html",
            session,
            review=as_seen_by(session.reviewer, review),
            task=review.task,
            view=view,
            free=free,
            mine=sum(one.state is ReviewState.CLAIMED for one in free),
            undo_s=self._store.undo_s,
            held=[one for one in same if one not in free],
            is_cut=len(same) == alike.MOST,
        )

    async def decide_alike(self, request: Request, session: Session, form: Form) -> Response:
        """Gives the reviews that were confirmed one label, and tells of which it could not."""
        review, label = await self._glance(request, session), check_label(form.get("label"))
        confirmed = [parse_review_id(text) for text in form.get("ids", "").split(",")]
        if review.task.labels and label not in review.task.labels:
            raise InvalidInput(f"label {label!r} is not a choice of this review; one of {list(review.task.labels)} is")
        if len(confirmed) > alike.MOST:
            raise TooLarge(f"at most {alike.MOST} reviews are decided at once")
        found = await self._alike(review, session, alike.MOST, confirmed)
        same = {one.id for one in found}
        still = [one for one in confirmed if one in same]
        began = time.monotonic()
        outcomes = await alike.decide_each(self._store, _who(session), still, label, _BULK_LEASE_S)
        decided = [outcome.decided for outcome in outcomes if outcome.decided is not None]
        if decided:
            left_s = self._store.undo_s - (time.monotonic() - began)
            await self._decisions.remember(session, decided, left_s)
        else:  # what was decided before would seem to be about these
            await self._decisions.forget(session)
        outcomes += [alike.Outcome(one, "it was decided meanwhile") for one in confirmed if one not in same]
        shown = as_seen_by(session.reviewer, review)
        return await self._page("alike_done.html", session, review=shown, label=label, outcomes=outcomes)

    async def undo_alike(self, request: Request, session: Session, form: Form) -> Response:
        """Takes back what this reviewer has just decided about many, and asks what they are again."""
        made = [_decided(text) for text in form.get("made", "").split(",")]
        if len(made) > alike.MOST:
            raise TooLarge(f"at most {alike.MOST} decisions are taken back at once")
        outcomes = await alike.undo_each(self._store, _who(session), made)
        await self._decisions.forget(session)
        back = [outcome.review_id for outcome in outcomes if not outcome.why_not]
        if len(back) == len(outcomes):
            return RedirectResponse(f"/inbox/reviews/{back[0]}/alike", 303)
        review = as_seen_by(session.reviewer, await self._glance(request, session))
        return await self._page("alike_undone.html", session, 409, review=review, back=back, outcomes=outcomes)

    # How it is done

    def _shows(self, show: Page) -> Callable[[Request], Awaitable[Response]]:
        """A page for reviewers; others are asked to log in."""

        async def endpoint(request: Request) -> Response:
            path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                # A strict cookie stays behind when another site links here; a click on our own page brings it along.
                return pages.page("arrive.html", session=None, path=_inbox_path(path))
            session = await self._sessions.read(request.cookies)
            if session is None:
                return RedirectResponse("/login?" + urlencode({"next": _inbox_path(path)}), 303)
            require_role(session.caller, Role.REVIEWER)
            return await show(request, session)

        return endpoint

    def _acts(self, act: Action, role: Role | None = Role.REVIEWER) -> Callable[[Request], Awaitable[Response]]:
        """What a form does, if it is one of ours, sent by the reviewer that it was shown to."""

        async def endpoint(request: Request) -> Response:
            refuse_foreign_pages(request.headers)
            session = await self._sessions.read(request.cookies)
            if session is None:
                return self._login_page("/inbox", 401, "Your session has ended; nothing was changed.")
            form = await _form(request)
            self._sessions.check_form(session, form.get("token", ""))
            if role is not None:
                require_role(session.caller, role)
            try:
                return await act(request, session, form)
            except Conflict as conflict:
                return await self._conflict_page(request, session, form, conflict)

        return endpoint

    async def _conflict_page(self, request: Request, session: Session, form: Form, conflict: Conflict) -> Response:
        found = await self._store.glance(session.caller.tenant, parse_review_id(request.path_params["id"]))
        if found is None:
            raise _gone()
        queue = form.get("queue") or found.task.queue
        if found.task.queue == queue:
            check_scope(session.caller, found)
        return await self._page(
            "conflict.html",
            session,
            409,
            review=as_seen_by(session.reviewer, found),
            queue=queue,
            tried=form.get("label", ""),
            undoing=request.url.path.endswith("/undo"),
            said_before=isinstance(conflict, SaidBefore),
        )

    async def _review(self, request: Request, session: Session) -> Review:
        review = await self._store.review(session.caller.tenant, parse_review_id(request.path_params["id"]))
        if review is None:
            raise _gone()
        check_scope(session.caller, review)
        return review

    async def _glance(self, request: Request, session: Session) -> Review:
        """As `_review`, without what is decided about, which may be large."""
        review = await self._store.glance(session.caller.tenant, parse_review_id(request.path_params["id"]))
        if review is None:
            raise _gone()
        check_scope(session.caller, review)
        return review

    async def _page(self, template: str, session: Session, status: int = 200, **values: object) -> Response:
        shown: dict[str, object] = {
            "session": session,
            "token": self._sessions.form_token(session),
            "lease_s": DEFAULT_LEASE_S,
            "last": await self._decisions.of(session),
            "keys": pages.commands(()),
            "usual_priority": USUAL_PRIORITY,
        }
        return pages.page(template, status, **{**shown, **values})


_PAYLOAD_HEADERS = {"content-security-policy": "default-src 'none'; sandbox", "cache-control": "no-store"}


def _download(review_id: str, content: bytes, media_type: str) -> Response:
    ending = "txt" if media_type.startswith("text/") else "bin"
    disposition = f'attachment; filename="{review_id}.{ending}"'
    return Response(content, headers={**_PAYLOAD_HEADERS, "content-disposition": disposition}, media_type=media_type)


def _json(content: Mapping[str, object]) -> Response:
    return JSONResponse(content, headers={"cache-control": "no-store"})


def _gone() -> NotFound:
    return NotFound("there is no such review; it may have been deleted with its answer")


def _by_queue(
    reviews: Sequence[Review],
    work: Mapping[str, QueueWork],
    digests: Mapping[str, bytes],
    reviewer: str,
    waits: Mapping[str, float],
) -> list[QueueRow]:
    """*reviews* by queue, by priority and due time; the queue whose oldest review waits longest comes first."""
    found: dict[str, list[Review]] = {}
    for review in sorted(reviews, key=lambda one: (one.task.priority, one.task.due_s, one.id)):
        found.setdefault(review.task.queue, []).append(review)
    rows = [
        QueueRow(name, work[name], _entries(waiting, digests, reviewer), waits.get(name))
        for name, waiting in found.items()
        if name in work  # else all of it was decided between the two looks
    ]
    return sorted(rows, key=lambda row: row.work.oldest_s)


def _entries(reviews: Sequence[Review], digests: Mapping[str, bytes], reviewer: str) -> tuple[Entry, ...]:
    """*reviews* of a queue, what *reviewer* holds first; those that nobody holds and that are alike stand as one."""
    counts = Counter(_likeness(review, digests) for review in reviews)
    entries: dict[object, Entry] = {}
    for review in sorted(reviews, key=lambda one: one.reviewer != reviewer):
        likeness = _likeness(review, digests)
        group = likeness if review.state is ReviewState.OPEN else review.id
        if group not in entries:
            entries[group] = Entry(review, counts[likeness], _best(review))
    return tuple(entries.values())


def _likeness(review: Review, digests: Mapping[str, bytes]) -> object:
    """What reviews of one queue have in common that ask the same about the same input, as `Store.alike` has it."""
    if review.id not in digests or review.stands_alone:
        return review.id
    return (review.route, review.task.labels, review.task.content_type, digests[review.id])


def _best(review: Review) -> Proposal | None:
    return next((one for one in reversed(review.task.proposals) if one.label is not None), None)


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


def _queue(name: str) -> str:
    if not (0 < len(name) <= 128 and name.isprintable()):
        raise NotFound("there is no such queue")
    return name


def _fence(form: Form) -> int:
    text = form.get("fence", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) < 1 << 63):
        raise InvalidInput("the form's `fence` is not a whole number")
    return int(text)


def _decided(text: str) -> Decided:
    """A decision as `base.html` writes it."""
    review_id, _, fence = text.partition(":")
    return Decided(parse_review_id(review_id), _fence({"fence": fence}))


def _who(session: Session) -> alike.Reviewer:
    return alike.Reviewer(session.caller.tenant, session.reviewer, session.caller.scope)


def _next_path(queue: str, after: str | None) -> str:
    if not queue:
        return "/inbox"
    return f"/inbox/{quote(queue, safe='')}/next" + (f"?after={parse_review_id(after)}" if after else "")


def _inbox_path(path: str) -> str:
    """*path* where it leads into the inbox, and `/inbox` where it leads anywhere else."""
    return path if path == "/" or _INBOX_PATH.fullmatch(path) else "/inbox"
