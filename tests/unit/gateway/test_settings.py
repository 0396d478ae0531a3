"""A configuration comes to frozen options, or to every fault in it with its line and its remedy."""

# ruff: noqa: E501 (a fault stands on one line here, as it does where it is told)

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.contract import Datatype, TensorSpec
from backends.echo import EchoOptions
from backends.onnx import OnnxOptions
from batching.options import BatchingOptions, SequenceOptions
from gateway.grpc_edge.transport import Transport
from gateway.masking import JsonPath, MaskOptions
from gateway.notices.options import NotifyOptions, SmtpOptions
from gateway.request import Role
from gateway.security import ApiKey, SecurityOptions
from gateway.settings import (
    CertifiedSettings,
    DetectorSettings,
    ServerOptions,
    Settings,
    SettingsError,
    load_settings,
    settings_schema,
)
from gateway.shared_memory import SharedMemoryOptions
from gateway.store.contract import NoticeKind
from gateway.store.options import Postgres, Retention, StoreOptions
from gateway.webhooks.options import WebhookOptions
from kernels.devices import KernelOptions
from router.calibration import Calibration, Isotonic, Temperature
from router.certificate import Certificate, StageSubject, Subject
from router.certification import Budget
from router.confidence import Kind, Measure
from router.contract import AcceptAny, HumanPolicy, LabelQuality, MinConfidence, Observe, OnDefer
from router.table import Conditions, Glob, ParameterTest, Range, RouteTable, Rule, Target, TraitTest

DIGEST = hashlib.sha256(b"key").hexdigest()

WHOLE = f"""\
models:
  fast:
    backend: onnx
    path: models/fast.onnx
    threads: 2
    preprocess: [gray, {{resize: {{size: [14, 14], method: area}}}}, {{scale: 0.0039}}]
    postprocess: [softmax]
    labels: ["0", "1"]
    confidence: max
    calibration: fast.json
    batching: {{max_batch: 64, max_delay: 2ms, max_queue: 10, max_queue_bytes: 1MiB}}
    cost: 0.02
  strong:
    backend: echo
    shape: [2]
    labels_file: labels.txt
    expose: true
routes:
  digits:
    input: {{image: {{datatype: BYTES, shape: [1]}}}}
    decode: image
    cascade: [fast, strong]
    accept: {{min_confidence: 0.9, max_error: 2%}}
    human: {{queue: digits, due: 4h, form: labels}}
    on_defer: error
    slo: {{deadline: 250ms}}
  plain:
    input: {{x: {{datatype: FP32, shape: [-1, 3]}}}}
    decode: none
    cascade: [strong]
    accept: {{min_confidence: 1}}
    human: none
classify:
  - when: {{content_type: "Image/*", size: "<= 1MiB", tenant: [acme, "b*"], parameters: {{team: [billing, ">= 3", "l*"]}}}}
    route: digits
    to: human
  - when: {{route: plain, size: "> 0, < 2kB"}}
    route: digits
  - otherwise: plain
server: {{host: localhost, http_port: 0, grpc_port: 0, control_port: 9002, max_body: 1MB, drain: 0}}
store: {{path: data/p.db, retention: 1d, limit: 2GiB}}
security:
  api_keys:
    - {{name: ci, sha256: {DIGEST}, tenant: acme, roles: [caller, reviewer]}}
"""

ROUTE = "{input: {x: {datatype: FP32, shape: [2]}}, cascade: [strong], accept: {min_confidence: 1}}"

FITTED = Calibration(Isotonic((0.0, 1.0), (0.1, 0.9)), Measure(), 100, "fast", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every file that `WHOLE` names."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fast.onnx").write_bytes(b"")
    (tmp_path / "fast.json").write_text(json.dumps(FITTED.to_dict()))
    (tmp_path / "labels.txt").write_text("0\n1\n")
    return tmp_path


def load(folder: Path, text: str) -> Settings:
    file = folder / "pointsman.yaml"
    file.write_text(text)
    return load_settings(file)


def faults_of(folder: Path, text: str) -> list[str]:
    """Every fault as told, without the file's name."""
    with pytest.raises(SettingsError) as caught:
        load(folder, text)
    return [str(fault).removeprefix(f"{folder / 'pointsman.yaml'}:") for fault in caught.value.faults]


def changed(old: str, new: str) -> str:
    """`WHOLE` with one thing changed."""
    assert WHOLE.count(old) == 1, f"{old!r} stands {WHOLE.count(old)} times"
    return WHOLE.replace(old, new)


# --- what a sound file comes to ---


def test_models_come_to_their_options(folder: Path) -> None:
    models = load(folder, WHOLE).models

    fast, strong = models["fast"], models["strong"]
    assert list(models) == ["fast", "strong"]
    assert fast.options == OnnxOptions(path=folder / "models/fast.onnx", threads=2)
    assert fast.preprocess == ("gray", {"resize": {"size": [14, 14], "method": "area"}}, {"scale": 0.0039})
    assert (fast.postprocess, fast.base, fast.labels) == (("softmax",), folder, ("0", "1"))
    assert (fast.measure, fast.calibrator) == (Measure(), FITTED.calibrator)
    assert fast.batching == BatchingOptions(64, 0.002, 10, 1024 * 1024)
    assert (fast.cost, fast.expose) == (0.02, False)
    assert strong.options == EchoOptions(shape=(2,))
    assert (strong.labels, strong.batching, strong.expose) == (("0", "1"), BatchingOptions(), True)


def test_a_model_says_how_many_sequences_it_answers_and_a_route_that_it_takes_any_answer(folder: Path) -> None:
    route = "{input: {x: {datatype: FP32, shape: [2]}}, cascade: [strong], accept: {any: true}}"
    model = "{backend: echo, shape: [2], sequences: {max_live: 3}}"
    text = f"models: {{strong: {model}}}\nroutes: {{only: {route}}}\nstore: {{path: p.db, retention: 1d, limit: 1GiB}}"

    settings = load(folder, text)

    assert settings.models["strong"].sequences == SequenceOptions(max_live=3)
    assert settings.routes["only"].accept == AcceptAny()
    beside = text.replace("{any: true}", "{any: true, max_error: 1%}")
    assert any("takes every answer; remove what stands beside it" in fault for fault in faults_of(folder, beside))
    two = text.replace("models: {", f"models: {{other: {model}, ").replace("[strong]", "[strong, other]")
    assert any("leave out the others" in fault for fault in faults_of(folder, two))
    assert any("max_live" in fault for fault in faults_of(folder, text.replace("max_live: 3", "max_live: 0")))


def test_routes_come_to_what_the_router_needs(folder: Path) -> None:
    routes = load(folder, WHOLE).routes

    digits, plain = routes["digits"], routes["plain"]
    assert digits.inputs == (TensorSpec("image", Datatype.BYTES, (1,)),)
    assert (digits.decode, digits.cascade, digits.labels) == ("image", ("fast", "strong"), ("0", "1"))
    assert (digits.accept, digits.max_error) == (MinConfidence(0.9), 0.02)
    assert digits.human == HumanPolicy("digits", 4 * 3600.0, ("0", "1"))
    assert (digits.on_defer, digits.deadline_s) == (OnDefer.ERROR, 0.25)
    assert plain.inputs == (TensorSpec("x", Datatype.FP32, (-1, 3)),)
    assert (plain.decode, plain.human, plain.max_error) == (None, None, None)
    assert (plain.on_defer, plain.deadline_s) == (OnDefer.PROVISIONAL, 1.0)
    assert not plain.id_as_key


