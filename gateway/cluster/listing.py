"""Versions of a configuration, as an operator reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.moments import rfc3339
from gateway.store.contract import Configuration, ConfigurationState

_HEADINGS = ("VERSION", "MADE", "BY", "STATE")


def table(found: Sequence[Configuration]) -> str:
    """A line for each, in columns."""
    if not found:
        return "none was kept yet; `pointsman cluster up` keeps what it serves"
    rows = [_HEADINGS, *((str(one.version), rfc3339(one.made_s), one.author, _state(one)) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


def as_dict(one: Configuration) -> Mapping[str, Any]:  # Any: JSON
    """All of it but the document."""
    return {
        "version": one.version,
        "state": one.state.value,
        "made_at": rfc3339(one.made_s),
        "author": one.author,
        "rolled_out_at": rfc3339(one.rolled_s),
        "rolled_out_by": one.rolled_by,
        "served_at": None if one.served_s is None else rfc3339(one.served_s),
        "called_off": one.called_off,
        "digest": one.digest,
        "files": dict(one.files),
    }


def _state(one: Configuration) -> str:
    """In a line, whatever was said."""
    if one.state is ConfigurationState.CALLED_OFF:
        return f"{one.state.value}: {' '.join((one.called_off or '').split())}"
    return one.state.value
