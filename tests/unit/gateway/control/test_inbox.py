"""The review inbox as a reviewer's browser sees it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from PIL import Image

from backends.errors import Conflict
from gateway.security import Authenticator, SecurityOptions
from gateway.store.contract import Proposal, Review, ReviewState, Step
from gateway.store.store import SqlStore, open_store
from tests.unit.gateway.control.conftest import Clock, Defer, Plane, _plane

SCRIPT = "<script>alert(1)</script>"


def _choices(html: str) -> list[str]:
    return re.findall(r'name="label" value="([^"]*)"', html)


def _png(width: int = 28, height: int = 28) -> bytes:
    out = io.BytesIO()
    Image.new("L", (width, height), 128).save(out, "PNG")
    return out.getvalue()


# Deciding


async def test_a_decision_leads_to_the_next_item_by_one_redirect(plane: Plane, store: SqlStore, defer: Defer) -> None:
    first = await defer(b"first text", due_in_s=10)
    second = await defer(b"second text", due_in_s=20)
    anna = await plane.reviewer("anna")

    shown = await anna.get("/inbox/tickets/next")
    decided = await anna.press(shown, "decide", {"label": "refund"})
    following = await anna.get(decided.headers["location"])

    assert shown.status_code == 200
    assert "first text" in shown.text
    assert _choices(shown.text) == ["refund", "delivery", "other"]
    assert decided.status_code == 303
    assert decided.headers["location"] == "/inbox/tickets/next"
    assert following.status_code == 200
    assert "second text" in following.text
    settled = await store.review("default", first.id)
    assert settled is not None
    assert (settled.state, settled.label, settled.reviewer) == (ReviewState.DECIDED, "refund", "anna")
    answer = await store.answer("default", first.answer_id)
    assert answer is not None
    assert answer.items[0].decided_by == "person:anna"
    held = await store.review("default", second.id)
    assert held is not None
    assert held.reviewer == "anna"


async def test_an_item_shows_what_it_is_about(plane: Plane, defer: Defer) -> None:
    proposals = (Proposal("fast", "delivery", 0.614), Proposal("strong", None, None))
    await defer(proposals=proposals, due_in_s=-120)
    anna = await plane.reviewer("anna")

    shown = (await anna.get("/inbox/tickets/next")).text

    for part in ("The parcel never came.", "61 %", "no confidence", "no model was sure enough", "overdue by 2 min"):
        assert part in shown


async def test_the_inbox_lists_queues_by_age_and_marks_what_is_overdue(plane: Plane, defer: Defer) -> None:
    await defer(queue="tickets", due_in_s=-60)
    await defer(queue="tickets", due_in_s=3600)
    await defer(queue="pages & more", due_in_s=3600)
    anna = await plane.reviewer("anna")

    shown = (await anna.get("/inbox")).text

    assert shown.index('<h2 id="queue-1">tickets</h2>') < shown.index("pages &amp; more</h2>")
    assert "2 waiting" in shown
    assert "1 overdue" in shown
    assert 'href="/inbox/pages%20%26%20more/next"' in shown


async def test_free_text_is_asked_for_where_the_form_has_no_labels(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer(labels=())
    anna = await plane.reviewer("anna")

    shown = await anna.get("/inbox/tickets/next")
    await anna.press(shown, "decide", {"label": "Ünusual, \U0001f682"})

    assert "<textarea" in shown.text
    settled = await store.review("default", review.id)
    assert settled is not None
    assert settled.label == "Ünusual, \U0001f682"


async def test_a_label_that_the_form_does_not_have_is_refused(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")

    for label in ("nonsense", "", "a\0b"):
        refused = await anna.press(shown, "decide", {"label": label})
        assert refused.status_code == 400

    held = await store.review("default", review.id)
    assert held is not None
    assert held.state is ReviewState.CLAIMED


async def test_skipping_puts_an_item_back_and_looks_behind_it(plane: Plane, store: SqlStore, defer: Defer) -> None:
    first = await defer(b"first text", due_in_s=10)
    await defer(b"second text", due_in_s=20)
    anna = await plane.reviewer("anna")

    shown = await anna.get("/inbox/tickets/next")
    skipped = await anna.press(shown, "release", {"then": "skip"})
    second = await anna.get(skipped.headers["location"])
    skipped = await anna.press(second, "release", {"then": "skip"})
    nothing = await anna.get(skipped.headers["location"])
    again = await anna.get("/inbox/tickets/next")

    assert skipped.status_code == 303
    assert "second text" in second.text
    assert "No further items" in nothing.text
    assert "first text" in again.text
    assert first.id in again.text


async def test_an_item_that_is_put_back_is_open_again(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")

    shown = await anna.get("/inbox/tickets/next")
    back = await anna.press(shown, "release", {"then": "leave"})

    assert (back.status_code, back.headers["location"]) == (303, "/inbox")
    held = await store.review("default", review.id)
    assert held is not None
    assert held.state is ReviewState.OPEN


async def test_looking_at_an_item_claims_nothing_until_it_is_taken(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")

    shown = await anna.get(f"/inbox/reviews/{review.id}")
    unclaimed = await store.review("default", review.id)
    taken = await anna.press(shown, "claim", {})
    mine = await anna.get(taken.headers["location"])

    assert unclaimed is not None
    assert unclaimed.state is ReviewState.OPEN
    assert _choices(shown.text) == []
    assert len(_choices(mine.text)) == 3


async def test_an_empty_queue_says_so(plane: Plane) -> None:
    anna = await plane.reviewer("anna")

    assert "All done" in (await anna.get("/inbox/tickets/next")).text
    assert "Nothing waits for a person." in (await anna.get("/inbox")).text


# One decision


async def test_of_two_reviewers_one_decides_and_the_other_is_told(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")

    hers = await anna.get("/inbox/tickets/next")
    nothing = await ben.get("/inbox/tickets/next")
    looked = await ben.get(f"/inbox/reviews/{review.id}")
    taken = await ben.press(hers, "decide", {"label": "other"})
    form = re.search(r'name="token" value="(\w+)"', looked.text)
    assert form is not None
    late = await ben.post(
        f"/inbox/reviews/{review.id}/decide",
        {"token": form[1], "fence": str(review.fence + 1), "queue": "tickets", "label": "other"},
    )

    assert "All done" in nothing.text
    assert "anna is looking at it" in looked.text
    assert taken.status_code == 403  # a form that was shown to somebody else
    assert late.status_code == 409
    assert "anna" in late.text
    assert 'href="/inbox/tickets/next"' in late.text
    held = await store.review("default", review.id)
    assert held is not None
    assert held.state is ReviewState.CLAIMED


async def test_a_double_click_decides_once_and_goes_on(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")

    first = await anna.press(shown, "decide", {"label": "refund"})
    second = await anna.press(shown, "decide", {"label": "refund"})

    assert (first.status_code, second.status_code) == (303, 303)
    answer = await store.answer("default", review.answer_id)
    assert answer is not None
    assert answer.revision == 2


async def test_deciding_otherwise_afterwards_is_a_conflict(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")

    await anna.press(shown, "decide", {"label": "refund"})
    late = await anna.press(shown, "decide", {"label": "other"})

    assert late.status_code == 409
    assert "Already decided" in late.text
    assert "was not recorded" in late.text
    settled = await store.review("default", review.id)
    assert settled is not None
    assert settled.label == "refund"


async def test_an_expired_claim_cannot_decide(plane: Plane, store: SqlStore, defer: Defer, clock: Clock) -> None:
    review = await defer()
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    hers = await anna.get("/inbox/tickets/next")

    clock.now += 301
    expired = await anna.press(hers, "decide", {"label": "refund"})
    his = await ben.get("/inbox/tickets/next")
    overtaken = await anna.press(hers, "decide", {"label": "refund"})
    decided = await ben.press(his, "decide", {"label": "other"})

    assert expired.status_code == 409
    assert "Your claim ran out" in expired.text
    assert overtaken.status_code == 409
    assert "Somebody else has it now" in overtaken.text
    assert decided.status_code == 303
    settled = await store.review("default", review.id)
    assert settled is not None
    assert (settled.label, settled.reviewer) == ("other", "ben")


# Taking back


async def test_a_decision_can_be_taken_back_from_the_page_that_follows(
    plane: Plane, store: SqlStore, defer: Defer
) -> None:
    first = await defer(b"first text", due_in_s=10)
    await defer(b"second text", due_in_s=20)
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")
    decided = await anna.press(shown, "decide", {"label": "refund"})

    following = await anna.get(decided.headers["location"])
    undone = await anna.press(following, "undo", {})
    again = await anna.get(undone.headers["location"])
    decided_again = await anna.press(again, "decide", {"label": "other"})

    assert "Decided <strong>refund</strong>" in following.text
    assert "second text" in following.text
    assert (undone.status_code, undone.headers["location"]) == (303, f"/inbox/reviews/{first.id}")
    assert "first text" in again.text
    assert "Decided <strong>" not in again.text
    assert decided_again.status_code == 303
    settled = await store.review("default", first.id)
    assert settled is not None
    assert (settled.state, settled.label) == (ReviewState.DECIDED, "other")


async def test_undoing_is_offered_on_every_page_of_that_session_alone(plane: Plane, defer: Defer) -> None:
    await defer()
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    await anna.press(await anna.get("/inbox/tickets/next"), "decide", {"label": "refund"})

    for path in ("/inbox", "/inbox/tickets/next"):
        assert "Decided <strong>refund</strong>" in (await anna.get(path)).text
        assert "Decided <strong>" not in (await ben.get(path)).text


async def test_taking_back_too_late_says_so_and_changes_nothing(
    plane: Plane, store: SqlStore, defer: Defer, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    await anna.press(await anna.get("/inbox/tickets/next"), "decide", {"label": "refund"})
    shown = await anna.get("/inbox")

    async def too_late(*args: Any) -> Review:
        raise Conflict("it is too late")

    monkeypatch.setattr(store, "undo", too_late)
    late = await anna.press(shown, "undo", {})

    assert late.status_code == 409
    assert "It is too late for that" in late.text
    assert "The decision stands: <strong>refund</strong>, by you." in late.text
    settled = await store.review("default", review.id)
    assert settled is not None
    assert settled.state is ReviewState.DECIDED


async def test_what_another_decided_cannot_be_taken_back(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    await anna.press(await anna.get("/inbox/tickets/next"), "decide", {"label": "refund"})
    form = re.search(r'name="token" value="(\w+)"', (await ben.get("/inbox")).text)
    assert form is not None

    refused = await ben.post(f"/inbox/reviews/{review.id}/undo", {"token": form[1], "fence": str(review.fence + 1)})

    assert refused.status_code == 409
    settled = await store.review("default", review.id)
    assert settled is not None
    assert settled.state is ReviewState.DECIDED


# Who holds what


async def test_the_list_and_an_item_tell_who_holds_what(plane: Plane, defer: Defer) -> None:
    review = await defer()
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    before = (await ben.get(f"/inbox/reviews/{review.id}/live")).json()
    await anna.get("/inbox/tickets/next")

    listed, live = await ben.get("/inbox"), await ben.get("/inbox/live")
    after = await ben.get(f"/inbox/reviews/{review.id}/live")

    assert before == {"state": "open", "reviewer": None, "fence": 0, "lease_s": None, "recalled": False}
    assert after.json() == {
        "state": "claimed", "reviewer": "anna", "fence": 1, "lease_s": 300.0, "recalled": False
    }  # fmt: skip
    assert after.headers["cache-control"] == "no-store"
    for page in (listed, live):
        assert "anna has it" in page.text
        assert "0 waiting · 1 being reviewed" in page.text
    assert "<html" not in live.text
    assert ">yours<" in (await anna.get("/inbox")).text


async def test_a_claim_is_renewed_under_its_fence_and_not_after_it_ended(
    plane: Plane, store: SqlStore, defer: Defer, clock: Clock
) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")
    form = re.search(r'name="token" value="(\w+)"', shown.text)
    assert form is not None
    fields = {"token": form[1], "fence": "1"}
    path = f"/inbox/reviews/{review.id}/renew"

    clock.now += 200
    renewed = await anna.post(path, fields)
    clock.now += 299
    held = await store.review("default", review.id)
    stale = await anna.post(path, {**fields, "fence": "0"})
    clock.now += 2
    late = await anna.post(path, fields)

    assert renewed.json() == {"fence": 1, "lease_s": 300.0, "recalled": False}
    assert held is not None
    assert held.state is ReviewState.CLAIMED
    assert (stale.status_code, late.status_code) == (409, 409)
    after = await store.review("default", review.id)
    assert after is not None
    assert after.state is ReviewState.OPEN


async def test_due_times_and_ages_are_told_in_words(plane: Plane, defer: Defer) -> None:
    await defer(b"late", due_in_s=-7300)
    await defer(b"soon", due_in_s=1900)
    anna = await plane.reviewer("anna")

    shown = (await anna.get("/inbox")).text

    for part in ("2 waiting", "1 overdue", "overdue by 2 h", "due in 31 min", "waits under 1 min"):
        assert part in shown


# Many at once


async def test_identical_items_are_decided_together_after_they_were_confirmed(
    plane: Plane, store: SqlStore, defer: Defer
) -> None:
    same = [await defer(b"same text", due_in_s=60 + i) for i in range(4)]
    other = await defer(b"another text")
    await store.claim("default", same[3].id, "ben", 300.0)
    anna = await plane.reviewer("anna")

    listed = await anna.get("/inbox")
    item = await anna.get(f"/inbox/reviews/{same[0].id}")
    asked = await anna.get(f"/inbox/reviews/{same[0].id}/alike")
    done = await anna.press(asked, "alike", {"label": "other"})

    assert "4 identical" in listed.text
    assert "Decide all 4 identical items" in item.text
    assert "3 identical items" in asked.text
    assert "ben has one" in asked.text
    assert "3 items decided as other" in done.text
    found = [await store.review("default", review.id) for review in (*same, other)]
    assert [None if one is None else one.label for one in found] == ["other", "other", "other", None, None]
    answer = await store.answer("default", same[1].answer_id)
    assert answer is not None
    assert answer.items[0].decided_by == "person:anna"


async def test_what_others_took_between_asking_and_confirming_is_theirs(
    plane: Plane, store: SqlStore, defer: Defer
) -> None:
    same = [await defer(due_in_s=60 + i) for i in range(4)]
    anna = await plane.reviewer("anna")
    asked = await anna.get(f"/inbox/reviews/{same[0].id}/alike")
    held = await store.claim("default", same[1].id, "ben", 300.0)
    decided = await store.claim("default", same[2].id, "ben", 300.0)
    await store.decide("default", decided.id, "ben", decided.fence, "refund")
    late = await defer(due_in_s=70)

    done = await anna.press(asked, "alike", {"label": "other"})

    assert "2 items decided as other" in done.text
    assert "2 were left as they are" in done.text
    assert "ben has it" in done.text
    assert "it was decided meanwhile" in done.text
    found = [await store.review("default", review.id) for review in (same[0], held, decided, same[3], late)]
    assert [None if one is None else one.label for one in found] == ["other", None, "refund", "other", None]


async def test_only_what_is_alike_is_decided_at_once(plane: Plane, store: SqlStore, defer: Defer) -> None:
    """Whatever ids a form holds."""
    review, other = await defer(b"one"), await defer(b"another")
    anna = await plane.reviewer("anna")
    asked = await anna.get(f"/inbox/reviews/{review.id}/alike")

    wrong = await anna.press(asked, "alike", {"label": "nonsense"})
    many = await anna.press(asked, "alike", {"label": "other", "ids": ",".join(["x"] * 201)})
    done = await anna.press(asked, "alike", {"label": "other", "ids": f"{review.id},{other.id}"})

    assert (wrong.status_code, many.status_code) == (400, 413)
    assert "1 item decided as other" in done.text
    untouched = await store.review("default", other.id)
    assert untouched is not None
    assert untouched.state is ReviewState.OPEN


async def test_what_was_decided_at_once_is_taken_back_at_once(plane: Plane, store: SqlStore, defer: Defer) -> None:
    same = [await defer(due_in_s=60 + i) for i in range(3)]
    anna = await plane.reviewer("anna")
    asked = await anna.get(f"/inbox/reviews/{same[0].id}/alike")
    done = await anna.press(asked, "alike", {"label": "other"})

    following = await anna.get("/inbox/tickets/next")
    undone = await anna.press(following, "undo", {})
    again = await anna.get(undone.headers["location"])
    anew = await anna.press(again, "alike", {"label": "refund"})

    assert "For a few seconds, this can be undone." in asked.text
    for page in (done, following):
        assert "Decided 3 items as <strong>other</strong>" in page.text
        assert "Undo all" in page.text
    assert (undone.status_code, undone.headers["location"]) == (303, f"/inbox/reviews/{same[0].id}/alike")
    assert "All are yours until the claims end." in again.text
    assert "Undo all" not in again.text
    assert "3 items decided as refund" in anew.text
    found = [await store.review("default", review.id) for review in same]
    assert [None if one is None else one.label for one in found] == ["refund"] * 3


async def test_what_cannot_be_taken_back_with_the_others_is_told_and_stays(
    plane: Plane, store: SqlStore, defer: Defer
) -> None:
    same = [await defer(due_in_s=60 + i) for i in range(3)]
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    done = await anna.press(await anna.get(f"/inbox/reviews/{same[0].id}/alike"), "alike", {"label": "other"})
    await store.correct("default", same[1].id, "anna", "refund")
    of_ben = re.search(r'name="token" value="(\w+)"', (await ben.get("/inbox")).text)
    assert of_ben is not None

    stolen = await ben.press(done, "undo", {"token": of_ben[1]})
    undone = await anna.press(done, "undo", {})
    many = await anna.press(done, "undo", {"made": ",".join([f"{same[0].id}:1"] * 201)})

    assert (stolen.status_code, undone.status_code, many.status_code) == (409, 409, 413)
    assert "3 decisions were not taken back" in stolen.text
    assert "1 decision was not taken back" in undone.text
    assert "was corrected since it was decided" in undone.text
    assert f'href="/inbox/reviews/{same[0].id}/alike"' in undone.text
    found = [await store.review("default", review.id) for review in same]
    assert [None if one is None else one.label for one in found] == [None, "refund", None]


async def test_where_nothing_is_taken_back_many_are_decided_for_good(plane: Plane, defer: Defer) -> None:
    same = [await defer(due_in_s=60 + i) for i in range(2)]
    anna = await plane.reviewer("anna")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SqlStore, "undo_s", 0.0)
        asked = await anna.get(f"/inbox/reviews/{same[0].id}/alike")
        done = await anna.press(asked, "alike", {"label": "other"})

    assert "This cannot be undone at once" in asked.text
    assert "Undo" not in done.text


# What was before


async def test_the_history_of_an_item_tells_its_way(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")
    await anna.press(shown, "decide", {"label": "refund"})
    await store.add_feedback("default", review.answer_id, 0, "other", "shop <b>")

    history = (await anna.get(f"/inbox/reviews/{review.id}/history")).text

    told = ("The request came in", "Handed to people", "anna took it", "anna decided: refund", "shop &lt;b&gt;: other")
    places = [history.index(part) for part in told]
    assert places == sorted(places)
    assert re.search(r'<time datetime="\d{4}-\d\d-\d\dT[\d:.]+Z"', history)
    assert "decision log: chain 0, row 2" in history
    assert f'href="/inbox/reviews/{review.id}/history"' in shown.text


# What callers sent is text, or a picture, or nothing to look at


async def test_script_is_shown_as_text_wherever_it_stands(plane: Plane, defer: Defer) -> None:
    await defer(
        SCRIPT.encode(),
        labels=(SCRIPT, "'\"><b>"),
        proposals=(Proposal(SCRIPT, SCRIPT, 0.5),),
        queue=SCRIPT,
        route=SCRIPT,
    )
    anna = await plane.reviewer(SCRIPT)

    listed = await anna.get("/inbox")
    path = re.search(r'href="(/inbox/[^"]*/next)"', listed.text)
    assert path is not None
    shown = await anna.get(path[1])
    decided = await anna.press(shown, "decide", {"label": "'\"><b>"})

    assert shown.status_code == 200
    assert decided.status_code == 303
    for response in anna.sent:
        assert "<script>" not in response.text
        assert "<b>&" not in response.text
    assert shown.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', "image/svg+xml"),
        (b"<script>alert(1)</script>", "image/png"),
        (b"\x89PNG\r\n\x1a\n<script>alert(1)</script>", "image/png"),
        (b"%PDF-1.7", "application/pdf"),
        (b"II*\x00" + b"\xff" * 64, "image/tiff"),
    ],
)
async def test_what_is_no_picture_is_a_download(plane: Plane, defer: Defer, content: bytes, content_type: str) -> None:
    review = await defer(content, content_type)
    anna = await plane.reviewer("anna")

    shown = await anna.get("/inbox/tickets/next")
    served = await anna.get(f"/inbox/reviews/{review.id}/payload")

    assert "This input cannot be shown here." in shown.text
    assert "<svg xmlns" not in shown.text
    assert served.status_code == 200
    assert served.content == content
    assert served.headers["content-type"] == "application/octet-stream"
    assert served.headers["content-disposition"] == f'attachment; filename="{review.id}.bin"'
    assert served.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in served.headers["content-security-policy"]


async def test_html_is_a_text_and_downloads_as_one(plane: Plane, defer: Defer) -> None:
    review = await defer(SCRIPT.encode(), "text/html")
    anna = await plane.reviewer("anna")

    shown = await anna.get("/inbox/tickets/next")
    served = await anna.get(f"/inbox/reviews/{review.id}/payload")

    assert "&lt;script&gt;" in shown.text
    assert served.headers["content-type"] == "text/plain; charset=utf-8"
    assert served.headers["content-disposition"].startswith("attachment")


async def test_a_small_picture_is_enlarged_by_a_whole_factor(plane: Plane, defer: Defer) -> None:
    review = await defer(_png(), "image/png", labels=tuple("0123456789"))
    anna = await plane.reviewer("anna")

    shown = await anna.get("/inbox/tickets/next")
    served = await anna.get(f"/inbox/reviews/{review.id}/payload")

    assert 'class="picture tiny"' in shown.text
    assert 'width="336" height="336"' in shown.text
    assert 'value="0" data-label-key="0"' in shown.text
    assert served.headers["content-type"] == "image/png"
    assert "content-disposition" not in served.headers
    assert served.content == _png()


@pytest.mark.parametrize("form", ["BMP", "TIFF"])
async def test_a_format_that_browsers_lack_is_served_as_png(plane: Plane, defer: Defer, form: str) -> None:
    out = io.BytesIO()
    Image.new("RGB", (400, 300), (10, 20, 30)).save(out, form)
    review = await defer(out.getvalue(), f"image/{form.lower()}")
    anna = await plane.reviewer("anna")

    served = await anna.get(f"/inbox/reviews/{review.id}/payload")

    assert served.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(served.content)) as shown:
        assert shown.size == (400, 300)
        assert shown.getpixel((0, 0)) == (10, 20, 30)


async def test_a_damaged_picture_of_such_a_format_is_a_download(plane: Plane, defer: Defer) -> None:
    out = io.BytesIO()
    Image.new("RGB", (400, 300)).save(out, "BMP")
    review = await defer(out.getvalue()[:200], "image/bmp")
    anna = await plane.reviewer("anna")

    served = await anna.get(f"/inbox/reviews/{review.id}/payload")

    assert served.status_code == 200
    assert served.headers["content-type"] == "application/octet-stream"


# Who may


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:9000"},
    ],
)
async def test_a_foreign_page_changes_nothing(
    plane: Plane, store: SqlStore, defer: Defer, headers: dict[str, str]
) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")

    for action, form in (("decide", {"label": "refund"}), ("release", {"then": "skip"})):
        assert (await anna.press(shown, action, form, headers)).status_code == 403
    for action in ("renew", "undo", "alike"):
        assert (await anna.post(f"/inbox/reviews/{review.id}/{action}", {}, headers)).status_code == 403
    assert (await anna.post("/login", {"name": "mallory"}, headers)).status_code == 403

    held = await store.review("default", review.id)
    assert held is not None
    assert (held.state, held.reviewer) == (ReviewState.CLAIMED, "anna")


@pytest.mark.parametrize("token", ["", "0" * 64, "\u00e9"])
async def test_a_form_without_its_token_changes_nothing(
    plane: Plane, store: SqlStore, defer: Defer, token: str
) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")

    refused = await anna.press(shown, "decide", {"label": "refund", "token": token})

    assert refused.status_code == 403
    held = await store.review("default", review.id)
    assert held is not None
    assert held.state is ReviewState.CLAIMED


async def test_a_link_on_another_site_claims_nothing(plane: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")

    arrived = await anna.get("/inbox/tickets/next", {"sec-fetch-site": "cross-site"})

    assert arrived.status_code == 200
    assert 'href="/inbox/tickets/next"' in arrived.text
    held = await store.review("default", review.id)
    assert held is not None
    assert held.state is ReviewState.OPEN


@pytest.mark.parametrize("path", ["/", "/inbox", "/metrics", "/v1/reviews", "/static/inbox.css", "/login"])
async def test_a_rebound_host_name_is_served_nothing(plane: Plane, path: str) -> None:
    refused = await plane.browser().get(path, {"host": "evil.example:8002"})

    assert refused.status_code == 403
    assert "trusted host" in refused.text


@pytest.mark.parametrize("host", ["localhost:8002", "[::1]:8002", "127.0.0.1:8002"])
async def test_this_machine_is_served(plane: Plane, host: str) -> None:
    assert (await plane.browser().get("/login", {"host": host})).status_code == 200


async def test_without_a_session_the_inbox_asks_who_is_there_and_goes_on(plane: Plane, defer: Defer) -> None:
    await defer()
    browser = plane.browser()

    asked = await browser.get("/inbox/tickets/next")
    page = await browser.get(asked.headers["location"])
    named = await browser.log_in(name="anna", next="/inbox/tickets/next")

    assert asked.status_code == 303
    assert asked.headers["location"] == "/login?next=%2Finbox%2Ftickets%2Fnext"
    assert 'value="/inbox/tickets/next"' in page.text
    assert 'name="name"' in page.text
    assert (named.status_code, named.headers["location"]) == (303, "/inbox/tickets/next")
    cookie = named.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie


@pytest.mark.parametrize("following", ["//evil.example", "https://evil.example/inbox", "/inbox//evil", "/\\evil", ""])
async def test_logging_in_leads_nowhere_else(plane: Plane, following: str) -> None:
    assert (await plane.browser().log_in(name="anna", next=following)).headers["location"] == "/inbox"


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb"])
async def test_a_name_that_cannot_be_recorded_is_asked_for_again(plane: Plane, name: str) -> None:
    asked = await plane.browser().log_in(name=name)

    assert asked.status_code == 400
    assert "1 to 64 printable characters" in asked.text


async def test_over_tls_the_cookie_stays_there(plane: Plane) -> None:
    browser = plane.browser()

    response = await browser.post("/login", {"name": "anna"}, {"origin": "https://127.0.0.1:8002"})

    assert "secure" in response.headers["set-cookie"].lower()


async def test_a_reviewer_logs_in_with_their_key(keyed: Plane, defer: Defer) -> None:
    await defer()
    browser = keyed.browser()

    page = await browser.get("/login")
    refused = await browser.log_in(key="pm_wrong")
    nothing = await browser.get("/inbox/tickets/next")
    anna = await keyed.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")

    assert 'type="password"' in page.text
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    assert nothing.status_code == 303
    assert "anna" in shown.text
    assert len(_choices(shown.text)) == 3


async def test_logging_out_ends_the_session_and_every_copy_of_its_cookie(keyed: Plane, defer: Defer) -> None:
    await defer()
    anna, copy = await keyed.reviewer("anna"), keyed.browser()
    copy.http.cookies.update(anna.http.cookies)
    shown = await anna.get("/inbox/tickets/next")

    out = await anna.press(shown, "logout", {})

    assert (out.status_code, out.headers["location"]) == (303, "/login")
    assert (await anna.get("/inbox")).status_code == 303
    assert (await copy.get("/inbox")).status_code == 303
    late = await copy.press(shown, "decide", {"label": "refund"})
    assert late.status_code == 401
    assert "nothing was changed" in late.text


async def test_whichever_gateway_a_reviewer_meets_their_session_is_one(
    plane: Plane, store: SqlStore, defer: Defer
) -> None:
    """Logging in, deciding, taking back, and logging out, each at another gateway of the store."""
    review = await defer()
    async with aclosing(await open_store(store._options, siblings=True)) as beside:
        other = _plane(beside, Authenticator(SecurityOptions()), {})
        anna, there = await plane.reviewer("anna"), other.browser()
        there.http.cookies.update(anna.http.cookies)

        shown = await there.get("/inbox/tickets/next")
        await anna.press(shown, "decide", {"label": "refund"})
        following = await there.get("/inbox")
        undone = await there.press(following, "undo", {})
        again = await anna.get(undone.headers["location"])
        out = await there.press(again, "logout", {})

        assert "Decided <strong>refund</strong>" in following.text
        assert undone.status_code == 303
        assert "Decided <strong>" not in again.text
        assert out.status_code == 303
        for browser in (anna, there):
            assert (await browser.get("/inbox")).headers["location"].startswith("/login")
        late = await anna.press(again, "decide", {"label": "other"})
        assert late.status_code == 401
        await other.aclose()
    left = await store.review("default", review.id)
    assert left is not None
    assert left.state is not ReviewState.DECIDED


async def test_a_forged_cookie_is_no_session(keyed: Plane, plane: Plane) -> None:
    other = await plane.reviewer("anna")
    forged = keyed.browser()
    forged.http.cookies.update(other.http.cookies)

    assert (await forged.get("/inbox")).status_code == 303


async def test_roles_say_who_reviews_and_who_sees_the_status(keyed: Plane) -> None:
    anna, cleo, otto = [await keyed.reviewer(name) for name in ("anna", "cleo", "otto")]

    assert (await anna.get("/inbox")).status_code == 200
    assert (await anna.get("/")).status_code == 403
    assert (await cleo.get("/inbox")).status_code == 403
    assert "needs the role" in (await cleo.get("/inbox")).text
    assert (await otto.get("/")).status_code == 200
    assert (await otto.get("/inbox")).status_code == 403
    assert (await keyed.browser().get("/")).status_code == 303
    assert (await keyed.browser().get("/", {"x-api-key": keyed.keys["otto"]})).status_code == 200


async def test_another_tenants_review_does_not_exist(keyed: Plane, store: SqlStore, defer: Defer) -> None:
    review = await defer(b"a secret of default")
    olga = await keyed.reviewer("olga")
    own = await defer(tenant="other", queue="theirs")

    listed = await olga.get("/inbox")
    shown = await olga.get("/inbox/theirs/next")
    form = re.search(r'name="token" value="(\w+)"', shown.text)
    assert form is not None
    fields = {"token": form[1], "fence": str(own.fence + 1), "queue": "tickets", "label": "refund", "then": "skip"}

    assert "tickets</h2>" not in listed.text
    assert "All done" in (await olga.get("/inbox/tickets/next")).text
    assert (await olga.get(f"/inbox/tickets/next?after={review.id}")).status_code == 404
    for page in ("", "/payload", "/live", "/history", "/alike"):
        assert (await olga.get(f"/inbox/reviews/{review.id}{page}")).status_code == 404
    for action in ("claim", "decide", "renew", "undo", "alike"):
        assert (await olga.post(f"/inbox/reviews/{review.id}/{action}", fields)).status_code == 404
    assert all("a secret of default" not in response.text for response in olga.sent)
    untouched = await store.review("default", review.id)
    assert untouched is not None
    assert untouched.state is ReviewState.OPEN


async def test_no_secret_leaves_by_a_response_or_a_log(
    keyed: Plane, defer: Defer, caplog: pytest.LogCaptureFixture
) -> None:
    await defer(b"canary-7f3a")
    caplog.set_level("DEBUG")
    anna = await keyed.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")
    await anna.press(shown, "decide", {"label": "nonsense"})
    await anna.press(shown, "decide", {"label": "refund"})
    await anna.press(shown, "logout", {})

    for response in anna.sent:
        assert keyed.keys["anna"] not in response.text + repr(response.headers)
        assert keyed.keys["anna"] not in str(response.url)
    ours = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    assert "canary-7f3a" not in ours
    assert keyed.keys["anna"] not in ours


# The plane


async def test_every_page_forbids_what_it_does_not_need(plane: Plane, defer: Defer) -> None:
    await defer()
    anna = await plane.reviewer("anna")

    listed = await anna.get("/inbox")
    item = re.search(r"/inbox/reviews/\w+", listed.text)
    assert item is not None
    of_item = (item[0], f"{item[0]}/history", f"{item[0]}/alike", "/inbox/live")

    for path in ("/", "/inbox", "/inbox/tickets/next", "/login", "/nowhere", "/inbox/reviews/unknown", *of_item):
        response = await anna.get(path)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?! src=\"/static/)|<style|\sstyle=|\son\w+=|https?://", response.text)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/inbox/", 404),
        ("/inbox/reviews/unknown", 404),
        ("/inbox/reviews/..%2f..%2fetc", 404),
        ("/inbox/a%00b/next", 404),
        ("/static/../app.py", 404),
        ("/static/%2e%2e/app.py", 404),
        ("/static/inbox.css", 200),
        ("/static/inbox.js", 200),
        ("/static/keys.js", 200),
        ("/static/lease.js", 200),
        ("/static/live.js", 200),
        ("/static/moments.js", 200),
        ("/static/picture.js", 200),
        ("/inbox/reviews/unknown/history", 404),
        ("/inbox/reviews/unknown/live", 404),
        ("/inbox/reviews/unknown/alike", 404),
        ("/metrics", 200),
    ],
)
async def test_paths_have_their_exact_status(plane: Plane, path: str, status: int) -> None:
    anna = await plane.reviewer("anna")

    assert (await anna.get(path)).status_code == status


async def test_forms_of_another_kind_or_size_are_refused(plane: Plane, defer: Defer) -> None:
    review = await defer()
    anna = await plane.reviewer("anna")
    path = f"/inbox/reviews/{review.id}/decide"
    form = {"content-type": "application/x-www-form-urlencoded"}

    assert (await anna.http.post(path, content=b"{}", headers={"content-type": "text/plain"})).status_code == 415
    assert (await anna.http.post(path, content=b"a=" + b"x" * 300_000, headers=form)).status_code == 413
    assert (await anna.http.post(path, content=b"label=%ff", headers=form)).status_code == 400
    assert (await anna.http.post(path, content=b"&".join([b"a=1"] * 99), headers=form)).status_code == 400
    wrong = await anna.http.get(path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_metrics_are_given_in_the_format_asked_for(keyed: Plane) -> None:
    response = await keyed.browser().get("/metrics", {"accept": "application/openmetrics-text"})

    assert response.text == "# accept application/openmetrics-text\n"
    assert response.headers["content-type"] == "text/plain; version=0.0.4"


async def test_the_status_page_shows_routes_models_queues_and_store(plane: Plane, defer: Defer) -> None:
    await defer()

    shown = (await plane.browser().get("/")).text

    for part in (
        "ready",
        "fast → &lt;b&gt;strong&lt;/b&gt;",
        "2.5",
        "4.2 ms",
        "17 expired",
        "2.5 ms</span> + ",
        "postprocess: 12 B read, 0 B between, 16 B written an item of logits float32[3]",
        "items in a batch",
        "one of 8 11.0 ms",
        '<th scope="row">tickets</th>',
        "GiB",
        "Version 12 of the configuration",
    ):
        assert part in shown


async def test_an_item_that_no_model_answered_is_listed_and_shown(plane: Plane, defer: Defer) -> None:
    await defer(b"one text", proposals=())
    await defer(b"another text", proposals=(Proposal("fast", None, None),))
    anna = await plane.reviewer("anna")

    listed, shown = await anna.get("/inbox"), await anna.get("/inbox/tickets/next")

    assert listed.text.count("no proposal") == 2
    assert "Nothing: no model answered." in shown.text


async def test_a_form_that_was_tampered_with_is_refused_or_leads_to_the_list(plane: Plane, defer: Defer) -> None:
    await defer()
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")

    for fence in ("", "-1", "1.0", "٣", "9" * 19):
        assert (await anna.press(shown, "decide", {"label": "refund", "fence": fence})).status_code == 400
        assert (await anna.press(shown, "release", {"then": "skip", "fence": fence})).status_code == 400
    decided = await anna.press(shown, "decide", {"label": "refund", "queue": ""})

    assert (decided.status_code, decided.headers["location"]) == (303, "/inbox")


async def test_an_unprintable_queue_does_not_exist(plane: Plane) -> None:
    anna = await plane.reviewer("anna")

    assert (await anna.get("/inbox/a%01b/next")).status_code == 404
    assert (await anna.get(f"/inbox/{'x' * 129}/next")).status_code == 404


async def test_behind_a_skipped_item_what_others_took_is_passed_over(
    plane: Plane, store: SqlStore, defer: Defer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ben takes the second item between the moment anna's list is read and her claim."""
    first, second, third = [await defer(f"text {i}".encode(), due_in_s=i) for i in (10, 20, 30)]
    anna = await plane.reviewer("anna")
    read = store.reviews

    async def read_then_lose(*args: Any, **kwargs: Any) -> Sequence[Review]:
        found = await read(*args, **kwargs)
        await store.claim("default", second.id, "ben", 300.0)
        return found

    monkeypatch.setattr(store, "reviews", read_then_lose)
    shown = await anna.get(f"/inbox/tickets/next?after={first.id}")

    assert third.id in shown.text
    assert len(_choices(shown.text)) == 3