def test_people_are_asked_for_ever_or_as_long_as_is_said(folder: Path) -> None:
    def human(words: str) -> HumanPolicy | None:
        return load(folder, WHOLE.replace("due: 4h, form", f"due: 4h, {words} form")).routes["digits"].human

    assert human("") == HumanPolicy("digits", 4 * 3600.0, ("0", "1"), None)
    assert human("expires: 7d,") == HumanPolicy("digits", 4 * 3600.0, ("0", "1"), 7 * 86_400.0)
    for too_soon in ("3h", "0"):
        faults = faults_of(folder, WHOLE.replace("due: 4h, form", f"due: 4h, expires: {too_soon}, form"))
        assert any("routes.digits.human.expires" in fault for fault in faults)


def test_how_long_a_decision_can_be_taken_back_can_be_said(folder: Path) -> None:
    for text, undo_s in (("", 10.0), ("undo: 0,", 0.0), ("undo: 1m,", 60.0)):
        assert load(folder, WHOLE.replace("store: {", f"store: {{{text}")).store.undo_s == undo_s


@pytest.mark.parametrize(
    ("written", "decoder"), [("{image: nvimgcodec}", "image-nvimgcodec"), ("none", None), ("utf8", "utf8")]
)
def test_a_decoder_may_be_told_what_does_it(folder: Path, written: str, decoder: str | None) -> None:
    text = WHOLE.replace("    decode: image\n", f"    decode: {written}\n")

    assert load(folder, text).routes["digits"].decode == decoder


def test_classify_comes_to_a_route_table(folder: Path) -> None:
    table = load(folder, WHOLE).table

    first = Conditions(
        content_types=(Glob("image/*"),),
        size=Range(high=1024**2),
        tenants=(Glob("acme"), Glob("b*")),
        parameters=(ParameterTest("team", ("billing", Range(low=3), Glob("l*"))),),
    )
    second = Conditions(routes=(Glob("plain"),), size=Range(0, 2000, low_open=True, high_open=True))
    assert table == RouteTable(
        routes=frozenset({"digits", "plain", "strong"}),
        rules=(Rule(first, "digits", to_person=True), Rule(second, "digits")),
        default=Target("plain"),
    )


def test_server_store_and_security_come_to_their_options(folder: Path) -> None:
    whole = load(folder, WHOLE)

    assert whole.server == ServerOptions("localhost", 0, 0, 9002, 1_000_000, 0.0)
    assert whole.store == StoreOptions(folder / "data/p.db", 86_400.0, 2 * 1024**3)
    assert whole.security == SecurityOptions((ApiKey("ci", DIGEST, "acme", frozenset({Role.CALLER, Role.REVIEWER})),))


def test_a_grpc_transport_that_is_not_installed_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "models: {m: {backend: echo, expose: true}}\nserver: {grpc_transport: native}\n"
    monkeypatch.setattr("gateway.grpc_edge.transport.PACKAGE", "a_package_that_nobody_has")

    (told,) = faults_of(folder, text)

    assert told.startswith("2:26: server.grpc_transport: native needs pygrpc-native, which is not installed")
    assert load(folder, text.replace("native", "auto")).server.grpc_transport is Transport.AUTO


def test_a_small_file_gets_the_defaults(folder: Path) -> None:
    small = load(folder, "models: {m: {backend: echo, expose: true}}\n")

    assert small.table == RouteTable(frozenset({"m"}))
    assert small.server == ServerOptions()
    assert small.store == StoreOptions(folder / "pointsman.db")
    assert small.security == SecurityOptions()
    assert small.models["m"].calibration is None


def test_a_store_on_postgresql_comes_to_its_options(folder: Path) -> None:
    text = "models: {m: {backend: echo, expose: true}}\nstore: {postgres: {%s}, retention: 1d}\n"

    by_variable = load(folder, text.replace("retention", "key_env: KEY, retention") % "url_env: STORE").store
    by_file = load(folder, text % "url_file: secrets/store").store

    assert by_variable == StoreOptions(Postgres(url_env="STORE"), 86_400.0, key_env="KEY")
    assert by_file == StoreOptions(Postgres(url_file=folder / "secrets/store"), 86_400.0)
    assert by_file.name == f"store on PostgreSQL ({folder / 'secrets/store'})"


@pytest.mark.parametrize(
    ("store", "fault"),
    [
        ("{postgres: {}}", "store.postgres: needs `url_env` or `url_file`, one of them: where the address"),
        ("{postgres: {url_env: A, url_file: b}}", "store.postgres: needs `url_env` or `url_file`, one of them"),
        ("{postgres: {url_env: A}, path: p.db, key_env: K}", "store.path: stands beside `postgres`; keep one of them"),
        ("{postgres: {url_env: A}}", "store.postgres: needs `key_env` or `key_file` beside it: all who share a store"),
        ("{postgres: {url: 'postgresql://a:b@c/d'}}", "store.postgres.url: is an unknown key"),
    ],
)
def test_a_store_that_is_not_one_place_is_a_fault(folder: Path, store: str, fault: str) -> None:
    (told, *_) = faults_of(folder, f"models: {{m: {{backend: echo, expose: true}}}}\nstore: {store}\n")

    assert fault in told
    assert "a:b" not in told


def test_a_store_on_postgresql_without_its_driver_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.settings.load.why_not_postgres", lambda: "needs its extra: pip install")

    (told,) = faults_of(folder, "models: {m: {backend: echo, expose: true}}\nstore: {postgres: {url_file: a}}\n")

    assert "store.postgres: needs its extra" in told


def test_a_digest_is_not_printed(folder: Path) -> None:
    assert DIGEST not in repr(load(folder, WHOLE))


def test_paths_hold_when_the_working_directory_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pointsman.yaml").write_text(WHOLE)
    monkeypatch.chdir(folder)

    whole = load_settings(Path("pointsman.yaml"))

    assert whole.models["fast"].options.path == folder / "models/fast.onnx"


def test_a_confidence_that_is_not_said_is_the_calibrations(folder: Path) -> None:
    fitted = Calibration(Isotonic((0.0, 1.0), (0.1, 0.9)), Measure(Kind.MARGIN), 100, "fast", "1")
    (folder / "fast.json").write_text(json.dumps(fitted.to_dict()))

    assert load(folder, changed("    confidence: max\n", "")).models["fast"].measure == Measure(Kind.MARGIN)


