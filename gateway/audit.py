"""What `pointsman audit show` prints: the path that an answer took, as a timeline for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from gateway.answer import PEOPLE, ROUTE_AT
from gateway.moments import rfc3339
from gateway.store import LogRow

_HAPPENED = {
    "accept": "answered by",
    "defer": "handed to people",
    "escalate": "escalated to",
    "opinion": "opinion of",
    "decide": "decided by",
    "correct": "corrected by",
    "undo": "taken back by",
    "cancel": "cancelled by",
    "expire": "expired, undecided",
    "erase": "erased by",
}


def timeline(rows: Sequence[LogRow]) -> str:
    """*rows*, which are of one answer and ordered by item, as lines."""
    first = rows[0]
    lines = [f"answer {first.answer_id}, route {first.route}, tenant {first.tenant}"]
    for item, found in groupby(rows, key=lambda row: row.item):
        lines += ["", f"item {item}", *(line for row in found for line in _event(row))]
    return "\n".join(lines)


def _event(row: LogRow) -> Iterator[str]:
    yield from (f"    {_stage(stage)}" for stage in row.trail if "stage" in stage)
    actor = row.actor or ("nobody" if row.event == "escalate" else "")
    happened = " ".join(part for part in (_HAPPENED[row.event], actor) if part)
    label = "" if row.label is None else f": {row.label}"
    details = [f"confidence {row.confidence:.4f}" if row.confidence is not None else "", row.reason or ""]
    told = ", ".join(detail for detail in details if detail)
    yield f"  {rfc3339(row.at_s)}  {happened}{label}{f' ({told})' if told else ''}  [chain {row.chain}, row {row.seq}]"
    for work in row.trail:
        if "human_s" in work:
            yield f"    a person's time: {work['human_s']:.1f} s"
        elif row.event == "erase":
            yield f"    taken out of chain {work['chain']}, row {work['seq']}"
    for name, digest in (("outputs, SHA-256", row.outputs_sha256), ("input, keyed", row.payload_sha256)):
        if digest is not None:
            yield f"    {name}: {digest.hex()}"


def _stage(stage: dict[str, Any]) -> str:  # Any: JSON
    if stage["stage"] == ROUTE_AT:
        return f"version {stage['label']} of the route"
    if stage["stage"] == PEOPLE:
        return f"people: {stage['detail']}"
    if stage.get("traits") is not None and not stage["reason"]:
        return f"classified: {_traits(stage['traits'])}"
    version = f" version {stage['version']}" if stage["version"] else ""
    said = "" if stage["label"] is None else f" said {stage['label']}"
    confidence = "" if stage["confidence"] is None else f" ({stage['confidence']:.4f})"
    why = ", ".join(part for part in (stage["reason"], stage.get("detail")) if part)
    told = f"{stage['stage']}{version}{said}{confidence}: {stage['decision']}{f', {why}' if why else ''}"
    if stage.get("traits") is not None:
        return f"{told}; {_traits(stage['traits'])}"
    return f"{told}{_run(stage['run'])}" if "run" in stage else told


def _run(run: dict[str, Any]) -> str:  # Any: JSON
    """What a stage took, and what it was judged by."""
    parts = [f"{run['took_ms']:.1f} ms"]
    if run["batch"]:
        parts.append(f"batch {run['batch']} of {run['batch_size']}, {run['model_ms']:.3f} ms an item")
        parts.append(f"cost {run['cost']:g}")
    if run["threshold"] is not None:
        parts.append(f"threshold {run['threshold']:.4f}")
    if run["certificate"]:
        parts.append(f"certificate {run['certificate']}")
    return f" [{'; '.join(parts)}]"


def _traits(traits: dict[str, Any]) -> str:  # Any: JSON
    """What was known of a request that rules picked the route of."""
    parts = [traits["content_type"] or "no media type", f"{traits['size_bytes']} bytes"]
    for name, found in traits.get("detected", {}).items():
        sure = "" if found["confidence"] is None else f" ({found['confidence']:.4f})"
        parts.append(f"{name} {found['value']}{sure}")
    parts += [f"{name}={value}" for name, value in traits.get("parameters", {}).items()]
    rule = f"; rule {traits['rule']}" if "rule" in traits else ""
    return ", ".join(parts) + rule
