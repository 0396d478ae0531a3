"""Every page of the inbox for readers who see badly, have no pointer, or hold a phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.browser.conftest import Callers, Desk, ready

if TYPE_CHECKING:
    from playwright.sync_api import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make venv")
expect = sync_api.expect

CHECK = (Path(__file__).parent / "accessibility.js").read_text()

DEVICES: dict[str, dict[str, Any]] = {  # Any: Playwright's options
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "desktop, dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
    "phone, dark": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "color_scheme": "dark"},
}

LONG = "unbroken" * 40
"""What would make a page wider than a phone if it were not broken."""


@pytest.fixture
def paths(callers: Callers) -> list[str]:
    """A page of every kind, with something on it; anna holds what can be decided."""
    texts = [callers.mail(f"A letter. {LONG}") for _ in range(3)]
    of_text, of_table, of_picture, of_record, free = map(
        callers.review_of,
        (
            texts[0],
            callers.text("id,note\n1,fast=0.5\n2,strong=0.6:b\n"),
            callers.picture(900, 500),
            callers.record(12_000, "clerk"),
            callers.mail("Words of your own?", "notes"),
        ),
    )
    for review in (of_text, of_table, of_picture, of_record, free):
        callers.claim(review, "anna", 30 if review == of_text else 300)  # with the warning that it ends
    callers.claim(callers.review_of(texts[1]), "ben")
    return [
        "/inbox",
        *(f"/inbox/reviews/{review}" for review in (of_text, of_table, of_picture, of_record, free)),
        f"/inbox/reviews/{callers.review_of(texts[1])}",
        f"/inbox/reviews/{callers.review_of(texts[2])}",
        f"/inbox/reviews/{of_text}/history",
        f"/inbox/reviews/{of_text}/alike",
        "/inbox/nothing-here/next",
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_every_page_can_be_read_and_used(desk: Desk, callers: Callers, paths: list[str], device: str) -> None:
    page = desk.reviewer("anna", **DEVICES[device])

    faults = {}
    for path in paths:
        page.goto(path)
        faults[path] = page.evaluate(CHECK)
    page.goto(paths[1])
    ready(page)
    page.get_by_role("button", name="other").click()
    page.get_by_text("Decided other").wait_for()
    page.wait_for_load_state()  # its style sheet may still be on the way
    faults["after a decision"] = page.evaluate(CHECK)

    assert {path: found for path, found in faults.items() if found} == {}


def test_the_login_page_can_be_read_and_used(desk: Desk, callers: Callers) -> None:
    page = desk.reviewer("anna", **DEVICES["phone"])
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Your name").wait_for()
    page.wait_for_load_state()  # its style sheet may still be on the way

    assert page.evaluate(CHECK) == []


def test_the_check_finds_what_it_looks_for(desk: Desk) -> None:
    """Else it would find nothing on a page where everything is wrong."""
    page = desk.reviewer("anna", viewport={"width": 360, "height": 740})
    page.evaluate(
        """() => {
            document.documentElement.lang = "";
            document.querySelector("main").innerHTML = '<h1>a</h1><h3>b</h3><input id="x">'
                + '<img id="x" src="/static/icon.svg"><button></button><p id="pale">pale</p><p id="wide">w</p>';
            document.getElementById("pale").style.color = "#aaa";
            document.getElementById("pale").style.background = "#fff";
            document.getElementById("wide").style.width = "900px";
        }"""
    )

    found = "\n".join(page.evaluate(CHECK))

    for fault in ("no language", "no name: <button", "no label: <input", "no alt: <img", "two elements have the id x",
                  "left out: <h3", "contrast 2.3", "the page is 9"):  # fmt: skip
        assert fault in found


def test_the_focus_is_seen_wherever_it_goes_and_goes_everywhere(desk: Desk, callers: Callers, paths: list[str]) -> None:
    page = desk.reviewer("anna", **DEVICES["desktop"])
    for path in paths:
        page.goto(path)
        page.evaluate(FROM_THE_TOP)
        seen = set()
        for _ in range(80):
            page.keyboard.press("Tab")
            where = page.evaluate(FOCUSED)
            if where is None:
                break
            assert where["is_seen"], f"{path}: {where['html']}"
            seen.add(where["at"])
        missed = page.evaluate(f"(seen) => ({REACHABLE})().filter((at) => !seen.includes(at))", sorted(seen))
        assert missed == [], path


FROM_THE_TOP = """() => {
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
}"""

REACHABLE = """() => {
    const all = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), textarea, summary")];
    return all.filter((one) => one.checkVisibility() && !one.disabled && one.type !== "radio")
        .map((one) => [...document.querySelectorAll("*")].indexOf(one));
}"""

FOCUSED = """() => {
    const one = document.activeElement;
    if (!one || one === document.body) return null;
    const style = getComputedStyle(one);
    const box = one.getBoundingClientRect();
    return {
        at: [...document.querySelectorAll("*")].indexOf(one),
        html: one.outerHTML.slice(0, 100),
        is_seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2
            && box.bottom > 0 && box.top < window.innerHeight,
    };
}"""


def test_skip_links_come_first_and_lead_to_the_decision(desk: Desk, callers: Callers, paths: list[str]) -> None:
    page = desk.reviewer("anna")
    page.goto(paths[1])

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the decision")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the decision")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")

    assert page.evaluate("document.activeElement.closest('.decide') !== null")


def test_a_phone_decides_by_touch_with_the_item_in_sight(desk: Desk, callers: Callers, paths: list[str]) -> None:
    page: Page = desk.reviewer("anna", **DEVICES["phone"])
    page.goto(paths[3])
    expect(page.locator(".stage img")).to_be_in_viewport()
    expect(page.get_by_role("button", name="bright")).to_be_in_viewport()
    ready(page)

    page.get_by_role("button", name="bright").tap()

    expect(page.get_by_text("Decided bright")).to_be_visible()