def test_webhooks_come_to_their_options(folder: Path) -> None:
    text = (
        WHOLE
        + """\
webhooks:
  crm: {url: "https://crm.example.org/hooks", secret_env: CRM, routes: [plain]}
  own: {url: "http://10.0.0.7/", secret_file: secrets/own, tenant: acme, private: true}
"""
    )
    assert load(folder, text).webhooks == (
        WebhookOptions("crm", "https://crm.example.org/hooks", secret_env="CRM", routes=frozenset({"plain"})),
        WebhookOptions("own", "http://10.0.0.7/", secret_file=folder / "secrets/own", tenant="acme", private=True),
    )


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ('{url: "https://a.example/"}', "crm: needs `secret_env` or `secret_file`, one of them: what its messages are signed with"),
        ('{url: "https://a.example/", secret_env: A, secret_file: b}', "crm: needs `secret_env` or `secret_file`, one of them: what its messages are signed with"),
        ('{url: "http://a.example/", secret_env: A}', "crm.url: is not encrypted; use https, or set `private: true` where it is in your own network"),
        ('{url: "https://a.example/", secret_env: A, routes: [plain, nowhere]}', "crm.routes[1]: there is no route 'nowhere'; known: "),
        ('{url: "https://a.example/", secret_env: A, retries: 3}', "crm.retries: is an unknown key; did you mean routes?"),
    ],
)  # fmt: skip
def test_a_fault_of_a_webhook_is_told_with_its_place_and_remedy(folder: Path, entry: str, told: str) -> None:
    (found,) = faults_of(folder, f"{WHOLE}webhooks:\n  crm: {entry}\n")
    assert f": webhooks.{told}" in found


def test_how_long_each_kind_is_kept_is_read(folder: Path) -> None:
    start = WHOLE[: WHOLE.index("store:")]
    rest = WHOLE[WHOLE.index("security:") :]
    one = load(folder, f"{start}store: {{retention: 7d, key_env: KEY}}\n{rest}").store
    assert (one.retention_s, one.kept, one.key_env) == (7 * 86_400.0, Retention(), "KEY")

    each = "{answers: 30d, payloads: 7d, decisions: 365d, feedback: 365d, messages: 14d, keys: 48h}"
    store = load(folder, f"{start}store: {{retention: {each}, key_file: secrets/key}}\n{rest}").store
    day_s = 86_400.0
    assert store.retention_s == 30 * day_s
    assert store.kept == Retention(7 * day_s, 365 * day_s, 365 * day_s, 14 * day_s, 2 * day_s)
    assert store.key_file == folder / "secrets/key"

    (found,) = faults_of(folder, f"{start}store: {{retention: {{answers: 7d, payloads: 8d}}}}\n{rest}")
    assert "store.retention.payloads: is longer than answers are kept; make it shorter" in found


NOTIFYING = (
    WHOLE
    + """\
webhooks:
  crm: {url: "https://crm.example.org/hooks", secret_env: CRM, answers: false}
smtp: {host: mail.example.org, sender: pointsman@example.org, user: desk, password_file: secrets/mail}
notify:
  - {queue: QUEUE, webhook: crm, on: [new], digest: 1m}
  - {queue: QUEUE, email: [anna@example.org, bert@example.org], ahead: 30m, link: "https://inbox.example.org"}
mask:
  - {parameter: customer}
  - {path: "$.customer.iban", by: "[IBAN]", routes: [plain]}
  - {text: "[0-9]{4} [0-9]{4}"}
""".replace("QUEUE", "digits")
)


def test_masks_and_who_is_told_come_to_their_options(folder: Path) -> None:
    found = load(folder, NOTIFYING)

    assert not found.webhooks[0].answers
    assert found.smtp == SmtpOptions(
        "mail.example.org", "pointsman@example.org", user="desk", password_file=folder / "secrets/mail"
    )
    assert found.notify == (
        NotifyOptions("digits", webhook="crm", on=frozenset({NoticeKind.NEW}), digest_s=60.0),
        NotifyOptions(
            "digits", email=("anna@example.org", "bert@example.org"), ahead_s=1800.0, link="https://inbox.example.org"
        ),
    )
    assert found.masks == (
        MaskOptions(parameter="customer"),
        MaskOptions(path=JsonPath.parse("$.customer.iban"), by="[IBAN]", routes=frozenset({"plain"})),
        MaskOptions(pattern=re.compile("[0-9]{4} [0-9]{4}")),
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{parameter: customer}", "{parameter: customer, text: x}", "mask[0]: needs `parameter`, `path` or `text`, one of them: what is masked"),
        ("$.customer.iban", "customer.iban", "mask[1].path: is 'customer.iban', which is no place in JSON; write it like"),
        ("[0-9]{4} [0-9]{4}", "[0-9", "mask[2].text: is '[0-9', which is no regular expression: "),
        ("[0-9]{4} [0-9]{4}", "[0-9]*", "mask[2].text: is '[0-9]*', which matches nothing at all, and so everywhere"),
        ("routes: [plain]}\n  - {text", "routes: [plane]}\n  - {text", "mask[1].routes[0]: there is no route 'plane'; did you mean plain?"),
        ("queue: digits, webhook", "queue: digit, webhook", "notify[0].queue: there is no queue 'digit'; did you mean digits?"),
        ("webhook: crm", "webhook: cmr", "notify[0].webhook: there is no webhook 'cmr'; did you mean crm?"),
        ("webhook: crm, ", "", "notify[0]: needs `webhook` or `email`, one of them: who is told"),
        ("bert@example.org]", '"bert@example.org\\nBcc: eve@example.org"]', "notify[1].email[1]: is "),
        ("email: [anna@example.org, bert@example.org]", "webhook: crm", "notify[1]: tells the same of queue 'digits' as entry 0 does; make them one"),
        ("smtp: {host: mail.example.org, sender: pointsman@example.org, user: desk, password_file: secrets/mail}\n", "", "notify[1].email: needs a server that takes mail; add `smtp:"),
        (", password_file: secrets/mail", "", "smtp: needs `user` and one of `password_env` and `password_file`, or none of them"),
        (", user: desk", ", user: desk, security: none", "smtp.security: is none, so the password would be sent as it is"),
        ("sender: pointsman@example.org", "sender: pointsman", "smtp.sender: is 'pointsman', which is no mailbox"),
        (", user: desk", ", user: desk, ca: nowhere.pem", "smtp.ca: "),
    ],
)  # fmt: skip
def test_a_fault_of_masks_or_notices_is_told_with_its_place_and_remedy(
    folder: Path, old: str, new: str, told: str
) -> None:
    assert old in NOTIFYING
    (found,) = faults_of(folder, NOTIFYING.replace(old, new))
    assert f": {told}" in found


def test_keys_can_stand_in_a_file_of_their_own(folder: Path) -> None:
    (folder / "keys.yaml").write_text(f"- {{name: ci, sha256: {DIGEST}}}\n")
    text = WHOLE[: WHOLE.index("security:")] + "security: {api_keys_file: keys.yaml}\n"

    assert load(folder, text).security == SecurityOptions((ApiKey("ci", DIGEST),), folder / "keys.yaml")


DETECTING = """\
models:
  tongue: {backend: echo, labels: [en, fr]}
detectors:
  language: {model: tongue, decode: utf8, min_confidence: 0.6, timeout: 50ms}
  content_type: tongue
routes:
  desk: {input: {text: {datatype: BYTES, shape: [1]}}, cascade: [], human: {queue: desk, form: text}}
classify:
  - name: foreign
    when: {traits: {language: {none_of: en, confidence: 90%}}}
    route: desk
    to: human
  - {when: {traits: {language: [en, "e*"]}}, route: desk}
  - unsure: {route: desk, to: human}
  - otherwise: none
"""


