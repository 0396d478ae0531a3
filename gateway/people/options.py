"""A queue of people as it is configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.people.hours import ALWAYS, WorkingHours
from gateway.people.scope import QueueRole, Scope
from gateway.store.contract import Step

DEFAULT_DUE_S = 86_400.0
"""How long people get where nobody says."""

EVERY_QUEUE = "*"
"""Stands for all queues where a key names those of its owner."""


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """One queue.

    Attributes:
        escalate_to: the queue to which a review goes that is due and undecided; None: it stays, overdue.
        due_s: seconds that a review gets which comes from another queue; those that begin here get their route's.
        skills: that all its reviews need, beside their own.
        hours: when its people work.
    """

    escalate_to: str | None = None
    due_s: float = DEFAULT_DUE_S
    skills: frozenset[str] = frozenset()
    hours: WorkingHours = ALWAYS


def steps_of(queues: Mapping[str, QueueOptions]) -> dict[str, Step]:
    """Where reviews go that are due and undecided, by the queue that they are in."""
    return {
        name: Step(options.escalate_to, queues[options.escalate_to].due_s)
        for name, options in queues.items()
        if options.escalate_to is not None
    }


def scope_of(roles: Mapping[str, QueueRole] | None, skills: Iterable[str], queues: Mapping[str, QueueOptions]) -> Scope:
    """What a reviewer may see and take who has *roles* (by queue, `EVERY_QUEUE` for all; None: reviewer everywhere)."""
    own = frozenset(skills)
    roles = {EVERY_QUEUE: QueueRole.REVIEWER} if roles is None else roles
    leads = frozenset(name for name, role in roles.items() if role is QueueRole.LEAD)
    return Scope(
        queues=None if EVERY_QUEUE in roles else frozenset(roles),
        barred=frozenset(name for name, options in queues.items() if not options.skills <= own),
        skills=own,
        leads=None if EVERY_QUEUE in leads else leads,
    )
