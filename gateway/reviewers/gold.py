"""`pointsman gold`: items with a known answer, out of files and into the store.

A file is JSON Lines, an item a line:

    {"label": "refund", "text": "I want my money back."}
    {"label": "7", "file": "seven.png"}

`payload` and `payload_b64` stand for what they are in `/v1/reviews`, so that a line of `pointsman reviews export` whose
label is known to be right is one as it stands, with its `proposals`. What a payload is is read from its bytes, as of
what callers send.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backends.errors import InvalidInput
from gateway.http.reviews import check_label
from gateway.review import media_type_of
from gateway.settings import Settings
from gateway.store import open_store
from gateway.store.contract import GoldCount, GoldItem, Proposal


class _Proposal(BaseModel):
    """What a model would have answered."""

    stage: str
    label: str | None = None
    confidence: float | None = Field(default=None, ge=0.0, le=1.0)


class _Line(BaseModel):
    """An item; what else stands there, as in an exported review, is left alone."""

    model_config = ConfigDict(extra="ignore", strict=True)

    label: str
    text: str | None = None
    payload: str | None = None
    payload_b64: str | None = None
    file: str | None = None
    proposals: list[_Proposal] = []


def read(path: Path, tenant: str, queue: str) -> Iterator[GoldItem]:
    """The items in the file *path*, for *queue* of *tenant*.

    Raises:
        InvalidInput: it cannot be read, or a line is no item; says which, and why.
    """
    for number, line in enumerate(_content(path, path).splitlines(), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            found = _line(where, line)
            payload = _payload(where, path.parent, found)
            proposals = tuple(Proposal(p.stage, p.label, p.confidence) for p in found.proposals)
            media_type = media_type_of("utf8" if _is_text(found) else None, payload)
            yield GoldItem(tenant, queue, found.label, payload, media_type, proposals)


def _line(where: str, line: bytes) -> _Line:
    try:
        found = _Line.model_validate(orjson.loads(line))
        check_label(found.label)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{where} is no JSON ({error}); write one object a line") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{where} is no item: {place}{': ' if place else ''}{first['msg']}") from error
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    return found


def _is_text(line: _Line) -> bool:
    return line.text is not None or line.payload is not None


def _payload(where: str, folder: Path, line: _Line) -> bytes:
    given = [name for name in ("text", "payload", "payload_b64", "file") if getattr(line, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "nothing to look at"
        raise InvalidInput(f"{where} has {found}; give one of text, file, payload or payload_b64")
    if line.file is not None:
        return _content(folder / line.file, where)
    if line.payload_b64 is None:
        return (line.text if line.text is not None else line.payload or "").encode("utf-8", "replace")
    try:
        return base64.b64decode(line.payload_b64, validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"{where}: payload_b64 is no base64 ({error})") from error


def _content(path: Path, where: object) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{where}: {path} cannot be read ({error.strerror})") from error


@dataclass(frozen=True, slots=True)
class Added:
    """What became of gold items.

    Attributes:
        new: not known before.
        known: added again, or with another label.
        remarks: what an operator should know, in words.
    """

    new: int
    known: int
    remarks: tuple[str, ...]


async def add(settings: Settings, queue: str, files: Sequence[Path], tenant: str) -> Added:
    """Add the items in *files* to *queue* of *tenant*, beside a gateway that serves or without one.

    Raises:
        PointsmanError: a file is none of gold items, a label is no choice there, or the store cannot be opened.
    """
    policies = [route.human for route in settings.routes.values() if route.human and route.human.queue == queue]
    if not policies:
        known = ", ".join(sorted({route.human.queue for route in settings.routes.values() if route.human}))
        raise InvalidInput(f"no route has the queue {queue!r}; known: {known or 'none'}")
    items = [item for file in files for item in read(file, tenant, queue)]
    labels = {label for policy in policies for label in policy.labels}
    if labels and (strange := next((item.label for item in items if item.label not in labels), None)) is not None:
        raise InvalidInput(f"{strange!r} is no label of queue {queue!r}; its labels are {', '.join(sorted(labels))}")
    async with aclosing(await open_store(settings.store, siblings=True)) as store:
        new = await store.add_gold(items)
    remarks = []
    if not any(policy.quality.gold for policy in policies):
        remarks.append(f"no route of queue {queue!r} asks for gold items yet; set `gold: 2%` of its `human`")
    blind = sum(not item.proposals for item in items)
    if blind and not any(policy.quality.second_opinion for policy in policies):
        remarks.append(
            f"{blind:,} have no proposals of models and are shown without, which tells them from real ones that have "
            "some; give them `proposals`, or set `second_opinion` of the route's `human`, whose items look alike"
        )
    return Added(new, len(items) - new, tuple(remarks))


async def remove(settings: Settings, queue: str, tenant: str) -> int:
    """Ask about no gold item of *queue* of *tenant* any more; how many there were.

    Raises:
        PointsmanError: the store cannot be opened.
    """
    async with aclosing(await open_store(settings.store, siblings=True)) as store:
        return await store.remove_gold(tenant, queue)


async def listed(settings: Settings, tenant: str) -> Mapping[str, GoldCount]:
    """The gold items of *tenant*, by queue.

    Raises:
        PointsmanError: the store cannot be opened.
    """
    async with aclosing(await open_store(settings.store, siblings=True)) as store:
        return await store.gold(tenant)