def test_detectors_and_conditions_on_traits_come_to_a_table(folder: Path) -> None:
    whole = load(folder, DETECTING)

    assert whole.detectors == {
        "language": DetectorSettings("language", "tongue", "utf8", 0.6, 0.05),
        "content_type": DetectorSettings("content_type", "tongue", None, 0.0, 1.0),
    }
    foreign = Conditions(traits=(TraitTest("language", excluded=(Glob("en"),), floor=0.9),))
    english = Conditions(traits=(TraitTest("language", (Glob("en"), Glob("e*"))),))
    assert whole.table == RouteTable(
        routes=frozenset({"desk"}),
        rules=(Rule(foreign, "desk", to_person=True, name="foreign"), Rule(english, "desk")),
        unsure=Target("desk", to_person=True),
        detectors=frozenset({"language", "content_type"}),
    )


def test_a_route_of_people_alone_needs_no_rule_of_acceptance(folder: Path) -> None:
    desk = load(folder, DETECTING).routes["desk"]

    assert (desk.cascade, desk.human) == ((), HumanPolicy("desk", 86_400.0))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("model: tongue, decode", "model: tong, decode", "4:21: detectors.language.model: there is no model 'tong'; did you mean tongue?"),
        ("decode: utf8", "decode: utf9", "4:37: detectors.language.decode: there is no decoder 'utf9'; did you mean utf8?"),
        ("content_type: tongue", "content_type: tong", "5:17: detectors.content_type.model: there is no model 'tong'; did you mean tongue?"),
        ("cascade: [], ", "cascade: [], accept: {observe: true}, ", "7:69: routes.desk.accept: says when a stage is sure, and there is none; remove it"),
        ("min_confidence: 0.6", "min_confidence: 6", "4:59: detectors.language.min_confidence: is 6; use at most 1.0"),
        ("  - unsure: {route: desk, to: human}\n", "", "8:1: classify: does not say where requests go that detectors doubt; add `- unsure: {route: ROUTE, to: human}`"),
        ("confidence: 90%", "confidance: 90%", "10:45: classify[0].when.traits.language.confidance: is an unknown key; did you mean confidence?"),
    ],
)  # fmt: skip
def test_a_fault_of_a_detector_is_told_with_its_place_and_remedy(folder: Path, old: str, new: str, told: str) -> None:
    assert DETECTING.count(old) == 1
    assert faults_of(folder, DETECTING.replace(old, new)) == [told]


def certificate_for(route: str, max_error: float = 0.01, confidence: float = 0.95) -> Certificate:
    """Of no models at all: what it is about is looked at elsewhere."""
    subject = Subject(route, (StageSubject("strong", "1", "", ""),))
    return Certificate(subject, max_error, confidence, 0.9, 1000, 500, 1, 0.009, 0.0, 1e12, "a test")


def test_a_certificate_file_comes_with_the_budget_that_it_must_prove(folder: Path) -> None:
    certificate = certificate_for("plain")
    (folder / "plain.certificate.json").write_text(json.dumps(certificate.to_dict()))
    accept = "{max_error: 2%, confidence: 90%, certificate: plain.certificate.json}"

    plain = load(folder, changed("{min_confidence: 1}", accept)).routes["plain"]

    assert plain.accept == CertifiedSettings(Budget(0.02, 0.9), certificate)
    assert load(folder, changed("{min_confidence: 1}", "{max_error: 2%}")).routes["plain"].accept == CertifiedSettings(
        Budget(0.02, 0.95)
    )


def test_a_certificate_file_that_proves_too_little_is_a_fault(folder: Path) -> None:
    (folder / "plain.certificate.json").write_text(json.dumps(certificate_for("plain", max_error=0.03).to_dict()))
    accept = "{max_error: 2%, certificate: plain.certificate.json}"

    (told,) = faults_of(folder, changed("{min_confidence: 1}", accept))

    assert told == (
        "31:42: routes.plain.accept.certificate: proves 3.00% at 95.0%, less than the route asks; certify the route again"
    )


def test_a_certificate_file_of_another_route_is_a_fault(folder: Path) -> None:
    (folder / "plain.certificate.json").write_text(json.dumps(certificate_for("digits").to_dict()))
    accept = "{max_error: 2%, certificate: plain.certificate.json}"

    (told,) = faults_of(folder, changed("{min_confidence: 1}", accept))

    assert told.endswith("plain.certificate.json is about route 'digits', not 'plain'; name the right one")


def test_a_route_can_observe(folder: Path) -> None:
    observing = load(folder, changed("{min_confidence: 1}", "{observe: true, max_error: 1%}")).routes["plain"]

    assert (observing.accept, observing.max_error) == (Observe(), 0.01)


# --- one fault at a time ---

