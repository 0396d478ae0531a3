"""Which reviews somebody may see and take, and whose claims they may end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class QueueRole(StrEnum):
    """What a reviewer may do in a queue."""

    REVIEWER = "reviewer"
    """See what waits there, claim it and decide it."""

    LEAD = "lead"
    """And end the claims of others, or give them to somebody else."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which reviews somebody may see and take.

    Attributes:
        queues: those in these; None: in any.
        barred: but not those in these, each of which needs a skill that they lack.
        skills: those that need no others; None: whatever they need.
        leads: the queues in which they may end others' claims, too; None: any.
    """

    queues: frozenset[str] | None = None
    barred: frozenset[str] = frozenset()
    skills: frozenset[str] | None = frozenset()
    leads: frozenset[str] | None = frozenset()

    def admits_queue(self, queue: str) -> bool:
        """Whether reviews in *queue* may be theirs at all."""
        return queue not in self.barred and (self.queues is None or queue in self.queues)

    def lacking(self, skills: Iterable[str]) -> list[str]:
        """Those of *skills* that they do not have."""
        return [] if self.skills is None else sorted(set(skills) - self.skills)

    def is_lead(self, queue: str) -> bool:
        """Whether they may end others' claims in *queue*."""
        return self.admits_queue(queue) and (self.leads is None or queue in self.leads)

    def why_not(self, queue: str, skills: Iterable[str]) -> str | None:
        """What keeps them from a review in *queue* that needs *skills*, in words; None: nothing."""
        if not self.admits_queue(queue):
            return f"reviews in queue {queue!r} are for others: they need a role there, and its skills"
        if lacking := self.lacking(skills):
            return f"this review needs the skill {lacking[0]!r}, which you do not have"
        return None


EVERYTHING = Scope(skills=None, leads=None)
"""Of somebody who may see, take and end everything."""

UNSKILLED = Scope()
"""Of a reviewer in every queue, without any skill, who leads in none."""
