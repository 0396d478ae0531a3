"""Addresses of servers, as an operator writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import InvalidInput
from backends.oip.address import Address

_PIECES = ["grpc", "grpcs", "http", "https", "://", ":", "/", "//", "[", "]", "::1", "@", "?", "#", "%", "host", "8001",
           "65536", "-1", "/v2", "\n", "\x00", " ", "ß", "１"]  # fmt: skip


@given(st.one_of(st.text(), st.lists(st.sampled_from(_PIECES)).map("".join)))
def test_whatever_is_written_is_an_address_or_refused(url: str) -> None:
    try:
        address = Address.parse(url)
    except InvalidInput:
        return
    assert address.host
    assert 0 < address.port < 65536


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://triton", Address("triton", 8001, is_grpc=True, is_secure=False)),
        ("grpc://triton:9000/", Address("triton", 9000, is_grpc=True, is_secure=False)),
        ("grpcs://triton", Address("triton", 443, is_grpc=True, is_secure=True)),
        ("http://triton", Address("triton", 8000, is_grpc=False, is_secure=False)),
        ("https://triton/base/", Address("triton", 443, is_grpc=False, is_secure=True, base="/base")),
        ("HTTP://Triton:80", Address("triton", 80, is_grpc=False, is_secure=False)),
        ("grpc://[::1]:8001", Address("::1", 8001, is_grpc=True, is_secure=False)),
    ],
)
def test_an_address_has_what_is_written_and_the_usual_port(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected


@pytest.mark.parametrize(("url", "authority"), [("grpc://[::1]", "[::1]:8001"), ("http://triton:80", "triton:80")])
def test_the_authority_has_brackets_where_ipv6_needs_them(url: str, authority: str) -> None:
    assert Address.parse(url).authority == authority


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("", "write grpc://host:8001"),
        ("localhost:8001", "write grpc://host:8001"),
        ("tcp://host:1", "write grpc://host:8001"),
        ("grpc://", "write grpc://host:8001"),
        ("grpc://:8001", "write grpc://host:8001"),
        ("grpc://host:99999", "write grpc://host:8001"),
        ("grpc://host:port", "write grpc://host:8001"),
        ("grpc://host:0", "write grpc://host:8001"),
        ("http://[::1", "write grpc://host:8001"),
        ("grpc://host/base", "end it before /v2"),
        ("http://host/v2", "end it before /v2"),
        ("http://host/v2/", "end it before /v2"),
        ("http://host?a=b", "end it before /v2"),
        ("http://host#a", "end it before /v2"),
        ("http://host/a b", "write grpc://host:8001"),
        ("http://host/a\r\nX: 1", "write grpc://host:8001"),
        ("http://ho st", "write grpc://host:8001"),
    ],
)
def test_what_is_no_address_is_refused_with_a_remedy(url: str, remedy: str) -> None:
    with pytest.raises(InvalidInput, match=remedy):
        Address.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@host:8000",
        "http://hunter2@host",
        "tcp://me:hunter2@host",
        "http://me:hunter2@host:port",
        "http://me:hunter2@ho st",
        "http://me:hunter2/@host",
        "me:hunter2@host",
    ],
)
def test_credentials_are_refused_and_not_repeated_whatever_else_is_wrong(url: str) -> None:
    with pytest.raises(InvalidInput, match="token_env") as raised:
        Address.parse(url)
    assert "hunter2" not in str(raised.value)
