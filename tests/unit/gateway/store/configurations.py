"""What every store must do about configurations: see `conformance`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from backends.errors import Conflict, NotFound
from gateway.store.contract import Configuration, ConfigurationDraft, ConfigurationState, RolloutUnderWay, Store
from tests.unit.gateway.store.conformance import Check, Opener

FIRST = ConfigurationDraft("models: {}\n", {"m.onnx": 64 * "a"}, "anna@desk")
SECOND = replace(FIRST, document="models: {}  # and a remark: ä\n")
BERT = "bert@desk"
LEASE_S = 30.0
SERVING, SERVED = ConfigurationState.SERVING, ConfigurationState.SERVED
CALLED_OFF, NEVER = ConfigurationState.CALLED_OFF, ConfigurationState.NEVER


async def rolled(store: Store, what: ConfigurationDraft | int, called_off: str | None = None) -> int:
    begun = await store.begin_rollout(what, BERT, LEASE_S)
    await store.end_rollout(begun.version, called_off)
    return begun.version


async def states(store: Store) -> list[tuple[int, ConfigurationState]]:
    return [(one.version, one.state) for one in await store.configurations()]


async def configurations_are_numbered_and_kept_for_good(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        assert await store.configurations() == []
        assert await store.configuration(1) is None
        began_s = opener.wall_clock.now
        begun = await store.begin_rollout(FIRST, BERT, LEASE_S)
        first = Configuration(
            1, begun.digest, FIRST.document, FIRST.files, began_s, FIRST.author, began_s, BERT, None, None, NEVER
        )
        assert begun == first
        opener.wall_clock.now += 5.0
        await store.end_rollout(1)
        assert await rolled(store, SECOND) == 2
    async with aclosing(await opener()) as store:
        opener.wall_clock.now += 3650 * 86_400.0
        await store.maintain()
        second = await store.configuration(2)
        assert second is not None
        assert (second.document, second.digest == begun.digest) == (SECOND.document, False)
        assert await store.configuration(1) == replace(first, served_s=began_s + 5.0, state=SERVED)
        assert [one.document for one in await store.configurations()] == ["", ""]
        assert await states(store) == [(2, SERVING), (1, SERVED)]


async def what_is_served_has_its_version_again(opener: Opener) -> None:
    other_files = replace(FIRST, files={"m.onnx": 64 * "b"})
    async with aclosing(await opener()) as store:
        assert [await rolled(store, FIRST) for _ in range(2)] == [1, 1]
        assert await rolled(store, replace(FIRST, author="zoe@desk")) == 1
        assert await rolled(store, other_files) == 2
        assert await rolled(store, FIRST) == 3
        assert await states(store) == [(3, SERVING), (2, SERVED), (1, SERVED)]


async def a_rollout_that_is_called_off_leaves_what_was_served(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await rolled(store, FIRST)
        assert await rolled(store, SECOND, "it could not start") == 2
        assert await states(store) == [(2, CALLED_OFF), (1, SERVING)]
        assert [one.called_off for one in await store.configurations()] == ["it could not start", None]
        assert await rolled(store, SECOND) == 3, "what failed is tried anew under a number of its own"
        assert await rolled(store, 2) == 2, "or, where somebody asks for it, under the one it had"
        assert await states(store) == [(3, SERVED), (2, SERVING), (1, SERVED)]
        assert await rolled(store, 2, "") == 2
        assert await states(store) == [(3, SERVED), (2, SERVING), (1, SERVED)], "which goes on"


async def a_version_is_served_again_by_its_number(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await rolled(store, FIRST)
        await rolled(store, SECOND)
        assert await rolled(store, 1) == 1
        assert await states(store) == [(2, SERVED), (1, SERVING)]
        assert [one.rolled_by for one in await store.configurations()] == [BERT, BERT]
        with pytest.raises(NotFound, match=r"no version 7 of the configuration; the newest is 2: `pointsman cluster"):
            await store.begin_rollout(7, BERT, LEASE_S)
        assert await rolled(store, 2) == 2, "nobody holds a rollout that could not begin"


async def one_rollout_at_a_time(opener: Opener) -> None:
    async with aclosing(await opener()) as store, aclosing(await opener()) as beside:
        await store.begin_rollout(FIRST, "anna@desk", LEASE_S)
        opener.wall_clock.now += 20.0
        with pytest.raises(RolloutUnderWay, match=r"anna@desk is rolling out version 1 since 20\S+Z; wait .* for 10 s"):
            await beside.begin_rollout(SECOND, BERT, LEASE_S)
        assert not await beside.renew_rollout(LEASE_S)
        assert await store.renew_rollout(LEASE_S)
        opener.wall_clock.now += 20.0
        with pytest.raises(RolloutUnderWay):
            await beside.begin_rollout(SECOND, BERT, LEASE_S)
        assert [one.version for one in await store.configurations()] == [1]
        await store.end_rollout(1)
        assert (await beside.begin_rollout(SECOND, BERT, LEASE_S)).version == 2


async def of_many_that_begin_at_once_one_does(opener: Opener) -> None:
    stores = [await opener() for _ in range(4)]
    try:
        begun = await asyncio.gather(
            *(store.begin_rollout(FIRST, BERT, LEASE_S) for store in stores), return_exceptions=True
        )
        assert sorted(type(one).__name__ for one in begun) == ["Configuration", *3 * ["RolloutUnderWay"]]
        assert [one.version for one in await stores[0].configurations()] == [1]
    finally:
        for store in stores:
            await store.aclose()


async def whoever_is_gone_holds_up_nobody_for_longer_than_a_lease(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        async with aclosing(await opener()) as beside:
            await beside.begin_rollout(FIRST, BERT, LEASE_S)
        assert await rolled(store, SECOND) == 2, "one that is closed has let go"
        await store.begin_rollout(FIRST, BERT, LEASE_S)
        opener.wall_clock.now += LEASE_S + 1.0
        async with aclosing(await opener()) as beside:
            assert await rolled(beside, SECOND) == 2
            with pytest.raises(Conflict, match="another rollout was begun while that of version 3 was under way"):
                await store.end_rollout(3)
            assert await states(store) == [(3, NEVER), (2, SERVING), (1, NEVER)]


async def replicas_tell_what_all_of_them_serve_where_nobody_else_does(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        kept = await asyncio.gather(*(store.keep_configuration(FIRST) for _ in range(3)))
        assert [one.version for one in kept] == [1, 1, 1]
        await store.configuration_served(1)
        served = await store.configuration(1)
        assert served is not None
        assert served.state is SERVING
        opener.wall_clock.now += 60.0
        assert await store.keep_configuration(FIRST) == served, "as a replica does that starts anew"
        await store.configuration_served(1)
        assert await store.configuration(1) == served
        await store.configuration_served(7)
        await rolled(store, SECOND, "it could not start")
        await store.configuration_served(2)
        await store.configuration_served(1)
        assert await states(store) == [(2, CALLED_OFF), (1, SERVING)]


async def a_wall_clock_that_goes_back_changes_no_order_of_versions(opener: Opener) -> None:
    async with aclosing(await opener()) as store:
        await rolled(store, FIRST)
        opener.wall_clock.now -= 86_400.0
        await rolled(store, SECOND)
        assert await states(store) == [(2, SERVING), (1, SERVED)]
        await rolled(store, 1)
        await rolled(store, 2, "it could not start")
        assert await states(store) == [(2, CALLED_OFF), (1, SERVING)]


CONFIGURATION_CHECKS: tuple[Check, ...] = (
    configurations_are_numbered_and_kept_for_good,
    what_is_served_has_its_version_again,
    a_rollout_that_is_called_off_leaves_what_was_served,
    a_version_is_served_again_by_its_number,
    one_rollout_at_a_time,
    of_many_that_begin_at_once_one_does,
    whoever_is_gone_holds_up_nobody_for_longer_than_a_lease,
    replicas_tell_what_all_of_them_serve_where_nobody_else_does,
    a_wall_clock_that_goes_back_changes_no_order_of_versions,
)
