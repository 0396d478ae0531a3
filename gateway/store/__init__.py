"""Answers, review items, idempotency keys, the decision log, feedback, messages and certificates, durable.

`contract` says what the gateway asks of a store; `open_store` opens the one there is, in a SQLite file or on PostgreSQL
(`database` says what it asks of these). From outside, beside a gateway that serves or without one, `verify_log_of`
verifies a store, `read_answer_log` and `export_log` read its decision log, `list_messages` and `redeliver` its outbox,
`list_configurations` and `read_configuration` what replicas of a cluster have served, `back_up` copies it,
`overwrite_beside` writes its file anew, and `open_beside` opens it to certify; `restore` puts a copy back while no
gateway serves.
"""

from gateway.store.audit import LogRow, Selection
from gateway.store.backup import back_up, restore
from gateway.store.beside import (
    export_log,
    list_configurations,
    list_messages,
    open_beside,
    read_answer_log,
    read_configuration,
    redeliver,
    verify_log_of,
)
from gateway.store.options import CannotOpenStore, Postgres, Retention, StoreOptions
from gateway.store.places import is_made, overwrite_beside
from gateway.store.store import SqlStore, open_store

__all__ = [
    "CannotOpenStore",
    "LogRow",
    "Postgres",
    "Retention",
    "Selection",
    "SqlStore",
    "StoreOptions",
    "back_up",
    "export_log",
    "is_made",
    "list_configurations",
    "list_messages",
    "open_beside",
    "open_store",
    "overwrite_beside",
    "read_answer_log",
    "read_configuration",
    "redeliver",
    "restore",
    "verify_log_of",
]
