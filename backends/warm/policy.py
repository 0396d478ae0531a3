"""Which models a pool loads and which it unloads: decided from snapshots, without clock or I/O.

**Ranks.** What is held cannot be moved: models on their way in or out, those that answer calls, and the floor once it
is there. The memory that is left goes, in this order, to
1. the floor: models that are always kept;
2. models that somebody waits for, who waits longest first;
3. models that are due by their idle times, by what a byte of memory saves there in a second:
   seconds a load takes x uses a second of holding buys / bytes.
A model that gets no memory is unloaded, as is one that is not due, however much memory is free.

**Moving costs.** A load ahead of demand puts out what is resident only if it is worth `_DISPLACES` times as much, or
two models of like worth would chase each other; and it waits while somebody's model has no room. Simulated, 4 instead
of 1.25 took half as many loads and made no difference to how many calls were cold.

**Room first.** A load begins when the memory that it needs is free, not when something has been told to leave: the
budget is never exceeded, except by models that turn out to be larger than they were thought to be.

Rejected: least recently used (it knows neither what a load costs nor who comes back on the hour); solving the knapsack
exactly (models change places for the sake of a few bytes, and each change costs a load).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, TypeVar

from backends.contract import record

K = TypeVar("K", bound=Hashable)

_DISPLACES: Final = 4.0


class Phase(StrEnum):
    """Where a model is between the disk and the first request that finds it warm."""

    COLD = "cold"
    LOADING = "loading"
    WARM = "warm"
    UNLOADING = "unloading"
    FAILED = "failed"
    """Cold, and not to be loaded yet: the last load failed."""


@record
class Seen(Generic[K]):
    """A model, as a plan sees it.

    Attributes:
        key: whatever tells models apart.
        nbytes: that it takes, or is expected to.
        is_floor: it is to be kept always.
        is_busy: it answers calls, or somebody holds it.
        asked_s: since when somebody has waited for it; None where nobody does.
        is_due: it should be in memory, by its idle times.
        worth: seconds of loading that a byte of memory saves in a second.
    """

    key: K
    phase: Phase
    nbytes: int
    is_floor: bool = False
    is_busy: bool = False
    asked_s: float | None = None
    is_due: bool = False
    worth: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan(Generic[K]):
    """What to do now.

    Attributes:
        load: models for which there is room now, the most urgent first.
        unload: models that are to leave.
    """

    load: tuple[K, ...]
    unload: tuple[K, ...]


def plan(models: Iterable[Seen[K]], budget_bytes: float) -> Plan[K]:
    """What to load and unload, so that what is resident takes *budget_bytes* at most."""
    models = list(models)
    held = [model for model in models if _is_held(model)]
    movable = sorted((model for model in models if _is_candidate(model)), key=_rank)
    chosen = _fill(movable, budget_bytes - sum(model.nbytes for model in held))
    staying = {model.key for model in (*held, *chosen)}
    free_bytes = budget_bytes - sum(model.nbytes for model in models if _takes_memory(model))
    load: list[K] = []
    for model in chosen:
        if model.phase is Phase.COLD and model.nbytes <= free_bytes:
            free_bytes -= model.nbytes
            load.append(model.key)
    unload = tuple(model.key for model in models if model.phase is Phase.WARM and model.key not in staying)
    return Plan(tuple(load), unload)


def _is_held(model: Seen[K]) -> bool:
    moves = model.phase in (Phase.LOADING, Phase.UNLOADING)
    return moves or (model.phase is Phase.WARM and (model.is_busy or model.is_floor))


def _is_candidate(model: Seen[K]) -> bool:
    if model.phase is Phase.WARM:
        return model.is_due and not _is_held(model)
    return model.phase is Phase.COLD and (_is_demanded(model) or model.is_due)


def _is_demanded(model: Seen[K]) -> bool:
    return model.is_floor or model.asked_s is not None


def _takes_memory(model: Seen[K]) -> bool:
    return model.phase in (Phase.LOADING, Phase.WARM, Phase.UNLOADING)


def _rank(model: Seen[K]) -> tuple[int, float]:
    if model.phase is Phase.COLD and model.is_floor:
        return 0, 0.0
    if model.phase is Phase.COLD and model.asked_s is not None:
        return 1, model.asked_s
    return 2, -model.worth * (_DISPLACES if model.phase is Phase.WARM else 1.0)


def _fill(ranked: Sequence[Seen[K]], room_bytes: float) -> list[Seen[K]]:
    """The models that get *room_bytes*; nothing is loaded ahead while one that somebody waits for gets none."""
    chosen: list[Seen[K]] = []
    is_short = False
    for model in ranked:
        is_ahead = model.phase is Phase.COLD and not _is_demanded(model)
        if model.nbytes <= room_bytes and not (is_ahead and is_short):
            room_bytes -= model.nbytes
            chosen.append(model)
        elif model.phase is Phase.COLD and not is_ahead:
            is_short = True
    return chosen
