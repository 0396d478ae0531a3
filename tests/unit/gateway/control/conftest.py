"""A control plane over a real store, and reviewers' browsers before it."""

from __future__ import annotations

import html
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx2 as httpx
import pytest
from starlette.applications import Starlette

from batching.report import BatchingStatistics, CurvePoint, Refusal
from gateway.answer import Answer, ItemAnswer, Status, new_answer_id
from gateway.control.app import control_app
from gateway.control.overview import ModelRow, Overview, RouteRow
from gateway.http.asgi import AsgiApp
from gateway.http.handler import Handler, HttpExchange
from gateway.http.reviewers import reviewer_endpoints
from gateway.http.reviews import review_endpoints
from gateway.request import Role
from gateway.security import ApiKey, Authenticator, SecurityOptions, new_api_key
from gateway.store.contract import Proposal, Review, ReviewTask
from gateway.store.options import StoreOptions
from gateway.store.store import SqlStore, open_store
from kernels.cost import Cost
from router.contract import USUAL_PRIORITY, Reason
from tests.unit.gateway.store.samples import seen

ORIGIN = "http://127.0.0.1:8002"


@dataclass
class Clock:
    """The clock of leases, moved by the test."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[SqlStore]:
    opened = await open_store(StoreOptions(tmp_path / "store.db"), clock=clock)
    yield opened
    await opened.aclose()


class Defer(Protocol):
    async def __call__(
        self,
        payload: bytes = b"The parcel never came.",
        content_type: str = "text/plain; charset=utf-8",
        *,
        labels: Sequence[str] = ("refund", "delivery", "other"),
        proposals: Sequence[Proposal] = (Proposal("fast", "delivery", 0.61),),
        tenant: str = "default",
        queue: str = "tickets",
        route: str = "tickets",
        due_in_s: float = 3600.0,
        priority: int = USUAL_PRIORITY,
    ) -> Review: ...


@pytest.fixture
def defer(store: SqlStore) -> Defer:
    """Hands an item to people, and returns its review."""

    async def hand_over(
        payload: bytes = b"The parcel never came.",
        content_type: str = "text/plain; charset=utf-8",
        *,
        labels: Sequence[str] = ("refund", "delivery", "other"),
        proposals: Sequence[Proposal] = (Proposal("fast", "delivery", 0.61),),
        tenant: str = "default",
        queue: str = "tickets",
        route: str = "tickets",
        due_in_s: float = 3600.0,
        priority: int = USUAL_PRIORITY,
    ) -> Review:
        item = ItemAnswer(Status.PENDING, None, None, None, None, None, Reason.LOW_CONFIDENCE)
        answer = Answer(new_answer_id(), tenant, route, time.time(), (item,))
        task = ReviewTask(
            item=0,
            queue=queue,
            due_s=time.time() + due_in_s,
            labels=tuple(labels),
            payload=payload,
            content_type=content_type,
            proposals=tuple(proposals),
            reason=Reason.LOW_CONFIDENCE,
            priority=priority,
        )
        await store.commit(seen(answer, payload), [task])
        found = await store.reviews(tenant, None, None, limit=200)
        return next(review for review in found if review.answer_id == answer.id)

    return hand_over


class Unobserved:
    """Ignores every exchange."""

    def on_http(self, exchange: HttpExchange) -> None:
        """Nothing."""


CURVE = (CurvePoint(1, 0.0042, 0.005), CurvePoint(8, 0.011, 0.013))

BATCHING = BatchingStatistics(3, 100, 1, 10, 25, 0.0042, 0.001, CURVE, {Refusal.EXPIRED: 17})

OVERVIEW = Overview(
    True,
    1,
    (RouteRow("tickets", ("fast", "<b>strong</b>"), "<i>sure</i>", "tickets"), RouteRow("open", (), "-", None)),
    (
        ModelRow(
            "fast",
            "ready",
            "7",
            BatchingStatistics(3, 100, 1, 10, 25, 0.0042, 0.001, CURVE, {Refusal.EXPIRED: 17}),
            costs={
                "preprocess": Cost("image uint8[1024, 1024, 3]", 3_145_728, 0, 602_112, 0.0025),
                "postprocess": Cost("logits float32[3]", 12, 0, 16, 0.00001),
            },
        ),
    ),
    configuration=12,
)


async def overview() -> Overview:
    """Stands for `gateway.control.overview.overview`."""
    return OVERVIEW


async def exposition(accept: str) -> tuple[bytes, str]:
    """Stands for `Telemetry.exposition`: says what it was asked for."""
    return f"# accept {accept}\n".encode(), "text/plain; version=0.0.4"


@dataclass
class Browser:
    """One person's browser: its cookies, and the headers that browsers send."""

    http: httpx.AsyncClient
    sent: list[httpx.Response] = field(default_factory=list)

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        response = await self.http.get(path, headers={"sec-fetch-site": "none", **(headers or {})})
        self.sent.append(response)
        return response

    async def post(
        self, path: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        own = {"origin": ORIGIN, "sec-fetch-site": "same-origin"}
        response = await self.http.post(path, data=dict(form), headers={**own, **(headers or {})})
        self.sent.append(response)
        return response

    async def log_in(self, **form: str) -> httpx.Response:
        return await self.post("/login", {"next": "/inbox", **form})

    async def press(
        self, shown: httpx.Response, action: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Send the form for *action* that the page *shown* holds, its hidden fields included."""
        found = re.search(rf'<form[^>]*action="([^"]*/{action})"[^>]*>(.*?)</form>', shown.text, re.DOTALL)
        assert found is not None, f"no form for {action} on the page"
        inputs = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', found[2])
        hidden = {name: html.unescape(value) for name, value in inputs}
        return await self.post(found[1], {**hidden, **form}, headers)


@dataclass
class Plane:
    """The control plane, and what opens browsers before it."""

    app: Starlette
    keys: Mapping[str, str] = field(default_factory=dict)
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def browser(self) -> Browser:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url=ORIGIN)
        self.clients.append(client)
        return Browser(client)

    async def reviewer(self, name: str) -> Browser:
        """A browser in which *name* has logged in."""
        browser = self.browser()
        response = await browser.log_in(**({"key": self.keys[name]} if self.keys else {"name": name}))
        assert response.status_code == 303
        return browser

    async def aclose(self) -> None:
        for client in self.clients:
            await client.aclose()


def _plane(store: SqlStore, authenticator: Authenticator, keys: Mapping[str, str]) -> Plane:
    reviews = (*review_endpoints(store, authenticator), *reviewer_endpoints(store))
    v1 = AsgiApp(Handler(reviews, authenticator, Unobserved()))
    app = control_app(store, authenticator, v1, exposition, overview)
    return Plane(app, keys)


@pytest.fixture
async def plane(store: SqlStore) -> AsyncIterator[Plane]:
    """Without API keys: everybody on this machine."""
    opened = _plane(store, Authenticator(SecurityOptions()), {})
    yield opened
    await opened.aclose()


@pytest.fixture
async def keyed(store: SqlStore) -> AsyncIterator[Plane]:
    """With API keys: anna and ben review for `default`, olga for `other`; cleo only calls, otto operates."""
    owners: dict[str, tuple[str, frozenset[Role]]] = {
        "anna": ("default", frozenset({Role.REVIEWER})),
        "ben": ("default", frozenset({Role.REVIEWER})),
        "olga": ("other", frozenset({Role.REVIEWER})),
        "cleo": ("default", frozenset({Role.CALLER})),
        "otto": ("default", frozenset({Role.OPERATOR})),
    }
    pairs = {name: new_api_key() for name in owners}
    options = SecurityOptions(tuple(ApiKey(name, pairs[name][1], *owners[name]) for name in owners))
    opened = _plane(store, Authenticator(options), {name: key for name, (key, _) in pairs.items()})
    yield opened
    await opened.aclose()