FAULTS = [
    # keys
    ("    threads: 2", "    thread: 2", "5:5: models.fast.thread: is an unknown key; did you mean threads?"),
    ("    cost: 0.02", "    costs: 0.02", "12:5: models.fast.costs: is an unknown key; did you mean cost?"),
    ("max_queue: 10", "max_que: 10", "11:47: models.fast.batching.max_que: is an unknown key; did you mean max_queue?"),
    ("    on_defer: error", "    ondefer: error", "25:5: routes.digits.ondefer: is an unknown key; did you mean on_defer?"),
    (
        "store: {path",
        "zzz: {path",
        "41:1: zzz: is an unknown key; known: classify, cluster, detectors, mask, models, notify, pool, queues, routes, "
        "security, server, smtp, store, telemetry, webhooks",
    ),
    (
        "    cost: 0.02",
        "    threads: 3",
        "12:5: models.fast.threads: stands here twice, first in line 5; keep one of them",
    ),
    ("    on_defer: error", "    2: error", "25:5: routes.digits.2: the key 2 is not text; quote it"),
    ("    path: models/fast.onnx\n", "", "2:3: models.fast.path: is missing; add it"),
    ("    backend: echo\n", "", "13:3: models.strong.backend: is missing; add it"),
    # types
    ("    threads: 2", "    threads: two", '5:14: models.fast.threads: is "two", which is not a whole number; write a whole number'),
    ("    threads: 2", "    threads: true", "5:14: models.fast.threads: is true, which is not a whole number; write a whole number"),
    ("    threads: 2", "    threads: .nan", "5:14: models.fast.threads: is .nan, which is not a finite number; write one"),
    ("    cost: 0.02", "    cost: -1", "12:11: models.fast.cost: is -1; use at least 0.0"),
    ("    cost: 0.02", "    cost: 1e999", "12:11: models.fast.cost: is 1e999, which is not a finite number; write one"),
    ("expose: true", "expose: yes", '17:13: models.strong.expose: is "yes", which is not true or false; write true or false'),
    ('["0", "1"]', '[0, "1"]', "8:14: models.fast.labels[0]: is 0, which is not text; write one, in quotes if need be"),
    ("confidence: max", "confidence: best", "9:17: models.fast.confidence: confidence 'best' is unknown; use max, margin, entropy or output:NAME"),
    ("max_delay: 2ms", "max_delay: 2", "11:42: models.fast.batching.max_delay: is 2, which is not a duration; write it like 250ms, 20s, 1m, 4h or 30d"),
    ("max_queue_bytes: 1MiB", "max_queue_bytes: 1M", "11:79: models.fast.batching.max_queue_bytes: is '1M', which is not a size; write it like 512B, 64KiB, 16MiB or 2GB"),
    ("max_error: 2%", "max_error: 200%", "23:46: routes.digits.accept.max_error: is '200%'; use a share between 0% and 100%, such as 2%"),
    ("min_confidence: 0.9", "min_confidence: 1.9", "23:30: routes.digits.accept.min_confidence: is 1.9; use at most 1.0"),
    ("deadline: 250ms", "deadline: 0", "26:21: routes.digits.slo.deadline: is 0; use something above 0"),
    ("datatype: FP32", "datatype: F32", "28:27: routes.plain.input.x.datatype: is \"F32\"; use 'BOOL', 'UINT8', 'UINT16', 'UINT32', 'UINT64', 'INT8', 'INT16', 'INT32', 'INT64', 'FP16', 'FP32', 'FP64', 'BF16' or 'BYTES'"),
    ("shape: [-1, 3]", "shape: [-1, 0]", "28:45: routes.plain.input.x.shape[1]: is 0; use the length of an axis, at least 1, or -1 where it varies"),
    ("on_defer: error", "on_defer: maybe", "25:15: routes.digits.on_defer: is \"maybe\"; use 'provisional' or 'error'"),
    ("form: labels", "form: radio", "24:43: routes.digits.human.form: is \"radio\"; use 'labels' or 'text'"),
    ("human: none", "human: nobody", '32:12: routes.plain.human: is "nobody", which is not a mapping; write a mapping'),
    ("http_port: 0", "http_port: 0, grpc_transport: h2", "40:57: server.grpc_transport: is \"h2\"; use 'auto', 'native' or 'grpcio'"),
    ("http_port: 0", "http_port: 70000", "40:38: server.http_port: is 70000; use at most 65535"),
    ('size: "<= 1MiB"', "size: 1MiB", "34:43: classify[0].when.size: is '1MiB', which compares nothing; write it like '<= 1MiB' or '>= 1KiB, < 1MiB'"),
    ("[billing, ", "[[x], ", "34:96: classify[0].when.parameters.team[0]: is ['x']; use text, a number, true or false, a pattern such as 'a*', or a range like '>= 3'"),
    # references
    ("backend: echo", "backend: ech", "14:14: models.strong.backend: there is no backend 'ech'; did you mean 'echo'? there are echo, langid, magika, oip, onnx, openai, python, ray_serve, triton; others come with packages of their own"),
    ("[fast, strong]", "[fast, stron]", "22:21: routes.digits.cascade[1]: there is no model 'stron'; did you mean strong?"),
    ("[fast, strong]", "[fast, fast]", "22:21: routes.digits.cascade[1]: 'fast' is a stage already; keep one of them"),
    ("[fast, strong]\n    accept: {min_confidence: 0.9, max_error: 2%}", "[]", "23:43: routes.digits.human.form: there are no labels to choose from; set form: text"),
    ("cascade: [strong]\n    accept: {min_confidence: 1}", "cascade: []", "30:14: routes.plain.cascade: is empty, and there are no people; add models, or `human`"),
    ("decode: image", "decode: imag", "21:13: routes.digits.decode: there is no decoder 'imag'; did you mean image?"),
    ("decode: image", "decode: {image: nvjpeg}", "21:13: routes.digits.decode: there is no decoder 'image-nvjpeg'; did you mean image-nvimgcodec?"),
    ("decode: image", "decode: {image: 1}", "21:13: routes.digits.decode: is {'image': 1}, which is not text; write one, in quotes if need be"),
    ("decode: none", "decode: image", "28:5: routes.plain.input: a route that decodes takes one input; make it {datatype: BYTES, shape: [1]}, or set decode: none"),
    ("    route: digits\n    to: human", "    route: digit\n    to: human", "35:12: classify[0].route: there is no route 'digit'; known: digits, plain, strong"),
    ("otherwise: plain", "otherwise: auto", "39:16: classify[2].otherwise: 'auto' would ask these rules again; name a route"),
    ("otherwise: plain", "otherwise: {route: plain, to: human}", "39:35: classify[2].otherwise.to: route 'plain' has no people; give it `human`, or remove `to`"),
    ("when: {route: plain, ", "when: {route: plane, ", "37:19: classify[1].when.route: no route matches 'plane'; known: digits, plain, strong"),
    # what belongs together
    ("models/fast.onnx", "models/slow.onnx", "4:11: models.fast.path: {folder}/models/slow.onnx does not exist; correct the path"),
    ("calibration: fast.json", "calibration: slow.json", "10:18: models.fast.calibration: {folder}/slow.json does not exist; correct the path"),
    ("confidence: max", "confidence: margin", "10:18: models.fast.calibration: {folder}/fast.json was fitted for confidence max, not margin; make them the same"),
    ('["0", "1"]', '["1", "0"]', "22:21: routes.digits.cascade[1]: labels of 'strong' differ from those of 'fast'; stages of a route share theirs, in the same order"),
    ("labels_file: labels.txt", "labels_file: .", "16:18: models.strong.labels_file: {folder} is not a regular file; name one"),
    ("[softmax]", "[softmaxx]", "7:19: models.fast.postprocess[0]: step 1 of 1: unknown step 'softmaxx'; did you mean softmax or log_softmax?"),
    ("    accept: {min_confidence: 1}\n", "", "27:3: routes.plain.accept: is missing; add it, such as {min_confidence: 0.9}"),
    ("{min_confidence: 1}", "{}", "31:5: routes.plain.accept.min_confidence: is missing, as are max_error and observe; write one of them, such as {max_error: 1%}"),
    ("{min_confidence: 1}", "{min_confidence: 1, observe: true}", "31:33: routes.plain.accept.observe: stands beside min_confidence; keep one of them"),
    ("max_error: 2%", "max_error: 2%, confidence: 95%", "23:50: routes.digits.accept.confidence: belongs to max_error alone; remove it"),
    ("{min_confidence: 1}", "{max_error: 1%, certificate: no.json}", "31:42: routes.plain.accept.certificate: {folder}/no.json does not exist; correct the path"),
    ("{min_confidence: 1}", "{max_error: 1%, certificate: fast.json}", "31:42: routes.plain.accept.certificate: {folder}/fast.json: not a certificate (no format 'pointsman-certificate/1' or 'pointsman-certificate/2'); certify the route again"),
    ("  - otherwise: plain\n", "", "33:1: classify: has no default; end it with `- otherwise: ROUTE`, or `- otherwise: none`"),
    ("  - otherwise: plain\n", "  - unsure: plain\n  - unsure: plain\n  - otherwise: none\n", "40:5: classify[3]: `unsure` stands here a second time; keep one of them"),
    ("  - otherwise: plain\n", "  - unsure: plane\n  - otherwise: none\n", "39:13: classify[2].unsure: there is no route 'plane'; known: digits, plain, strong"),
    ("when: {route: plain, ", "when: {route: plain, traits: {language: fr}, ", "37:45: classify[1].when.traits.language: nothing detects 'language'; known: none; add it to `detectors`"),
    ("  - otherwise: plain\n", "  - otherwise: plain\n  - otherwise: digits\n", "39:5: classify[2]: `otherwise` takes all that is left; move it to the end, once"),
    ('when: {route: plain, size: "> 0, < 2kB"}', "when: {}", "37:11: classify[1].when: admits every request; name a condition, or write it as `otherwise`"),
    ("http_port: 0, grpc_port: 0", "http_port: 9002", "40:58: server.control_port: is 9002, as http_port is; give each a port of its own"),
    ("labels_file: labels.txt", "labels_file: labels.txt\n    labels: [a]", "16:18: models.strong.labels_file: stands beside labels; keep one of them"),
    ("  api_keys:", "  api_keys_file: keys.yaml\n  api_keys:", "43:18: security.api_keys_file: stands beside api_keys; keep one of them"),
    ("name: ci", "name: anonymous", "44:7: security.api_keys[0]: API key name 'anonymous' must be 1 to 64 printable characters, and not 'anonymous'"),
    # names
    ("routes:\n", f"routes:\n  auto: {ROUTE}\n", "19:3: routes.auto: 'auto' is reserved; choose another name"),
    ("  strong:\n", "  .m: {backend: echo}\n  strong:\n", "13:3: models..m: is no name; use 1 to 128 letters, digits, '_', '-' and '.', not beginning with '.'"),
    ("routes:\n", f"routes:\n  strong: {ROUTE}\n", "17:13: models.strong.expose: there is a route 'strong' too; rename one of them"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "told"), FAULTS, ids=[told.split(": ")[1] for _, _, told in FAULTS])
