"""A reviewer's shift, in a real browser before a real gateway."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.integration.browser.conftest import Callers, Desk, ready

if TYPE_CHECKING:
    from playwright.sync_api import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make venv")
expect = sync_api.expect


def pass_time(page: Page) -> None:
    """Move *page*'s clock on, so far that it has asked what is new, and offers to take nothing back any more."""
    page.wait_for_load_state()
    page.clock.fast_forward(10_000)


def drain(page: Page, queue: str) -> None:
    """Put back what *page*'s reviewer holds in *queue*, so that the next test finds nobody at work."""
    while page.goto("/inbox") and page.locator(".rows .badge", has_text="yours").count():
        page.locator(".rows a", has=page.locator(".badge", has_text="yours")).first.click()
        ready(page)
        page.get_by_role("button", name="Put back").click()
        page.get_by_role("heading", name="Review inbox").wait_for()


def test_a_shift_goes_by_keys_alone(desk: Desk, callers: Callers) -> None:
    """Claim, decide, take it back, decide otherwise, skip, and come to an end."""
    first, second = callers.mail("The parcel never came."), callers.mail("Where is my money?")
    anna = desk.reviewer("anna")

    expect(anna.get_by_text("2 waiting")).to_be_visible()
    anna.keyboard.press("Enter")  # the first queue's button has the focus
    ready(anna)
    expect(anna.locator(".text")).to_contain_text("The parcel never came.")
    anna.keyboard.press("1")
    expect(anna.locator(".text")).to_contain_text("Where is my money?")
    expect(anna.get_by_role("status").filter(has_text="Decided")).to_have_text("Decided refund")
    assert callers.label(first) == "refund"

    ready(anna)
    anna.keyboard.press("u")
    expect(anna.locator(".text")).to_contain_text("The parcel never came.")
    assert callers.label(first) is None
    ready(anna)
    anna.keyboard.press("ArrowDown")
    anna.keyboard.press("ArrowDown")
    expect(anna.get_by_role("button", name="delivery")).to_be_focused()
    anna.keyboard.press("Enter")
    expect(anna.locator(".text")).to_contain_text("Where is my money?")
    assert callers.label(first) == "delivery"

    ready(anna)
    anna.keyboard.press("s")
    expect(anna.get_by_role("heading", name="No further items")).to_be_visible()
    anna.keyboard.press("Enter")
    ready(anna)
    anna.keyboard.press("3")
    expect(anna.get_by_role("heading", name="All done")).to_be_visible()
    assert callers.label(second) == "other"


def test_the_second_click_of_a_double_click_decides_nothing(desk: Desk, callers: Callers) -> None:
    """It arrives on the next item's page, which comes so quickly, wherever that has its buttons."""
    first, second = callers.mail("Clicked twice."), callers.mail("Not looked at yet.")
    anna = desk.reviewer("anna")
    anna.clock.install()
    anna.get_by_role("link", name="Review mail").click()
    ready(anna)
    anna.clock.pause_at(anna.evaluate("Date.now()") / 1000 + 0.5)
    anna.get_by_role("button", name="delivery").click()
    expect(anna.locator(".text")).to_contain_text("Not looked at yet.")

    anna.get_by_role("button", name="delivery").click()
    anna.get_by_role("button", name="Skip").click()
    assert (callers.label(first), callers.label(second)) == ("delivery", None)
    anna.clock.run_for(300)
    anna.get_by_role("button", name="other").click()

    expect(anna.get_by_role("heading", name="All done")).to_be_visible()
    assert callers.label(second) == "other"


def test_undoing_is_offered_for_a_few_seconds(desk: Desk, callers: Callers) -> None:
    callers.mail("Too hasty?")
    anna = desk.reviewer("anna")
    anna.clock.install()
    anna.get_by_role("link", name="Review mail").click()
    ready(anna)
    anna.keyboard.press("1")

    undo = anna.get_by_role("button", name=re.compile(r"Undo \(\d+ s\)"))
    expect(undo).to_be_visible()
    pass_time(anna)
    expect(undo).to_have_count(0)


