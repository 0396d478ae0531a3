"""A route with an error budget accepts what a certificate proves, and nothing without one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.answer import Answer, Status
from gateway.certificates import digest_of, rule_of, subject_of
from gateway.certify.commands import CertifyOptions, certify_route, keep
from gateway.certify.files import ScoresError
from gateway.certify.labels import Missing
from gateway.certify.report import Report
from gateway.compose import Gateway, compose
from gateway.request import Caller, Protocol, RawBody, Request
from gateway.settings import Settings, load_settings
from router.certificate import Certificate, StageSubject, Subject
from router.certification import Budget
from router.contract import Certified, Reason, Uncertified
from tests.integration.process import CONFIG

BUDGET = Budget(0.05, 0.95)
CERTIFIED = CONFIG.replace("accept: {min_confidence: 0.9, max_error: 5%}", "accept: {max_error: 5%}")
OBSERVING = CONFIG.replace("accept: {min_confidence: 0.9, max_error: 5%}", "accept: {observe: true, max_error: 5%}")


def settings_of(folder: Path, text: str = CERTIFIED) -> Settings:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return load_settings(path)


@asynccontextmanager
async def serving(folder: Path, text: str = CERTIFIED) -> AsyncIterator[Gateway]:
    async with compose(settings_of(folder, text)) as gateway:
        yield gateway


async def decide(gateway: Gateway, text: str) -> Answer:
    return await gateway.pipeline.decide(Request("words", RawBody(text.encode(), "text/plain"), Protocol.V1_HTTP))


def subject_for(settings: Settings) -> Subject:
    return subject_of(settings.routes["words"], settings.models, {"fast": "1", "strong": "1"})


def certificate_for(subject: Subject, threshold: float = 0.9, valid_s: float = 3600.0) -> Certificate:
    now = time.time()
    return Certificate(subject, 0.05, 0.95, threshold, 1000, 500, 5, 0.03, now, now + valid_s, "a test")


async def test_without_a_certificate_all_stages_are_asked_and_people_decide(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        answer = await decide(gateway, "fast=0.99:b strong=0.98:c")
        review = await gateway.store.claim_next("default", "words", "ana", 60.0)

    (item,) = answer.items
    assert (item.status, item.decided_by, item.reason) == (Status.PROVISIONAL, None, Reason.NO_CERTIFICATE)
    assert [(record.stage, record.label) for record in item.trail] == [("fast", "b"), ("strong", "c")]
    assert (answer.max_error, answer.certified) == (0.05, False)
    assert review is not None
    assert [proposal.label for proposal in review.task.proposals] == ["b", "c"]


async def test_a_certificate_that_is_added_counts_at_the_next_round_of_upkeep(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        before = gateway.pipeline.catalog
        await gateway.store.add_certificate(certificate_for(subject_for(settings_of(tmp_path))))
        await gateway.maintain()

        sure = await decide(gateway, "fast=0.95:b")
        unsure = await decide(gateway, "fast=0.5 strong=0.89:b")
        gauge = gateway.telemetry.registry.get_sample_value("pointsman_route_certified", {"route": "words"})

    assert (sure.items[0].status, sure.items[0].stage, sure.certified) == (Status.FINAL, "fast", True)
    assert (unsure.items[0].decided_by, unsure.items[0].reason) == (None, Reason.LOW_CONFIDENCE)
    assert gateway.pipeline.catalog.version == before.version + 1
    assert gauge == 1.0


@pytest.mark.parametrize("broken", ["fast=fail", "fast=nan"])
async def test_only_what_every_stage_before_has_answered_is_accepted(tmp_path: Path, broken: str) -> None:
    async with serving(tmp_path) as gateway:
        await gateway.store.add_certificate(certificate_for(subject_for(settings_of(tmp_path))))
        await gateway.maintain()

        (item,) = (await decide(gateway, f"{broken} strong=0.99:b")).items

    # A stage that answered without any confidence has run, and a certificate knows such items; one that failed has not.
    skipped = broken == "fast=fail"
    assert item.status is (Status.PROVISIONAL if skipped else Status.FINAL)
    assert item.reason == (Reason.UNCERTIFIED_PATH if skipped else None)
    assert item.label == "b"


async def test_a_certificate_of_a_file_serves_from_the_start(tmp_path: Path) -> None:
    certificate = certificate_for(subject_for(settings_of(tmp_path)), threshold=0.7)
    (tmp_path / "words.json").write_text(json.dumps(certificate.to_dict()))

    async with serving(
        tmp_path, CERTIFIED.replace("max_error: 5%", "max_error: 5%, certificate: words.json")
    ) as gateway:
        rule = gateway.pipeline.catalog.routes["words"].accept

    assert rule == Certified(0.7, certificate.id, certificate.valid_until_s)


async def test_a_certificate_that_runs_out_counts_no_more(tmp_path: Path) -> None:
    now = 1e9
    async with serving(tmp_path) as gateway:
        gateway.certificates._clock = lambda: now
        await gateway.store.add_certificate(
            replace(certificate_for(subject_for(settings_of(tmp_path))), created_s=now - 1, valid_until_s=now + 1)
        )
        await gateway.maintain()
        before = gateway.pipeline.catalog.routes["words"].accept

        now += 1
        await gateway.maintain()
        rule = gateway.pipeline.catalog.routes["words"].accept

    assert isinstance(before, Certified)
    assert isinstance(rule, Uncertified)
    assert "expired" in rule.why


def a_subject(version: str = "1") -> Subject:
    return Subject("words", (StageSubject("fast", version, "", ""),))


def test_the_newest_certificate_that_fits_is_taken() -> None:
    newest, older = (certificate_for(a_subject(), threshold) for threshold in (0.8, 0.7))
    foreign = certificate_for(a_subject("2"), 0.6)

    assert rule_of(BUDGET, a_subject(), [foreign, newest, older], time.time()) == Certified(
        0.8, newest.id, newest.valid_until_s
    )


@pytest.mark.parametrize(
    ("budget", "subject", "why"),
    [
        (Budget(0.05, 0.95), a_subject("2"), "version of model fast differs: certified 1, loaded 2"),
        (
            Budget(0.04, 0.95),
            a_subject(),
            "the certificate proves 5.00% at 95.0%, and the route asks for 4.00% at 95.0%",
        ),
        (
            Budget(0.05, 0.99),
            a_subject(),
            "the certificate proves 5.00% at 95.0%, and the route asks for 5.00% at 99.0%",
        ),
    ],
)
def test_a_certificate_about_something_else_or_of_less_is_none(budget: Budget, subject: Subject, why: str) -> None:
    rule = rule_of(budget, subject, [certificate_for(a_subject())], time.time())

    assert isinstance(rule, Uncertified)
    assert why in rule.why
    assert rule_of(budget, subject, [], time.time()) == Uncertified("there is no certificate for this route")


def test_the_subject_changes_with_whatever_shapes_a_stage_and_not_with_where_it_lies(tmp_path: Path) -> None:
    texts = {
        "as it is": CERTIFIED,
        "decode": CERTIFIED.replace(
            "decode: utf8\n    cascade: [fast, strong]", "decode: none\n    cascade: [fast, strong]"
        ),
        "labels": CERTIFIED.replace("labels: [a, b, c]", "labels: [a, c, b]"),
        "measure": CERTIFIED.replace("    cost: 0.1\n", "    cost: 0.1\n    confidence: margin\n"),
        "backend option": CERTIFIED.replace(
            "target: tests.integration.models:fast", "target: tests.integration.models:tongue"
        ),
        "stages": CERTIFIED.replace("cascade: [fast, strong]", "cascade: [strong, fast]"),
    }
    digests = {name: digest_of(subject_for(settings_of(tmp_path, text))) for name, text in texts.items()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    assert len(set(digests.values())) == len(texts)
    assert digest_of(subject_for(settings_of(elsewhere))) == digests["as it is"]
    assert (
        digest_of(subject_for(settings_of(tmp_path, CERTIFIED.replace("cost: 0.1", "cost: 0.2"))))
        == digests["as it is"]
    )


# --- from labels in the store to a certificate ---


async def answer_and_label(gateway: Gateway, texts: Sequence[tuple[str, str]]) -> None:
    """Send texts, and say what the true label of each is, as a caller does that found it out."""
    for text, label in texts:
        answer = await decide(gateway, text)
        await gateway.pipeline.feedback(Caller(), answer.id, 0, label)


async def certified(settings: Settings, options: CertifyOptions | None = None) -> Report:
    """The labels of the store, looked at, and their certificate kept where there is one."""
    report = await certify_route(settings, "words", None, options or CertifyOptions())
    if report.certificate is not None:
        await keep(settings, report.certificate)
    return report


def some_texts(count: int, errors: int, seed: int = 1) -> list[tuple[str, str]]:
    """Texts of which the cheap model is sure of half, with *errors* mistakes among those, and their labels."""
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(count):
        wrong = "c" if number < errors else "b"
        sure = number < errors or number % 2
        fast = 0.9 + 0.1 * rng.random() if sure else 0.34 + 0.2 * rng.random()
        texts.append((f"fast={fast:.4f}:{wrong if sure else 'a'} strong={0.9 + 0.1 * rng.random():.4f}:b", "b"))
    return [texts[index] for index in rng.permutation(count)]


async def test_an_observing_route_gathers_labels_that_certify_it(tmp_path: Path) -> None:
    async with serving(tmp_path, OBSERVING) as gateway:
        first = await decide(gateway, "fast=0.99:b strong=0.4:c")
        await gateway.pipeline.feedback(Caller(), first.id, 0, "b")
        await answer_and_label(gateway, some_texts(200, errors=2))

    assert (first.items[0].status, first.items[0].stage, first.items[0].reason) == (
        Status.FINAL,
        "strong",
        Reason.OBSERVED,
    )
    settings = settings_of(tmp_path)

    report = await certified(settings)

    assert (report.selection.items, report.stages) == (201, ("fast", "strong"))
    assert report.certificate is not None
    assert report.certificate.max_error == 0.05
    async with compose(settings) as gateway:
        rule = gateway.pipeline.catalog.routes["words"].accept
    assert isinstance(rule, Certified)
    assert rule.certificate == report.certificate.id


async def test_people_who_decide_everything_certify_a_route_while_it_serves(tmp_path: Path) -> None:
    async with serving(tmp_path) as gateway:
        for text, label in some_texts(160, errors=1):
            await decide(gateway, text)
            review = await gateway.store.claim_next("default", "words", "ana", 60.0)
            assert review is not None
            await gateway.store.decide("default", review.id, "ana", review.fence, label)

        report = await certified(settings_of(tmp_path))
        await gateway.maintain()
        rule = gateway.pipeline.catalog.routes["words"].accept

    assert report.certificate is not None
    assert isinstance(rule, Certified)
    assert rule.certificate == report.certificate.id


@pytest.mark.parametrize(
    ("missing", "items", "never_right"), [(Missing.HOLD, 101, 1), (Missing.WRONG, 200, 1), (Missing.DROP, 199, 0)]
)
async def test_an_item_without_a_label_ends_the_sequence_as_wrong_or_is_dropped_as_told(
    tmp_path: Path, missing: Missing, items: int, never_right: int
) -> None:
    texts = some_texts(200, errors=0)
    async with serving(tmp_path, OBSERVING) as gateway:
        await answer_and_label(gateway, texts[:100])
        await decide(gateway, "fast=0.99:b strong=0.99:b")
        await answer_and_label(gateway, texts[101:])

    report = await certify_route(settings_of(tmp_path), "words", None, CertifyOptions(missing=missing))

    assert report.selection.items == items
    assert (~report.scores.right.any(axis=0)).sum() == never_right


async def test_items_on_which_a_later_stage_failed_are_evidence_too(tmp_path: Path) -> None:
    """They would be accepted at the first stage, where a certificate never asks the second."""
    blind = [("fast=0.99:c strong=fail", "b")] * 20
    async with serving(tmp_path, OBSERVING) as gateway:
        await answer_and_label(gateway, [*some_texts(180, errors=0), *blind])

    report = await certified(settings_of(tmp_path))

    assert report.selection.items == 200
    assert (~report.scores.right[0] & (report.scores.confidence[0] > 0.98)).sum() == 20
    assert report.scores.ran.all()
    assert report.certificate is None or report.certificate.threshold > 0.99


async def test_disputed_items_count_as_wrong_and_hold_up_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, OBSERVING) as gateway:
        answer = await decide(gateway, "fast=0.99:b strong=0.99:b")
        for source, label in (("one", "b"), ("two", "c")):
            await gateway.store.add_feedback("default", answer.id, 0, label, source)
        await answer_and_label(gateway, some_texts(30, errors=0))

    for missing in Missing:
        report = await certify_route(settings_of(tmp_path), "words", None, CertifyOptions(missing=missing))
        assert report.selection.items == 31
        assert (~report.scores.right.any(axis=0)).sum() == 1


async def test_where_people_alone_count_feedback_is_no_label(tmp_path: Path) -> None:
    async with serving(tmp_path, OBSERVING) as gateway:
        await answer_and_label(gateway, some_texts(30, errors=0))

    options = CertifyOptions(missing=Missing.DROP, people_only=True)
    with pytest.raises(ScoresError, match="30 have no label yet"):
        await certify_route(settings_of(tmp_path), "words", None, options)


async def test_every_look_at_new_labels_has_less_of_the_level_left(tmp_path: Path) -> None:
    confidences = []
    async with serving(tmp_path, OBSERVING) as gateway:
        for _ in range(3):
            await answer_and_label(gateway, some_texts(20, errors=0))
            for _ in range(2):
                report = await certified(settings_of(tmp_path))
                assert report.tested is not None
                confidences.append(round(1 - report.tested.confidence, 6))

    assert confidences == [0.04, 0.04, 0.005, 0.005, 0.001667, 0.001667]


async def test_a_certificate_ends_at_its_moment_even_where_upkeep_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as gateway:
        await gateway.store.add_certificate(certificate_for(subject_for(settings_of(tmp_path)), valid_s=3600.0))
        await gateway.maintain()
        before = await decide(gateway, "fast=0.95:b")
        later = time.time() + 3601.0
        monkeypatch.setattr("gateway.pipeline.time.time", lambda: later)

        after = await decide(gateway, "fast=0.95:b")

    assert (before.certified, before.items[0].status) == (True, Status.FINAL)
    assert (after.certified, after.items[0].reason) == (False, Reason.NO_CERTIFICATE)


async def test_labels_of_other_models_are_no_evidence(tmp_path: Path) -> None:
    async with serving(tmp_path, OBSERVING) as gateway:
        await answer_and_label(gateway, some_texts(20, errors=0))
    other = CERTIFIED.replace("    cost: 0.1\n", "    cost: 0.1\n    confidence: margin\n")

    with pytest.raises(ScoresError, match="the 20 labelled items of route 'words' were scored by other models"):
        await certify_route(settings_of(tmp_path, other), "words", None, CertifyOptions())


async def test_a_store_without_labels_says_how_to_gather_some(tmp_path: Path) -> None:
    async with serving(tmp_path):
        pass

    with pytest.raises(ScoresError, match=r"serve it with accept: .observe: true. or"):
        await certify_route(settings_of(tmp_path), "words", None, CertifyOptions())


async def test_too_few_labels_say_how_many_would_be_enough(tmp_path: Path) -> None:
    async with serving(tmp_path, OBSERVING) as gateway:
        await answer_and_label(gateway, some_texts(60, errors=0))

    report = await certify_route(settings_of(tmp_path), "words", None, CertifyOptions())

    assert report.certificate is None
    assert "would be enough" in report.text()


async def test_a_log_that_was_altered_certifies_nothing(tmp_path: Path) -> None:
    import pysqlite3.dbapi2 as sqlite3

    async with serving(tmp_path, OBSERVING) as gateway:
        await answer_and_label(gateway, some_texts(20, errors=0))

    def alter() -> None:
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("UPDATE decision_log SET confidence = 1.0 WHERE seq = 2")

    await asyncio.to_thread(alter)

    with pytest.raises(ScoresError, match="the decision log is broken"):
        await certify_route(settings_of(tmp_path), "words", None, CertifyOptions())