def test_a_fault_is_told_with_its_place_and_remedy(folder: Path, old: str, new: str, told: str) -> None:
    assert faults_of(folder, changed(old, new)) == [told.replace("{folder}", str(folder))]


OTHER_FILES = [
    ("fast.json", "{", "10:18: models.fast.calibration: {folder}/fast.json is not JSON; fit the calibration again"),
    ("fast.json", "[" * 100_000, "10:18: models.fast.calibration: {folder}/fast.json is not JSON; fit the calibration again"),
    ("fast.json", "{}", "10:18: models.fast.calibration: {folder}/fast.json: not a calibration file (no format 'pointsman-calibration/1'); write it with Calibration.to_dict"),
    ("fast.json", json.dumps(FITTED.to_dict() | {"model": "slow"}), "10:18: models.fast.calibration: {folder}/fast.json was fitted for model 'slow'; fit one for 'fast'"),
    ("labels.txt", "0\n\n", "16:18: models.strong.labels_file: {folder}/labels.txt is empty or has an empty line; write one label a line"),
    ("labels.txt", "0\n0\n", "16:18: models.strong.labels_file: holds '0' twice; every class needs a name of its own"),
    ("labels.txt", b"\xff", "16:18: models.strong.labels_file: {folder}/labels.txt is not UTF-8; save it as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "told"), OTHER_FILES)
def test_a_fault_in_another_file_is_told_where_it_is_named(
    folder: Path, name: str, content: str | bytes, told: str
) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    assert faults_of(folder, WHOLE) == [told.replace("{folder}", str(folder))]


def test_all_faults_are_told_at_once_in_the_order_of_the_file(folder: Path) -> None:
    text = (
        changed("threads: 2", "threds: 2")
        .replace("[fast, strong]", "[fast, other]")
        .replace("min_confidence: 1}", "min_confidence: .inf}")
        .replace("    to: human", "    too: human")
        .replace("retention: 1d", "retention: long")
    )

    assert [told.split(": ")[1] for told in faults_of(folder, text)] == [
        "models.fast.threds",
        "routes.digits.cascade[1]",
        "routes.plain.accept.min_confidence",
        "classify[0].too",
        "store.retention",
    ]


def test_a_model_at_fault_is_not_told_as_unknown_too(folder: Path) -> None:
    assert len(faults_of(folder, changed("    cost: 0.02", "    cost: low"))) == 1


def test_a_fault_reads_as_file_line_and_column(folder: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(folder, "models: 3\n")

    assert str(caught.value.faults[0]) == (
        f"{folder / 'pointsman.yaml'}:1:9: models: is not a mapping; write each entry as NAME: {{...}}"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1:1: is not a mapping; begin with `models:` and `routes:`"),
        ("- a\n", "1:1: is not a mapping; begin with `models:` and `routes:`"),
        ("{}", "1:1: serves nothing; add a route, or `expose: true` to a model"),
        ("models: {m: {backend: echo}}", "1:1: serves nothing; add a route, or `expose: true` to a model"),
        ("models: {m: echo}", "1:13: models.m: is not a mapping; write its `backend` and the backend's options"),
        ("a: [1", "2:1: is not YAML: did not find expected ',' or ']'; correct the syntax"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document starts here; keep one in a file"),
    ],
)
def test_a_file_that_is_no_configuration_says_how_to_begin(folder: Path, text: str, told: str) -> None:
    assert told in faults_of(folder, text)


@pytest.mark.parametrize("section", ["detectors", "webhooks"])
def test_a_section_that_is_no_mapping_is_told_once(folder: Path, section: str) -> None:
    (told,) = faults_of(folder, f"{WHOLE}{section}: [crm]\n")
    assert told.endswith(f": {section}: is not a mapping; write each entry as NAME: {{...}}")


def test_a_missing_file_is_a_fault(folder: Path) -> None:
    missing = folder / "none.yaml"

    with pytest.raises(SettingsError, match=f"{re.escape(str(missing))}:1:1: .* does not exist; correct the path"):
        load_settings(missing)


# --- people and secrets ---


def test_a_form_of_labels_needs_labels(folder: Path) -> None:
    text = f"models: {{strong: {{backend: echo}}}}\nroutes: {{r: {ROUTE[:-1]}, human: {{queue: q}}}}}}\n"

    assert [told.split(": ", 1)[1] for told in faults_of(folder, text)] == [
        "routes.r.human.form: there are no labels to choose from; add labels to the models, or set form: text"
    ]


@pytest.mark.parametrize(
    "entry",
    [
        "pm_TOPSECRET",
        "{name: ci, sha256: pm_TOPSECRET}",
        f"{{name: [pm_TOPSECRET], sha256: {DIGEST}}}",
        f"{{name: ci, sha256: {DIGEST}, roles: [pm_TOPSECRET]}}",
    ],
)
@pytest.mark.parametrize("in_a_file", [False, True])
def test_no_fault_of_the_keys_repeats_what_was_written(folder: Path, entry: str, in_a_file: bool) -> None:
    (folder / "keys.yaml").write_text(f"- {entry}\n")
    section = "api_keys_file: keys.yaml" if in_a_file else f"api_keys: [{entry}]"

    told = "\n".join(faults_of(folder, WHOLE[: WHOLE.index("security:")] + f"security: {{{section}}}\n"))

    assert "(its value is not shown); correct it" in told
    assert "TOPSECRET" not in told


def test_two_keys_cannot_share_a_name(folder: Path) -> None:
    other = hashlib.sha256(b"other").hexdigest()
    text = WHOLE + f"    - {{name: ci, sha256: {other}}}\n"

    assert faults_of(folder, text) == [
        "44:5: security.api_keys: two API keys have the same name; every owner needs their own"
    ]


def test_a_fault_in_the_file_of_keys_names_that_file(folder: Path) -> None:
    (folder / "keys.yaml").write_text(f"- name: ci\n  sha256: {DIGEST}\n  role: [caller]\n")

    with pytest.raises(SettingsError) as caught:
        load(folder, WHOLE[: WHOLE.index("security:")] + "security: {api_keys_file: keys.yaml}\n")

    assert [str(fault) for fault in caught.value.faults] == [
        f"{folder / 'keys.yaml'}:3:3: [0].role: is an unknown key; did you mean roles?"
    ]


# --- hostile files ---

ALIAS_BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ALIAS_BOMB, "2:8: b[0]: *a is an alias; write the value out"),
        ("models: {<<: *x}", "1:14: models.<<: *x is an alias; write the value out"),
        (
            "store: !!python/object/apply:os.system ['touch HACKED']",
            "1:8: store: has the tag 'tag:yaml.org,2002:python/object/apply:os.system'; remove it, only plain values are read",
        ),
        ("store: !!binary aGk=", "1:8: store: has the tag 'tag:yaml.org,2002:binary'; remove it, only plain values are read"),
        ("? [a, b]\n: 1\n", "1:3: a key here is not plain text; use a word"),
        ("a: " + "[" * 10_000 + "]" * 10_000, "1:28: a[0]: is nested deeper than 24 levels; flatten it"),
        ("a: " + "{b: " * 10_000, "1:100: a.b: is nested deeper than 24 levels; flatten it"),
        ("a: [" + "1," * 200_000 + "]", "1:200001: a[99998]: is value number 100001; at most 100000 are read, simplify the file"),
        ('a: "\\0"', "1:4: a: holds a character that is no text (NUL or half a surrogate pair); remove it"),
        ("a: \x07", "1:1: is not YAML: control characters are not allowed; remove the character"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_quickly(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    monkeypatch.chdir(folder)
    begun = time.perf_counter()

    found = faults_of(folder, text)

    assert told in found
    assert time.perf_counter() - begun < 5.0
    assert not (folder / "HACKED").exists()


def test_a_large_file_is_refused_without_being_read(folder: Path) -> None:
    file = folder / "large.yaml"
    with file.open("wb") as sparse:
        sparse.truncate(100 * 1024 * 1024)

    with pytest.raises(SettingsError, match="has 104857600 bytes; at most 1048576 are read, shorten it"):
        load_settings(file)


def test_a_pipe_is_refused_without_waiting_for_it(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")

    with pytest.raises(SettingsError, match="is not a regular file; name one"):
        load_settings(folder / "pipe.yaml")


def test_bytes_that_are_not_utf8_are_told_with_their_place(folder: Path) -> None:
    file = folder / "latin.yaml"
    file.write_bytes(b"a: 1\nb: caf\xe9\n")

    with pytest.raises(SettingsError, match=r"latin\.yaml:2:7: is not UTF-8; save the file as UTF-8"):
        load_settings(file)


@given(st.binary(max_size=60) | st.text("{}[]:,-&*!?|>'\"%@`#\n\t ab01.~<=", max_size=60).map(str.encode))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_whatever_are_settings_or_faults(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(content)

    with pytest.raises(SettingsError) as caught:
        load_settings(file)

    assert all(fault.line >= 1 and fault.column >= 1 for fault in caught.value.faults)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["models", "route", "when", "human", "x"]), inner, max_size=2)),
       st.sampled_from(["models", "routes", "classify", "server", "store", "security"]))  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_data_whatever_in_a_section_is_settings_or_faults(tmp_path: Path, data: Any, section: str) -> None:
    file = tmp_path / "any.yaml"
    file.write_text(yaml.safe_dump({"models": {"m": {"backend": "echo", "expose": True}}} | {section: data}))

    with contextlib.suppress(SettingsError):
        load_settings(file)


# --- what was written comes back ---

NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,9}", fullmatch=True).filter(lambda name: name != "auto")
MILLISECONDS = st.integers(1, 10**6)


@given(
    name=NAMES,
    delay_ms=MILLISECONDS,
    deadline_ms=MILLISECONDS,
    queue_kib=st.integers(1, 10**6),
    confidence=st.floats(0.0, 1.0),
    percent=st.integers(1, 99),
    cost=st.floats(0.0, 1e6),
    shape=st.lists(st.just(-1) | st.integers(1, 10**6), max_size=4),
    labels=st.lists(st.text("abc01 no~:é", min_size=1).filter(str.strip), min_size=1, unique=True),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_was_written_comes_back(
    tmp_path: Path, name: str, delay_ms: int, deadline_ms: int, queue_kib: int, confidence: float, percent: int,
    cost: float, shape: list[int], labels: list[str],
) -> None:  # fmt: skip
    batching = {"max_delay": f"{delay_ms}ms", "max_queue_bytes": f"{queue_kib}KiB"}
    model = {"backend": "echo", "labels": labels, "cost": cost, "batching": batching}
    route = {
        "input": {"x": {"datatype": "FP32", "shape": shape}},
        "cascade": [name],
        "accept": {"min_confidence": confidence, "max_error": f"{percent}%"},
        "slo": {"deadline": f"{deadline_ms}ms"},
        "human": {"queue": name},
    }

    written = {"models": {name: model}, "routes": {name: route}}
    # JSON, which is YAML with every text in quotes: PyYAML writes YAML 1.1, in which `08` is a text without any.
    read = load(tmp_path, json.dumps(written, ensure_ascii=False))

    got = read.routes[name]
    assert got.inputs == (TensorSpec("x", Datatype.FP32, tuple(shape)),)
    assert got.accept == MinConfidence(confidence)
    assert got.max_error == pytest.approx(percent / 100)
    assert got.deadline_s == pytest.approx(deadline_ms / 1000)
    assert got.human == HumanPolicy(name, 86_400.0, tuple(labels))
    batching_read = read.models[name].batching
    assert batching_read.max_delay_s == pytest.approx(delay_ms / 1000)
    assert batching_read.max_queue_bytes == queue_kib * 1024
    assert read.models[name].cost == cost


BATCHING = "models: {m: {backend: echo, expose: true, batching: {%s}}}\n"


def test_what_batching_says_of_lengths_and_warm_up_is_read(folder: Path) -> None:
    said = "length_buckets: [4, 8], padding: {ids: 0, text: ''}, trim: {y: ids}, warm_up: [1, 8], adaptive_concurrency: true"
    batching = load(folder, BATCHING % said).models["m"].batching

    assert batching.length_buckets == (4, 8)
    assert (batching.padding, batching.trim) == ({"ids": 0, "text": ""}, {"y": "ids"})
    assert (batching.warm_up, batching.adaptive_concurrency) == ((1, 8), True)
    assert load(folder, BATCHING % "").models["m"].batching.max_delay_s is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("length_buckets: [8, 4]", "length_buckets is [8, 4]; use ascending lengths of at least 1"),
        ("trim: {y: ids}", "trim lets 'y' follow input 'ids', which is not in padding; add it, or remove it"),
        ("warm_up: [0]", "warm_up is [0]; use sizes of at least 1 item"),
        ("max_batch: 4, warm_up: [8]", "warm_up has a batch of 8 and max_batch is 4; use smaller sizes"),
    ],
)
def test_batching_that_makes_no_sense_is_told_with_its_place(folder: Path, said: str, told: str) -> None:
    (fault,) = faults_of(folder, BATCHING % said)

    assert fault.endswith(told)
    assert fault.startswith("1:")


