"""Which certificate a route's error budget rests on, kept in step with what is loaded and what the store holds.

A certificate is about models, their versions, everything around them and their calibrators (`Subject`). What is loaded
has a subject too; only a certificate of that very subject counts, that has not expired and proves as much as the route
asks. Without one the route accepts nothing: all stages are asked, people decide, and the route says why.

Accept rules are looked up anew every few seconds, so that a certificate which is issued, or runs out, counts at once.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import orjson

from backends.registry import backend_type
from gateway.catalog import Catalog
from gateway.digests import sha256_of
from gateway.settings import CertifiedSettings, ModelSettings, RouteSettings, Settings
from gateway.store.contract import Store
from router.certificate import Certificate, StageSubject, Subject
from router.certification import Budget
from router.contract import Certified, Observe, Route, Uncertified

log = logging.getLogger("pointsman.certificates")

NOT_LOOKED_UP = Uncertified("its certificate has not been looked up yet")


def subject_of(route: RouteSettings, models: Mapping[str, ModelSettings], versions: Mapping[str, str]) -> Subject:
    """What a certificate of *route* is about.

    Reads the files that its models name; call it off the event loop.

    Args:
        versions: of the loaded models, by name.
    """
    stages = (stage_subject(models[name], versions[name], route.decode) for name in route.cascade)
    return Subject(route.name, tuple(stages))  # versions of a route differ in their stages, or in nothing


def stage_subject(model: ModelSettings, version: str, decode: str | None) -> StageSubject:
    """What a certificate knows of one stage.

    Reads the files that *model* names; call it off the event loop.

    Args:
        version: of the loaded model.
        decode: the route's decoder.
    """
    around = {
        "backend": model.backend,
        "options": dict(_options_of(model)),
        "decode": decode,
        "preprocess": [_by_content(model, step) for step in model.preprocess],
        "postprocess": [_by_content(model, step) for step in model.postprocess],
        "labels": model.labels,
        "measure": str(model.measure),
    }
    calibration = "" if model.calibration is None else _digest(model.calibration.to_dict())
    return StageSubject(model.name, version, _digest(around), calibration)


def _options_of(model: ModelSettings) -> Iterator[tuple[str, Any]]:  # Any: JSON
    """The options that decide what it answers; files by their content, as it does not matter where they lie."""
    running_only = backend_type(model.backend).running_only
    for field in fields(model.options):
        if field.name in running_only:
            continue
        value = getattr(model.options, field.name)
        yield field.name, _content_of(value) if isinstance(value, Path) else repr(value)


def _content_of(place: Path) -> Mapping[str, str]:
    """Digests of a file, and of what lies beside it under its name; or of a whole folder."""
    files = files_at(place)
    if place.is_dir():
        return {str(file.relative_to(place)): sha256_of(file) for file in files}
    return {f"{place.suffix} {number}": sha256_of(file) for number, file in enumerate(files)}


def files_at(place: Path) -> Sequence[Path]:
    """A file, and what lies beside it under its name (as external data does); or all that a folder has."""
    if place.is_dir():
        return sorted(file for file in place.rglob("*") if file.is_file())
    beside = sorted(place.parent.glob(f"{glob.escape(place.stem)}.*"))
    return [
        place,
        *(one for one in beside if one != place and one.name.startswith((f"{place.name}.", f"{place.stem}.data"))),
    ]


def _by_content(model: ModelSettings, step: Any) -> Any:  # Any: a step as it is written
    """*step* with the digest of a file in place of its path."""
    if isinstance(step, dict):
        return {name: _by_content(model, arguments) for name, arguments in step.items() if name != "file"} | (
            {"file": sha256_of(model.base / step["file"])} if "file" in step else {}
        )
    return step


def digest_of(subject: Subject) -> str:
    """What items that were scored by *subject* are known by."""
    return _digest(asdict(subject))[:32]


def _digest(value: Any) -> str:  # Any: JSON
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def rule_of(
    budget: Budget, subject: Subject, certificates: Sequence[Certificate], now_s: float
) -> Certified | Uncertified:
    """The rule that the first of *certificates* proves which is about *subject* and proves as much as *budget* asks.

    Args:
        certificates: newest first.
        now_s: Unix time, in seconds.
    """
    obstacles = []
    for certificate in certificates:
        obstacle = _too_weak(budget, certificate) or certificate.covers(subject, now_s)
        if obstacle is None:
            return Certified(certificate.threshold, certificate.id, certificate.valid_until_s)
        obstacles.append(obstacle)
    return Uncertified(obstacles[0] if obstacles else "there is no certificate for this route")


def _too_weak(budget: Budget, certificate: Certificate) -> str | None:
    if certificate.proves(budget):
        return None
    return (
        f"the certificate proves {certificate.max_error:.2%} at {certificate.confidence:.1%}, "
        f"and the route asks for {budget.max_error:.2%} at {budget.confidence:.1%}"
    )


def in_force(route: Route, now_s: float) -> Route:
    """*route* as it accepts at *now_s* (Unix time, seconds): a certificate ends at its moment, whatever upkeep does."""
    if isinstance(route.accept, Certified) and now_s >= route.accept.valid_until_s:
        return replace(route, accept=Uncertified("its certificate has expired"))
    return route


class Certificates:
    """Keeps the accept rules of a catalog's routes."""

    def __init__(
        self,
        settings: Settings,
        subjects: Mapping[str, Subject],
        store: Store,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        subjects: by route's id, of those with an error budget.
        clock: Unix time, in seconds.
        """
        self._routes = {
            name: route.accept for name, route in settings.routes.items() if isinstance(route.accept, CertifiedSettings)
        }
        self._subjects = subjects
        self._store = store
        self._clock = clock
        self._version = -1  # of the store's certificates
        self._stored: dict[str, list[Certificate]] = {}

    @property
    def subjects(self) -> Mapping[str, Subject]:
        """By route's id, of those with an error budget, or that gather labels for one."""
        return self._subjects

    async def applied(self, catalog: Catalog, subjects: Mapping[str, Subject] | None = None) -> Catalog:
        """*catalog* with the rules that hold now; the same object where nothing has changed.

        Args:
            subjects: those of *catalog*, where they are no longer what they were.

        Raises:
            Unavailable: the store cannot be read; the subjects are then what they were.
        """
        if self._routes:
            await self._read_anew()
        self._subjects = self._subjects if subjects is None else subjects
        changed = {}
        for name, settings in self._routes.items():
            subject = self._subjects[name]
            own = [settings.certificate] if settings.certificate else self._stored.get(subject.route, [])
            rule = rule_of(settings.budget, subject, own, self._clock())
            if rule != catalog.routes[name].accept:
                changed[name] = replace(catalog.routes[name], accept=rule)
                _tell(changed[name])
        return (
            replace(catalog, version=catalog.version + 1, routes={**catalog.routes, **changed}) if changed else catalog
        )

    async def _read_anew(self) -> None:
        """Read the store's certificates where it has others than were read last."""
        if all(settings.certificate for settings in self._routes.values()):
            return
        version = await self._store.certificates_version()
        if version == self._version:
            return
        found: dict[str, list[Certificate]] = {}
        for certificate in await self._store.certificates():
            found.setdefault(certificate.subject.route, []).append(certificate)
        self._stored, self._version = found, version


def _tell(route: Route) -> None:
    match route.accept:
        case Certified(threshold, certificate):
            log.info("route %s accepts from %.4f on, by certificate %.12s", route.id, threshold, certificate)
        case Uncertified(why):
            log.warning("route %s accepts nothing, people decide: %s", route.id, why)


def subjects_of(settings: Settings, versions: Mapping[str, str]) -> Mapping[str, Subject]:
    """The subjects of the routes that have an error budget, or gather labels for one, by id.

    Reads files; call it off the event loop.
    """
    return {
        name: subject_of(route, settings.models, versions)
        for name, route in settings.routes.items()
        if isinstance(route.accept, CertifiedSettings | Observe) and route.cascade
    }


def with_subjects(catalog: Catalog, subjects: Mapping[str, Subject]) -> Catalog:
    """*catalog* whose routes know their subjects."""
    told = {name: replace(catalog.routes[name], subject=digest_of(subject)) for name, subject in subjects.items()}
    return replace(catalog, routes={**catalog.routes, **told})
