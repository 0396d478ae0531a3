"""Configurations: each kept once, for good, under a number of its own, with what became of it.

**Order.** Which version is served, and which was rolled out last, follows from when that was. So these times only grow,
whatever the clock does: none is earlier than any that is kept.

**Ends.** A rollout ends one way, which a CHECK holds: `called_off` is about the last one, and never stands beside a
later `served_s`. What was served before a rollout that was called off is known still.
"""

from __future__ import annotations

import hashlib

import orjson
from sqlalchemy import Connection, RowMapping, func, select, update

from backends.errors import Conflict, NotFound
from gateway.moments import in_words, rfc3339
from gateway.store import leases
from gateway.store.bulk import insert_rows
from gateway.store.contract import Configuration, ConfigurationDraft, ConfigurationState, RolloutUnderWay
from gateway.store.database import hold
from gateway.store.schema import CONFIGURATIONS
from gateway.store.transaction import Transaction

_LEASE = "rollout"
_TICK_S = 0.001
_SILENT = "no reason was given"

_C = CONFIGURATIONS.c
_KEPT = (_C.version, _C.digest, _C.files, _C.made_s, _C.author, _C.rolled_s, _C.rolled_by, _C.served_s, _C.called_off)
_SERVING = select(_C.version).where(_C.served_s.is_not(None)).order_by(_C.served_s.desc()).limit(1)
_LAST = select(_C.version).order_by(_C.rolled_s.desc()).limit(1)


def keep(transaction: Transaction, draft: ConfigurationDraft) -> Configuration:
    """Keep *draft* as what is rolled out; what is, or is served, is not written again."""
    hold(transaction.connection, _LEASE)
    version = _known(transaction.connection, draft)
    if version is None or not _is_under_way_or_served(transaction.connection, version):
        version = _rolled(transaction, draft, version, draft.author)
    return existing(transaction.connection, version)


def begin(transaction: Transaction, what: ConfigurationDraft | int, author: str, for_s: float) -> Configuration:
    """See `ConfigurationStore.begin_rollout`."""
    connection = transaction.connection
    hold(connection, _LEASE)
    draft = None if isinstance(what, int) else what
    version = existing(connection, what).version if isinstance(what, int) else _known(connection, what)
    if not leases.hold(transaction, _LEASE, for_s):
        raise _under_way(transaction)
    return existing(connection, _rolled(transaction, draft, version, author))


def renew(transaction: Transaction, for_s: float) -> bool:
    """See `ConfigurationStore.renew_rollout`."""
    return leases.hold(transaction, _LEASE, for_s)


def end(transaction: Transaction, version: int, called_off: str | None) -> None:
    """See `ConfigurationStore.end_rollout`; a lease that has run out does no harm where nobody has begun another."""
    connection = transaction.connection
    hold(connection, _LEASE)
    if not leases.hold(transaction, _LEASE, _TICK_S) or connection.execute(_LAST).scalar() != version:
        raise Conflict(f"another rollout was begun while that of version {version} was under way")
    leases.release(transaction, _LEASE)
    if called_off is None:
        _mark_served(transaction, version)
    else:
        connection.execute(update(CONFIGURATIONS).where(_C.version == version).values(called_off=called_off or _SILENT))


def served(transaction: Transaction, version: int) -> None:
    """See `ConfigurationStore.configuration_served`."""
    hold(transaction.connection, _LEASE)
    found = read(transaction.connection, version)
    is_last = transaction.connection.execute(_LAST).scalar() == version
    if is_last and found is not None and found.called_off is None and _is_unfinished(found):
        _mark_served(transaction, version)


def listed(connection: Connection) -> list[Configuration]:
    """See `ConfigurationStore.configurations`."""
    serving = connection.execute(_SERVING).scalar()
    rows = connection.execute(select(*_KEPT).order_by(_C.version.desc())).mappings()
    return [_configuration(row, "", serving) for row in rows]


def read(connection: Connection, version: int) -> Configuration | None:
    """See `ConfigurationStore.configuration`."""
    row = connection.execute(select(*_KEPT, _C.document).where(_C.version == version)).mappings().first()
    return None if row is None else _configuration(row, row["document"], connection.execute(_SERVING).scalar())


