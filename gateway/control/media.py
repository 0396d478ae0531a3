"""What a reviewer's browser is given of an input that anybody may have sent.

Nothing the sender says is believed. A payload is a text because its media type says so, and then it is shown as text,
whatever it holds, beside a table where it is one; it is a picture because Pillow recognised one of a few raster
formats, and then it is served as what Pillow found. Everything else, SVG and HTML included, is a download. Formats that
browsers do not show are converted to PNG, off the event loop and within bounds.

Pictures of a depth that PNG conversion would clip (16-bit scans, floating point) are not converted: a person must not
judge what the model never saw.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from gateway.control.tables import Table, read_json, read_separated

MAX_TEXT_CHARACTERS = 50_000
MAX_PIXELS = 40_000_000
MAX_CONVERTED_SIDE = 3000
"""Longest side of a converted picture, in pixels; larger ones are scaled down."""

_JSON = "application/json"
_PLAIN = "text/plain"
_SEPARATED = ("text/csv", "text/tab-separated-values")
_SERVED_TEXT = "text/plain; charset=utf-8"
_SHOWN_BY_BROWSERS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_CONVERTED = ("BMP", "TIFF")
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


class Kind(StrEnum):
    """How a payload is shown."""

    TEXT = "text"
    PICTURE = "picture"
    DOWNLOAD = "download"


@dataclass(frozen=True, slots=True)
class View:
    """A payload as the page shows it.

    Attributes:
        text: of a text, its first `MAX_TEXT_CHARACTERS`; JSON indented.
        sent: the same as it was sent, where it is laid out otherwise; "" where it is not.
        table: what the text says, where that is a table or a record.
        cut: the text goes on.
        width, height: of a picture, in pixels.
        media_type: what the payload is served as; "" for a picture that has to be converted first.
    """

    kind: Kind
    media_type: str
    text: str = ""
    cut: bool = False
    width: int = 0
    height: int = 0
    sent: str = ""
    table: Table | None = None


_DOWNLOAD = View(Kind.DOWNLOAD, "application/octet-stream")


def view(payload: bytes, content_type: str) -> View:
    """How to show *payload*, declared as *content_type*. Reads a picture's header only."""
    essence = content_type.partition(";")[0].strip().lower()
    if essence.startswith("text/") or essence == _JSON:
        return _text(payload, essence)
    return _picture(payload)


def _text(payload: bytes, essence: str) -> View:
    # A character takes at most four bytes, so this many hold all that is shown.
    text = payload[: 4 * MAX_TEXT_CHARACTERS].decode("utf-8", "replace")
    cut = len(text) > MAX_TEXT_CHARACTERS or len(payload) > 4 * MAX_TEXT_CHARACTERS
    text = text[:MAX_TEXT_CHARACTERS]
    document = read_json(text) if essence in (_JSON, _PLAIN) and not cut else None
    if document is not None:
        indented, table = document
        sent = text if table is not None or indented != text else ""
        is_long = len(indented) > MAX_TEXT_CHARACTERS
        return View(Kind.TEXT, _SERVED_TEXT, indented[:MAX_TEXT_CHARACTERS], is_long, sent=sent, table=table)
    table = None
    if essence in (*_SEPARATED, _PLAIN):
        table = read_separated(text, is_declared=essence in _SEPARATED, is_cut=cut)
    return View(Kind.TEXT, _SERVED_TEXT, text, cut, sent="" if table is None else text, table=table)


def _picture(payload: bytes) -> View:
    try:
        with _opened(payload) as image:
            (width, height), form, mode = image.size, image.format, image.mode
    except Exception:  # Pillow raises whatever a parser trips over; none of it is a picture to show
        return _DOWNLOAD
    if width * height > MAX_PIXELS or (form in _CONVERTED and mode not in _EIGHT_BIT_MODES):
        return _DOWNLOAD
    return View(Kind.PICTURE, _SHOWN_BY_BROWSERS.get(form or "", ""), width=width, height=height)


def _opened(payload: bytes) -> Image.Image:
    return Image.open(io.BytesIO(payload), formats=(*_SHOWN_BY_BROWSERS, *_CONVERTED))


def as_png(payload: bytes) -> bytes | None:
    """A picture that `view` found to need conversion, as PNG; None where it is broken. Takes up to a second."""
    try:
        with _opened(payload) as image:
            image.thumbnail((MAX_CONVERTED_SIDE, MAX_CONVERTED_SIDE))
            shown = image if image.mode in ("1", "L", "LA", "RGB", "RGBA") else image.convert("RGB")
            out = io.BytesIO()
            shown.save(out, "PNG", compress_level=1)
    except Exception:  # as above: a damaged file is what its sender made it
        return None
    return out.getvalue()