async def test_an_unexpected_error_tells_its_number_and_nothing_else(
    plane: Plane, store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: Any, **kwargs: Any) -> Sequence[Review]:
        raise RuntimeError("disk on fire at /var/lib")

    anna = await plane.reviewer("anna")
    monkeypatch.setattr(store, "reviews", fail)

    failed = await anna.get("/inbox")

    assert failed.status_code == 500
    number = re.search(r"error id (\w{16})", failed.text)
    assert number is not None
    assert number[1] in caplog.text
    assert "on fire" not in failed.text
    assert failed.headers["content-security-policy"].startswith("default-src 'none'")


# What is due


async def test_what_is_due_and_held_says_that_it_moves_on_and_is_not_kept(
    plane: Plane, store: SqlStore, defer: Defer, clock: Clock
) -> None:
    review = await defer(due_in_s=0.0)
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    shown = await anna.get("/inbox/tickets/next")
    await store.escalate({"tickets": Step("leads", 600.0)})

    mine, others = [await one.get(f"/inbox/reviews/{review.id}") for one in (anna, ben)]
    clock.now += 200
    form = re.search(r'name="token" value="(\w+)"', shown.text)
    assert form is not None
    renewed = await anna.post(f"/inbox/reviews/{review.id}/renew", {"token": form[1], "fence": "1"})
    listed = await ben.get("/inbox")

    assert "It is due, and moves on when your claim ends, in 5 min." in mine.text
    assert 'id="keep" hidden' in mine.text
    assert "It is due, and moves on when their claim ends, in 5 min at the latest." in others.text
    assert renewed.json() == {"fence": 1, "lease_s": 100.0, "recalled": True}
    assert ">moves on<" in listed.text