def test_what_is_said_of_kernels_is_read(folder: Path) -> None:
    model = "models: {m: {backend: echo, expose: true, kernels: {%s}}}\n"

    assert load(folder, model % "").models["m"].kernels == KernelOptions()
    said = load(folder, model % "device: 'cuda:1', check: 1%, fuse: false").models["m"].kernels
    assert said == KernelOptions(fuse=False, device="cuda:1", check=0.01)
    (fault,) = faults_of(folder, model % "device: tpu")
    assert fault.startswith("1:")
    assert "kernels.device" in fault
    assert "tpu" in fault


def test_a_temperature_file_calibrates_its_model(folder: Path) -> None:
    (folder / "fast.json").write_text(json.dumps(Calibration(Temperature(1.5), Measure(), 100, "fast", "1").to_dict()))

    assert load(folder, WHOLE).models["fast"].calibrator == Temperature(1.5)


@pytest.mark.parametrize("text", ["no", "on", "12:30", "1_000", "0x1F", "2026-01-01", "1e", "-"])
def test_plain_words_are_text_as_they_look(folder: Path, text: str) -> None:
    read = load(folder, f"models: {{m: {{backend: echo, expose: true, labels: [{text}]}}}}\n")

    assert read.models["m"].labels == (text,)


PYTHON = "models: {m: {backend: python, expose: true, target: 'json:loads', outputs: [], inputs: [%s]}}\n"


