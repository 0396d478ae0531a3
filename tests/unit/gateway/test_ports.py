"""Ports that several processes share, and nobody else."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest

from gateway.ports import SIBLINGS, address_of, bind, bind_shared, claim, claim_first_free, held, port_of

HOST = "127.0.0.1"


def test_workers_share_a_port_that_is_held_for_them() -> None:
    with (
        held(HOST, 0) as held_for_them,
        bind_shared(HOST, port_of(held_for_them)) as one,
        bind_shared(HOST, port_of(held_for_them)) as other,
    ):
        one.listen()
        other.listen()

        assert address_of(one) == address_of(other) == address_of(held_for_them)


def test_who_holds_a_port_takes_no_connections() -> None:
    with held(HOST, 0) as holding, pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port_of(holding)))


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with bind(HOST, 0) as taken:
        taken.listen()
        port = port_of(taken)

        with pytest.raises(OSError, match=f"cannot listen on {HOST}:{port}.*choose another port"), held(HOST, port):
            pass


def test_a_port_that_others_of_this_user_share_is_refused() -> None:
    with held(HOST, 0) as holding, bind_shared(HOST, port_of(holding)) as worker:
        worker.listen()

        for taking in (held, bind):
            with pytest.raises(OSError, match="choose another port"), taking(HOST, port_of(holding)):
                pass


def test_a_port_is_held_before_anybody_listens() -> None:
    with held(HOST, 0) as holding:
        for taking in (held, bind):
            with pytest.raises(OSError, match="choose another port"), taking(HOST, port_of(holding)):
                pass


def test_a_port_is_at_no_time_free_between_being_found_free_and_being_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a socket is closed meanwhile, somebody else tries to have the port."""
    port, close = _free(), socket.socket.close
    taken: list[int] = []

    def snatch(closed: socket.socket) -> None:
        close(closed)
        other = socket.socket()
        with contextlib.suppress(OSError):
            other.bind((HOST, port))
            taken.append(port)
        close(other)

    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as watched:
            watched.setattr(socket.socket, "close", snatch)
            stack.enter_context(held(HOST, port))

        assert taken == []


def _free() -> int:
    with bind(HOST, 0) as found:
        return port_of(found)


def test_a_port_whose_last_connections_have_only_just_ended_can_be_held() -> None:
    port = _just_used()

    with held(HOST, port), bind_shared(HOST, port) as worker:
        worker.listen()
        assert port_of(worker) == port


def _just_used() -> int:
    with bind(HOST, 0) as before:
        before.listen()
        port = port_of(before)
        with socket.create_connection((HOST, port)) as client:
            accepted, _ = before.accept()
            accepted.close()  # the side that closes first keeps the port for a while
            assert client.recv(1) == b""
    return port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0.*choose an address"), held("192.0.2.1", 0):
        pass


def test_a_name_of_no_machine_is_refused_with_the_remedy() -> None:
    with (
        pytest.raises(OSError, match=r"no such.*; choose an address"),
        held("no such", 0),
    ):
        pass


def test_processes_of_a_host_have_ports_one_beside_the_other() -> None:
    with bind(HOST, 0) as first:
        first.listen()
        with claim_first_free(HOST, port_of(first)) as second, claim_first_free(HOST, port_of(first)) as third:
            assert port_of(first) < port_of(second) < port_of(third) < port_of(first) + SIBLINGS


def test_any_port_will_do_where_none_is_named() -> None:
    with claim_first_free(HOST, 0) as found:
        assert port_of(found) > 0


def test_of_two_that_bound_a_port_the_one_that_listens_last_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with bind(HOST, 0) as bound:

        class Overtaken(socket.socket):
            def bind(self, address: Any) -> None:  # Any: as the socket's own
                super().bind(address)
                bound.listen()

        monkeypatch.setattr("gateway.ports.socket.socket", Overtaken)
        with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:\d+: .* in use; choose another port"):
            claim(HOST, port_of(bound))
