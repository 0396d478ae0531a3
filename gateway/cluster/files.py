"""Which files decide the answers of a configuration, and what is in them.

These are what models are read from (all of a folder, and what lies beside a file under its name), their labels and
calibrations, what steps of their plans name, and certificates that routes name. Not those that decide how something
runs, or who may call: certificates of servers, keys, secrets. Code is no file of a configuration either: what a Python
model's `target` names is not looked at, nor is a model that another server has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backends.registry import backend_type
from gateway.certificates import files_at
from gateway.digests import sha256_of
from gateway.settings import ModelSettings, Settings
from gateway.settings.document import parse_document


def digests(settings: Settings) -> Mapping[str, str]:
    """The SHA-256 of these files, in hexadecimal, by their names: as *settings* name them, or below such a name.

    Reads them; call it off the event loop.

    Raises:
        OSError: one cannot be read.
    """
    return {name: sha256_of(file) for name, file in sorted(_files(settings).items())}


def changed(kept: Mapping[str, str], base: Path) -> list[str]:
    """What has become of files since their digests were *kept*, a line each; nothing where they are as they were.

    Args:
        base: the folder that their names start from.

    Raises:
        OSError: one that is there cannot be read.
    """
    said = []
    for name, digest in sorted(kept.items()):
        file = base / name
        if not file.is_file():
            said.append(f"{name} is not there any more; put it back (SHA-256 {digest})")
        elif (found := sha256_of(file)) != digest:
            said.append(f"{name} has changed; put back what it was (SHA-256 {digest}, and not {found})")
    return said


def added(kept: Mapping[str, str], settings: Settings) -> list[str]:
    """What *settings* read that was not there when digests were *kept*, a line each."""
    return [f"{name} was not there; take it away" for name in sorted(_files(settings).keys() - kept.keys())]


def _files(settings: Settings) -> dict[str, Path]:
    written = parse_document(settings.text, settings.file).data
    base = settings.file.absolute().parent
    found: dict[str, Path] = {}
    for name, model in settings.models.items():
        for file in _named_by(model, written["models"][name]):
            found |= {_beside(file, base / file, one): one for one in files_at(base / file)}
    for route in (written.get("routes") or {}).values():
        for entry in (route, *(route.get("versions") or {}).values()):
            if certificate := (entry.get("accept") or {}).get("certificate"):
                found[certificate] = base / certificate
    return found


def _beside(name: str, place: Path, file: Path) -> str:
    """What *file*, which is read for *place*, is called where that is called *name*."""
    if file == place:
        return name
    return str(Path(name) / file.relative_to(place)) if place.is_dir() else str(Path(name).parent / file.name)


def _named_by(model: ModelSettings, entry: Mapping[str, Any]) -> Iterator[str]:  # Any: as it is written, here and below
    running_only = backend_type(model.backend).running_only
    options = {key for key in entry.keys() - running_only if isinstance(getattr(model.options, key, None), Path)}
    for key in sorted(options | {"labels_file", "calibration"}):
        if entry.get(key):
            yield entry[key]
    for step in (*model.preprocess, *model.postprocess):
        yield from _named_in(step)


def _named_in(step: Any) -> Iterator[str]:
    if isinstance(step, dict):
        for key, value in step.items():
            if key == "file":
                yield value
            else:
                yield from _named_in(value)
