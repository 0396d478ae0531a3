"""Which addresses a webhook may be at: what an operator writes into a URL must not reach what is not meant for it.

What a name means is checked by the very connection that is made to it (`gateway.webhooks.post`), so a name whose
address changes between a check and the connection gains nothing. Redirects are not followed.

Public addresses alone, unless the webhook is `private`; and never those of link-local networks (a cloud's metadata
service is there), of groups, or of nobody, in whatever spelling: a name, decimal, or IPv4 within IPv6.
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_BROADCAST = ipaddress.ip_address("255.255.255.255")


class Forbidden(OSError):
    """Nothing may be sent to an address; an OSError, as a resolver's other failures are."""


def check(address: str, *, private: bool) -> None:
    """Refuse *address*, an IP address, unless a webhook may be there.

    Raises:
        Forbidden: says why.
    """
    found = _meant(ipaddress.ip_address(address.partition("%")[0]))
    if found.is_link_local or found.is_multicast or found.is_unspecified or found == _BROADCAST:
        raise Forbidden(f"{address} is a link-local, group or unspecified address; no webhook can be there")
    if not private and not found.is_global:
        raise Forbidden(f"{address} is not public; set `private: true` of the webhook if it is meant to be there")


def check_host(host: str, *, private: bool) -> None:
    """As `check`, of a URL's *host* that is written as an address; what a name means is for those who look it up.

    Raises:
        Forbidden: says why.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    check(host, private=private)


def _meant(address: _Address) -> _Address:
    """The IPv4 address that *address* leads to, where it is one of IPv6 that holds one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
