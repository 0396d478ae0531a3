"""Answers, review items, idempotency keys, the decision log and feedback, durable.

`contract` says what the gateway asks of a store; `open_store` opens the one there is; `verify_log_file` verifies a
store file from outside.
"""

from gateway.store.audit import verify_log_file
from gateway.store.options import CannotOpenStore, StoreOptions
from gateway.store.store import SqlStore, open_store

__all__ = ["CannotOpenStore", "SqlStore", "StoreOptions", "open_store", "verify_log_file"]
