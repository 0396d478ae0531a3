"""How pages say things, and what a payload is taken for."""

from __future__ import annotations

import io
import time
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.control import media, pages
from gateway.control.session import COOKIE, Sessions
from gateway.security import ApiKey, Authenticator, SecurityOptions, new_api_key
from gateway.store import SqlStore, StoreOptions, open_store
from router.contract import Reason


def test_every_reason_has_words() -> None:
    assert set(pages.REASONS) == set(Reason)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "under 1 min"),
        (59.9, "under 1 min"),
        (60, "1 min"),
        (200, "3 min"),
        (3599, "59 min"),
        (7300, "2 h"),
        (86_400, "1 day"),
        (500_000, "5 days"),
    ],
)
def test_a_duration_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert pages.duration(seconds) == words


def test_a_deadline_is_told_from_its_own_side() -> None:
    now = time.time()

    assert pages.due(now + 190) == "due in 3 min"
    assert pages.due(now - 190) == "overdue by 3 min"
    assert (pages.is_overdue(now - 1), pages.is_overdue(now + 10)) == (True, False)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "0 %"),
        (0.5, "50 %"),
        (0.887, "89 %"),
        (0.95, "95.0 %"),
        (0.9994, "99.9 %"),
        (0.99999, "99.9 %"),
        (1, "100 %"),
    ],
)
def test_a_confidence_is_never_rounded_up_to_certainty(share: float, words: str) -> None:
    assert pages.percent(share) == words


def test_sizes_and_times_are_told_in_fitting_units() -> None:
    assert [pages.size(n) for n in (0, 1023, 1536, 5 * 2**30, 2**50)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 GiB", "1024.0 TiB",
    ]  # fmt: skip
    assert [pages.milliseconds(s) for s in (0.0042, 0.25)] == ["4.2 ms", "250 ms"]


def test_single_characters_are_their_own_keys() -> None:
    assert pages.shortcuts("0123456789") == tuple("0123456789")
    assert pages.shortcuts(["B", "a"]) == ("b", "a")


def test_other_labels_are_numbered_from_one() -> None:
    assert pages.shortcuts(["refund", "delivery"]) == ("1", "2")
    assert pages.shortcuts(["a", "A"]) == ("1", "2")
    assert pages.shortcuts([str(n) for n in range(11)])[8:] == ("9", "0", "a")


@given(st.lists(st.text(max_size=3), max_size=60))
def test_no_two_labels_share_a_key(labels: list[str]) -> None:
    keys = pages.shortcuts(labels)

    assert len(keys) == len(labels)
    used = [key for key in keys if key]
    assert len(set(used)) == len(used)


def test_commands_give_way_to_labels_that_have_their_keys() -> None:
    free = pages.commands(())
    beside_letters = pages.commands(pages.shortcuts(["S", "u", "z", "r"]))

    assert (free["skip"], free["zoom_out"], free["turn_left"]) == (("s", "ArrowRight"), ("Z", "-"), ("R", "["))
    assert beside_letters["skip"] == ("ArrowRight",)
    assert beside_letters["undo"] == ("Backspace",)
    assert (beside_letters["zoom_in"], beside_letters["zoom_out"]) == (("+",), ("-",))
    assert (beside_letters["turn_right"], beside_letters["turn_left"]) == (("]",), ("[",))


def test_keys_given_to_labels_are_no_command_s() -> None:
    given = set(pages.shortcuts([f"label {n}" for n in range(60)])) - {""}

    assert given.isdisjoint(key.lower() for keys in pages.commands(()).values() for key in keys)
    assert [pages.keycap(key) for key in ("s", "ArrowRight", "R")] == ["s", "→", "⇧ r"]


def test_moments_are_told_in_utc_and_paths_escape_all() -> None:
    assert pages.moment(1_700_000_000.9) == "2023-11-14 22:13:20 UTC"
    assert pages.segment("a b/c&d") == "a%20b%2Fc%26d"


def test_a_long_text_is_cut_and_says_so() -> None:
    whole = media.view("ä".encode() * 50_000, "text/plain")
    cut = media.view("ä".encode() * 50_001, "text/plain")

    assert (len(whole.text), whole.cut) == (50_000, False)
    assert (len(cut.text), cut.cut) == (50_000, True)