async def test_what_is_about_to_move_on_is_taken_by_nobody(
    plane: Plane, store: SqlStore, defer: Defer, clock: Clock
) -> None:
    review, same = await defer(due_in_s=0.0), await defer(due_in_s=100.0)
    anna, ben = await plane.reviewer("anna"), await plane.reviewer("ben")
    mine = await anna.get("/inbox/tickets/next")
    await store.escalate({"tickets": Step("leads", 600.0)})
    asked = await ben.get(f"/inbox/reviews/{same.id}/alike")
    clock.now += 301

    item = await ben.get(f"/inbox/reviews/{review.id}")
    late = await anna.press(mine, "decide", {"label": "refund"})
    many = await ben.press(asked, "alike", {"label": "other", "ids": f"{review.id},{same.id}"})

    assert "It is due, and another queue has it in a moment." in item.text
    assert "Take it" not in item.text
    assert late.status_code == 409
    assert "another queue has it in a moment" in late.text
    assert "1 item decided as other" in many.text
    assert "it is due, and moves on to another queue" in many.text


async def test_what_moved_on_meanwhile_is_told_as_that(
    plane: Plane, store: SqlStore, defer: Defer, clock: Clock
) -> None:
    review = await defer(due_in_s=0.0)
    anna = await plane.reviewer("anna")
    shown = await anna.get("/inbox/tickets/next")
    clock.now += 301
    await store.escalate({"tickets": Step("leads", 0.0)})

    late = await anna.press(shown, "decide", {"label": "refund"})
    await store.escalate({})
    item, listed = await anna.get(f"/inbox/reviews/{review.id}"), await anna.get("/inbox")

    assert late.status_code == 409
    assert "the queue <b>leads</b> has it now" in late.text
    assert "/inbox/tickets/next" in late.text
    assert "moved on once, undecided" in item.text
    assert "nobody else is left to go to" in item.text
    assert ">moved on<" in listed.text
    told = (await anna.get(f"/inbox/reviews/{review.id}/history")).text
    assert told.count("Nobody decided it in time") == 2


async def test_what_is_more_urgent_comes_first_and_says_so(plane: Plane, store: SqlStore, defer: Defer) -> None:
    await defer(b"usual", due_in_s=10)
    urgent = await defer(b"urgent", due_in_s=1000, priority=1)
    anna = await plane.reviewer("anna")

    listed = (await anna.get("/inbox")).text
    item = (await anna.get("/inbox/tickets/next")).text

    assert re.findall(r'href="/inbox/reviews/([\w-]+)"', listed)[0] == urgent.id
    assert listed.count(">priority 1<") == 1
    assert "<dt>Priority</dt><dd>1</dd>" in item
