"""Who on this machine uses a model of a Triton, so that nobody unloads what another still asks.

Several processes may have one model loaded: workers of one gateway, and gateways beside each other. Triton does not
count them; whoever unloads takes the model from all. So every process *claims* what it uses, by locks on files that the
kernel lets go of when the process ends, however that ends:

- `.users`: each holds a shared lock while it uses the model; who gets an exclusive one instead is alone with it. The
  file's content says whether somebody of this machine had the model loaded, and outlives processes: a gateway that was
  killed finds its model loaded when it starts again, and knows it for its own.
- `.turn`: locked while somebody loads, unloads, or decides which; so a model is loaded once, however many want it.

The files lie in `$XDG_STATE_HOME` (or `~/.local/state`) `/pointsman/loaded`. A server is known by the address that the
configuration has for it. Gateways on other machines, and other users of this one, are not seen.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

from backends.contract import Deadline
from backends.errors import DeadlineExceeded, InvalidInput
from kernels.folders import user_state

_LOOK_EVERY_S: Final = 0.05
_OURS: Final = b"loaded by pointsman\n"


def default_folder() -> Path:
    """Where claims are kept: `$XDG_STATE_HOME` (or `~/.local/state`) `/pointsman/loaded`."""
    return user_state() / "loaded"


class Claim:
    """This use of one model on one server; `turn` guards everything else."""

    def __init__(self, turn: int, users: int, model: str) -> None:
        """Args:
        turn: the open file `.turn`; owned from here on, as is *users*.
        users: the open file `.users`.
        model: for messages.
        """
        self._turn = turn
        self._users = users
        self._model = model

    @classmethod
    def opened(cls, folder: Path, server: str, model: str) -> Self:
        """The claim on *model* at *server*; nothing is held yet.

        Raises:
            InvalidInput: its files cannot be written.
        """
        name = hashlib.sha256(f"{server}\n{model}".encode()).hexdigest()[:32]
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            turn = _open(folder / f"{name}.turn")
            try:
                return cls(turn, _open(folder / f"{name}.users"), model)
            except OSError:
                os.close(turn)
                raise
        except OSError as error:
            raise InvalidInput(
                f"who has loaded model {model!r} cannot be written down in {folder} ({error.strerror}); make it "
                "writable, or set XDG_STATE_HOME to a folder that is"
            ) from error

    @asynccontextmanager
    async def turn(self, deadline: Deadline) -> AsyncIterator[None]:
        """Decide alone, and act.

        Raises:
            DeadlineExceeded: others decided and acted until then.
        """
        while not _lock(self._turn, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"another process has loaded or unloaded model {self._model!r} all this time")
            await asyncio.sleep(_LOOK_EVERY_S)
        try:
            yield
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def hold(self) -> None:
        """Be counted as a user."""
        assert _lock(self._users, fcntl.LOCK_SH), "somebody was alone with a model out of turn. This is a bug."

    def is_alone(self) -> bool:
        """Whether nobody else is; who asks is no user any more where this is False."""
        return _lock(self._users, fcntl.LOCK_EX)

    @property
    def is_ours(self) -> bool:
        """Whether somebody of this machine had the model loaded."""
        return os.pread(self._users, len(_OURS), 0) == _OURS

    @is_ours.setter
    def is_ours(self, is_ours: bool) -> None:
        os.ftruncate(self._users, 0)
        if is_ours:
            os.pwrite(self._users, _OURS, 0)

    def close(self) -> None:
        """Use it no longer."""
        os.close(self._turn)
        os.close(self._users)


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
