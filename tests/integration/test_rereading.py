"""A gateway whose certificate and API keys are renewed while it serves."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from contextlib import closing
from functools import partial
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.security import new_api_key
from tests.integration.process import CONFIG, running, wait_for
from tests.integration.test_v1 import call

CERT, KEY = "cert.pem", "key.pem"
READY = "/v2/health/ready"


def certify(folder: Path, name: str) -> None:
    """A new certificate for localhost under *name*, put in place as the tools that renew them do."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificates with openssl, which is not installed")
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    named = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", "new.key", "-out", "new.cert"]
    subprocess.run([openssl, *made, *named, *files], cwd=folder, check=True, timeout=30, capture_output=True)
    (folder / "new.cert").rename(folder / CERT)
    (folder / "new.key").rename(folder / KEY)


def write_keys(folder: Path, *digests: str) -> None:
    keys = [{"name": f"caller-{index}", "sha256": digest} for index, digest in enumerate(digests)]
    (folder / "keys.yaml").write_text(json.dumps(keys))


def connect(url: str) -> HTTPSConnection:
    where = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = HTTPSConnection(where.hostname or "", where.port, context=context, timeout=30)
    connection.connect()
    return connection


def is_well(connection: HTTPSConnection) -> bool:
    connection.request("GET", READY)
    response = connection.getresponse()
    response.read()
    return response.status == 200


def proof(url: str) -> bytes | None:
    """The certificate that a new connection is shown."""
    with closing(connect(url)) as connection:
        assert is_well(connection)
        return connection.sock.getpeercert(binary_form=True)


def in_place(folder: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert((folder / CERT).read_text())


def test_a_renewed_certificate_is_shown_to_new_connections_and_drops_none(tmp_path: Path) -> None:
    certify(tmp_path, "first")
    first = in_place(tmp_path)
    config = f"{CONFIG}\nserver: {{tls: {{cert: {CERT}, key: {KEY}}}}}\n"
    with running(tmp_path, config) as gateway:
        url = gateway.http.replace("http:", "https:")
        assert proof(url) == first
        with closing(connect(url)) as kept:
            assert is_well(kept)

            certify(tmp_path, "second")
            second = in_place(tmp_path)
            wait_for(lambda: proof(url) == second)
            assert is_well(kept)
            assert kept.sock.getpeercert(binary_form=True) == first

        (tmp_path / KEY).write_text("no key")
        wait_for(lambda: any("the TLS certificate cannot be used as it is in" in line for line in gateway.log))
        assert proof(url) == second
        assert gateway.terminate() == 0


def test_a_key_that_is_taken_from_its_file_lets_nobody_in_and_an_empty_file_nobody_either(tmp_path: Path) -> None:
    (anna, anna_digest), (bert, bert_digest) = new_api_key(), new_api_key()
    write_keys(tmp_path, anna_digest)
    config = f"{CONFIG}\nsecurity: {{api_keys_file: keys.yaml}}\n"
    with running(tmp_path, config, ["--workers", "2"]) as gateway:

        def statuses(base: str, path: str, key: str) -> set[int]:
            """Of several connections, so that every worker is asked."""
            return {call(f"{base}{path}", X_API_Key=key).status for _ in range(8)}

        for base, path in ((gateway.http, "/v2/models/double"), (gateway.control, "/v1/reviews/none")):
            assert statuses(base, path, bert) == {401}
            assert 401 not in statuses(base, path, anna)

        def only_refusals(base: str, path: str) -> bool:
            return statuses(base, path, anna) == {401}

        write_keys(tmp_path, bert_digest)
        for base, path in ((gateway.http, "/v2/models/double"), (gateway.control, "/v1/reviews/none")):
            wait_for(partial(only_refusals, base, path))
            assert 401 not in statuses(base, path, bert)

        (tmp_path / "keys.yaml").write_text("[]")
        wait_for(lambda: sum("would let everybody in" in line for line in gateway.log) == 3)
        assert statuses(gateway.http, "/v2/models/double", anna) == {401}
        assert 401 not in statuses(gateway.http, "/v2/models/double", bert)
