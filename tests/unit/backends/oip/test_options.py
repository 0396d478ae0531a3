"""What an operator can say about a server, and what is refused."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from backends.errors import InvalidInput
from backends.oip.grpc_remote import GrpcRemote
from backends.oip.http_remote import HttpRemote
from backends.oip.options import ServerOptions, remote_of
from tests.unit.backends.oip.scripted import NEVER, error, http, over_http

URL = "http://host:8000"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": ()}, "url is empty; name at least one server"),
        ({"url": ""}, "url '' is no server's"),
        ({"url": (URL, "grpc://host", URL)}, "url names a server twice"),
        ({"url": (URL, "nonsense")}, "url 'nonsense' is no server's"),
        ({"url": "http://me:hunter2@host"}, "token_env"),
        ({"url": URL, "connect_timeout_s": 0.0}, "connect_timeout_s is 0.0"),
        ({"url": URL, "open_timeout_s": -1.0}, "open_timeout_s is -1.0"),
        ({"url": URL, "max_reply_bytes": 0}, "max_reply_bytes is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told) as raised:
        ServerOptions(**options)  # type: ignore[arg-type]  # of several types
    assert "hunter2" not in str(raised.value)


async def test_a_remote_speaks_what_its_url_says() -> None:
    over_grpc, over_http = (remote_of("mine", url, ServerOptions(url)) for url in ("grpc://host", URL))

    assert isinstance(over_grpc, GrpcRemote)
    assert isinstance(over_http, HttpRemote)
    for remote in (over_grpc, over_http):
        await remote.aclose()


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_token_that_is_not_set_is_told(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN_OF_TEST", raising=False)
    if value is not None:
        monkeypatch.setenv("TOKEN_OF_TEST", value)
    with pytest.raises(InvalidInput, match="'TOKEN_OF_TEST', named as `token_env`, is not set"):
        remote_of("mine", URL, ServerOptions(URL, token_env="TOKEN_OF_TEST"))


@pytest.mark.parametrize("value", ["hunter2\r\nX-Mine: 1", "hunter2\x7f", "hünter2"])
def test_a_token_with_more_in_it_is_refused_and_not_repeated(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_TEST", value)
    with pytest.raises(InvalidInput, match="'TOKEN_OF_TEST', named as `token_env`, holds more than a key") as raised:
        remote_of("mine", URL, ServerOptions(URL, token_env="TOKEN_OF_TEST"))
    assert "nter2" not in str(raised.value)


async def test_a_token_is_sent_without_the_newline_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_TEST", "hunter2\n")
    async with over_http(http(200, b"{}")) as (_, server):
        url = f"http://{server.address}"
        remote = remote_of("mine", url, ServerOptions(url, token_env="TOKEN_OF_TEST"))
        await remote.about(NEVER)
        await remote.aclose()

    assert server.requests[0].headers["authorization"] == "Bearer hunter2"
    assert "hunter2" not in repr(remote)


@pytest.mark.parametrize("url", ["https://host", "grpcs://host"])
def test_certificates_that_are_not_there_are_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"ca: .*missing\.pem cannot be read: No such file"):
        remote_of("mine", url, ServerOptions(url, ca=tmp_path / "missing.pem"))


@pytest.mark.parametrize("content", [b"", b"no certificate", "kein Zertifikat: ß".encode(), b"\xff\x00"])
def test_certificates_that_are_none_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"ca: .*ca\.pem"):
        remote_of("mine", "https://host", ServerOptions("https://host", ca=tmp_path / "ca.pem"))


async def test_certificates_with_names_beside_them_are_taken(tmp_path: Path) -> None:
    roots = (files("grpc") / "_cython/_credentials/roots.pem").read_text()
    first = roots[roots.index("-----BEGIN") :].partition("-----END CERTIFICATE-----")
    (tmp_path / "ca.pem").write_text(f"# Gütesiegel\n{first[0]}{first[1]}\n", encoding="utf-8")
    for url in ("https://host", "grpcs://host"):
        remote = remote_of("mine", url, ServerOptions(url, ca=tmp_path / "ca.pem"))
        await remote.aclose()


async def test_a_base_path_stands_before_every_path() -> None:
    async with over_http(error(404)) as (_, server):
        url = f"http://{server.address}/base"
        remote = remote_of("mine", url, ServerOptions(url))
        await remote.is_ready("a b", "1", NEVER)
        await remote.aclose()

    assert server.requests[0].path == "/base/v2/models/a%20b/versions/1/ready"
