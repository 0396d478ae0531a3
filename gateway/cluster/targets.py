"""Telling Prometheus which replicas there are: a file each, in a folder that `file_sd_configs` reads.

A replica has its file locked (`flock`) for as long as it lives. The kernel lets go when a process ends, however that
ends, so that what nobody has locked is left over, and the next replica of the node that starts removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_PATTERN = "pointsman-*.json"


@contextlib.contextmanager
def told(folder: Path | None, name: str, address: str, labels: Mapping[str, str]) -> Iterator[None]:
    """Have the metrics of *address* (`host:port`) read until the end; nothing happens where there is no *folder*.

    Args:
        name: of the replica: nobody else's.
        labels: of all that is read there.

    Raises:
        OSError: the folder cannot be written to.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_over(folder)
    path = folder / f"pointsman-{name}.json"
    fresh = folder / f".{path.name}"  # Prometheus must not read half of one
    fresh.write_text(json.dumps([{"targets": [address], "labels": dict(labels)}]) + "\n")
    with fresh.open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        fresh.rename(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def reached_at(bound: str, node: str) -> str:
    """Where others reach what is *bound* (`host:port`): on every interface, at the address of its *node*."""
    host, port = bound.rsplit(":", 1)
    if not ipaddress.ip_address(host.strip("[]")).is_unspecified:
        return bound
    return f"[{node}]:{port}" if ":" in node else f"{node}:{port}"


def _remove_left_over(folder: Path) -> None:
    for path in folder.glob(_PATTERN):
        with contextlib.suppress(OSError):
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(opened)
