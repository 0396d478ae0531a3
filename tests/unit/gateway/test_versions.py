"""Versions in the configuration, in the books, and beside certificates, loads and workers."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.contract import Datatype, Tensor
from backends.errors import InvalidInput
from gateway.answer import ItemAnswer, StageRecord, Status
from gateway.certificates import subject_of
from gateway.cli import main
from gateway.compose import compose
from gateway.control.overview import Overview, VersionRow, together
from gateway.observe import Mirrored
from gateway.request import Caller, Protocol, RawBody, Request
from gateway.settings import Settings, SettingsError, load_settings
from gateway.shadow import _verdict
from gateway.traffic import VersionTraffic
from router.certificate import Certificate
from router.contract import Certified, Decision, Reason, Uncertified
from router.versions import Canary, Shadow, Split, StickBy, Sticky, Traffic
from tests.integration.process import CONFIG

WORDS = """\
    cascade: [fast, strong]
    accept: {min_confidence: 0.9, max_error: 5%}
"""
VERSIONED = CONFIG.replace(
    WORDS,
    """\
    accept: {max_error: 5%}
    versions:
      "1": {cascade: [fast]}
      "2": {cascade: [fast, strong]}
      "3": {cascade: [strong], accept: {min_confidence: 0.8}}
    traffic: TRAFFIC
