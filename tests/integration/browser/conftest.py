"""A real Chromium before a real gateway.

Chromium is Debian's (`apt install chromium`); Playwright's own downloads are not used. Where either is missing, these
tests are skipped and say so.
"""

from __future__ import annotations

import io
import json
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.integration.process import GatewayProcess, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CONFIG = """
models:
  fast:
    backend: python
    target: tests.integration.models:fast
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [refund, delivery, other]
    cost: 0.1
  strong:
    backend: python
    target: tests.integration.models:strong
    inputs: [{name: text, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [3]}]
    max_batch: 16
    labels: [refund, delivery, other]
  brightness:
    backend: python
    target: tests.integration.models:brightness
    inputs: [{name: picture, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [2]}]
    labels: [dark, bright]
  creditworthy:
    backend: python
    target: tests.integration.models:creditworthy
    inputs: [{name: income, datatype: FP64, shape: [1]}, {name: job, datatype: BYTES, shape: [1]}]
    outputs: [{name: probabilities, datatype: FP32, shape: [2]}]
    labels: ["no", "yes"]

routes:
  mail:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [fast, strong]
    accept: {min_confidence: 0.9}
    human: {queue: mail, due: 1h}
    on_defer: provisional
    slo: {deadline: 5s}
  notes:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [fast, strong]
    accept: {min_confidence: 0.9}
    human: {queue: notes, due: 1s, form: text}
    on_defer: provisional
    slo: {deadline: 5s}
  hasty:
    input: {text: {datatype: BYTES, shape: [1]}}
    decode: utf8
    cascade: [fast, strong]
    accept: {min_confidence: 0.9}
    human: {queue: desk, due: 2s, priority: 2}
    on_defer: provisional
    slo: {deadline: 5s}
  pictures:
    input: {picture: {datatype: BYTES, shape: [1]}}
    cascade: [brightness]
    accept: {min_confidence: 0.95}
    human: {queue: pictures, due: 1h}
    on_defer: provisional
    slo: {deadline: 5s}
  credit:
    input: {income: {datatype: FP64, shape: [1]}, job: {datatype: BYTES, shape: [1]}}
    cascade: [creditworthy]
    accept: {min_confidence: 0.95}
    human: {queue: credit, due: 2d}
    on_defer: provisional
    slo: {deadline: 5s}

queues:
  desk: {escalate_to: seniors}
  seniors: {due: 1h}

store: {path: store.db, retention: 1d, limit: 1GiB}
"""

UNSURE = "fast=0.5 strong=0.6:b"
"""Makes the models of `mail` unsure of whatever text it is in."""


@dataclass(frozen=True, slots=True)
class Callers:
    """Those who send items that no model is sure of, and who ask what became of them."""

    gateway: GatewayProcess

    def mail(self, text: str, route: str = "mail") -> str:
        """Hands *text* to people; the id of its answer."""
        return self._send(route, f"{text} {UNSURE}".encode(), "text/plain")

    def text(self, text: str) -> str:
        """Hands *text* to people as it is: it says itself that models are unsure."""
        return self._send("mail", text.encode(), "text/plain")

    def picture(self, width: int, height: int) -> str:
        """Hands a picture to people, in which left and right, top and bottom differ."""
        image = Image.linear_gradient("L").resize((width, height))
        image.paste(255, (0, 0, width // 4, height // 8))
        out = io.BytesIO()
        image.save(out, "PNG")
        return self._send("pictures", out.getvalue(), "image/png")

    def record(self, income: float, job: str) -> str:
        """Hands a record to people."""
        body = {"inputs": {"income": [income], "job": [job]}}
        return self._send("credit", json.dumps(body).encode(), "application/json")

    def label(self, answer_id: str) -> str | None:
        """What stands as the final label of an answer; None where none does."""
        answer = self.get(f"{self.gateway.http}/v1/answers/{answer_id}")
        return answer["label"] if answer["status"] == "final" else None

    def review_of(self, answer_id: str) -> str:
        """The id of the review of an answer."""
        found = self.get(f"{self.gateway.control}/v1/reviews?state=all&limit=200")["reviews"]
        return next(str(review["id"]) for review in found if review["answer_id"] == answer_id)

    def claim(self, review_id: str, reviewer: str, lease_s: float = 300) -> None:
        """Claims a review, or renews its claim, as a reviewer with a program of their own."""
        body = json.dumps({"lease_s": lease_s}).encode()
        self._post(f"{self.gateway.control}/v1/reviews/{review_id}:claim", body, "application/json", reviewer)

    def get(self, url: str) -> Any:  # Any: JSON
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)

    def _send(self, route: str, body: bytes, media: str) -> str:
        reply = self._post(f"{self.gateway.http}/v1/routes/{route}:decide", body, media)
        assert reply["status"] != "final", "a model was sure of it"
        return str(reply["answer_id"])

    def _post(self, url: str, body: bytes, media: str, reviewer: str = "") -> Any:  # Any: JSON
        request = urllib.request.Request(
            url, body, {"content-type": media, "x-pointsman-reviewer": reviewer or "nobody"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


@dataclass(slots=True)
class Desk:
    """Where reviewers sit, each before a browser window of their own; notes what their consoles complain about."""

    browser: Browser
    gateway: GatewayProcess
    contexts: list[BrowserContext] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def reviewer(self, name: str, **options: Any) -> Page:
        """A page in which *name* has logged in, in a context with Playwright's *options* (Any: its own)."""
        context = self.browser.new_context(base_url=self.gateway.control, **options)
        self.contexts.append(context)
        context.set_default_timeout(8000)
        page = context.new_page()
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto("/inbox")
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("heading", name="Review inbox").wait_for()
        return page

    def _hear(self, kind: str, text: str) -> None:
        # Chromium notes a refusal (409 is one of ours) as an error, too.
        if kind == "error" and "Failed to load resource" not in text:
            self.complaints.append(text)


def ready(page: Page, button: str = "Put back") -> None:
    """Wait until keys and clicks count on an item's page that has *button*."""
    page.locator("html[data-ready]").get_by_role("button", name=button).wait_for()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make venv")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no Chromium here: apt install chromium")
    with api.sync_playwright() as playwright:
        # Root, as in a container, has no sandbox; what is shown here is our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Iterator[GatewayProcess]:
    """A gateway on `CONFIG`, where there is a browser to look at it."""
    with running(tmp_path_factory.mktemp("gateway"), CONFIG) as process:
        yield process


@pytest.fixture
def callers(served: GatewayProcess) -> Callers:
    return Callers(served)


@pytest.fixture
def desk(chromium: Browser, served: GatewayProcess) -> Iterator[Desk]:
    """Closes every window, and fails where a console complained, as it does of all that the policy forbids."""
    opened = Desk(chromium, served)
    yield opened
    for context in opened.contexts:
        context.close()
    assert opened.complaints == []