def test_json_is_indented_where_it_can_be() -> None:
    assert media.view(b'{"a":[1]}', "application/json").text == '{\n  "a": [1]\n}'
    assert media.view(b"{", "application/json").text == "{"
    assert media.view(b"[" * 40_000, "application/json").text == "[" * 40_000


def test_a_text_in_no_known_encoding_is_shown_as_far_as_it_goes() -> None:
    assert media.view(b"caf\xe9", "text/plain").text == "caf\ufffd"


@given(st.binary(max_size=300), st.sampled_from(["image/png", "image/svg+xml", "image/tiff", ""]))
def test_bytes_at_random_are_a_download_and_never_an_error(content: bytes, content_type: str) -> None:
    shown = media.view(content, content_type)

    if shown.kind is not media.Kind.PICTURE:
        assert shown.media_type == "application/octet-stream"
    assert media.as_png(b"BM" + content) is None


def _encoded(image: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def test_a_picture_is_what_it_is_and_not_what_its_sender_says() -> None:
    shown = media.view(_encoded(Image.new("RGB", (7, 5)), "JPEG"), "image/png")

    assert (shown.kind, shown.media_type, shown.width, shown.height) == (media.Kind.PICTURE, "image/jpeg", 7, 5)


def test_a_picture_that_conversion_would_clip_is_not_shown() -> None:
    assert media.view(_encoded(Image.new("I;16", (7, 5)), "TIFF"), "image/tiff").kind is media.Kind.DOWNLOAD
    assert media.view(_encoded(Image.new("F", (7, 5)), "TIFF"), "image/tiff").kind is media.Kind.DOWNLOAD


def test_a_picture_of_absurd_size_is_not_opened() -> None:
    header = bytearray(_encoded(Image.new("1", (8, 8)), "BMP"))
    header[18:26] = (30_000).to_bytes(4, "little") * 2

    assert media.view(bytes(header), "image/bmp").kind is media.Kind.DOWNLOAD


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_a_large_picture_is_converted_within_bounds(mode: str) -> None:
    converted = media.as_png(_encoded(Image.new(mode, (4000, 10)), "TIFF"))

    assert converted is not None
    with Image.open(io.BytesIO(converted)) as shown:
        assert (shown.format, shown.width) == ("PNG", media.MAX_CONVERTED_SIDE)


async def test_a_session_ends_with_its_key(store: SqlStore) -> None:
    key, other = (ApiKey("anna", new_api_key()[1]) for _ in range(2))
    sessions = Sessions(Authenticator(SecurityOptions((key,))), store)
    cookies = {COOKIE: sessions.open("anna", key)}
    assert await sessions.read(cookies) is not None

    for keys in ((other,), (), (ApiKey("ben", key.sha256),)):
        sessions._authenticator = Authenticator(SecurityOptions(keys))
        assert await sessions.read(cookies) is None


async def test_a_session_outlives_the_gateway_that_opened_it_and_its_end_does_too(tmp_path: Path) -> None:
    options = StoreOptions(tmp_path / "store.db")
    async with aclosing(await open_store(options)) as store:
        sessions = Sessions(Authenticator(SecurityOptions()), store)
        stays, ends = ({COOKIE: sessions.open(name, None)} for name in ("anna", "ben"))
        session = await sessions.read(ends)
        assert session is not None
        await sessions.end(session)
        assert store.session_secret.hex() not in options.path.with_name("store.db-key").read_text()
    async with aclosing(await open_store(options)) as store:
        again = Sessions(Authenticator(SecurityOptions()), store)
        found = await again.read(stays)
        assert found is not None
        assert found.reviewer == "anna"
        again.check_form(found, sessions.form_token(found))
        assert await again.read(ends) is None


@pytest.mark.parametrize("cookie", ["", "x", "a.b.c", "W10.aaaa.bbbb"])
async def test_what_is_no_cookie_of_ours_is_no_session(cookie: str, store: SqlStore) -> None:
    assert await Sessions(Authenticator(SecurityOptions()), store).read({COOKIE: cookie}) is None
