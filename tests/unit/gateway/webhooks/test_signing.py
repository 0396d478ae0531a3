"""Signatures that receivers check with the library that Standard Webhooks publishes."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from gateway.webhooks.signing import Secret, headers

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def test_a_signature_is_the_published_library_s() -> None:
    signed = Secret.parse(SECRET).sign(
        "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", 1674087231, '{"type":"contact.created","data":{"name":"Zoë"}}'.encode()
    )

    assert signed == "v1,V1PHeU0MPjBMe6ICPWKiXFZxoBC3/1cdBtyKIn2WVKM="


@given(st.binary(min_size=24, max_size=64), st.text(max_size=200))
def test_a_receiver_takes_what_is_signed_and_nothing_else(key: bytes, body: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in body):
        return
    receiver = Webhook(Secret(key).text())
    sent = headers("0192", int(time.time()), body.encode(), [Secret(key)])

    receiver.verify(body, sent, json_parse=False)
    for altered in (
        {**sent, "webhook-id": "0193"},
        {**sent, "webhook-timestamp": str(int(sent["webhook-timestamp"]) + 1)},
    ):
        with pytest.raises(WebhookVerificationError):
            receiver.verify(body, altered, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        receiver.verify(body + "x", sent, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(Secret.new().text()).verify(body, sent, json_parse=False)


def test_while_a_secret_is_changed_both_are_good() -> None:
    before, after = Secret.new(), Secret.new()
    sent = headers("0192", int(time.time()), b"{}", [after, before])

    for secret in (before, after):
        Webhook(secret.text()).verify(b"{}", sent)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec_!!!",
        SECRET.removeprefix("whsec_"),
        "whsec_" + base64.b64encode(b"short").decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whpk_" + base64.b64encode(bytes(32)).decode(),
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="it is not whsec_ and") as caught:
        Secret.parse(text)
    assert len(text) < 8 or text[6:] not in str(caught.value)


def test_a_secret_is_not_printed() -> None:
    secret = Secret.new()
    assert secret.text() not in repr(secret)
    assert repr(secret.key) not in repr(secret)
    assert Secret.parse(secret.text()) == secret
