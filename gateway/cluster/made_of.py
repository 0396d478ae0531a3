"""What a model that is apart is made of, by which its versions are told from each other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from backends.errors import InvalidInput
from gateway.certificates import stage_subject
from gateway.settings import ModelSettings


def digest_of(model: ModelSettings) -> str:
    """What tells *model* from its other versions: whatever decides its answers, files by their contents, and how.

    Reads files; call it off the event loop.

    Raises:
        OSError: one cannot be read.
    """
    subject = asdict(stage_subject(model, "", None))
    return hashlib.sha256(json.dumps([subject, repr(model.options)], sort_keys=True).encode()).hexdigest()


def check_made_of(model: ModelSettings, digest: str) -> None:
    """Refuse *model* where it is not the version *digest*: a file has changed since, or is another on this node.

    Raises:
        InvalidInput: it is not.
    """
    try:
        found = digest_of(model)
    except OSError as error:
        raise InvalidInput(f"the files of model {model.name!r} cannot be read on this node: {error}") from error
    if found != digest:
        raise InvalidInput(
            f"the files of model {model.name!r} are not those that it was deployed with; deploy the configuration "
            "anew, and see that all nodes have the same files"
        )