""",
)


def settings_of(folder: Path, traffic: str = "latest", text: str = VERSIONED) -> Settings:
    path = folder / "gateway.yaml"
    path.write_text(text.replace("TRAFFIC", traffic))
    return load_settings(path)


def traffic_of(folder: Path, traffic: str) -> Traffic:
    return settings_of(folder, traffic).traffic["words"]


# --- the configuration ---


def test_versions_are_routes_of_their_own_that_share_the_rest(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)

    assert settings.names == ("words", "alone")
    assert list(settings.routes) == ["words@1", "words@2", "words@3", "alone"]
    assert [route.cascade for route in settings.versions_of("words")] == [("fast",), ("fast", "strong"), ("strong",)]
    first, _, third = settings.versions_of("words")
    assert (third.human, third.deadline_s, third.inputs) == (first.human, first.deadline_s, first.inputs)
    assert (first.max_error, third.max_error) == (0.05, None)
    assert "words" in settings.table.routes


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("latest", Split({"3": 1.0})),
        ('"2"', Split({"2": 1.0})),
        ('{use: "1"}', Split({"1": 1.0})),
        ("{use: latest}", Split({"3": 1.0})),
        ('{split: {"1": 95, "3": 5}}', Split({"1": 95.0, "3": 5.0})),
        (
            '{canary: {version: "3", starts: "2026-11-26T10:00:00+01:00"}}',
            Canary("3", "2", (0.01, 0.05, 0.25, 1.0), 600.0, 1_795_683_600.0),
        ),
        (
            '{use: "1", canary: {version: "3", ramp: [10%, 0.5], every: 1h, starts: 2026-11-26T10:00:00Z}}',
            Canary("3", "1", (0.1, 0.5), 3600.0, 1_795_687_200.0),
        ),
    ],
)
def test_traffic_is_read_in_all_its_forms(tmp_path: Path, written: str, rule: Split | Canary) -> None:
    assert traffic_of(tmp_path, written) == Traffic(("1", "2", "3"), rule)


def test_without_a_word_on_traffic_the_last_version_has_it_all(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, text=VERSIONED.replace("    traffic: TRAFFIC\n", ""))

    assert settings.traffic["words"].rule == Split({"3": 1.0})


def test_a_canary_that_says_no_moment_starts_when_the_configuration_is_read(tmp_path: Path) -> None:
    before = time.time()

    rule = traffic_of(tmp_path, '{canary: {version: "2"}}').rule

    assert isinstance(rule, Canary)
    assert before <= rule.starts_s <= time.time()


def test_shadow_and_sticky_stand_beside_any_rule(tmp_path: Path) -> None:
    written = (
        '{split: {"1": 1, "2": 1}, shadow: {version: "3", share: 10%, max_running: 2}, sticky: parameter:customer}'
    )

    found = traffic_of(tmp_path, written)

    assert found.shadow == Shadow("3", 0.1, 2)
    assert found.sticky == Sticky(StickBy.PARAMETER, "customer")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("TRAFFIC", '{use: "4"}', "routes.words.traffic.use: there is no version '4'; known: 1, 2, 3"),
        ("TRAFFIC", '{split: {"1": 0}}', "routes.words.traffic.split: gives no version anything; give one a weight"),
        ("TRAFFIC", '{split: {"1": -1}}', "routes.words.traffic.split.1: is -1; use a number from 0 upwards"),
        ("TRAFFIC", '{split: {"9": 1}}', "routes.words.traffic.split.9: there is no version '9'"),
        ("TRAFFIC", '{split: {"1": 1}, use: "1"}', "routes.words.traffic.use: stands beside split; keep one of them"),
        ("TRAFFIC", '{split: {"1": 1}, canary: {version: "2"}}', "traffic.canary: stands beside split; keep one"),
        ("TRAFFIC", '{canary: {version: "1"}}', "canary.version: no version is listed before '1', to have the rest"),
        ("TRAFFIC", '{use: "2", canary: {version: "2"}}', "canary.version: is '2', as `use` is; name two versions"),
        ("TRAFFIC", '{canary: {version: "2", ramp: [5%, 5%]}}', "canary.ramp: does not rise from share to share"),
        ("TRAFFIC", '{canary: {version: "2", ramp: [110%]}}', "ramp[0]: is '110%'; use a share above 0%, up to 100%"),
        ("TRAFFIC", '{canary: {version: "2", every: 0}}', "canary.every: is 0; use something above 0"),
        ("TRAFFIC", '{canary: {version: "2", starts: 2026-11-26T10:00:00}}', "starts: is '2026-11-26T10:00:00', which"),
        ("TRAFFIC", '{use: "1", shadow: {version: "1"}}', "shadow.version: version '1' answers everything, so there"),
        ("TRAFFIC", "{shadow: {version: x}}", "shadow.version: there is no version 'x'"),
        ("TRAFFIC", "{sticky: cookie}", "sticky: is 'cookie'; use tenant, caller (the name of an API key), or"),
        ('"3": {cascade: [strong]', 'latest: {cascade: [strong]', "'latest' is reserved, it means the version that is"),
        ('"3": {cascade: [strong]', '"3@": {cascade: [strong]', "is no name of a version; use 1 to 64 letters"),
        ('"3": {cascade: [strong]', '"2": {cascade: [strong]', "routes.words.versions.2: stands here twice, first in"),
        ('"3": {cascade: [strong]', '"3": {cascade: [weak]', "versions.3.cascade[0]: there is no model 'weak'"),
        ('"3": {cascade: [strong]', '"3": {cascade: []', "routes.words.versions.3.cascade: is empty; it needs"),
        ("    versions:\n", "    cascade: [fast]\n    versions:\n", "routes.words.cascade: stands beside versions"),
        ("    accept: {max_error: 5%}\n", "", "routes.words.accept: is missing; add it"),
        ("min_confidence: 0.8}", "min_confidence: 0.8, confidence: 90%}", "versions.3.accept.confidence: belongs to"),
    ],
)  # fmt: skip
def test_a_fault_of_versions_is_told_once_with_its_remedy(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in VERSIONED

    with pytest.raises(SettingsError) as caught:
        settings_of(tmp_path, text=VERSIONED.replace(old, new))

    (told,) = [str(one) for one in caught.value.faults]
    assert fault in told


def test_traffic_without_versions_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="traffic: is about versions, and there are none"):
        settings_of(tmp_path, text=CONFIG.replace(WORDS, WORDS + "    traffic: latest\n"))


def test_labels_that_differ_between_versions_are_a_fault(tmp_path: Path) -> None:
    text = VERSIONED.replace("labels: [a, b, c]\n  double:", "labels: [a, b, d]\n  double:").replace(
        '      "2": {cascade: [fast, strong]}\n', ""
    )

    with pytest.raises(SettingsError, match="other labels than those of version '1'"):
        settings_of(tmp_path, text=text)


def test_check_counts_routes_and_not_versions(tmp_path: Path) -> None:
    settings_of(tmp_path)

    result = CliRunner().invoke(main, ["check", str(tmp_path / "gateway.yaml"), "--load"])

    assert "3 models, 2 routes, no faults" in result.output


def test_explain_tells_the_versions_and_why_one_is_told(tmp_path: Path) -> None:
    settings_of(tmp_path, '{split: {"1": 1, "2": 3}, shadow: {version: "3"}}')

    result = CliRunner().invoke(main, ["explain", str(tmp_path / "gateway.yaml"), "--route", "words"], input="x")

    assert "version  1: 0.25 of the requests\n" in result.output, result.output
    assert "version  2: 0.75 of the requests (told here: the likeliest: one is drawn for every" in result.output
    assert "version  3: 0 of the requests, and is shown what others answer\n" in result.output
    assert "stage    strong" in result.output


NUMBERS = """
models:
  double: {backend: python, target: "tests.integration.models:double", max_batch: 4,
    inputs: [{name: x, datatype: FP32, shape: [-1]}], outputs: [{name: y, datatype: FP32, shape: [-1]}]}
  total: {backend: python, target: "tests.integration.models:total", max_batch: 4,
    inputs: [{name: x, datatype: FP32, shape: [-1]}], outputs: [{name: y, datatype: FP32, shape: [1]}]}
