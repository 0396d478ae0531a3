"""A certificate that was altered in the store proves nothing, and stops nobody."""

from __future__ import annotations

import logging
import os
from contextlib import aclosing, closing

import pysqlite3.dbapi2 as sqlite3
import pytest

from gateway.store import StoreOptions, open_store
from gateway.store.retention import Watermarks
from tests.unit.gateway.store.samples import TENANT, certificate, observed


@pytest.mark.parametrize(
    "change",
    [
        """body = replace(body, '"threshold":0.75', '"threshold":0.25')""",
        """body = json_remove(body, '$.threshold')""",
        """body = json_remove(body, '$.subject')""",
        """body = json_set(body, '$.subject', 7)""",
        """body = json_set(body, '$.subject.stages', 'fast')""",
        """body = json_set(body, '$.bound', 'low')""",
        """body = json_set(body, '$.more', 1)""",
        "body = '[]'",
        "body = '7'",
        "body = substr(body, 1, 40)",
        "body = CAST(x'ff' AS TEXT)",
        "body = x'00'",
        "id = replace(id, substr(id, 1, 1), 'x')",
        "route = 'pets', body = (SELECT body FROM certificates WHERE route = 'digits')",
        "max_error = 0.5",
        "created_s = created_s + 1",
        "valid_until_s = valid_until_s + 1",
        "valid_until_s = 'never'",
    ],
)
async def test_an_altered_certificate_is_left_out_and_told(
    options: StoreOptions, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    sound, altered = certificate(route="digits"), certificate()
    async with aclosing(await open_store(options)) as store:
        for one in (sound, altered):
            await store.add_certificate(one)
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as other:
            assert other.execute(f"UPDATE certificates SET {change} WHERE route = 'pets'").rowcount == 1
            (stored_id,) = other.execute("SELECT id FROM certificates WHERE route = 'pets'").fetchone()

        with caplog.at_level(logging.ERROR):
            assert await store.certificates() == [sound]
            assert await store.certificates("pets") == []

        assert caplog.text.count(f"certificate {stored_id} was altered in the store, and is not used") == 2
        # It does not hold up anything else, nor a new certificate for the same route.
        await store.commit(observed(), [])
        new = certificate(created_s=altered.created_s + 60.0)
        await store.add_certificate(new)
        assert await store.certificates("pets") == [new]


async def test_a_certificate_under_another_route_is_not_that_route_s(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        await store.add_certificate(certificate())
        with closing(sqlite3.connect(os.fspath(options.path), isolation_level=None)) as other:
            other.execute("UPDATE certificates SET route = 'digits'")
        assert await store.certificates("digits") == []


async def test_a_full_store_still_takes_certificates(options: StoreOptions) -> None:
    async with aclosing(await open_store(options)) as store:
        answer = observed()
        await store.commit(answer, [])
        store._watermarks = Watermarks.of(limit_bytes=1)
        await store.maintain()
        await store.add_certificate(certificate())
        assert await store.certificates() == [certificate()]
        assert store.statistics().full
        assert await store.answer(TENANT, answer.id) is None
