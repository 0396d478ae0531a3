"""Which addresses a webhook may be at: what an operator writes into a URL must not reach what is not meant for it.

What a name means is checked by the very connection that is made to it (`gateway.webhooks.post`), so a name whose
address changes between a check and the connection gains nothing. Redirects are not followed.

Public addresses alone, unless the webhook is `private`; and never those of link-local networks, of a cloud's metadata
service, of groups, or of nobody, in whatever spelling: a name, or IPv4 within IPv6.

**Hosts that are numbers.** `127.1`, `2130706433` and `0x7f.1` are addresses to inet_aton and to browsers, and names to
others; an HTTP client that takes one for an address asks no resolver, and so nobody checks it. They are refused, as is
whatever the URL standard of WHATWG calls a host that "ends in a number", save addresses in their one usual form.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from typing import TypeAlias

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv4 in the last 32 bits: NAT64 (RFC 6052 and 8215), and, of old, "compatible" and "translated" (RFC 4291 and 2765).
_HOLDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")))
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
_OWN = (ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1"))
_NOBODY, _BROADCAST = ipaddress.IPv4Address(0), ipaddress.IPv4Address("255.255.255.255")

# Of Azure, Alibaba Cloud, AWS and Google Cloud; their others are link-local.
_METADATA = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254")))


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
    if found in _METADATA:
        raise Forbidden(f"{address} is a cloud's metadata service; no webhook can be there")
    if not private and not found.is_global:
        raise Forbidden(f"{address} is not public; set `private: true` of the webhook if it is meant to be there")


def check_host(host: str, *, private: bool) -> None:
    """As `check`, of a URL's *host* that is written as an address; what a name means is for those who look it up.

    Raises:
        Forbidden: says why.
    """
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".")  # as what connects may read it
    if _is_address(plain):
        check(plain, private=private)
    elif ":" in plain or _ends_in_a_number(plain):
        raise Forbidden(f"{host} is neither a name nor an address in its usual form, such as 192.0.2.1")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _ends_in_a_number(host: str) -> bool:
    """Whether WHATWG's URL standard takes *host* for an address, if only for a wrong one."""
    last = host.rstrip(".").rpartition(".")[2].lower()
    return not last or last.isdigit() or last.startswith("0x")


def _meant(address: _Address) -> _Address:
    """The IPv4 address that *address* leads to, where it is one of IPv6 that holds one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in network for network in _HOLDING) and address not in _OWN:
        # A local NAT64 may hold it further up too, before a suffix of zeros; who could tell which it is?
        unclear = address in _LOCAL_NAT64 and not int(address) & 0xFFFFFF
        return _NOBODY if unclear else ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
