"""Looks, every second or so, whether reviewers are to be told of something."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from backends.errors import PointsmanError
from gateway.notices.messages import maker
from gateway.notices.options import NotifyOptions
from gateway.store.contract import Store

_LOGGER = logging.getLogger("pointsman.notices")

_POLL_S = 1.0


async def tell_reviewers(rules: Sequence[NotifyOptions], store: Store) -> None:
    """Put what *rules* have to tell into the outbox of *store*, until cancelled; any number of gateways may."""
    makers = [(options.rule, maker(options)) for options in rules]
    while makers:
        try:
            for rule, make in makers:
                await store.tell_reviewers(rule, make)
        except PointsmanError as error:
            _LOGGER.warning("reviewers cannot be told now, and are told later: %s", error)
        await asyncio.sleep(_POLL_S)
