"""What a webhook's URL may lead to, however it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.webhooks.addresses import Forbidden, check, check_host
from gateway.webhooks.options import NoSecret, WebhookOptions
from gateway.webhooks.signing import Secret

PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fd00::1",
    "fc00::7",
]
NEVER = ["169.254.169.254", "fe80::1", "fe80::1%eth0", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"]
METADATA = ["168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254", "169.254.170.2", "febf::1"]
HIDDEN = ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::"]
HIDDEN += ["::127.0.0.1", "::10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1", "64:ff9b:1:abcd::a00:1"]
HIDDEN_NEVER = ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::169.254.169.254"]
HIDDEN_NEVER += ["64:ff9b:1::a9fe:a9fe", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "2002:6464:64c8::1"]
HIDDEN_NEVER += ["::100.100.100.200", "64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:1:a9:fea9:fe00:0", "64:ff9b:1::"]
NUMBERS = [
    "2130706433",
    "0",
    "127.1",
    "127.0.1",
    "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.1.",
    "0x7f.1",
    "0x7f000001",
    "127.0.0.0X1",
    "256.256.256.256",
    "1.2.3.4.5",
    "crm.example.1",
    "a.0x",
    ".",
    "\uff11\uff12\uff17.1",
    "127\u30021",
    "\u2460\u2461\u2466.1",
    "v1.x:y",
]


@pytest.mark.parametrize("address", [*PRIVATE, *HIDDEN])
def test_what_is_not_public_is_for_private_webhooks(address: str) -> None:
    check(address, private=True)
    with pytest.raises(Forbidden, match="is not public; set `private: true`"):
        check(address, private=False)


@pytest.mark.parametrize("address", [*NEVER, *METADATA, *HIDDEN_NEVER])
@pytest.mark.parametrize("private", [False, True])
def test_some_addresses_are_nobody_s(address: str, private: bool) -> None:
    with pytest.raises(Forbidden, match="no webhook can be there"):
        check(address, private=private)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "168.63.129.17",
        "2606:2800:220:1:248:1893:25c8:1946",
        "64:ff9b::5db8:d822",
        "64:ff9b:1::5db8:d822",
        "::93.184.216.34",
        "::ffff:93.184.216.34",
        "2002:5db8:d822::1",
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_public_addresses_are_allowed(address: str, private: bool) -> None:
    check(address, private=private)


@pytest.mark.parametrize("host", NUMBERS)
@pytest.mark.parametrize("private", [False, True])
def test_a_host_that_some_read_as_an_address_and_others_as_a_name_is_refused(host: str, private: bool) -> None:
    """What connects may read it as inet_aton does and look nothing up; then no resolver would check it."""
    with pytest.raises(Forbidden):
        check_host(host, private=private)
    written = f"[{host}]" if ":" in host else host
    assert WebhookOptions("crm", f"https://{written}/", secret_env="CRM", private=private).why_not_url() is not None


@pytest.mark.parametrize("host", ["\uff11\uff12\uff17.0.0.1", "127\u30020\uff0e0\uff611"])
def test_other_digits_and_dots_are_read_as_a_browser_reads_them(host: str) -> None:
    check_host(host, private=True)
    with pytest.raises(Forbidden, match="is not public"):
        check_host(host, private=False)


@pytest.mark.parametrize(
    "host",
    [
        "example.org",
        "example.org.",
        "1and1.com",
        "0x.org",
        "7.example",
        "x0x7",
        "b\u00fccher.example",
        "127.0.0.1.nip.io",
    ],
)
def test_names_are_left_to_those_who_look_them_up(host: str) -> None:
    check_host(host, private=False)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "no address of a web server"),
        ("gopher://example.org/", "no address of a web server"),
        ("https:///path", "no address of a web server"),
        ("https://[::1", "is no URL"),
        ("https://example.org:99999/", "is no URL"),
        ("http://example.org/", "is not encrypted"),
        ("https://me:secret@example.org/", "holds a user or a fragment"),
        ("https://example.org/#part", "holds a user or a fragment"),
        ("https://127.0.0.1/", "leads where no message may go: 127.0.0.1 is not public"),
        ("https://[::ffff:10.0.0.1]/", "is not public"),
        ("https://169.254.169.254/latest/meta-data", "no webhook can be there"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_before_anything_is_sent(url: str, why: str) -> None:
    found = WebhookOptions("crm", url, secret_env="CRM").why_not_url()
    assert found is not None
    assert why in found
    assert "secret@" not in found


def test_urls_that_may_be_are_taken() -> None:
    assert WebhookOptions("crm", "https://example.org/hooks?from=pointsman", secret_env="CRM").why_not_url() is None
    assert WebhookOptions("crm", "http://127.0.0.1:9000/", secret_env="CRM", private=True).why_not_url() is None
    assert WebhookOptions("crm", "http://crm.internal/", secret_env="CRM", private=True).why_not_url() is None


def test_secrets_are_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    webhook = WebhookOptions("crm", "https://example.org/", secret_file=file)
    with pytest.raises(NoSecret, match="cannot be read"):
        webhook.secrets()
    file.write_text("\n")
    with pytest.raises(NoSecret, match="is empty; put a secret there, which `pointsman webhooks secret` makes"):
        webhook.secrets()
    first, second = Secret.new(), Secret.new()
    file.write_text(first.text() + "\n")
    assert webhook.secrets() == (first,)
    file.write_text(f"{second.text()}\n{first.text()}\n")
    assert webhook.secrets() == (second, first)
    file.write_text("hunter2")
    with pytest.raises(NoSecret, match="holds no secret") as caught:
        webhook.secrets()
    assert "hunter2" not in str(caught.value)


def test_a_secret_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    webhook = WebhookOptions("crm", "https://example.org/", secret_env="CRM_SECRET")
    with pytest.raises(NoSecret, match="the environment's CRM_SECRET is empty"):
        webhook.secrets()
    secret = Secret.new()
    monkeypatch.setenv("CRM_SECRET", secret.text())
    assert webhook.secrets() == (secret,)
