"""Models with `warm: {keep: 0}`: how they come from their files to their first request, over and over.

**The same files.** What a certificate proves, it proves of the files that were there when the gateway started, or when
an operator loaded the model anew. So the first step of every load takes a digest of all that decides the model's
answers, as certificates do; if it is another than the first time, the load fails, and the model is opened anew with
all that this is (`Loader.mend`, in upkeep, or an operator by `model_control`). Taking it reads the files that have
changed since they were read last (`digests`), which brings them into the system's cache: it is the ladder's step from
the disk into host memory.

**Warm-up.** Batches of zeros, of every size that `batching: {warm_up: [...]}` names; else of 1, 2, 4 and so on up to
the largest, as far as the model takes zeros: one that refuses a batch of these is warm without.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from backends.contract import NO_DEADLINE, Backend
from backends.errors import InvalidInput, PointsmanError
from backends.warm.entry import Ladder
from backends.warm.memory import files_bytes
from batching.warm_up import zeros
from gateway.certificates import stage_subject
from gateway.settings import ModelSettings
from router.certificate import StageSubject

_FIRST_RUNS = 2  # of the smallest batch; the first may build what the second uses

log = logging.getLogger("pointsman.warming")


def ladder_of(model: ModelSettings, open_model: Callable[[], Awaitable[Backend]]) -> Ladder:
    """The steps of *model*, which *open_model* opens."""

    async def warm_up(backend: Backend) -> None:
        await run_every_size(model, backend)

    return Ladder(open_model, warm_up, _SameFiles(model).read)


def expected_bytes(model: ModelSettings) -> int:
    """Memory that *model* takes by what the operator says, or at least, by the files that its options name."""
    return model.warm.memory_bytes or files_bytes(_files_of(model))


async def run_every_size(model: ModelSettings, backend: Backend) -> None:
    """Run a batch of every size on *backend*.

    Raises:
        InvalidInput: the model does not take a batch that its configuration names, or keeps state over sequences.
    """
    if backend.limits.sequence_idle_s is not None:
        raise InvalidInput(
            f"model {model.name!r} keeps state over sequences, which it would lose; set `warm: {{keep: 1}}`"
        )
    named = model.batching.warm_up
    most = min(model.batching.max_batch or backend.limits.max_batch, backend.limits.max_batch)
    for number, size in enumerate(named or _sizes(most)):
        try:
            for _ in range(1 if number else _FIRST_RUNS):
                await backend.infer(zeros(backend.signature, size), NO_DEADLINE)
        except PointsmanError as error:
            if named:
                raise InvalidInput(
                    f"model {model.name!r} cannot be warmed up with zeros ({error}); leave warm_up out"
                ) from error
            log.info("model %s takes no batch of %d zeros; it is warmed up without", model.name, size)
            return


def _sizes(most: int) -> Sequence[int]:
    """1, 2, 4 and so on, and *most*."""
    return (*(1 << power for power in range(most.bit_length()) if 1 << power < most), most)


class _SameFiles:
    """Holds a model to the files that it was opened from first."""

    def __init__(self, model: ModelSettings) -> None:
        self._model = model
        self._first: StageSubject | None = None

    async def read(self) -> None:
        """Read all files that decide the model's answers.

        Raises:
            InvalidInput: they are not what they were the first time, or cannot be read.
        """
        try:
            found = await asyncio.to_thread(stage_subject, self._model, "", None)
        except OSError as error:
            raise InvalidInput(f"the files of model {self._model.name!r} cannot be read: {error}") from error
        if self._first is None:
            self._first = found
        elif found != self._first:
            raise InvalidInput(
                f"the files of model {self._model.name!r} have changed since it was loaded; it must be loaded anew"
            )


def _files_of(model: ModelSettings) -> Iterator[Path]:
    """The files that the backend's options name, and data beside them."""
    for field in fields(model.options):
        value = getattr(model.options, field.name)
        if isinstance(value, Path):
            yield value
            yield from (file for file in value.parent.glob(f"{value.name}*") if file != value)
