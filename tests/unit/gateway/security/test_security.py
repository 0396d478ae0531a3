"""Keys, roles, and where the gateway may listen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import PermissionDenied, Unauthenticated
from gateway.people.scope import EVERYTHING
from gateway.request import Caller, Role
from gateway.security import (
    ANYBODY,
    ApiKey,
    Authenticator,
    SecurityOptions,
    TrustedHosts,
    check_binding,
    new_api_key,
    refuse_foreign_pages,
    require_role,
)

KEY, DIGEST = new_api_key()
ANNA = ApiKey("anna", DIGEST, "acme", frozenset({Role.REVIEWER}))
KEYED = Authenticator(SecurityOptions((ANNA,)))


def test_a_new_key_is_known_by_its_digest_alone() -> None:
    key, digest = new_api_key()

    assert key.startswith("pm_")
    assert len(key) >= 43
    assert digest == hashlib.sha256(key.encode()).hexdigest()
    assert new_api_key()[0] != key


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"x-api-key": KEY, "authorization": "Basic YTpi"},
    ],
)
def test_a_key_is_taken_from_either_header(headers: Mapping[str, str]) -> None:
    assert KEYED.authenticate(headers) == Caller("anna", "acme", frozenset({Role.REVIEWER}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY}, Bearer {KEY}"},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": DIGEST},
        {"x-api-key": "\udcff"},
    ],
)
def test_a_missing_and_a_wrong_key_are_refused_alike(headers: Mapping[str, str]) -> None:
    with pytest.raises(Unauthenticated) as refused:
        KEYED.authenticate(headers)

    assert str(refused.value) == ("a valid API key is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")


@given(st.text())
def test_no_other_text_is_a_key(text: str) -> None:
    with pytest.raises(Unauthenticated):
        KEYED.identify(text)


def test_without_configured_keys_everybody_is_anonymous_with_every_role() -> None:
    authenticator = Authenticator(SecurityOptions())

    assert not authenticator.needs_key
    assert authenticator.authenticate({}) == Caller("anonymous", "default", frozenset(Role), EVERYTHING)
    assert authenticator.authenticate({"x-api-key": "whatever"}) == ANYBODY


def test_reprs_show_no_secret() -> None:
    for shown in (repr(ANNA), repr(SecurityOptions((ANNA,))), repr(KEYED)):
        assert DIGEST not in shown
        assert KEY not in shown


@pytest.mark.parametrize("name", ["", "anonymous", "a\nb", "x" * 65])
def test_a_key_needs_a_name_that_can_stand_in_the_decision_log(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 64 printable characters"):
        ApiKey(name, DIGEST)


@pytest.mark.parametrize("digest", ["", KEY, DIGEST.upper(), DIGEST[:-1]], ids=["none", "key", "upper", "short"])
def test_a_digest_that_is_none_is_refused_without_being_shown(digest: str) -> None:
    with pytest.raises(ValueError, match="`pointsman key` prints one") as refused:
        ApiKey("anna", digest)

    assert not digest or digest not in str(refused.value)


def test_two_owners_may_share_neither_name_nor_key() -> None:
    other = ApiKey("anna", new_api_key()[1])
    with pytest.raises(ValueError, match="the same name"):
        SecurityOptions((ANNA, other))
    with pytest.raises(ValueError, match="the same key"):
        SecurityOptions((ANNA, ApiKey("ben", DIGEST)))


def test_a_role_that_is_missing_is_named() -> None:
    require_role(ANNA.caller, Role.REVIEWER)
    with pytest.raises(PermissionDenied, match="needs the role 'operator', which 'anna' does not have"):
        require_role(ANNA.caller, Role.OPERATOR)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_loopback_needs_no_key(host: str) -> None:
    check_binding(host, SecurityOptions())


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.1.2.3", "gateway.example", "localhost.example", "127.0.0.1.x"]
)
def test_any_other_address_needs_a_key_or_insistence(host: str) -> None:
    check_binding(host, SecurityOptions((ANNA,)))
    check_binding(host, SecurityOptions(), insecure=True)
    with pytest.raises(ValueError, match=r"configure `api_keys`.*listen on 127\.0\.0\.1, or pass --insecure"):
        check_binding(host, SecurityOptions())


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8002", "LocalHost.:8002", "127.0.0.1:8002", "10.0.0.7", "[::1]:8002", "gate.example:80"],
)
def test_addresses_and_configured_names_are_trusted(host: str) -> None:
    TrustedHosts(["Gate.Example"]).check(host)


def test_an_operator_who_lets_anybody_in_is_reached_by_any_name() -> None:
    TrustedHosts(any_name=True).check("gateway.internal:8000")


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8002", "localhost.evil.example", "localhost:8002@evil.example", "127.0.0.1.evil",
     "localhost:x", "[evil]:80", "localhost evil", "::1", "gate.example.evil"],
)  # fmt: skip
def test_every_other_name_is_refused_because_it_may_be_rebound(host: str) -> None:
    with pytest.raises(PermissionDenied, match="configure the name as a trusted host"):
        TrustedHosts(["gate.example"]).check(host)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8002"},
        {"host": "localhost:8002", "origin": "http://localhost:8002", "sec-fetch-site": "same-origin"},
        {"host": "Localhost:8002", "origin": "https://localhost:8002"},
        {"host": "localhost:8002", "sec-fetch-site": "none"},
    ],
)
def test_our_own_pages_and_programs_may_act(headers: Mapping[str, str]) -> None:
    refuse_foreign_pages(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:9999"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost:8002"},
    ],
)
def test_pages_of_another_origin_may_not(headers: Mapping[str, str]) -> None:
    with pytest.raises(PermissionDenied, match="pages of another origin"):
        refuse_foreign_pages({"host": "localhost:8002", **headers})
