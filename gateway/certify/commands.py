"""`pointsman certify` and `pointsman calibrate`: what they do, apart from their options."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.errors import InvalidInput, NotFound
from gateway.certificates import digest_of, subject_of
from gateway.certify.files import LabelledScores, ScoresError, read_scores
from gateway.certify.labels import Evidence, Missing, disagreement_of, evidence_of
from gateway.certify.report import Report
from gateway.compose import open_versions
from gateway.settings import CertifiedSettings, RouteSettings, Settings
from gateway.store import is_made, open_beside, open_store, verify_log_of
from router.calibration import Calibration, expected_calibration_error, fit_isotonic
from router.certificate import Certificate, Subject, issue
from router.certification import DEFAULT_CONFIDENCE, Budget, Scores, at_look, select_threshold
from router.confidence import Measure

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class CertifyOptions:
    """What `pointsman certify` can be told.

    Attributes:
        budget: None: the route's.
        fit: share of a file's rows that calibrators are fitted on, where the file does not say which.
        seed: of that choice.
        missing: what becomes of the store's items that have no label.
        people_only: callers' feedback is no label.
        twice_only: of the store's items, only those that a second person was to label.
        valid_s: lifetime of a certificate, in seconds.
    """

    budget: Budget | None = None
    fit: float | None = None
    seed: int = 0
    missing: Missing = Missing.HOLD
    people_only: bool = False
    twice_only: bool = False
    valid_s: float = 30 * _DAY_S


def certify_file(path: Path, options: CertifyOptions) -> Report:
    """Certify the scores in *path*; about no route, so no certificate is issued.

    Raises:
        ScoresError: the file, or what is asked of it, cannot be used.
    """
    if options.budget is None:
        raise ScoresError("--max-error is missing; say which share of accepted answers may be wrong, such as 1%")
    labelled = read_scores(path)
    scores = calibrated(labelled, options.fit, options.seed)
    return Report(str(path), labelled.stages, scores, options.budget, select_threshold(scores, options.budget))


def calibrated(labelled: LabelledScores, fit: float | None, seed: int) -> Scores:
    """The certifying rows, their scores through curves that were fitted on the other rows; as they are without such.

    Raises:
        ScoresError: *fit* stands beside a split in the file, or leaves too few rows, or scores are no confidences.
    """
    if fit is not None and labelled.has_split:
        raise ScoresError("the file has a column split, which says what fits; leave --fit out")
    chosen = labelled.fit if fit is None else _random_rows(labelled.fit.size, fit, seed)
    if chosen.all():
        raise ScoresError("all rows fit calibrators, and none is left to certify; mark some of them certify")
    kept = ~chosen
    confidence = np.stack([_curved(labelled, stage, chosen)[kept] for stage in range(len(labelled.stages))])
    try:
        return Scores(confidence, labelled.right[:, kept], labelled.ran[:, kept])
    except ValueError as error:
        raise ScoresError(f"{error}: mark rows as fit in a column split, or give --fit 50%") from error


def _random_rows(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[: round(share * count)]] = True
    return chosen


def _curved(labelled: LabelledScores, stage: int, fit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) scores of *stage* through a curve that is fitted on the rows *fit*; as they are where there are none."""
    scores: NDArray[np.float64] = labelled.scores[stage]
    if not fit.any():
        return scores
    usable = fit & labelled.ran[stage] & np.isfinite(scores)
    if not usable.any():
        name = labelled.stages[stage] or "score"
        raise ScoresError(f"stage {name!r} has no score among the rows that fit calibrators; add some")
    return fit_isotonic(scores[usable], labelled.right[stage][usable]).apply(scores)


