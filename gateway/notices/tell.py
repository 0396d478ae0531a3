"""Looks, every second or so, whether reviewers are to be told of something."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from backends.errors import PointsmanError
from gateway.notices.messages import maker
from gateway.notices.options import NotifyOptions
from gateway.store.contract import Message, Notice, Store

_LOGGER = logging.getLogger("pointsman.notices")

_POLL_S = 1.0
_AFTER_A_BUG_S = 10.0


async def tell_reviewers(rules: Sequence[NotifyOptions], store: Store) -> None:
    """Put what *rules* have to tell into the outbox of *store*, until cancelled; any number of gateways may."""
    makers = [(options, maker(options)) for options in rules]
    while makers:
        told = [await _tell(options, make, store) for options, make in makers]
        await asyncio.sleep(_POLL_S if all(told) else _AFTER_A_BUG_S)


async def _tell(options: NotifyOptions, make: Callable[[Notice, float], Message], store: Store) -> bool:
    """Put what one rule has to tell into the outbox; whether it and the store are sound."""
    try:
        await store.tell_reviewers(options.rule, make)
    except PointsmanError as error:
        _LOGGER.warning("reviewers of queue %r cannot be told now, and are told later: %s", options.queue, error)
    except Exception:  # the next round may fare better, and the other rules must not wait for it
        _LOGGER.exception("reviewers of queue %r could not be told, and are told later. This is a bug.", options.queue)
        return False
    return True