def existing(connection: Connection, version: int) -> Configuration:
    """The configuration of *version*.

    Raises:
        NotFound: there is none.
    """
    found = read(connection, version)
    if found is None:
        newest = connection.execute(select(func.max(_C.version))).scalar()
        known = "none is kept" if newest is None else f"the newest is {newest}"
        raise NotFound(f"there is no version {version} of the configuration; {known}: `pointsman cluster versions`")
    return found


def _configuration(row: RowMapping, document: str, serving: int | None) -> Configuration:
    return Configuration(
        version=row["version"],
        digest=row["digest"],
        document=document,
        files=orjson.loads(row["files"]),
        made_s=row["made_s"],
        author=row["author"],
        rolled_s=row["rolled_s"],
        rolled_by=row["rolled_by"],
        served_s=row["served_s"],
        called_off=row["called_off"],
        state=_state(row, serving),
    )


def _state(row: RowMapping, serving: int | None) -> ConfigurationState:
    if row["version"] == serving:
        return ConfigurationState.SERVING
    if row["called_off"] is not None:
        return ConfigurationState.CALLED_OFF
    return ConfigurationState.NEVER if row["served_s"] is None else ConfigurationState.SERVED


def _known(connection: Connection, draft: ConfigurationDraft) -> int | None:
    """The version that is like *draft*: the one that is served, or the newest, unless that was called off."""
    newest = select(func.max(_C.version)).scalar_subquery()
    is_candidate = (_C.version == _SERVING.scalar_subquery()) | ((_C.version == newest) & _C.called_off.is_(None))
    return connection.execute(select(func.max(_C.version)).where(_C.digest == _digest(draft), is_candidate)).scalar()


def _is_under_way_or_served(connection: Connection, version: int) -> bool:
    found = existing(connection, version)
    is_last = connection.execute(_LAST).scalar() == version
    return found.state is ConfigurationState.SERVING or (is_last and _is_unfinished(found))


def _is_unfinished(found: Configuration) -> bool:
    return found.called_off is None and (found.served_s is None or found.served_s < found.rolled_s)


def _rolled(transaction: Transaction, draft: ConfigurationDraft | None, version: int | None, author: str) -> int:
    """Write that *version*, or *draft* as a version of its own, is rolled out from now on; which that is."""
    now_s = _later_s(transaction)
    if version is not None:
        begun = {"rolled_s": now_s, "rolled_by": author, "called_off": None}
        transaction.connection.execute(update(CONFIGURATIONS).where(_C.version == version).values(begun))
        return version
    assert draft is not None, "neither a draft nor a version is rolled out. This is a bug."
    number: int = 1 + (transaction.connection.execute(select(func.max(_C.version))).scalar() or 0)
    state = (now_s, draft.author, now_s, author, None, None)
    row = (number, _digest(draft), *state, orjson.dumps(dict(draft.files)).decode(), draft.document)
    insert_rows(transaction.connection, CONFIGURATIONS, [row])
    return number


def _mark_served(transaction: Transaction, version: int) -> None:
    done = {"served_s": _later_s(transaction), "called_off": None}
    transaction.connection.execute(update(CONFIGURATIONS).where(_C.version == version).values(done))


def _later_s(transaction: Transaction) -> float:
    """Now, as Unix time in seconds, but later than anything that is kept."""
    latest = select(func.max(_C.rolled_s), func.max(_C.served_s))
    known = [one for one in transaction.connection.execute(latest).one() if one is not None]
    return max(transaction.now_s, *(one + _TICK_S for one in known)) if known else transaction.now_s


def _under_way(transaction: Transaction) -> RolloutUnderWay:
    last = transaction.connection.execute(_LAST).scalar()
    found = None if last is None else read(transaction.connection, last)
    who = "somebody" if found is None else f"{found.rolled_by}"
    what = "" if found is None else f" version {found.version} since {rfc3339(found.rolled_s)}"
    left = in_words(leases.left_s(transaction, _LEASE))
    return RolloutUnderWay(
        f"{who} is rolling out{what}; wait until that is over, or, where its process is gone, for {left}"
    )


def _digest(draft: ConfigurationDraft) -> str:
    return hashlib.sha256(orjson.dumps([draft.document, dict(draft.files)], option=orjson.OPT_SORT_KEYS)).hexdigest()
