"""Who calls, what they may do, and where the gateway may listen.

**Keys.** A key is 256 random bits, so one SHA-256 of it is as hard to reverse as the key is to guess, and a slow
password hash would only cost every request its time. The configuration holds digests alone. A key is looked for by
comparing digests in constant time, with every configured key, whether or not an earlier one matched; a missing and a
wrong key are refused with the same words.

**Without keys** everybody is the anonymous caller of the tenant `default` with every role. That is for one person on
their own machine, so then, and only then, a browser is a danger: any page it has open can reach a loopback port. Three
checks close that: `TrustedHosts` (DNS rebinding), `refuse_foreign_pages` (requests that another site's page made), and
`check_binding` (no other address without keys, unless the operator insists). The data plane applies the first two in
`gateway.http.handler` to all that needs a role; no page can speak gRPC.

Rejected: sessions or tokens on the data plane (a bearer key is what every client can send); a timing-safe lookup table
by a prefix of the key (keys are few, and comparing them all costs microseconds).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from backends.errors import PermissionDenied, Unauthenticated
from gateway.people.scope import EVERYTHING, UNSKILLED, Scope
from gateway.request import Caller, Role

KEY_PREFIX = "pm_"
"""Every key begins so: secret scanners and people know what they look at."""

ANYBODY = Caller(scope=EVERYTHING)
"""Who calls where nobody needs a key."""

ANONYMOUS = ANYBODY.name
"""The caller's name where no key is configured; no key may have it."""

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key a caller may send, known by its digest alone.

    Attributes:
        name: what logs, the decision log and the inbox call its owner.
        sha256: SHA-256 of the key, 64 lower-case hexadecimal digits.
        tenant: whose data its owner sees.
        roles: what its owner may do.
        scope: with which reviews, where they are a reviewer.
    """

    name: str
    sha256: str = field(repr=False)
    tenant: str = "default"
    roles: frozenset[Role] = frozenset({Role.CALLER})
    scope: Scope = UNSKILLED

    def __post_init__(self) -> None:
        if self.name == ANONYMOUS or not (0 < len(self.name) <= 64 and self.name.isprintable()):
            raise ValueError(f"API key name {self.name!r} must be 1 to 64 printable characters, and not {ANONYMOUS!r}")
        if not _HEX_DIGEST.fullmatch(self.sha256):
            raise ValueError(
                f"sha256 of API key {self.name!r} is not 64 lower-case hexadecimal digits; `pointsman key` prints one"
            )

    @property
    def caller(self) -> Caller:
        """Its owner, as the pipeline and the store see them."""
        return Caller(self.name, self.tenant, self.roles, self.scope)


@dataclass(frozen=True, slots=True)
class SecurityOptions:
    """The keys that are accepted; none: everybody is anonymous and may do everything.

    Attributes:
        file: where the keys are read again when they change; None: they stand in the configuration itself.
    """

    api_keys: tuple[ApiKey, ...] = ()
    file: Path | None = None

    def __post_init__(self) -> None:
        for what, values in (("name", [k.name for k in self.api_keys]), ("key", [k.sha256 for k in self.api_keys])):
            if len(set(values)) != len(values):
                raise ValueError(f"two API keys have the same {what}; every owner needs their own")


def new_api_key() -> tuple[str, str]:
    """A new key, to be shown once and given to its owner, and the digest to be configured."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, _digest(key)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Authenticator:
    """Tells who sent a request, on every edge alike."""

    def __init__(self, options: SecurityOptions) -> None:
        self._keys = options.api_keys

    def __repr__(self) -> str:
        return f"Authenticator({len(self._keys)} keys)"

    def use(self, options: SecurityOptions) -> None:
        """Know the keys of *options* from now on, and no others.

        Raises:
            ValueError: it has none, where keys are needed: nobody lets everybody in by emptying a file.
        """
        if self._keys and not options.api_keys:
            raise ValueError("there is no key in it, which would let everybody in; leave one, or restart without keys")
        self._keys = options.api_keys

    @property
    def needs_key(self) -> bool:
        """Whether a caller without a key is refused."""
        return bool(self._keys)

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """The caller whose key *headers* (by lower-case name) carry in `X-API-Key` or as `Authorization: Bearer`.

        Raises:
            Unauthenticated: a key is needed, and there is none, or none that is known.
        """
        if not self._keys:
            return ANYBODY
        return self.identify(_sent_key(headers)).caller

    def identify(self, key: str) -> ApiKey:
        """The configured key that *key* is.

        Raises:
            Unauthenticated: it is none of them.
        """
        digest = _digest(key)
        matches = [known for known in self._keys if hmac.compare_digest(known.sha256, digest)]
        if not matches:
            raise Unauthenticated("a valid API key is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        return matches[0]

    def named(self, name: str) -> ApiKey | None:
        """The key of that name; None where it is configured no longer."""
        return next((known for known in self._keys if known.name == name), None)


def _sent_key(headers: Mapping[str, str]) -> str:
    """The key as sent; "" (which is nobody's) where there is none."""
    if key := headers.get("x-api-key"):
        return key.strip()
    scheme, _, key = headers.get("authorization", "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def require_role(caller: Caller, role: Role) -> None:
    """Refuse a caller without *role*.

    Raises:
        PermissionDenied: names the role.
    """
    if role not in caller.roles:
        raise PermissionDenied(f"this needs the role {role.value!r}, which {caller.name!r} does not have")


def check_binding(host: str, options: SecurityOptions, insecure: bool = False) -> None:
    """Refuse to listen where others can reach a gateway that asks nobody for a key.

    Raises:
        ValueError: *host* is not a loopback address, no key is configured, and *insecure* is False.
    """
    if options.api_keys or insecure or is_loopback(host):
        return
    raise ValueError(
        f"listening on {host!r} without API keys would let anybody in; configure `api_keys` (`pointsman key` makes "
        "one), listen on 127.0.0.1, or pass --insecure"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach *host*; names other than `localhost` are not looked up."""
    if host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class TrustedHosts:
    """The Host headers that are answered.

    DNS rebinding needs a name that the attacker controls, so addresses are always trusted, and of names `localhost`
    and those the operator configured.
    """

    def __init__(self, names: Iterable[str] = (), *, any_name: bool = False) -> None:
        """Args:
        names: trusted beside `localhost`.
        any_name: for an operator who lets anybody in (`--insecure`): clients there use whatever name they know.
        """
        self._names = frozenset({"localhost", *(name.lower().rstrip(".") for name in names)})
        self._any_name = any_name
        self._last: str | None = None  # that was let pass: most requests come under one name

    def check(self, host_header: str) -> None:
        """Let a request for *host_header* (`name`, `name:port`) pass.

        Raises:
            PermissionDenied: the name is not one of ours.
        """
        if self._any_name or host_header == self._last:
            return
        match = _HOST.fullmatch(host_header)
        name = match["name"].lower().rstrip(".") if match else ""
        if name not in self._names and _address(name) is None:
            raise PermissionDenied(
                "this host name is not served here; use the machine's address, or configure the name as a trusted host"
            )
        self._last = host_header


LOOPBACK_ONLY = TrustedHosts()
"""`localhost` and addresses."""


def refuse_foreign_pages(headers: Mapping[str, str]) -> None:
    """Refuse what a browser sent for a page of another origin; what no browser sent carries neither header.

    Raises:
        PermissionDenied: `Sec-Fetch-Site` or `Origin` (by lower-case name in *headers*) tells of another site.
    """
    own_site = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    origin = headers.get("origin")
    if not own_site or (origin is not None and _authority(origin) != headers.get("host", "").lower()):
        raise PermissionDenied("pages of another origin may not do this")


def _authority(origin: str) -> str | None:
    """Host and port of *origin*; None for `null` and for what is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
