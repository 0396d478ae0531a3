"""Orders to a script in a process of its own that makes a cluster: lines of its stdin, of which the first word is what
to do. The reply is a line of JSON that begins with TOLD. The end of stdin ends the script.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.integration.process import ROOT
from tests.integration.ray.clusters import READY_S, end_all, environment

_TOLD = "told "
_END_S = 20.0


@dataclass(slots=True)
class Script:
    """A script that follows orders.

    Attributes:
        log: what else it has printed.
    """

    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    _told: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def order(self, words: str) -> dict[str, Any]:
        """The reply to an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        reply = self._told.get(timeout=READY_S)
        assert reply, f"{words!r} was not answered: {''.join(self.log[-60:])}"
        found: dict[str, Any] = json.loads(reply)
        return found

    def read(self) -> None:
        """Take what it prints, until its end."""
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            for line in stdout:
                if line.startswith(_TOLD):
                    self._told.put(line.removeprefix(_TOLD))
                else:
                    self.log.append(line)
        self._told.put("")


@contextmanager
def followed(command: Sequence[str]) -> Iterator[Script]:
    """The script that *command* starts; nothing of it is left afterwards."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    script = Script(process)
    reader = threading.Thread(target=script.read, daemon=True)
    reader.start()
    try:
        yield script
    finally:
        assert process.stdin is not None
        process.stdin.close()  # it ends by itself, if it can
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_S)
        end_all(process)
        reader.join(timeout=5)


def follow(orders: object) -> None:
    """In the script: do what stdin says by the methods of *orders*, until SIGTERM or its end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for line in sys.stdin:
        order, *words = line.split()
        print(_TOLD + json.dumps(getattr(orders, order)(*words)), flush=True)