def test_a_claim_that_ends_is_warned_of_and_can_be_kept(desk: Desk, callers: Callers) -> None:
    review = callers.review_of(callers.mail("Take your time."))
    anna = desk.reviewer("anna")
    callers.claim(review, "anna", 20)
    anna.clock.install()

    anna.goto(f"/inbox/reviews/{review}")
    warning = anna.get_by_text("Your claim ends soon")
    expect(warning).to_be_visible()
    anna.get_by_role("button", name="Keep it").click()
    expect(warning).to_be_hidden()

    callers.claim(review, "anna", 1)
    pass_time(anna)
    expect(anna.get_by_role("alert")).to_contain_text("Your claim has run out.")
    expect(anna.get_by_role("button", name="refund")).to_be_disabled()

    ben = desk.reviewer("ben")
    ben.goto(f"/inbox/reviews/{review}")
    ben.get_by_role("button", name="Take it").click()
    expect(ben.get_by_role("heading", name="What is it?")).to_be_visible()
    drain(ben, "mail")


def test_working_at_an_item_renews_its_claim(desk: Desk, callers: Callers) -> None:
    review = callers.review_of(callers.mail("A long story."))
    anna = desk.reviewer("anna")
    callers.claim(review, "anna", 30)
    anna.clock.install()
    anna.goto(f"/inbox/reviews/{review}")
    expect(anna.get_by_text("Your claim ends soon")).to_be_visible()

    anna.clock.fast_forward(10_000)  # a third of the claim
    anna.mouse.move(10, 10)
    anna.mouse.move(200, 200)

    expect(anna.get_by_text("Your claim ends soon")).to_be_hidden()
    assert callers.get(f"{callers.gateway.control}/v1/reviews/{review}")["lease_s"] > 60
    drain(anna, "mail")


def test_who_holds_what_is_seen_without_loading_anew(desk: Desk, callers: Callers) -> None:
    review = callers.review_of(callers.mail("Who takes it?"))
    anna, ben = desk.reviewer("anna"), desk.reviewer("ben")
    ben.clock.install()
    ben.reload()
    ben.evaluate("window.stays = true")
    row = ben.locator(f"#review-{review}")
    row.focus()
    onlooker = desk.reviewer("carl")
    onlooker.clock.install()
    onlooker.goto(f"/inbox/reviews/{review}")
    expect(onlooker.get_by_role("button", name="Take it")).to_be_visible()

    anna.goto(f"/inbox/reviews/{review}")
    anna.get_by_role("button", name="Take it").click()
    ready(anna)
    pass_time(ben)
    pass_time(onlooker)

    expect(row).to_contain_text("anna has it")
    expect(row).to_be_focused()
    assert ben.evaluate("window.stays")
    expect(onlooker.get_by_role("heading", name="anna is looking at it")).to_be_visible()
    drain(anna, "mail")


def test_identical_items_are_decided_at_once_and_what_others_hold_is_left_to_them(desk: Desk, callers: Callers) -> None:
    ids = [callers.mail("Is this spam?") for _ in range(4)]
    callers.mail("Something else.")
    callers.claim(callers.review_of(ids[2]), "ben")
    anna = desk.reviewer("anna")

    expect(anna.get_by_text("4 identical")).to_be_visible()
    anna.locator(".rows a", has_text="4 identical").click()
    ready(anna, "Take it")
    anna.keyboard.press("b")
    expect(anna.get_by_role("heading", name="3 identical items")).to_be_visible()
    expect(anna.get_by_text("ben has one")).to_be_visible()
    anna.get_by_label("refund").check()
    anna.get_by_role("button", name="Decide all 3").click()

    expect(anna.get_by_role("heading", name="3 items decided as refund")).to_be_visible()
    assert [callers.label(one) for one in ids] == ["refund", "refund", None, "refund"]