def test_the_options_of_a_backend_can_nest(folder: Path) -> None:
    read = load(folder, PYTHON % "{name: x, datatype: FP32, shape: [-1, 2]}")

    assert read.models["m"].options.inputs == (TensorSpec("x", Datatype.FP32, (-1, 2)),)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{name: x, datatype: FP32, shape: [2], shap: 1}", "1:127: models.m.inputs[0].shap: is an unknown key; did you mean shape?"),
        ("{name: x, datatype: FP32}", "1:89: models.m.inputs[0].shape: is missing; add it"),
        ("x", '1:89: models.m.inputs[0]: is "x", which is not a mapping; write a mapping'),
    ],
)  # fmt: skip
def test_a_fault_in_nested_options_is_told_with_its_place(folder: Path, entry: str, told: str) -> None:
    assert faults_of(folder, PYTHON % entry) == [told]


# --- the schema ---


def test_the_schema_is_the_same_every_time() -> None:
    assert json.dumps(settings_schema()) == json.dumps(settings_schema())


def test_the_schema_knows_every_key_and_no_others() -> None:
    schema = settings_schema()
    data = yaml.safe_load(WHOLE)

    onnx = schema["$defs"]["Model-onnx"]
    assert schema["properties"].keys() == data.keys() | {
        "cluster",
        "detectors",
        "mask",
        "notify",
        "pool",
        "queues",
        "smtp",
        "telemetry",
        "webhooks",
    }
    assert data["models"]["fast"].keys() <= onnx["properties"].keys()
    assert (onnx["required"], onnx["additionalProperties"]) == (["backend", "path"], False)
    assert data["routes"]["digits"].keys() | {"id_as_key"} == schema["$defs"]["RouteSection"]["properties"].keys()


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = settings_schema()

    for name in re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema)):
        assert name in schema["$defs"]


def test_a_fault_elsewhere_in_a_route_hides_no_unknown_model(folder: Path) -> None:
    both = changed("due: 4h", "due: 4 hours").replace("cascade: [", "cascade: [nowhere, ", 1)

    told = faults_of(folder, both)

    assert any("due: is '4 hours', which is not a duration" in fault for fault in told)
    assert any("there is no model 'nowhere'" in fault for fault in told)


def test_shared_memory_is_off_until_it_is_enabled_with_its_limits(folder: Path) -> None:
    assert load(folder, WHOLE).server.shared_memory == SharedMemoryOptions()
    text = changed("drain: 0}", "drain: 0, shared_memory: {enabled: true, max_regions: 3, limit: 1MiB}}")

    options = load(folder, text).server.shared_memory

    assert options == SharedMemoryOptions(enabled=True, max_regions=3, limit_bytes=1024 * 1024)


def test_shared_memory_is_refused_where_others_reach_the_gateway(folder: Path) -> None:
    def text(enabled: str) -> str:
        return changed("{host: localhost,", f"{{host: 0.0.0.0, shared_memory: {{enabled: {enabled}}},")

    (fault,) = faults_of(folder, text("true"))

    assert "server.shared_memory.enabled: is for clients on this machine, but host '0.0.0.0' lets others in" in fault
    assert not load(folder, text("false")).server.shared_memory.enabled


def test_several_workers_share_the_ports(folder: Path) -> None:
    assert load(folder, WHOLE).server.workers == 1
    assert load(folder, changed("drain: 0}", "drain: 0, workers: 4}")).server.workers == 4

    (fault,) = faults_of(folder, changed("drain: 0}", "drain: 0, workers: 0}"))
    assert "server.workers: " in fault


def test_workers_and_shared_memory_are_refused_together(folder: Path) -> None:
    text = changed("drain: 0}", "drain: 0, workers: 2, shared_memory: {enabled: true}}")

    (fault,) = faults_of(folder, text)

    assert "server.workers: shares the ports among processes" in fault
    assert "set shared_memory: {enabled: false}, or workers: 1" in fault


def test_settings_can_be_given_to_another_process(folder: Path) -> None:
    whole = load(folder, WHOLE)

    assert pickle.loads(pickle.dumps(whole)) == whole


def with_people(human: str) -> str:
    """`WHOLE`, with *human* beside what its route `digits` says of people."""
    return changed("form: labels}\n    on_defer", f"form: labels, {human}}}\n    on_defer")


@pytest.mark.parametrize(
    ("human", "quality"),
    [
        ("opinions: {needed: 3, of: 5}", LabelQuality(needed=3, of=5)),
        ("opinions: {}", LabelQuality(needed=2, of=3)),
        ("opinions: {of: 2}, adjudicate: seniors", LabelQuality(needed=2, of=2, adjudicate="seniors")),
        ("second_opinion: 5%", LabelQuality(second_opinion=0.05)),
        ("second_opinion: 100%, adjudicate: seniors", LabelQuality(second_opinion=1.0, adjudicate="seniors")),
        ("gold: 2%", LabelQuality(gold=0.02)),
    ],
)
def test_people_are_checked_by_people_as_the_file_says(folder: Path, human: str, quality: LabelQuality) -> None:
    policy = load(folder, with_people(human)).routes["digits"].human
    assert policy == HumanPolicy("digits", 4 * 3600.0, ("0", "1"), quality=quality)


@pytest.mark.parametrize(
    ("human", "told"),
    [
        (
            "opinions: {needed: 3, of: 2}",
            "opinions.needed: is 3, of 2 that are asked at most; lower it, or raise `of`",
        ),
        ("opinions: {needed: 1}", "opinions.needed: is 1; use at least 2"),
        (
            "opinions: {}, second_opinion: 5%",
            "second_opinion: stands beside opinions, which ask several people anyway; keep one of them",
        ),
        (
            "adjudicate: seniors",
            "adjudicate: says who decides where opinions differ, and only one is asked for; add opinions or "
            "second_opinion",
        ),
        ("gold: 100%", "gold: is '100%'; use a share between 0% and 100%, such as 2%"),
        ("second_opinion: 0%", "second_opinion: is '0%'; use a share above 0%, up to 100%, such as 5%"),
    ],
)
def test_a_fault_in_how_people_are_checked_is_told(folder: Path, human: str, told: str) -> None:
    (fault,) = faults_of(folder, with_people(human))
    assert fault.startswith("24:")
    assert fault.endswith(f"routes.digits.human.{told}")
