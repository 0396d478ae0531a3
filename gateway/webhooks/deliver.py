"""Delivers what the outbox holds: each message until its receiver has taken it, refused it for good, or never answered.

Where messages go is a *target*: a webhook (`gateway.webhooks.post`), or the mailboxes of reviewers
(`gateway.notices.mail`). What is not taken is tried again after 5 s, 5 min, 30 min, and so on, ten times over three
days; a receiver that asks for longer is heeded. A message that is dead is told as an error, counted, and kept:
`pointsman webhooks redeliver` begins anew.

A receiver that hangs holds up its own messages alone. Messages for one that is configured no more are dead as well
after the three days (`bury_unclaimed`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from backends.errors import PointsmanError
from gateway.store.contract import Delivery, Outbox, OutboxState
from gateway.webhooks.report import AttemptReport, DeliveryObserver, Outcome

_LOGGER = logging.getLogger("pointsman.webhooks")

_MINUTE_S, _HOUR_S = 60.0, 3600.0
WAITS_S = (5.0, *(minutes * _MINUTE_S for minutes in (5, 30)), *(hours * _HOUR_S for hours in (2, 5, 10, 14, 20, 24)))
"""Seconds from each failed attempt to the next; after as many and one more, a message is dead. Standard Webhooks'."""

TOLD_CHARS = 200
"""Most of what a receiver said that is kept."""

_LONGEST_WAIT_S = 24 * _HOUR_S
_JITTER = 0.1
_POLL_S = 0.5
_AFTER_A_BUG_S = 10.0
_LASTING_S = 60.0
_AT_ONCE = 4


LASTS_S = sum(WAITS_S)
"""Seconds that a message is tried for."""

_BURY_S = 60.0
_NOBODY = "no webhook or mailbox of the configuration has had this name for as long as messages are tried"


class Verdict(StrEnum):
    """What a receiver made of a message."""

    TAKEN = "taken"
    NOT_NOW = "not_now"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of an attempt, what was said, and the wait that was asked for."""

    verdict: Verdict
    told: str
    retry_after_s: float = 0.0


class Target(Protocol):
    """Where messages go."""

    async def send(self, delivery: Delivery) -> Reply:
        """Attempt *delivery* once, in less than 60 s: then it would be attempted by another. Raises nothing."""
        ...


class Deliverer:
    """Delivers to *targets* from *outbox*, on one event loop; one of a host is enough, and more do no harm."""

    def __init__(
        self,
        targets: Mapping[str, Target],
        outbox: Outbox,
        observer: DeliveryObserver,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Args:
        targets: by the name that messages have for them.
        jitter: in [0, 1): how much of the most to wait longer.
        """
        self._targets = targets
        self._outbox = outbox
        self._observer = observer
        self._jitter = jitter
        self._under_way = dict.fromkeys(targets, 0)

    async def run(self) -> None:
        """Deliver, until cancelled; what is under way then is taken up again by whoever delivers next."""
        attempts: set[asyncio.Task[None]] = set()
        try:
            while True:
                for delivery in await self._due():
                    self._under_way[delivery.message.webhook] += 1
                    attempts.add(task := asyncio.create_task(self._attempt(delivery)))
                    task.add_done_callback(attempts.discard)
                await asyncio.sleep(_POLL_S)
        finally:
            for task in attempts:
                task.cancel()
            if attempts:
                await asyncio.wait(attempts)

    async def _due(self) -> Sequence[Delivery]:
        room = {name: _AT_ONCE - under_way for name, under_way in self._under_way.items() if under_way < _AT_ONCE}
        try:
            return await self._outbox.take_messages(room, _LASTING_S) if room else ()
        except PointsmanError as error:
            _LOGGER.warning("messages cannot be read now, and are delivered later: %s", error)
        except Exception:  # the next time may fare better, and delivering must never stop
            _LOGGER.exception("messages could not be taken, and are delivered later. This is a bug.")
            await asyncio.sleep(_AFTER_A_BUG_S)
        return ()

    async def _attempt(self, delivery: Delivery) -> None:
        started = time.monotonic()
        name = delivery.message.webhook
        try:
            reply = await self._targets[name].send(delivery)
            outcome = await self._settle(delivery, reply)
        except PointsmanError as error:
            _LOGGER.warning("what became of message %s is not kept, it is sent again: %s", delivery.message.id, error)
            outcome = Outcome.FAILED
        except Exception:  # whatever it is, it must not end the others' deliveries; the message is due again soon
            _LOGGER.exception("message %s could not be sent. This is a bug.", delivery.message.id)
            outcome = Outcome.FAILED
        finally:
            self._under_way[name] -= 1
        self._observer.on_attempt(AttemptReport(name, outcome, time.monotonic() - started))

    async def _settle(self, delivery: Delivery, reply: Reply) -> Outcome:
        """Keep what became of *delivery*."""
        message_id, name = delivery.message.id, delivery.message.webhook
        if reply.verdict is Verdict.TAKEN:
            await self._outbox.end_message(message_id, OutboxState.DELIVERED, reply.told)
            return Outcome.DELIVERED
        if reply.verdict is Verdict.NEVER or delivery.attempts >= len(WAITS_S):
            await self._outbox.end_message(message_id, OutboxState.DEAD, reply.told)
            _LOGGER.error(
                "%r did not take message %s%s, attempt %d was the last: %s. When it can: pointsman webhooks redeliver",
                name,
                message_id,
                f" about answer {delivery.answer_id}" if delivery.answer_id else "",
                delivery.attempts + 1,
                reply.told,
            )
            return Outcome.DEAD
        wait_s = WAITS_S[delivery.attempts] * (1.0 + _JITTER * self._jitter())
        wait_s = min(max(wait_s, reply.retry_after_s), _LONGEST_WAIT_S * (1.0 + _JITTER))
        await self._outbox.postpone_message(message_id, wait_s, reply.told)
        _LOGGER.warning(
            "%r did not take message %s, which is sent again in %.0f s: %s", name, message_id, wait_s, reply.told
        )
        return Outcome.FAILED


async def bury_unclaimed(targets: Collection[str], outbox: Outbox) -> None:
    """End what waits in *outbox* for none of *targets*, by name, and nobody else takes, until cancelled."""
    while True:
        try:
            for name, count in (await outbox.bury_messages(targets, LASTS_S, _NOBODY)).items():
                _LOGGER.error(
                    "%d messages for %r are dead: %s. When it is back: pointsman webhooks redeliver",
                    count,
                    name,
                    _NOBODY,
                )
        except PointsmanError as error:
            _LOGGER.warning("messages that nobody delivers cannot be ended now, and are later: %s", error)
        except Exception:  # the next round may fare better
            _LOGGER.exception("messages that nobody delivers could not be ended, and are later. This is a bug.")
        await asyncio.sleep(_BURY_S)