routes:
  numbers:
    input: {x: {datatype: FP32, shape: [-1]}}
    accept: {observe: true}
    versions: {"1": {cascade: [double]}, "2": {cascade: [total]}}
"""


async def test_versions_that_answer_with_other_outputs_are_refused(tmp_path: Path) -> None:
    told = r"versions must have the same outputs, but version '1' gives y FP32\[-1\] and version '2' gives y FP32\[1\]"

    with pytest.raises(InvalidInput, match=told):
        async with compose(settings_of(tmp_path, text=NUMBERS)):
            pass


# --- certificates ---


def certificate_for(settings: Settings, route: str) -> Certificate:
    subject = subject_of(settings.routes[route], settings.models, {"fast": "1", "strong": "1"})
    now = time.time()
    return Certificate(subject, 0.05, 0.95, 0.9, 1000, 500, 5, 0.03, now, now + 3600, "a test")


async def test_a_certificate_is_of_the_version_whose_cascade_it_is_about(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with compose(settings) as gateway:
        await gateway.store.add_certificate(certificate_for(settings, "words@2"))
        await gateway.maintain()
        routes = gateway.pipeline.catalog.routes
        scraped = {tuple(sorted(s.labels)): s.value for family in gateway.telemetry.families()
                   for s in family.samples if s.name == "pointsman_route_certified"}  # fmt: skip

    assert isinstance(routes["words@1"].accept, Uncertified)
    assert isinstance(routes["words@2"].accept, Certified)
    assert scraped[(("route", "words"), ("version", "1"))] == 0.0
    assert scraped[(("route", "words"), ("version", "2"))] == 1.0


async def test_what_was_proven_of_a_route_holds_when_it_becomes_a_version(tmp_path: Path) -> None:
    before = settings_of(tmp_path, text=CONFIG.replace("min_confidence: 0.9, max_error: 5%", "max_error: 5%"))
    certificate = certificate_for(before, "words")
    async with compose(settings_of(tmp_path)) as gateway:
        await gateway.store.add_certificate(certificate)
        await gateway.maintain()
        rule = gateway.pipeline.catalog.routes["words@2"].accept

    assert isinstance(rule, Certified)
    assert rule.certificate == certificate.id


def test_a_version_is_certified_by_its_name(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    scores = tmp_path / "scores.csv"
    rng = np.random.default_rng(7)
    sure = 1.0 - rng.random(3000) ** 2 * 0.6
    right = rng.random(3000) < sure
    scores.write_text("score_fast,right_fast\n" + "".join(f"{s:.6f},{r:d}\n" for s, r in zip(sure, right, strict=True)))
    config = str(tmp_path / "gateway.yaml")

    whole = CliRunner().invoke(main, ["certify", str(scores), "--route", "words", "--config", config])
    one = CliRunner().invoke(main, ["certify", str(scores), "--route", "words@1", "--config", config, "--json"])

    assert whole.exit_code == 2
    assert "certified one by one; name one of words@1, words@2, words@3" in whole.output
    assert one.exit_code == 0, one.output
    subject = json.loads(one.output)["certificate"]["subject"]
    assert (subject["route"], [stage["model"] for stage in subject["stages"]]) == ("words", ["fast"])
    assert settings.store.path.exists()


# --- loading ---


async def test_loading_a_model_looks_at_all_versions_that_use_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, text=VERSIONED + "server: {model_control: explicit}\n")
    async with compose(settings) as gateway:
        await gateway.store.add_certificate(certificate_for(settings, "words@2"))
        await gateway.maintain()
        before = gateway.pipeline.catalog
        await gateway.loader.load("fast")
        after = gateway.pipeline.catalog

        assert after.traffic == before.traffic
        assert isinstance(after.routes["words@2"].accept, Certified)
        assert after.routes["words@2"] is not before.routes["words@2"]
        assert after.routes["words@3"] is before.routes["words@3"]
        with pytest.raises(InvalidInput, match=r"unload these by their names \(fast, strong\)"):
            await gateway.loader.unload("words", dependents=False)
        await gateway.loader.unload("words", dependents=True)
        loaded = {name: model.loaded for name, model in gateway.pipeline.catalog.models.items()}

    assert loaded == {"fast": True, "strong": False, "double": True}  # `alone` uses fast too


# --- choosing ---


def asking(name: str = "ana", tenant: str = "t", version: str = "", **parameters: str) -> Request:
    caller = Caller(name, tenant)
    payload = RawBody(b"strong=0.9:b fast=0.95:b", "text/plain")
    return Request("words", payload, Protocol.V1_HTTP, caller, version=version, parameters=parameters)


@pytest.mark.parametrize(
    ("sticky", "one", "same", "others"),
    [
        ("tenant", asking(), asking("bea"), [asking(tenant=f"t{n}") for n in range(20)]),
        ("caller", asking(), asking(customer="7"), [asking(f"ana{n}") for n in range(20)]),
        ("parameter:customer", asking(customer="7"), asking("bea", customer="7"),
         [asking(customer=f"c{n}") for n in range(20)]),
    ],
)  # fmt: skip
async def test_what_sticks_gets_the_same_version_and_others_another(
    tmp_path: Path, sticky: str, one: Request, same: Request, others: list[Request]
) -> None:
    async with compose(settings_of(tmp_path, f'{{split: {{"1": 1, "3": 1}}, sticky: "{sticky}"}}')) as gateway:
        catalog, traffic = gateway.pipeline.catalog, gateway.pipeline.traffic

        def version(request: Request) -> str:
            return traffic.pick(catalog, "words", request).version

        assert {version(request) for request in [one, same] * 20} == {version(one)}
        assert {version(request) for request in others} == {"1", "3"}


async def test_a_request_without_the_key_is_drawn(tmp_path: Path) -> None:
    async with compose(settings_of(tmp_path, '{split: {"1": 1, "3": 1}, sticky: parameter:customer}')) as gateway:
        catalog, points = gateway.pipeline.catalog, iter([0.2, 0.8, 0.4])
        traffic = VersionTraffic(rng=lambda: next(points))

        drawn = [traffic.pick(catalog, "words", asking()).version for _ in range(3)]

    assert drawn == ["3", "1", "3"]  # the newest first


async def test_readiness_is_that_of_the_version_that_gets_most(tmp_path: Path) -> None:
    text = VERSIONED + "server: {model_control: explicit}\n"
    async with compose(settings_of(tmp_path, '{split: {"1": 9, "3": 1}}', text)) as gateway:
        pipeline = gateway.pipeline
        await gateway.loader.unload("strong", dependents=False)

        assert (pipeline.is_ready(), pipeline.is_model_ready("words")) == (True, True)
        assert (pipeline.is_model_ready("words", "1"), pipeline.is_model_ready("words", "3")) == (True, False)
        assert (pipeline.why_not_ready("words", "3"), pipeline.why_not_ready("words", "2")) == ("unloaded", None)


# --- the books ---


def trouble(reason: Reason, stage: str = "strong", version: str = "") -> StageRecord:
    return StageRecord(stage, version, None, None, Decision.ESCALATE, reason)


@pytest.mark.parametrize(
    ("troubles", "failures", "misses"),
    [
        ([], 0, 0),
        ([trouble(Reason.STAGE_FAILED, version="1")], 1, 0),
        ([trouble(Reason.STAGE_UNAVAILABLE)], 1, 0),
        ([trouble(Reason.OUT_OF_TIME)], 0, 1),
        ([trouble(Reason.OVERLOADED), trouble(Reason.STAGE_FAILED, version="1")], 1, 1),
    ],
)
async def test_what_counts_against_a_version(
    tmp_path: Path, troubles: list[StageRecord], failures: int, misses: int
) -> None:
    async with compose(settings_of(tmp_path)) as gateway:
        catalog, traffic = gateway.pipeline.catalog, VersionTraffic()
        traffic.ended(catalog, catalog.routes["words@2"], troubles, is_pinned=False)
        (_, row, _) = traffic.statistics(catalog)

    assert (row.requests, row.failures, row.misses) == (1, failures, misses)


async def test_a_canary_that_is_late_more_often_is_halted_and_one_whose_callers_name_it_is_not(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, '{use: "1", canary: {version: "2", ramp: [50%], starts: 2026-01-01T00:00:00Z}}')
    async with compose(settings) as gateway:
        catalog = gateway.pipeline.catalog
        one, two = catalog.routes["words@1"], catalog.routes["words@2"]
        late = [trouble(Reason.OUT_OF_TIME)]
        named, drawn = VersionTraffic(), VersionTraffic()
        for _ in range(100):
            for traffic in (named, drawn):
                traffic.ended(catalog, one, [], is_pinned=False)
            named.ended(catalog, two, late, is_pinned=True)
            drawn.ended(catalog, two, late, is_pinned=False)

    assert named.shares(catalog, "words") == {"1": 0.5, "2": 0.5}
    assert drawn.shares(catalog, "words") == {"1": 1.0}
    assert "came too late, or had no room, for 1" in str(drawn.statistics(catalog)[1].halted)


HALTED_S = 1_780_272_000.0
"""2026-06-01, at midnight."""

HALTED = {"words": "it failed"}


@pytest.mark.parametrize(
    ("canary", "is_halted"),
    [
        ('{version: "2", ramp: [50%], starts: 2026-01-01T00:00:00Z}', True),
        ('{version: "2", ramp: [20%, 30%], starts: 2026-05-31T23:59:59Z}', True),
        ('{version: "2", ramp: [50%], starts: 2026-06-01T00:00:01Z}', False),
        ('{version: "2", ramp: [50%]}', True),  # it starts now, as always when the configuration is read
        ('{version: "3", ramp: [50%]}', False),
    ],
)
async def test_a_halt_is_known_after_a_restart_until_its_canary_is_given_a_later_start(
    tmp_path: Path, canary: str, is_halted: bool
) -> None:
    before = '{use: "1", canary: {version: "2", ramp: [50%], starts: 2026-01-01T00:00:00Z}}'
    async with compose(settings_of(tmp_path, before), lambda: HALTED_S) as gateway:
        gateway.pipeline.traffic.halt(HALTED)

    settings = settings_of(tmp_path, f'{{use: "1", canary: {canary}}}')
    async with compose(settings, lambda: HALTED_S + 2) as gateway:
        traffic, catalog = gateway.pipeline.traffic, gateway.pipeline.catalog
        assert traffic.halted == (HALTED if is_halted else {})
        if is_halted:
            assert traffic.shares(catalog, "words") == {"1": 1.0}


async def test_gateways_with_one_store_hear_of_each_other_s_halts_at_the_next_upkeep(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, '{use: "1", canary: {version: "2", ramp: [50%], starts: 2026-01-01T00:00:00Z}}')
    settings = replace(settings, server=replace(settings.server, workers=2))
    async with compose(settings) as gateway, compose(settings) as other:
        gateway.pipeline.traffic.halt(HALTED)
        await gateway.maintain()
        await other.keep_up()

        assert other.pipeline.traffic.halted == HALTED
        assert [halt.route for halt in await gateway.store.canary_halts()] == ["words"]


async def test_a_bad_hour_that_hits_both_versions_halts_no_canary(tmp_path: Path) -> None:
    """Over both steps together the canary has failed on a tenth, and the stable version on a thirtieth."""
    written = '{use: "1", canary: {version: "2", ramp: [1%, 50%], every: 1h, starts: 1970-01-01T00:00:00Z}}'
    async with compose(settings_of(tmp_path, written)) as gateway:
        catalog, clock = gateway.pipeline.catalog, [0.0]
        traffic = VersionTraffic(lambda: clock[0])
        for clock[0], share, bad in ((0.0, 0.01, 0.0), (3600.0, 0.5, 0.1)):
            for number in range(2000):
                route = catalog.routes["words@2" if number % round(1 / share) == 0 else "words@1"]
                troubles = [trouble(Reason.STAGE_FAILED, version="1")] if number // 2 % 10 < bad * 10 else []
                traffic.ended(catalog, route, troubles, is_pinned=False)
        _, canary, _ = traffic.statistics(catalog)

    assert canary.failures == 100
    assert canary.halted is None


def test_the_audit_of_an_answer_begins_with_its_version(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)

    async def decided() -> str:
        async with compose(settings) as gateway:
            return (await gateway.pipeline.decide(asking(tenant="default"))).id

    answer_id = asyncio.run(decided())
    result = CliRunner().invoke(main, ["audit", "show", str(tmp_path / "gateway.yaml"), answer_id])

    lines = [line.strip() for line in result.output.splitlines()]
    assert lines[3] == "version 3 of the route"
    assert lines[4].startswith("strong version 1 said b (0.9000): accept")


async def test_a_shadow_begins_only_for_what_was_answered_now(tmp_path: Path) -> None:
    async with compose(settings_of(tmp_path, '{use: "3", shadow: {version: "1"}}')) as gateway:
        request = Request(
            "words",
            RawBody(b"strong=0.9:b", "text/plain"),
            Protocol.V1_HTTP,
            idempotency_key="k",
            fingerprint=b"f",
        )
        first = await gateway.pipeline.decide(request)
        again = await gateway.pipeline.decide(request)
        counts = gateway.pipeline.shadows.counts("words", "1")
        async with asyncio.timeout(5):
            while not sum(counts.outcomes.values()):
                await asyncio.sleep(0.001)
                counts = gateway.pipeline.shadows.counts("words", "1")
        await gateway.pipeline.shadows.aclose()

    assert again.id == first.id
    assert sum(counts.outcomes.values()) == 1


BF16 = Datatype.BF16


def an_item(label: str | None, *values: float, datatype: Datatype | None = None) -> ItemAnswer:
    array = np.array([values], np.uint16 if datatype else np.float32)
    outputs = {"y": Tensor.of(array, datatype)} if values else None
    return ItemAnswer(Status.FINAL, "m", label, outputs, 0.9, "model:m", None)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (an_item("a", 1.0), an_item("a", 2.0), Mirrored.AGREED),
        (an_item("a", 1.0), an_item("b", 1.0), Mirrored.DIFFERED),
        (an_item(None, 1.0), an_item(None, 1.0005), Mirrored.AGREED),
        (an_item(None, 1.0), an_item(None, 1.01), Mirrored.DIFFERED),
        (an_item(None, 1.0), an_item(None, 1.0, 1.0), Mirrored.DIFFERED),
        (an_item(None, float("nan")), an_item(None, float("nan")), Mirrored.AGREED),
        (an_item(None, 0x4480, datatype=BF16), an_item(None, 0x4480, datatype=BF16), Mirrored.AGREED),
        (an_item(None, 0x4480, datatype=BF16), an_item(None, 0x4490, datatype=BF16), Mirrored.DIFFERED),
        (an_item("a", 1.0), an_item("a"), Mirrored.FAILED),
        (an_item(None), an_item(None, 1.0), Mirrored.DIFFERED),
    ],
)  # fmt: skip
def test_agreement_is_about_labels_and_else_about_outputs(
    ours: ItemAnswer, theirs: ItemAnswer, verdict: Mirrored
) -> None:
    assert _verdict(ours, theirs) is verdict


def test_of_several_workers_versions_add_up_and_a_halt_in_one_is_told() -> None:
    def part(state: str, *, is_halted: bool) -> Overview:
        mirrored = dict.fromkeys(Mirrored, 1)
        row = VersionRow("words", "2", 0.0 if is_halted else 0.5, state, is_halted, 10, 2, mirrored, 0.1)
        return Overview(True, 1, (), (), versions=(row,))

    (told,) = together([part("answers", is_halted=False), part("halted: why", is_halted=True)], []).versions

    assert told == VersionRow(
        "words", "2", 0.25, "workers differ: answers / halted: why", True, 20, 4, dict.fromkeys(Mirrored, 2), 0.1
    )
