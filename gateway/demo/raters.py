"""The demo's people: reviewers that work through the real API as a reviewer's own tool would, at a machine's pace.

- feedback: recorded people. Every message was rated by fifteen people or more; one of them is drawn (by a seed and the
  message), and decides as that person did. One rater agrees with the class of the mean rating in 83 % of all messages,
  and in fewer of those that no model was sure of.
- digits: nobody's readings are recorded, so here stands a *simulated typist*, who reads the true digit and errs in 1 %
  of items. It is named so wherever it signs.
- pages: a *simulated reader*, who turns the page until it can be read, and does not err.
- intake: a *simulated clerk*, who writes what the thing is: a language, or a kind of file. An ordinary message that
  came to the desk all the same gets the answer that its route's people would give.

A rater recognises an item by the hash of its payload, and knows nothing else of the demo. What it does not recognise it
puts back for the person at the inbox.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from gateway.demo import pages
from gateway.demo.data import DIGIT_LABELS
from gateway.demo.items import Item, payload_key
from gateway.demo.mail import INTAKE

TYPING_ERROR = 0.01
"""How often the simulated typist errs."""

RECORDED_RATER = "recorded-rater"
SIMULATED_TYPIST = "simulated-typist"
SIMULATED_READER = "simulated-reader"
SIMULATED_CLERK = "simulated-clerk"

_SHORTEST_S, _LONGEST_S = 0.02, 0.12
_IDLE_S = 0.05
_SEED = 2014


@dataclass(frozen=True, slots=True)
class Rater:
    """Somebody who works on one queue.

    Attributes:
        name: as the decision log has it.
        queue: the review queue.
    """

    name: str
    queue: str


RATERS = tuple(
    Rater(f"{kind}-{number}", queue)
    for queue, kind, count in (
        ("feedback", RECORDED_RATER, 3),
        ("digits", SIMULATED_TYPIST, 2),
        (pages.ROUTE, SIMULATED_READER, 1),
        (INTAKE, SIMULATED_CLERK, 1),
    )
    for number in range(1, count + 1)
)


def opinions(items: Iterable[Item]) -> Mapping[str, str]:
    """What the people of the demo say of *items*, by payload key."""
    return {item.key: opinion(item) for item in items}


def opinion(item: Item) -> str:
    """What a person says of *item*: a recorded vote, or what a simulated one reads; the same in every run."""
    rng = random.Random(f"{_SEED} {item.key}")  # noqa: S311 (a replay, not a secret)
    if item.votes:
        return rng.choice(item.votes)
    if item.route == "digits" and rng.random() < TYPING_ERROR:
        return rng.choice([label for label in DIGIT_LABELS if label != item.truth])
    return item.truth


def key_of_review(review: Mapping[str, Any]) -> str:
    """The payload key of a review as `/v1/reviews` gives it (Any: JSON)."""
    if "payload" in review:
        return payload_key(review["payload"].encode())
    return payload_key(base64.b64decode(review["payload_b64"]))


async def work(rater: Rater, session: aiohttp.ClientSession, control: str, known: Mapping[str, str]) -> None:
    """Claim and decide, one review after the other, until cancelled.

    Args:
        control: base address of the control plane.
        known: what to say of each item, by payload key.

    Raises:
        aiohttp.ClientError: the gateway cannot be reached, or refuses a reviewer.
    """
    headers = {"X-Pointsman-Reviewer": rater.name}
    rng = random.Random(f"{_SEED} {rater.name}")  # noqa: S311 (as above)
    while True:
        review = await _post(session, f"{control}/v1/reviews:claim-next", headers, {"queue": rater.queue})
        if review is None:
            await asyncio.sleep(_IDLE_S)
            continue
        await asyncio.sleep(rng.uniform(_SHORTEST_S, _LONGEST_S))  # a person thinks
        label = known.get(key_of_review(review))
        address = f"{control}/v1/reviews/{review['id']}"
        if label is None:
            await _post(session, f"{address}:release", headers, {"fence": review["fence"]})
            await asyncio.sleep(_LONGEST_S)
        else:
            await _post(session, f"{address}:decide", headers, {"fence": review["fence"], "label": label})


async def _post(
    session: aiohttp.ClientSession, address: str, headers: Mapping[str, str], body: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The JSON that comes back (Any); None where nothing is to be done, or somebody else was faster."""
    async with session.post(address, json=body, headers=headers) as response:
        if response.status in (204, 409):
            return None
        response.raise_for_status()
        found: dict[str, Any] = await response.json()
        return found
