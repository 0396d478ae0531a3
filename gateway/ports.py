"""Ports held for workers: nobody else's, and bound so that several processes of ours can share them.

`SO_REUSEPORT` shares a port with any process of the same user that asks, silently: two gateways on one port would each
get a part of the other's callers. So a port is first bound as nobody can who must share it, which tells when somebody
listens there, and the socket that found it free holds it: it is let share from then on, and never listens. The kernel
gives connections to sockets that do, and asks the others whether they share when one more is bound, and not when they
were. The port is nobody's at no time in between.

The holding socket is without `SO_REUSEADDR` where that is possible. With it, another gateway that is just starting, and
so not listening yet, would find the port free. It is not possible where connections of a process that had the port to
itself have only just ended.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

SIBLINGS = 64
"""How many processes of one host can have a port of their own each, one beside the other."""

_MOST_PORT = 65535

_REMEDIES = {
    errno.EADDRNOTAVAIL: "choose an address of this machine as the host",
    errno.EACCES: "choose a port from 1024 on",
}


def bind(host: str, port: int) -> socket.socket:
    """A socket with *port* (0: any) to itself, which does not listen yet.

    Raises:
        OSError: somebody listens there, or it is no address of this machine.
    """
    return _bound(host, port, reuse_address=True, reuse_port=False)


def bind_shared(host: str, port: int) -> socket.socket:
    """A socket that shares *port* with others of this user, which does not listen yet.

    Raises:
        OSError: somebody has it who does not share.
    """
    return _bound(host, port, reuse_address=True, reuse_port=True)


def claim(host: str, port: int) -> socket.socket:
    """A socket with *port* (0: any) to itself, which listens: of several that ask at once one gets it, the others hear.

    Raises:
        OSError: somebody listens there, or it is no address of this machine.
    """
    return _bound(host, port, reuse_address=True, reuse_port=False, listens=True)


def claim_first_free(host: str, port: int) -> socket.socket:
    """A socket with the first of `SIBLINGS` ports from *port* on (0: any) to itself, which listens; see `claim`.

    Raises:
        OSError: somebody listens on each of them, or it is no address of this machine.
    """
    last = min(port + SIBLINGS, _MOST_PORT + 1) if port else 1
    for candidate in range(port, last):
        try:
            return claim(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or candidate == last - 1:
                raise
    raise AssertionError("there was no port to try. This is a bug.")


@contextlib.contextmanager
def held(host: str, port: int) -> Iterator[socket.socket]:
    """What holds *port* (0: any) for `bind_shared`, of this process and its children, and never listens.

    Raises:
        OSError: somebody has it, or it is no address of this machine.
    """
    with _alone(host, port) as holding:
        holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield holding


def _alone(host: str, port: int) -> socket.socket:
    try:
        return _bound(host, port, reuse_address=False, reuse_port=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return bind(host, port)


def _bound(host: str, port: int, *, reuse_address: bool, reuse_port: bool, listens: bool = False) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise OSError(
            error.errno, f"cannot listen on {host!r}: {error.strerror}; choose an address of this machine as the host"
        ) from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
        if listens:
            bound.listen()
    except OSError as error:
        bound.close()
        remedy = _REMEDIES.get(error.errno or 0, "choose another port")
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; {remedy}") from error
    return bound


def port_of(bound: socket.socket) -> int:
    """The port that *bound* has."""
    return int(bound.getsockname()[1])


def address_of(bound: socket.socket) -> str:
    """Where *bound* is, as `host:port`."""
    host, port, *_ = bound.getsockname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
