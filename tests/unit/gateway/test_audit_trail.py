"""What the decision log has of a decision: input, traits, scores, versions, thresholds, batch, time, cost."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.contract import Tensor
from gateway.audit import timeline
from gateway.compose import Gateway, compose
from gateway.request import Protocol, RawBody, Request, TensorInputs
from gateway.settings import Settings, load_settings
from gateway.store import LogRow, read_answer_log
from gateway.store.codec import encode_tensors
from gateway.store.key import open_key
from tests.integration.process import CONFIG
from tests.unit.gateway.test_certificates import CERTIFIED, certificate_for, subject_for


def settings_of(folder: Path, text: str) -> Settings:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return load_settings(path)


async def rows_of(gateway: Gateway, settings: Settings, request: Request) -> list[LogRow]:
    answer = await gateway.pipeline.decide(request)
    await gateway.store._recorded()  # type: ignore[attr-defined]
    return list(await read_answer_log(settings.store, answer.id))


def text(words: str, route: str = "words", **more: Any) -> Request:
    return Request(route, RawBody(words.encode(), "text/plain"), Protocol.V1_HTTP, **more)


async def test_a_row_tells_what_each_stage_took_and_was_judged_by(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CONFIG)
    async with compose(settings) as gateway:
        (row,) = await rows_of(gateway, settings, text("fast=0.5 strong=0.97:c"))

    fast, strong = row.trail
    for stage, cost in ((fast, 0.1), (strong, 1.0)):
        run = stage["run"]
        assert run["threshold"] == 0.9
        assert run["certificate"] == ""
        assert run["batch_size"] == 1
        assert len(run["batch"]) >= 8
        assert 0.0 < run["model_ms"] <= run["took_ms"] + 0.001
        assert run["cost"] == pytest.approx(run["model_ms"] * cost, abs=0.001)
    assert fast["run"]["batch"] != strong["run"]["batch"]
    assert (strong["stage"], strong["version"], strong["confidence"]) == ("strong", "1", pytest.approx(0.97))
    assert row.payload_sha256 == open_key(settings.store).of_input(b"fast=0.5 strong=0.97:c")
    told = timeline([row])
    assert f"batch {fast['run']['batch']} of 1, " in told
    assert "threshold 0.9000" in told
    assert f"input, keyed: {row.payload_sha256.hex()}" in told


async def test_a_row_names_the_certificate_that_it_was_accepted_by(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CERTIFIED)
    certificate = certificate_for(subject_for(settings), threshold=0.8)
    async with compose(settings) as gateway:
        await gateway.store.add_certificate(certificate)
        await gateway.maintain()
        (row,) = await rows_of(gateway, settings, text("fast=0.95:b"))

    (fast,) = row.trail
    assert (fast["run"]["threshold"], fast["run"]["certificate"]) == (0.8, certificate.id)
    assert f"certificate {certificate.id}" in timeline([row])


async def test_items_that_share_a_batch_name_it_and_share_its_cost(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CONFIG)
    numbers = np.arange(12, dtype=np.float32).reshape(4, 3)
    async with compose(settings) as gateway:
        request = Request("double", TensorInputs({"x": Tensor.of(numbers)}), Protocol.OIP_GRPC)
        rows = await rows_of(gateway, settings, request)

    runs = [row.trail[0]["run"] for row in rows]
    assert len(rows) == 4
    assert all(run == runs[0] for run in runs)
    assert runs[0]["batch_size"] == 4
    key = open_key(settings.store)
    assert [row.payload_sha256 for row in rows] == [
        key.of_input(encode_tensors({"x": Tensor.of(numbers[i : i + 1])})) for i in range(4)
    ]


async def test_a_row_tells_what_rules_have_decided_by(tmp_path: Path) -> None:
    rules = CONFIG.replace(
        '  - when: {route: auto, content_type: "text/*"}',
        '  - name: billing\n    when: {content_type: "text/*", parameters: {team: "b*"}}',
    )
    settings = settings_of(tmp_path, f"{rules}mask: [{{parameter: team, by: TEAM}}]\n")
    async with compose(settings) as gateway:
        parameters = {"team": "billing", "customer": "anna"}
        (row,) = await rows_of(gateway, settings, text("fast=0.95:b", "auto", parameters=parameters))
        (direct,) = await rows_of(gateway, settings, text("fast=0.95:b"))

    classified, _ = row.trail
    assert classified["traits"] == {
        "content_type": "text/plain",
        "size_bytes": len("fast=0.95:b"),
        "rule": "billing",
        "parameters": {"team": "TEAM"},
    }
    assert [stage["stage"] for stage in direct.trail] == ["fast"]
    assert "classified: text/plain, 11 bytes, team=TEAM; rule billing" in timeline([row])


async def test_a_decision_tells_a_person_s_time(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CONFIG)
    async with compose(settings) as gateway:
        answer = await gateway.pipeline.decide(text("fast=0.5 strong=0.5"))
        review = await gateway.store.claim_next("default", "words", "anna", 60.0)
        assert review is not None
        started = time.monotonic()
        await gateway.store.decide("default", review.id, "anna", review.fence, "c")
        took_s = time.monotonic() - started
        deferred, decided = await read_answer_log(settings.store, answer.id)

    assert deferred.payload_sha256 is not None
    (work,) = decided.trail
    assert 0.0 <= work["human_s"] <= took_s + 1.0
    assert f"a person's time: {work['human_s']:.1f} s" in timeline([deferred, decided])


async def test_rows_of_an_earlier_version_are_told_too(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, CONFIG)
    async with compose(settings) as gateway:
        (row,) = await rows_of(gateway, settings, text("fast=0.95:b"))
    (stage,) = row.trail
    before = replace(row, trail=({name: said for name, said in stage.items() if name != "run"},))
    assert "fast version 1 said b (0.9500): accept\n" in timeline([before])
