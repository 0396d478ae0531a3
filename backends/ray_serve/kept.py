"""What a version of a model has said of itself, in the tables of Ray's head, beside those of Serve.

A gateway that starts learns it from there where all replicas may be gone, and wakes none.
"""

from __future__ import annotations

import pickle

from backends.ray_serve.messages import About

_NAMESPACE = b"pointsman"
_DIGITS = 12
"""Of a digest, as names of applications have it."""


def short(digest: str) -> str:
    """What is enough of *digest* for a name."""
    return digest[:_DIGITS]


def keep(about: About) -> None:
    """Called by a replica that starts."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key(short(about.digest)), pickle.dumps(about), overwrite=True, namespace=_NAMESPACE)


def kept(digest: str) -> About | None:
    """What the version *digest* has said, if ever one of its replicas has started here; asks Ray's head."""
    from ray.experimental.internal_kv import _internal_kv_get

    found: bytes | None = _internal_kv_get(_key(short(digest)), namespace=_NAMESPACE)
    about: About | None = pickle.loads(found) if found else None  # as all that replicas say is  # noqa: S301
    return about if about is not None and about.digest == digest else None


def forget(digits: str) -> None:
    """Called when the version with those first *digits* ends."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(_key(digits), namespace=_NAMESPACE)


def _key(digits: str) -> str:
    return f"about-{digits}"