def test_identical_items_are_taken_back_at_once_by_the_key_that_takes_one_back(desk: Desk, callers: Callers) -> None:
    ids = [callers.mail("Is this spam, too?") for _ in range(3)]
    anna = desk.reviewer("anna")
    anna.locator(".rows a", has_text="3 identical").click()
    ready(anna, "Take it")
    anna.keyboard.press("b")
    anna.get_by_label("refund").check()
    anna.get_by_role("button", name="Decide all 3").click()
    ready(anna, "Undo all")
    expect(anna.get_by_role("status").filter(has_text="Decided")).to_have_text("Decided 3 items as refund")
    assert [callers.label(one) for one in ids] == ["refund"] * 3

    anna.keyboard.press("u")

    expect(anna.get_by_role("heading", name="3 identical items")).to_be_visible()
    expect(anna.get_by_text("All are yours until the claims end.")).to_be_visible()
    assert [callers.label(one) for one in ids] == [None] * 3
    anna.get_by_label("other").check()
    anna.get_by_role("button", name="Decide all 3").click()
    ready(anna, "Undo all")
    anna.keyboard.press("Enter")  # the next item has the focus, and undoing is offered there, too
    expect(anna).to_have_url(re.compile("/inbox/mail/next$"))
    anna.get_by_role("button", name="Undo all").click()
    expect(anna.get_by_role("heading", name="3 identical items")).to_be_visible()
    assert [callers.label(one) for one in ids] == [None] * 3
    anna.get_by_label("delivery").check()
    anna.get_by_role("button", name="Decide all 3").click()
    expect(anna.get_by_role("heading", name="3 items decided as delivery")).to_be_visible()
    drain(anna, "mail")


def test_the_history_of_an_item_is_told_in_the_reader_s_zone(desk: Desk, callers: Callers) -> None:
    answer = callers.mail("What became of it?")
    review = callers.review_of(answer)
    anna = desk.reviewer("anna", timezone_id="Asia/Tokyo", locale="en-GB")
    anna.goto(f"/inbox/reviews/{review}")
    anna.get_by_role("button", name="Take it").click()
    ready(anna)
    anna.keyboard.press("2")
    anna.get_by_text("Decided delivery").wait_for()

    anna.goto(f"/inbox/reviews/{review}/history")

    steps = anna.locator(".timeline .title").all_inner_texts()
    assert steps[0] == "The request came in"
    assert steps[1].startswith("fast, version ")
    assert steps[2].startswith("strong, version ")
    assert steps[3:] == ["Handed to people", "anna took it", "anna decided: delivery"]
    shown = anna.locator(".timeline time").first
    utc = shown.get_attribute("datetime")
    told = anna.evaluate(
        "(at) => new Intl.DateTimeFormat('en-GB', {dateStyle: 'medium', timeStyle: 'medium', timeZone: 'Asia/Tokyo'})"
        ".format(new Date(at))",
        utc,
    )
    assert shown.inner_text() == told


def test_a_picture_is_zoomed_turned_and_moved_by_keys_buttons_and_wheel(desk: Desk, callers: Callers) -> None:
    review = callers.review_of(callers.picture(1600, 600))
    anna = desk.reviewer("anna")
    anna.goto(f"/inbox/reviews/{review}")
    anna.get_by_role("button", name="Take it").click()
    ready(anna)
    image, stage = anna.locator(".stage img"), anna.locator(".stage")

    def size() -> tuple[int, int]:
        box = image.bounding_box()
        assert box is not None
        return round(box["width"]), round(box["height"])

    fitted = size()
    room = stage.bounding_box()
    assert room is not None
    assert fitted[0] <= room["width"] + 1
    assert fitted[0] / fitted[1] == pytest.approx(1600 / 600, rel=0.02)

    anna.keyboard.press("r")
    assert size()[1] / size()[0] == pytest.approx(1600 / 600, rel=0.02)
    expect(anna.get_by_text("turned by 90°")).to_be_visible()
    anna.keyboard.press("Shift+R")
    assert size() == fitted
    anna.keyboard.press("z")
    assert size()[0] == pytest.approx(fitted[0] * 1.25, abs=2)
    anna.get_by_role("button", name="Fit").click()
    assert size() == fitted
    anna.get_by_role("button", name="Actual size").click()
    assert size() == (1600, 600)

    left = image.bounding_box()
    anna.keyboard.press("Shift+ArrowRight")
    moved = image.bounding_box()
    assert left is not None
    assert moved is not None
    assert moved["x"] == pytest.approx(left["x"] - 60, abs=1)
    anna.mouse.move(room["x"] + 50, room["y"] + 50)
    anna.mouse.wheel(0, -100)
    assert size()[0] > 1600
    drain(anna, "pictures")


