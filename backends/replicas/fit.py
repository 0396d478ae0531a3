"""What the replicas of one model have in common, and which of them do not belong.

The first replica says what the model is. Limits are fixed for the life of a backend, so they are those of the replicas
that were open at the start, and who comes later has to take at least as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.contract import Backend, Limits, Signature


@dataclass(frozen=True, slots=True)
class Common:
    """What callers see of all replicas together.

    Attributes:
        signature: of each.
        version: of each.
        limits: the smallest max_batch, the sum of max_in_flight, the memory that all take, and how long each keeps the
            state of a sequence.
    """

    signature: Signature
    version: str
    limits: Limits

    def misfit(self, backend: Backend) -> str | None:
        """Why *backend*, opened later, is no replica of this model; None where it is one."""
        if why := _differs(self, backend):
            return why
        if backend.limits.max_batch < self.limits.max_batch:
            return (
                f"it takes batches of {backend.limits.max_batch}, the others {self.limits.max_batch}; reload the model"
            )
        if (mine := self.limits.sequence_idle_s) is not None and (backend.limits.sequence_idle_s or 0.0) < mine:
            return "it forgets sequences sooner than the others; configure the model alike everywhere"
        if missing := self.limits.memory - backend.limits.memory:
            return f"it does not take {', '.join(sorted(missing))} memory, the others do; reload the model"
        return None


def common(backends: Mapping[str, Backend]) -> tuple[Common, dict[str, str]]:
    """What *backends*, by address, have in common, and why which of them does not belong to the first."""
    (_, first), *others = backends.items()
    fitting = [first]
    memory = first.limits.memory
    misfits: dict[str, str] = {}
    for address, backend in others:
        if why := _differs(first, backend):
            misfits[address] = why
        elif not memory & backend.limits.memory:
            misfits[address] = f"it takes no kind of memory that the others take ({', '.join(sorted(memory))})"
        else:
            fitting.append(backend)
            memory &= backend.limits.memory
    limits = Limits(
        max_batch=min(backend.limits.max_batch for backend in fitting),
        max_in_flight=sum(backend.limits.max_in_flight for backend in fitting),
        memory=memory,
        sequence_idle_s=min((kept for b in fitting if (kept := b.limits.sequence_idle_s) is not None), default=None),
    )
    return Common(first.signature, first.version, limits), misfits


def _differs(model: Common | Backend, backend: Backend) -> str | None:
    if backend.version != model.version:
        return f"it has version {backend.version!r}, not {model.version!r}; serve the same version everywhere"
    if backend.signature != model.signature:
        return "its inputs or outputs differ; serve the same model everywhere"
    if (backend.limits.sequence_idle_s is None) != (model.limits.sequence_idle_s is None):
        return "only one of them keeps state over sequences; serve the same model everywhere"
    return None
