"""A model on any server of the protocol that keeps state, because the configuration says so."""

from __future__ import annotations

import pytest

from backends.contract import SEQUENCE, Home, SequenceCall
from backends.oip.model import OIPOptions, open_oip
from tests.unit.backends.oip.scripted import NEVER, over_http
from tests.unit.backends.oip.test_triton import BATCH, METADATA, answering


async def test_a_model_of_which_it_is_said_that_it_keeps_state_is_told_of_each_step() -> None:
    async with over_http(answering({}, METADATA)) as (_, server):
        backend = await open_oip("mine", OIPOptions(f"http://{server.address}", max_batch=8, sequence_idle_s=2.5))
        assert (backend.limits.max_batch, backend.limits.sequence_idle_s) == (1, 2.5)
        home, told = Home(), []
        for starts, ends in ((True, False), (False, True)):
            token = SEQUENCE.set(SequenceCall(9, starts, ends, home))
            await backend.infer(BATCH, NEVER)
            SEQUENCE.reset(token)
            told.append(server.requests[-1].json()["parameters"])
        await backend.aclose()

    steps = [{name: value for name, value in one.items() if name.startswith("sequence")} for one in told]
    assert steps == [
        {"sequence_id": 9, "sequence_start": True, "sequence_end": False},
        {"sequence_id": 9, "sequence_start": False, "sequence_end": True},
    ]


async def test_without_a_word_it_keeps_none() -> None:
    async with over_http(answering({}, METADATA)) as (_, server):
        backend = await open_oip("mine", OIPOptions(f"http://{server.address}", max_batch=8))
        await backend.infer(BATCH, NEVER)
        await backend.aclose()

    assert (backend.limits.max_batch, backend.limits.sequence_idle_s) == (8, None)
    assert "sequence_id" not in server.requests[-1].json().get("parameters", {})


def test_an_idle_time_of_nothing_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"sequence_idle_s is 0\.0; it must be more than 0"):
        OIPOptions("http://host:8000", sequence_idle_s=0.0)
