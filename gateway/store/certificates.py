"""Certificates: kept once, for good, and read back only as they were kept.

A certificate's id is the hash of what it says, so a row that was altered shows, and is left out: a certificate decides
what is answered without a person, and one that may be forged must not. Leaving it out is safe: its route falls back on
an older one, or on people.
"""

from __future__ import annotations

import logging
import time

import orjson
from sqlalchemy import Connection, LargeBinary, RowMapping, cast, func, select

from gateway.store.bulk import Existing, Row, insert_rows
from gateway.store.database import hold
from gateway.store.schema import CERTIFICATES, CERTIFICATION_LOOKS
from router.certificate import Certificate

_LOGGER = logging.getLogger(__name__)

_C = CERTIFICATES.c
_L = CERTIFICATION_LOOKS.c
_LAST_LOOK = select(_L.look, _L.evidence).order_by(_L.look.desc()).limit(1)


def add(connection: Connection, certificate: Certificate) -> None:
    """Keep *certificate*, within *connection*'s transaction; one that is there stays as it is."""
    body = orjson.dumps(certificate.to_dict(), option=orjson.OPT_SORT_KEYS).decode()
    insert_rows(connection, CERTIFICATES, [(*_columns(certificate), body)], Existing.KEPT)


def read(connection: Connection, route: str | None) -> list[Certificate]:
    """The certificates of *route*, or all, newest first; those that were altered are left out."""
    query = _CERTIFICATES[connection.dialect.name].order_by(_C.created_s.desc(), _C.id)
    if route is not None:
        query = query.where(_C.route == route)
    found = [_certificate(row) for row in connection.execute(query).mappings()]
    return [certificate for certificate in found if certificate is not None]


def add_look(connection: Connection, route: str, subject: str, evidence: str) -> int:
    """Count a look, within *connection*'s transaction, unless the last one was at the same *evidence*; its number."""
    hold(connection, "look", route, subject)
    last = connection.execute(_LAST_LOOK.where(_L.route == route, _L.subject == subject)).first()
    if last is not None and last.evidence == evidence:
        return int(last.look)
    look = 1 if last is None else int(last.look) + 1
    insert_rows(connection, CERTIFICATION_LOOKS, [(route, subject, look, evidence, time.time())])
    return look


def version(connection: Connection) -> int:
    """How many there are: none is ever removed, so that the number changes with every one that is added."""
    return connection.execute(select(func.count()).select_from(CERTIFICATES)).scalar_one()


def _certificate(row: RowMapping) -> Certificate | None:
    try:
        certificate = Certificate.from_dict(orjson.loads(row["body"]))
        if _columns(certificate) != tuple(row[name] for name in _SEARCHED):
            raise ValueError("its columns say other than its body")
    except ValueError as exc:
        _LOGGER.error("certificate %s was altered in the store, and is not used: %s", row["id"], exc)
        return None
    return certificate


def _columns(certificate: Certificate) -> Row:
    """What stands beside the body, to be searched by."""
    numbers = (certificate.max_error, certificate.created_s, certificate.valid_until_s)
    return (certificate.id, certificate.subject.route, *map(float, numbers))


_SEARCHED = ("id", "route", "max_error", "created_s", "valid_until_s")
# SQLite's as bytes: of a text that is none, the driver would fail the query, and with it every other certificate.
_CERTIFICATES = {
    "sqlite": select(*(_C[name] for name in _SEARCHED), cast(_C.body, LargeBinary).label("body")),
    "postgresql": select(*(_C[name] for name in _SEARCHED), _C.body),
}