async def certify_route(settings: Settings, name: str, scores: Path | None, options: CertifyOptions) -> Report:
    """Certify route *name*: on the file *scores*, or on the labels in the store; `keep` makes the certificate count.

    Raises:
        ScoresError: there is no such evidence.
        PointsmanError: the route, its models or the store cannot be opened.
    """
    route = settings.routes.get(name)
    if route is None and (every := settings.versions_of(name)):
        ids = ", ".join(version.id for version in every)
        raise NotFound(f"route {name!r} has several versions, which are certified one by one; name one of {ids}")
    if route is None or not route.cascade:
        raise NotFound(f"there is no route {name!r} with models; known: {', '.join(settings.routes)}")
    budget = options.budget or _budget_of(route)
    versions = await open_versions(settings, route.cascade)
    subject = await asyncio.to_thread(subject_of, route, settings.models, versions)
    if scores is None:
        found = await _from_store(settings, route, subject, options)
    else:
        found = _from_file(scores, route, options)
    tested = budget if found.look is None else at_look(budget, found.look)
    selection = await asyncio.to_thread(select_threshold, found.scores, tested)
    certificate = None
    if selection.threshold is not None:
        disagreement = None
        if found.evidence is not None:
            disagreement = disagreement_of(found.evidence, selection.threshold, budget.confidence)
        certificate = issue(selection, subject, budget, time.time(), options.valid_s, found.words, disagreement)
    return Report(
        found.source,
        route.cascade,
        found.scores,
        budget,
        selection,
        certificate,
        tested,
        found.words,
        from_store=found.evidence is not None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Labelled scores.

    Attributes:
        source: what they are, in short.
        words: what a certificate says of them.
        look: which look at growing labels this is, from 1; None where they do not grow.
        evidence: what the store says of them; None where they are a file's.
    """

    scores: Scores
    source: str
    words: str
    look: int | None = None
    evidence: Evidence | None = None


async def _from_store(settings: Settings, route: RouteSettings, subject: Subject, options: CertifyOptions) -> _Found:
    """The labels of the store, and which look at them this is; a log that was altered is no evidence."""
    if faults := await verify_log_of(settings.store):
        raise ScoresError(f"the decision log is broken ({faults[0]}), and proves nothing; see pointsman audit verify")
    digest = digest_of(subject)
    async with open_beside(settings.store) as store:
        items = await store.labelled(None, route.name)
        evidence = evidence_of(
            items,
            route.cascade,
            digest,
            options.missing,
            people_only=options.people_only,
            twice_only=options.twice_only,
        )
        if evidence.scores is None:
            raise ScoresError(_nothing(route.name, evidence))
        look = await store.add_look(route.name, digest, _digest_of(evidence.scores))
    words = f"the store's labels: {evidence}; without a label: {evidence.unlabelled}, {options.missing}; look {look}"
    return _Found(evidence.scores, f"the store's labels of route {route.name}", words, look, evidence)


def _digest_of(scores: Scores) -> str:
    parts = (scores.confidence, scores.right, scores.ran)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


async def keep(settings: Settings, certificate: Certificate) -> None:
    """Add *certificate* to the store, which is made where no gateway has served yet.

    Raises:
        PointsmanError: the store cannot be opened, or written.
    """
    if await asyncio.to_thread(is_made, settings.store):
        async with open_beside(settings.store) as store:
            await store.add_certificate(certificate)
    else:
        async with aclosing(await open_store(settings.store)) as made:
            await made.add_certificate(certificate)


def _budget_of(route: RouteSettings) -> Budget:
    if isinstance(route.accept, CertifiedSettings):
        return route.accept.budget
    if route.max_error is None:
        raise InvalidInput(f"route {route.name!r} states no max_error; give --max-error")
    return Budget(route.max_error, DEFAULT_CONFIDENCE)


def _from_file(path: Path, route: RouteSettings, options: CertifyOptions) -> _Found:
    labelled = read_scores(path)
    if labelled.stages not in (route.cascade, ("",) * len(route.cascade)):
        given, runs = ", ".join(labelled.stages), ", ".join(route.cascade)
        raise ScoresError(f"{path} has scores of {given}; route {route.name!r} runs {runs}")
    if labelled.has_split or options.fit is not None:
        raise ScoresError(
            "a route's scores go through its models' own calibrations; certify scores that have, without a fit split"
        )
    try:
        scores = Scores(labelled.scores, labelled.right, labelled.ran)
    except ValueError as error:
        raise ScoresError(f"{path}: {error}; a route's scores go through its models' own calibrations") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = path.name.encode(errors="replace").decode()
    return _Found(scores, str(path), f"{name}, sha256 {digest}")


def _nothing(route: str, evidence: Evidence) -> str:
    if evidence.unlabelled:
        return (
            f"no item of route {route!r} can be used: {evidence.unlabelled} have no label yet; decide or label them, "
            "or say with --missing what becomes of them"
        )
    if evidence.twice_only:
        return (
            f"no item of route {route!r} was drawn to be labelled by a second person; set `second_opinion` of its "
            "`human`, or leave out --labelled-twice"
        )
    if evidence.foreign:
        return (
            f"the {evidence.foreign} labelled items of route {route!r} were scored by other models, plans or "
            "calibrations than are configured now; gather new ones"
        )
    return (
        f"the store has no items of route {route!r} that all stages have scored; serve it with "
        "accept: {observe: true} or {max_error: ...} until people or callers have labelled some"
    )


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A fitted calibration, and how far stated and true shares lie apart before and after it, on other rows if any."""

    calibration: Calibration
    error_before: float
    error_after: float
    tested_on: int


def calibrate_file(path: Path, stage: str | None, model: str, version: str, how: Measure) -> Calibrated:
    """Fit an isotonic curve for one stage of *path*.

    The fit rows fit and the others test it, where the file says which; otherwise all rows do both.

    Raises:
        ScoresError: the file cannot be used, or has several stages and *stage* names none of them.
    """
    labelled = read_scores(path)
    if stage is None and len(labelled.stages) > 1:
        raise ScoresError(f"{path} has several stages; name one with --stage: {', '.join(labelled.stages)}")
    if stage is not None and stage not in labelled.stages:
        raise ScoresError(f"{path} has no stage {stage!r}; known: {', '.join(filter(None, labelled.stages)) or 'one'}")
    index = 0 if stage is None else labelled.stages.index(stage)
    confidence, right = labelled.scores[index], labelled.right[index]
    usable = labelled.ran[index] & np.isfinite(confidence)
    fit = usable & (labelled.fit if labelled.has_split else True)
    test = usable & ~labelled.fit if labelled.has_split else usable
    if not fit.any():
        raise ScoresError(f"{path} has no rows to fit; mark some of them fit")
    curve = fit_isotonic(confidence[fit], right[fit])
    calibration = Calibration(curve, how, int(fit.sum()), model, version)
    before = np.where((confidence >= 0.0) & (confidence <= 1.0), confidence, np.nan)
    return Calibrated(
        calibration,
        expected_calibration_error(before[test], right[test]),
        expected_calibration_error(curve.apply(confidence[test]), right[test]),
        int(test.sum()),
    )


def write_json(place: Path, content: object) -> None:
    """Write *content* to *place*.

    Raises:
        ScoresError: it cannot be written.
    """
    try:
        place.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ScoresError(f"{place} cannot be written ({error.strerror}); choose another path") from error