def test_tables_and_records_are_laid_out_and_shown_as_they_were_sent(desk: Desk, callers: Callers) -> None:
    csv = callers.review_of(callers.text("id,note\n1,fast=0.5\n2,strong=0.6:b\n3,<b>bold</b>"))
    record = callers.review_of(callers.record(41_000.5, "<img src=x onerror=alert(1)>"))
    anna = desk.reviewer("anna")

    anna.goto(f"/inbox/reviews/{csv}")
    expect(anna.locator(".cells th")).to_have_text(["id", "note"])
    expect(anna.locator(".cells tbody tr").nth(2)).to_have_text("3<b>bold</b>")
    anna.get_by_text("As it was sent").click()
    expect(anna.locator(".sent")).to_contain_text("id,note")

    anna.goto(f"/inbox/reviews/{record}")
    expect(anna.locator(".cells tbody th")).to_have_text(["income", "job"])
    expect(anna.locator(".cells td")).to_have_text(["41000.5", "<img src=x onerror=alert(1)>"])


def test_free_text_is_written_and_keys_wait_until_it_is_left(desk: Desk, callers: Callers) -> None:
    answer = callers.mail("In your own words?", "notes")
    anna = desk.reviewer("anna")
    expect(anna.get_by_text(re.compile("overdue|due in"))).not_to_have_count(0)
    anna.get_by_role("link", name="Review notes").click()
    ready(anna, "Decide")

    anna.keyboard.type("so zz ur?")
    anna.keyboard.press("Escape")
    anna.keyboard.press("?")
    expect(anna.get_by_role("dialog")).to_be_visible()
    anna.keyboard.press("Escape")
    expect(anna.get_by_role("dialog")).to_be_hidden()
    anna.get_by_label("Your answer").focus()
    anna.keyboard.press("Control+Enter")

    expect(anna.get_by_role("heading", name="All done")).to_be_visible()
    assert callers.label(answer) == "so zz ur?"


def test_without_scripts_the_forms_do_it_all(desk: Desk, callers: Callers) -> None:
    answer = callers.mail("No scripts here.")
    review = callers.review_of(answer)
    anna = desk.reviewer("anna", java_script_enabled=False)
    anna.goto(f"/inbox/reviews/{review}")

    anna.get_by_role("button", name="Take it").click()
    anna.get_by_role("button", name="other").click()
    assert callers.label(answer) == "other"
    anna.get_by_role("button", name="Undo").click()
    assert callers.label(answer) is None
    anna.get_by_role("button", name="Put back").click()
    expect(anna.get_by_role("heading", name="Review inbox")).to_be_visible()


def test_a_session_that_ended_leads_to_the_login_page(desk: Desk, callers: Callers) -> None:
    anna = desk.reviewer("anna")
    anna.clock.install()
    anna.reload()
    anna.context.clear_cookies()
    pass_time(anna)

    expect(anna.get_by_role("heading", name="Who is reviewing?")).to_be_visible()


def test_what_is_not_decided_in_time_moves_on_and_says_so(desk: Desk, callers: Callers) -> None:
    """Held when it is due, it stays until the claim ends, which cannot be kept; then the next queue has it."""
    anna, ben = desk.reviewer("anna"), desk.reviewer("ben")
    answer = callers.mail("Nobody has time.", "hasty")
    review = callers.review_of(answer)
    callers.claim(review, "anna", 15)  # before it is due, in two seconds
    anna.goto(f"/inbox/reviews/{review}")
    expect(anna.locator("dt", has_text="Priority")).to_be_visible()
    expect(anna.get_by_role("button", name="Keep it")).to_be_visible()

    is_recalled = anna.get_by_text("It is due, and moves on when your claim ends")
    expect(is_recalled).to_be_visible(timeout=12_000)
    expect(anna.get_by_role("button", name="Keep it")).to_be_hidden()
    anna.reload()
    expect(is_recalled).to_contain_text("when your claim ends, in")
    expect(anna.get_by_role("button", name="Keep it")).to_be_hidden()
    expect(anna.get_by_role("alert")).to_contain_text("Your claim has run out.", timeout=20_000)

    link = ben.get_by_role("link", name="Review seniors")
    expect(link).to_be_visible(timeout=15_000)
    expect(ben.locator(".rows .badge", has_text="moved on")).to_be_visible()
    link.click()
    ready(ben)
    ben.keyboard.press("1")
    expect(ben.get_by_role("heading", name="All done")).to_be_visible()
    assert callers.label(answer) == "refund"
    ben.goto(f"/inbox/reviews/{review}/history")
    expect(ben.get_by_text("Nobody decided it in time")).to_be_visible()
