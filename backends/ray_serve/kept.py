"""What models have said of themselves, in the tables of Ray's head, beside those of Serve.

A gateway that starts learns it from there where all replicas may be gone, and wakes none; and so does a replica of a
pool, which loads none of its models for it.
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


def keep(about: About, app: str) -> None:
    """Called by a replica of the application *app* that starts."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key(app, about.digest), pickle.dumps(about), overwrite=True, namespace=_NAMESPACE)


def kept(app: str, digest: str) -> About | None:
    """What the model *digest* has said, if ever a replica of *app* has had it; asks Ray's head."""
    from ray.experimental.internal_kv import _internal_kv_get

    found: bytes | None = _internal_kv_get(_key(app, digest), namespace=_NAMESPACE)
    about: About | None = pickle.loads(found) if found else None  # as all that replicas say is  # noqa: S301
    return about if about is not None and about.digest == digest else None


def forget(app: str) -> None:
    """Called when *app* ends."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(_key(app, ""), del_by_prefix=True, namespace=_NAMESPACE)


def _key(app: str, digest: str) -> str:
    return f"about {app} {short(digest)}"
