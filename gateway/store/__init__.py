"""Answers, review items, idempotency keys, the decision log, feedback and certificates, durable.

`contract` says what the gateway asks of a store; `open_store` opens the one there is. From outside, beside a gateway
that serves or without one, `verify_log_file` verifies a store file, and `open_beside` opens it to certify.
"""

from gateway.store.beside import open_beside, verify_log_file
from gateway.store.options import CannotOpenStore, StoreOptions
from gateway.store.store import SqlStore, open_store

__all__ = ["CannotOpenStore", "SqlStore", "StoreOptions", "open_beside", "open_store", "verify_log_file"]
