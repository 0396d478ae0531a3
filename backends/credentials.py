"""What is secret of other servers, and what proves them: keys from the environment or files, certificates from files.

Nothing here is in a message but the names of variables and files.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from backends.errors import InvalidInput

_LIMIT_BYTES: Final = 16 * 1024
_MOST_DIGITS: Final = 5


def key_in_environment(variable: str, option: str) -> str:
    """The key, or token, that *variable* holds; *option* is what names it in the configuration.

    Raises:
        InvalidInput: it is not set, or holds something else.
    """
    where = f"environment variable {variable!r}, named as `{option}`,"
    return _checked(os.environ.get(variable, ""), where)


def key_in_file(file: Path, option: str) -> str:
    """The key, or token, that *file* holds; *option* is what names it in the configuration.

    Raises:
        InvalidInput: it cannot be read, or holds something else.
    """
    where = f"file {file}, named as `{option}`,"
    try:
        with file.open("rb") as content:
            found = content.read(_LIMIT_BYTES).decode("latin-1")
    except OSError as error:
        raise InvalidInput(f"{where} cannot be read: {error.strerror}") from error
    return _checked(found, where)


def _checked(found: str, where: str) -> str:
    key = found.strip()
    if not key:
        raise InvalidInput(f"{where} is not set, or holds nothing; put the key there")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInput(f"{where} holds more than a key; put the key alone there")
    return key


def certificates(file: Path | None) -> str | None:
    """The certificates in *file* (PEM), which prove servers; None where none is named: those that the system trusts.

    Raises:
        InvalidInput: it cannot be read, or holds none.
    """
    if file is None:
        return None
    try:
        found = file.read_bytes().decode("ascii", "ignore")  # bundles have names in them, as comments
    except OSError as error:
        raise InvalidInput(f"ca: {file} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found)
    except (ssl.SSLError, ValueError) as error:  # of an empty file: what the system trusts must not stand in for it
        raise InvalidInput(f"ca: {file} holds no certificates; write them as PEM") from error
    return found


def retry_after_s(stated: str, now: datetime | None = None) -> float | None:
    """What a Retry-After header says (RFC 9110, 10.2.3), in seconds from *now*; None where it cannot be read."""
    stated = stated.strip()
    if stated.isdecimal() and stated.isascii() and len(stated) <= _MOST_DIGITS:
        return float(stated)
    try:
        at = parsedate_to_datetime(stated)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds())
