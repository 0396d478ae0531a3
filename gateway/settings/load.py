"""From a file to `Settings`, or to every fault in it at once.

Each section is checked by itself (`gateway.settings.validate`), and whatever came out whole is then checked against
the rest: a misspelt key in one model hides no fault of another. Names count as known as soon as they are written, so
that one fault is not told twice, as an unknown reference too.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from backends.contract import Datatype, TensorSpec
from backends.errors import PointsmanError
from backends.ray_serve.options import DeploymentOptions, ScalingOptions
from backends.registry import BackendType, backend_type
from backends.warm.entry import WarmOptions
from batching.options import BatchingOptions, SequenceOptions
from gateway.grpc_edge.transport import Transport, why_not_native
from gateway.masking import MaskOptions
from gateway.notices.options import MailSecurity, NotifyOptions, SmtpOptions, is_mailbox
from gateway.people.hours import ALWAYS, Span, WorkingHours, disjoint, why_no_zone
from gateway.people.options import EVERY_QUEUE, QueueOptions, scope_of
from gateway.request import Role
from gateway.security import ApiKey, SecurityOptions, is_loopback
from gateway.settings.document import Document, Fault, Place, parse_document, read_document, read_file
from gateway.settings.options import (
    CertifiedSettings,
    ClusterOptions,
    DetectorSettings,
    ModelSettings,
    PoolOptions,
    RouteSettings,
    ServerOptions,
    Settings,
    TlsOptions,
)
from gateway.settings.units import weekdays
from gateway.settings.validate import keys_of, unknown_key, unknown_name, validated
from gateway.settings.written import (
    LATEST,
    NAME_PATTERN,
    VERSION_PATTERN,
    ApiKeySection,
    BatchingSection,
    CanarySection,
    ClusterSection,
    DetectorSection,
    HoursSection,
    HumanSection,
    MaskSection,
    ModelSection,
    NotifySection,
    OtherwiseSection,
    PoolSection,
    PostgresSection,
    QueueSection,
    ReplicasSection,
    RouteSection,
    RuleSection,
    SecuritySection,
    ServerSection,
    ServeSection,
    SettingsSection,
    SharedSection,
    SmtpSection,
    StoreSection,
    TargetSection,
    TelemetrySection,
    TlsSection,
    TrafficSection,
    UnsureSection,
    VersionedRouteSection,
    WebhookSection,
    WhenSection,
)
from gateway.shared_memory import SharedMemoryOptions
from gateway.store.options import Postgres, Retention, StoreOptions, why_not_postgres
from gateway.tracing.options import TracesOptions, read_headers, why_not_tracing
from gateway.webhooks.options import WebhookOptions
from kernels.decode import DECODERS
from kernels.devices import KernelOptions
from kernels.plan import PlanError, parse_spec
from router.calibration import Calibration
from router.certificate import Certificate
from router.certification import DEFAULT_CONFIDENCE, Budget
from router.contract import (
    AUTO,
    AcceptAny,
    AcceptRule,
    HumanPolicy,
    LabelQuality,
    MinConfidence,
    Observe,
    WhenOverloaded,
)
from router.table import Conditions, ParameterTest, RouteTable, Rule, Target, TraitTest, faults
from router.versions import Canary, Shadow, Split, Traffic
from router.versions import Rule as TrafficRule

LABELS_LIMIT_BYTES = 1024 * 1024
CALIBRATION_LIMIT_BYTES = 16 * 1024 * 1024
CERTIFICATE_LIMIT_BYTES = 1024 * 1024

_T = TypeVar("_T")

_NAME = re.compile(NAME_PATTERN)
_STEP = re.compile(r"step (\d+) of")


class SettingsError(Exception):
    """The configuration cannot be used.

    Attributes:
        faults: everything that is wrong with it, in the order of the file.
    """

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def load_settings(path: Path) -> Settings:
    """The configuration in the file *path*, checked whole.

    Raises:
        SettingsError: with every fault, each with its line and remedy.
    """
    return _checked(read_document(path))


def parse_settings(text: str, path: Path) -> Settings:
    """As `load_settings`, of *text*, as if it stood in the file *path*, which need not be there.

    Raises:
        SettingsError: as there.
    """
    return _checked(parse_document(text, path))


def load_store(path: Path) -> StoreOptions:
    """Where the configuration in the file *path* has its store; nothing else of it is checked.

    Raises:
        SettingsError: with every fault of that.
    """
    document = read_document(path)
    store = _store(document, document.data.get("store") or {}) if isinstance(document.data, dict) else None
    if store is None or document.faults:
        raise _at_fault(document)
    return store


def _checked(document: Document) -> Settings:
    settings = _settings(document)
    if settings is None or document.faults:
        raise _at_fault(document)
    return settings


def _at_fault(document: Document) -> SettingsError:
    if not document.faults:
        document.add_fault((), "is not a mapping; begin with `models:` and `routes:`")
    return SettingsError(tuple(sorted(document.faults, key=lambda fault: (str(fault.file), fault.line, fault.column))))


def _settings(document: Document) -> Settings | None:
    data = document.data
    if not isinstance(data, dict):
        if not document.faults:
            document.add_fault((), "is not a mapping; begin with `models:` and `routes:`")
        return None
    for key in data.keys() - keys_of(SettingsSection).keys():
        document.add_fault((key,), unknown_key(key, keys_of(SettingsSection)), at_key=True)
    written = {name: _entries(document, name) for name in ("models", "routes", "detectors", "webhooks")}
    models = {name: _model(document, name, entry) for name, entry in written["models"].items()}
    named = {name: _versions(document, name, entry, models) for name, entry in written["routes"].items()}
    routes = {name: next(iter(found.routes), None) for name, found in named.items()}  # what their versions share
    _check_names(document, models, routes, written["detectors"])
    exposed = {name for name, model in models.items() if model is None or model.expose}
    detectors = {trait: _detector(document, trait, entry, models) for trait, entry in written["detectors"].items()}
    table = _table(document, frozenset(routes) | exposed, routes, frozenset(detectors))
    server = _server(document, data.get("server") or {})
    store = _store(document, data.get("store") or {})
    queues = _queues(document, written["routes"])
    security = _security(document, data.get("security") or {}, queues)
    pool = _pool(document, data.get("pool") or {})
    webhooks = [_webhook(document, name, entry, routes) for name, entry in written["webhooks"].items()]
    traces = _traces(document, data.get("telemetry") or {})
    masks = [_mask(document, index, entry, routes) for index, entry in enumerate(_listed(document, "mask"))]
    written_smtp = data.get("smtp")
    smtp = _smtp(document, written_smtp) if written_smtp is not None else None
    notify = [
        _notify(document, index, entry, queues, written["webhooks"], has_smtp=written_smtp is not None)
        for index, entry in enumerate(_listed(document, "notify"))
    ]
    _check_told_once(document, notify)
    cluster = _cluster(document, data.get("cluster") or {}, models)
    if document.faults or server is None or store is None or security is None or pool is None or cluster is None:
        return None
    return Settings(
        file=document.file,
        text=document.text,
        models={name: model for name, model in models.items() if model},
        routes={route.id: route for found in named.values() for route in found.routes},
        detectors={trait: detector for trait, detector in detectors.items() if detector},
        table=table,
        server=server,
        store=store,
        security=security,
        pool=pool,
        traffic={name: found.traffic for name, found in named.items() if found.traffic},
        webhooks=tuple(webhook for webhook in webhooks if webhook),
        traces=traces,
        queues=queues,
        masks=tuple(mask for mask in masks if mask),
        notify=tuple(rule for rule in notify if rule),
        smtp=smtp,
        cluster=cluster,
    )


def _entries(document: Document, section: str) -> Mapping[str, Any]:
    entries = document.data.get(section) or {}
    if isinstance(entries, dict):
        return entries
    document.add_fault((section,), "is not a mapping; write each entry as NAME: {...}")
    return {}


def _check_names(
    document: Document,
    models: Mapping[str, ModelSettings | None],
    routes: Mapping[str, Any],
    detectors: Collection[str],
) -> None:
    for section, names in (("models", models), ("routes", routes), ("detectors", detectors)):
        for name in names:
            if name == AUTO:
                document.add_fault((section, name), f"{AUTO!r} is reserved; choose another name", at_key=True)
            elif not _NAME.fullmatch(name):
                message = "is no name; use 1 to 128 letters, digits, '_', '-' and '.', not beginning with '.'"
                document.add_fault((section, name), message, at_key=True)
    for name, model in models.items():
        if model and model.expose and name in routes:
            document.add_fault(("models", name, "expose"), f"there is a route {name!r} too; rename one of them")
    serves = routes or any(model is None or model.expose for model in models.values())
    if not serves and not document.faults:  # else what would be served may be what is at fault
        document.add_fault((), "serves nothing; add a route, or `expose: true` to a model")


# --- models ---


def _model(document: Document, name: str, data: object) -> ModelSettings | None:
    place: Place = ("models", name)
    if not isinstance(data, dict):
        document.add_fault(place, "is not a mapping; write its `backend` and the backend's options")
        return None
    common = keys_of(ModelSection)
    section = validated(document, ModelSection, place, {key: data[key] for key in data.keys() & common.keys()})
    own = {key: value for key, value in data.items() if key not in common}
    kind = _kind(document, place, data.get("backend"))
    options = _options(document, place, kind, own) if kind else None
    if section is None:
        return None
    preprocess = _steps(document, (*place, "preprocess"), section.preprocess)
    postprocess = _steps(document, (*place, "postprocess"), section.postprocess)
    calibration = _calibration(document, name, section)
    count = len(document.faults)
    labels = _labels(document, place, section)
    if len(document.faults) > count:
        return None  # unknown labels would seem to differ from those of other stages
    return ModelSettings(
        name=name,
        backend=section.backend,
        options=options,
        preprocess=preprocess,
        postprocess=postprocess,
        base=document.base,
        labels=labels,
        measure=section.confidence or (calibration.how if calibration else None),
        calibration=calibration,
        batching=_batching(document, (*place, "batching"), section.batching),
        cost=section.cost,
        expose=section.expose,
        warm=WarmOptions(section.warm.keep, section.warm.memory),
        required=section.required,
        sequences=SequenceOptions(section.sequences.max_live, section.sequences.max_waiting),
        kernels=KernelOptions(section.kernels.fuse, section.kernels.device, section.kernels.check),
        serve=_deployment(document, place, section),
        shares=None if section.serve is None else section.serve.pool,
    )


def _deployment(document: Document, place: Place, section: ModelSection) -> DeploymentOptions | None:
    """How the model is deployed on a cluster; None: with the gateway, or in a pool."""
    serve: ServeSection | None = section.serve
    if serve is None:
        return None
    if serve.pool is not None:
        if beside := sorted(serve.model_fields_set - {"pool"}):
            message = f"stands beside {', '.join(beside)}; write these of the pool, under `cluster: {{pools: ...}}`"
            document.add_fault((*place, "serve", "pool"), message, at_key=True)
        return None
    if not section.warm.keep:
        message = (
            "stands beside `warm: {keep: 0}`; keep one of them (`autoscale: {min: 0}` has no replica while idle), or "
            "have it share replicas with others by `pool`"
        )
        document.add_fault((*place, "serve"), message, at_key=True)
    return _replicas(document, (*place, "serve"), serve)


def _replicas(document: Document, place: Place, section: ReplicasSection) -> DeploymentOptions:
    """Replicas on a cluster, and what each takes."""
    if section.autoscale is not None and section.replicas is not None:
        document.add_fault((*place, "autoscale"), "stands beside replicas; keep one of them", at_key=True)
    scaling = None
    if (scale := section.autoscale) is not None:
        try:
            scaling = ScalingOptions(scale.max, scale.min, scale.queue_delay, scale.up_after, scale.down_after)
        except ValueError:
            document.add_fault((*place, "autoscale", "min"), f"is {scale.min}; use at most max ({scale.max})")
    return DeploymentOptions(section.replicas or 1, section.num_cpus, section.num_gpus, section.memory, scaling)


def _kind(document: Document, place: Place, name: object) -> BackendType | None:
    if not isinstance(name, str) or not name:
        return None  # told already, with the section
    try:
        return backend_type(name)
    except PointsmanError as error:
        document.add_fault((*place, "backend"), str(error))
        return None


def _options(document: Document, place: Place, kind: BackendType, own: Mapping[str, Any]) -> Any:
    """The backend's own options, files looked for. Any: each kind of backend has a class of its own."""
    options: Any = validated(document, kind.options, place, own, beside=keys_of(ModelSection))
    if options is None:
        return None
    paths = {key: document.base / getattr(options, key) for key in own if isinstance(getattr(options, key), Path)}
    for key, path in paths.items():
        if not path.exists():
            document.add_fault((*place, key), f"{path} does not exist; correct the path")
    return replace(options, **paths)


def _steps(document: Document, place: Place, steps: list[Any]) -> tuple[Any, ...]:
    try:
        parse_spec(steps)
    except PlanError as error:
        for fault in error.faults:
            step = _STEP.match(fault)
            document.add_fault((*place, int(step[1]) - 1) if step else place, fault)
    return tuple(steps)


def _labels(document: Document, place: Place, section: ModelSection) -> tuple[str, ...] | None:
    if section.labels_file is None:
        key, labels = "labels", section.labels
    elif section.labels is None:
        key, labels = "labels_file", _labels_in(document, (*place, "labels_file"), section.labels_file)
    else:
        document.add_fault((*place, "labels_file"), "stands beside labels; keep one of them")
        return None
    twice = sorted({label for label in labels or () if (labels or []).count(label) > 1})
    if twice:
        document.add_fault((*place, key), f"holds {twice[0]!r} twice; every class needs a name of its own")
    return None if labels is None else tuple(labels)


def _labels_in(document: Document, place: Place, file: str) -> list[str] | None:
    try:
        labels = read_file(document.base / file, LABELS_LIMIT_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        document.add_fault(place, f"{document.base / file} is not UTF-8; save it as UTF-8")
        return None
    except ValueError as error:
        document.add_fault(place, str(error))
        return None
    if not labels or not all(label.strip() for label in labels):
        document.add_fault(place, f"{document.base / file} is empty or has an empty line; write one label a line")
        return None
    return labels


def _calibration(document: Document, name: str, section: ModelSection) -> Calibration | None:
    if section.calibration is None:
        return None
    place: Place = ("models", name, "calibration")
    file = document.base / section.calibration
    remedy = "fit the calibration again"
    calibration = _from_json(document, place, file, CALIBRATION_LIMIT_BYTES, Calibration.from_dict, remedy)
    if calibration is None:
        return None
    if calibration.model != name:
        document.add_fault(place, f"{file} was fitted for model {calibration.model!r}; fit one for {name!r}")
    if section.confidence not in (None, calibration.how):
        message = f"{file} was fitted for confidence {calibration.how}, not {section.confidence}; make them the same"
        document.add_fault(place, message)
    return calibration


def _from_json(
    document: Document, place: Place, path: Path, limit_bytes: int, read: Callable[[object], _T], remedy: str
) -> _T | None:
    """What *read* makes of the JSON file *path*, which stands at *place*; None where that is at fault."""
    try:
        content = read_file(path, limit_bytes)
    except ValueError as error:
        document.add_fault(place, str(error))
        return None
    try:
        return read(json.loads(content))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        document.add_fault(place, f"{path} is not JSON; {remedy}")
    except ValueError as error:
        document.add_fault(place, f"{path}: {error}")
    return None


def _batching(document: Document, place: Place, section: BatchingSection) -> BatchingOptions:
    options = (section.max_batch, section.max_delay, section.max_queue, section.max_queue_bytes)
    try:
        return BatchingOptions(
            *options,
            section.priority_levels,
            section.default_priority,
            section.adaptive_concurrency,
            tuple(section.warm_up),
            tuple(section.length_buckets),
            dict(section.padding),
            dict(section.trim),
        )
    except ValueError as error:
        document.add_fault(place, str(error))
        return BatchingOptions(*options)


# --- routes ---


@dataclass(frozen=True, slots=True)
class _Versions:
    """A route, once for each of its versions, and what these get; none of a route that is at fault."""

    routes: tuple[RouteSettings, ...] = ()
    traffic: Traffic | None = None


def _versions(document: Document, name: str, data: object, models: Mapping[str, ModelSettings | None]) -> _Versions:
    """The route *name*: as it is, or in versions."""
    place: Place = ("routes", name)
    if not isinstance(data, dict) or "versions" not in data:
        if isinstance(data, dict) and "traffic" in data:
            message = "is about versions, and there are none; list them under `versions`, or remove it"
            document.add_fault((*place, "traffic"), message, at_key=True)
            data = {key: value for key, value in data.items() if key != "traffic"}
        _check_cascade(document, place, data, models)
        section = validated(document, RouteSection, place, data)
        return _Versions() if section is None else _Versions((_route(document, place, section, models),))
    if "cascade" in data:
        message = "stands beside versions; move it into one of them"
        document.add_fault((*place, "cascade"), message, at_key=True)
        data = {key: value for key, value in data.items() if key != "cascade"}
    for version, entry in data["versions"].items() if isinstance(data["versions"], dict) else ():
        _check_cascade(document, (*place, "versions", version), entry, models)
    whole = validated(document, VersionedRouteSection, place, data)
    if whole is None:
        return _Versions()
    routes = tuple(_version(document, place, whole, version, models) for version in whole.versions)
    _check_versions(document, place, routes, models)
    document.faults = list(dict.fromkeys(document.faults))  # what versions share is at fault once
    return _Versions(routes, _traffic(document, (*place, "traffic"), tuple(whole.versions), whole.traffic))


def _version(
    document: Document,
    place: Place,
    whole: VersionedRouteSection,
    version: str,
    models: Mapping[str, ModelSettings | None],
) -> RouteSettings:
    """The route at *place* as it is in *version*."""
    own = whole.versions[version]
    shared = {key: getattr(whole, key) for key in SharedSection.model_fields}
    accept = own.accept or whole.accept
    section = RouteSection(**{**shared, "accept": accept}, cascade=own.cascade)
    inner = (*place, "versions", version)
    route = _route(document, place, section, models, stages_at=inner, accept_at=inner if own.accept else place)
    return replace(route, version=version)


def _check_versions(
    document: Document,
    place: Place,
    routes: Sequence[RouteSettings],
    models: Mapping[str, ModelSettings | None],
) -> None:
    for route in routes:
        inner = (*place, "versions", route.version)
        if route.version == LATEST:
            message = f"{LATEST!r} is reserved, it means the version that is listed last; choose another name"
            document.add_fault(inner, message, at_key=True)
        elif not re.fullmatch(VERSION_PATTERN, route.version):
            message = "is no name of a version; use 1 to 64 letters, digits, '_', '-' and '.', such as \"2\""
            document.add_fault(inner, message, at_key=True)
        known = all(models.get(name) for name in (*routes[0].cascade, *route.cascade))
        if known and route.labels != routes[0].labels:
            message = f"its models have other labels than those of version {routes[0].version!r}; versions share theirs"
            document.add_fault((*inner, "cascade"), f"{message}, in the same order")


def _traffic(document: Document, place: Place, versions: tuple[str, ...], section: TrafficSection) -> Traffic:
    """1. a split: fixed shares
    2. a canary beside a version that stays: `use`, else the one listed before it
    3. one version alone: `use`, else the last
    """
    count = len(document.faults)
    for where, named in _named_versions(section):
        if named not in versions:
            document.add_fault((*place, *where), unknown_name("version", named, versions))
    if section.split is not None:
        for key in ("use", "canary"):
            if getattr(section, key) is not None:
                document.add_fault((*place, key), "stands beside split; keep one of them", at_key=True)
        if not any(section.split.values()):
            document.add_fault((*place, "split"), "gives no version anything; give one a weight above 0")
    if section.canary is not None and list(section.canary.ramp) != sorted(set(section.canary.ramp)):
        document.add_fault((*place, "canary", "ramp"), "does not rise from share to share; put them in order")
    if len(document.faults) > count:
        return Traffic(versions, Split({versions[-1]: 1.0}))
    use = versions[-1] if section.use == LATEST else section.use
    rule: TrafficRule = Split({use or versions[-1]: 1.0})
    if section.split is not None:
        rule = Split(section.split)
    elif section.canary is not None:
        rule = _canary(document, (*place, "canary"), versions, use, section.canary)
    shadow = None
    if section.shadow is not None:
        shadow = Shadow(section.shadow.version, section.shadow.share, section.shadow.max_running)
        if isinstance(rule, Split) and {version for version, weight in rule.weights.items() if weight} == {
            shadow.version
        }:
            message = f"version {shadow.version!r} answers everything, so there is nothing to compare; name another"
            document.add_fault((*place, "shadow", "version"), message)
    return Traffic(versions, rule, section.sticky, shadow)


def _named_versions(section: TrafficSection) -> Iterator[tuple[Place, str]]:
    """The versions that *section* names, with where."""
    if section.use not in (None, LATEST):
        yield ("use",), str(section.use)
    for version in section.split or ():
        yield ("split", version), version
    for key in ("canary", "shadow"):
        if (named := getattr(section, key)) is not None:
            yield (key, "version"), named.version


def _canary(
    document: Document, place: Place, versions: tuple[str, ...], use: str | None, section: CanarySection
) -> Canary:
    index = versions.index(section.version)
    stable = use or (versions[index - 1] if index else "")
    if stable == section.version:
        document.add_fault((*place, "version"), f"is {stable!r}, as `use` is; name two versions")
    elif not stable:
        message = f"no version is listed before {section.version!r}, to have the rest; list one, or name it with `use`"
        document.add_fault((*place, "version"), message)
    # Read once: all processes are handed these settings, and so ramp together, restarted ones too.
    starts_s = time.time() if section.starts is None else section.starts
    return Canary(section.version, stable, tuple(section.ramp), section.every, starts_s, section.starts is not None)


def _route(
    document: Document,
    place: Place,
    section: RouteSection,
    models: Mapping[str, ModelSettings | None],
    *,
    stages_at: Place = (),
    accept_at: Place = (),
) -> RouteSettings:
    """The route that *section* is, at *place*.

    Args:
        stages_at: where its cascade stands; at *place*, if unsaid.
        accept_at: where its accept rule stands; likewise.
    """
    accept_at = accept_at or place
    _check_stages(document, accept_at, section)
    _check_decode(document, place, section)
    labels = _shared_labels(document, stages_at or place, section.cascade, models)
    return RouteSettings(
        name=str(place[1]),
        inputs=tuple(TensorSpec(key, spec.datatype, tuple(spec.shape)) for key, spec in section.input.items()),
        decode=section.decode,
        cascade=tuple(section.cascade),
        labels=labels,
        accept=_accept(document, accept_at, section),
        human=_human(document, place, section, labels, models),
        on_defer=section.on_defer,
        id_as_key=section.id_as_key,
        deadline_s=section.slo.deadline,
        max_error=section.accept.max_error if section.accept else None,
    )


def _check_stages(document: Document, place: Place, section: RouteSection) -> None:
    if section.cascade and section.accept is None:
        document.add_fault((*place, "accept"), "is missing; add it, such as {min_confidence: 0.9}", at_key=True)
    if not section.cascade and section.human is None:
        document.add_fault((*place, "cascade"), "is empty, and there are no people; add models, or `human`")


def _check_decode(document: Document, place: Place, section: RouteSection) -> None:
    if section.decode is None:
        return
    if section.decode not in DECODERS:
        document.add_fault((*place, "decode"), unknown_name("decoder", section.decode, DECODERS))
    if [(spec.datatype, spec.shape) for spec in section.input.values()] != [(Datatype.BYTES, [1])]:
        message = "a route that decodes takes one input; make it {datatype: BYTES, shape: [1]}, or set decode: none"
        document.add_fault((*place, "input"), message, at_key=True)


def _check_cascade(document: Document, place: Place, data: object, models: Mapping[str, Any]) -> None:
    """Names are checked as written, so that a fault elsewhere in the route hides none of theirs."""
    written = data.get("cascade") if isinstance(data, dict) else None
    cascade = written if isinstance(written, list) else []
    for index, model in enumerate(cascade):
        inner = (*place, "cascade", index)
        if not isinstance(model, str):
            continue  # `validated` says so
        if model not in models:
            document.add_fault(inner, unknown_name("model", model, models))
        elif model in cascade[:index]:
            document.add_fault(inner, f"{model!r} is a stage already; keep one of them")


def _shared_labels(
    document: Document, place: Place, cascade: list[str], models: Mapping[str, ModelSettings | None]
) -> tuple[str, ...] | None:
    """The labels of all stages; a stage that differs from the first is a fault."""
    stages = [(index, model) for index, name in enumerate(cascade) if (model := models.get(name))]
    for index, model in stages[1:]:
        first = stages[0][1]
        if model.labels != first.labels:
            message = f"labels of {model.name!r} differ from those of {first.name!r}; stages of a route share theirs"
            document.add_fault((*place, "cascade", index), f"{message}, in the same order")
    return stages[0][1].labels if stages else None


def _accept(document: Document, place: Place, section: RouteSection) -> AcceptRule | CertifiedSettings:
    """1. no stages: nothing is ever judged
    2. any: the only stage's answer, whatever it is
    3. observe; 4. a threshold by hand: max_error is stated beside either, and nothing is proven
    5. max_error: certified
    """
    accept = section.accept
    if not section.cascade or accept is None:
        if accept is not None:
            document.add_fault(
                (*place, "accept"), "says when a stage is sure, and there is none; remove it", at_key=True
            )
        return Observe()
    inner = (*place, "accept")
    if accept.any:
        if accept.model_fields_set != {"any"}:
            document.add_fault((*inner, "any"), "takes every answer; remove what stands beside it", at_key=True)
        if len(section.cascade) > 1:
            document.add_fault((*inner, "any"), "takes every answer of the first stage; leave out the others")
        return AcceptAny()
    if accept.observe and accept.min_confidence is not None:
        document.add_fault((*inner, "observe"), "stands beside min_confidence; keep one of them", at_key=True)
    proven = accept.max_error is not None and not accept.observe and accept.min_confidence is None
    for key in ("confidence", "certificate"):
        if getattr(accept, key) is not None and not proven:
            document.add_fault((*inner, key), "belongs to max_error alone; remove it", at_key=True)
    if accept.observe:
        return Observe()
    if accept.min_confidence is not None:
        return MinConfidence(accept.min_confidence)
    if accept.max_error is None:
        message = "is missing, as are max_error and observe; write one of them, such as {max_error: 1%}"
        document.add_fault((*inner, "min_confidence"), message, at_key=True)
        return Observe()
    budget = Budget(accept.max_error, DEFAULT_CONFIDENCE if accept.confidence is None else accept.confidence)
    return CertifiedSettings(budget, _certificate(document, (*inner, "certificate"), accept.certificate, budget))


def _certificate(document: Document, place: Place, file: str | None, budget: Budget) -> Certificate | None:
    """What *file* proves, where it proves as much as *budget* asks; what it is about is checked with the models."""
    if file is None:
        return None
    path = document.base / file
    remedy = "certify the route again"
    certificate = _from_json(document, place, path, CERTIFICATE_LIMIT_BYTES, Certificate.from_dict, remedy)
    if certificate is None:
        return None
    route = str(place[1])
    if certificate.subject.route != route:
        message = f"{path} is about route {certificate.subject.route!r}, not {route!r}; name the right one"
        document.add_fault(place, message)
        return None
    if not certificate.proves(budget):
        message = f"proves {certificate.max_error:.2%} at {certificate.confidence:.1%}, less than the route asks"
        document.add_fault(place, f"{message}; certify the route again")
    return certificate


def _human(
    document: Document,
    place: Place,
    section: RouteSection,
    labels: tuple[str, ...] | None,
    models: Mapping[str, ModelSettings | None],
) -> HumanPolicy | None:
    human = section.human
    if human is None:
        return None
    if human.form == "labels" and labels is None and all(models.get(name) for name in section.cascade):
        remedy = "add labels to the models, or set form: text" if section.cascade else "set form: text"
        message = f"there are no labels to choose from; {remedy}"
        document.add_fault((*place, "human", "form"), message)
    if human.expires is not None and human.expires < human.due:
        message = "is before due, when a person should have decided; allow more time, or leave it out"
        document.add_fault((*place, "human", "expires"), message)
    _check_overload(document, (*place, "human"), human, section.cascade)
    return HumanPolicy(
        queue=human.queue,
        due_s=human.due,
        labels=(labels or ()) if human.form == "labels" else (),
        expires_s=human.expires,
        priority=human.priority,
        callers_priority=human.callers_priority,
        skills=tuple(sorted(set(human.skills))),
        when_overloaded=human.when_overloaded,
        max_wait_s=human.max_wait,
        quality=_label_quality(document, (*place, "human"), human),
    )


def _label_quality(document: Document, place: Place, human: HumanSection) -> LabelQuality:
    opinions = human.opinions
    if opinions is not None and opinions.needed > opinions.of:
        message = f"is {opinions.needed}, of {opinions.of} that are asked at most; lower it, or raise `of`"
        document.add_fault((*place, "opinions", "needed"), message)
    if opinions is not None and human.second_opinion is not None:
        message = "stands beside opinions, which ask several people anyway; keep one of them"
        document.add_fault((*place, "second_opinion"), message, at_key=True)
    if human.adjudicate is not None and opinions is None and human.second_opinion is None:
        message = "says who decides where opinions differ, and only one is asked for; add opinions or second_opinion"
        document.add_fault((*place, "adjudicate"), message, at_key=True)
    return LabelQuality(
        needed=1 if opinions is None else opinions.needed,
        of=1 if opinions is None else opinions.of,
        adjudicate=human.adjudicate,
        second_opinion=human.second_opinion or 0.0,
        gold=human.gold or 0.0,
    )


def _check_overload(document: Document, place: Place, human: HumanSection, cascade: list[str]) -> None:
    if human.max_wait is not None and human.when_overloaded is WhenOverloaded.WAIT:
        message = "says when people count as overloaded, and nothing follows; add when_overloaded, or remove it"
        document.add_fault((*place, "max_wait"), message, at_key=True)
    if human.when_overloaded in (WhenOverloaded.PROVISIONAL, WhenOverloaded.STRONGER) and not cascade:
        message = f"is {human.when_overloaded.value!r}, and there is no model to answer instead; use wait or refuse"
        document.add_fault((*place, "when_overloaded"), message)


# --- queues ---


def _queues(document: Document, routes: Mapping[str, Any]) -> Mapping[str, QueueOptions]:
    """The queues that are written, and those that *routes* name, as they stand in the file."""
    written = _entries(document, "queues")
    named = dict.fromkeys(_queues_named(routes))
    known = {**dict.fromkeys(written), **named}
    queues = {name: QueueOptions() for name in named if name not in written}
    queues |= {name: _queue(document, name, entry, known) for name, entry in written.items()}
    _check_chains(document, queues)
    return queues


def _queues_named(routes: Mapping[str, Any]) -> Iterator[str]:
    for route in routes.values():
        human = route.get("human") if isinstance(route, dict) else None
        queue = human.get("queue") if isinstance(human, dict) else None
        if isinstance(queue, str) and _NAME.fullmatch(queue):
            yield queue


def _queue(document: Document, name: str, data: object, known: Collection[str]) -> QueueOptions:
    """The queue *name*; what it would be without its faults."""
    place: Place = ("queues", name)
    if not _NAME.fullmatch(name):
        message = "is no name; use 1 to 128 letters, digits, '_', '-' and '.', not beginning with '.'"
        document.add_fault(place, message, at_key=True)
    section = validated(document, QueueSection, place, {} if data is None else data)
    if section is None:
        return QueueOptions()
    if section.escalate_to is not None and section.escalate_to not in known:
        document.add_fault((*place, "escalate_to"), unknown_name("queue", section.escalate_to, known))
        section = section.model_copy(update={"escalate_to": None})
    hours = ALWAYS if section.hours is None else _hours(document, (*place, "hours"), section.hours)
    return QueueOptions(section.escalate_to, section.due, frozenset(section.skills), hours)


def _hours(document: Document, place: Place, section: HoursSection) -> WorkingHours:
    if (why := why_no_zone(section.zone)) is not None:
        document.add_fault((*place, "zone"), why)
    week: list[list[Span]] = [[] for _ in range(7)]
    for key, spans in section.week.items():
        days = weekdays(key)
        for day in days:
            week[day] += spans
        if not all(disjoint(week[day]) for day in days):
            message = "has hours that overlap others of the same day; join them"
            document.add_fault((*place, "week", key), message)
    if not any(week):
        document.add_fault((*place, "week"), "has no hours at all; name some, or leave `hours` out")
    return WorkingHours(tuple(tuple(sorted(spans)) for spans in week), section.zone)


def _check_chains(document: Document, queues: Mapping[str, QueueOptions]) -> None:
    """A chain of queues has an end: a review that came back would never be overdue."""
    told: set[str] = set()
    for name in queues:
        chain = [name]
        while (following := queues[chain[-1]].escalate_to) is not None and following not in chain:
            chain.append(following)
        if following == name and name not in told:
            circle = " -> ".join([*chain, name])
            message = f"comes back to where it began: {circle}; let one of them escalate to another, or to none"
            document.add_fault(("queues", name, "escalate_to"), message)
            told.update(chain)


# --- classify ---


def _detector(
    document: Document, trait: str, data: object, models: Mapping[str, ModelSettings | None]
) -> DetectorSettings | None:
    place: Place = ("detectors", trait)
    section = validated(document, DetectorSection, place, {"model": data} if isinstance(data, str) else data)
    if section is None:
        return None
    if section.model not in models:
        document.add_fault((*place, "model"), unknown_name("model", section.model, models))
    if section.decode is not None and section.decode not in DECODERS:
        document.add_fault((*place, "decode"), unknown_name("decoder", section.decode, DECODERS))
    return DetectorSettings(trait, section.model, section.decode, section.min_confidence, section.timeout)


def _table(
    document: Document,
    names: frozenset[str],
    routes: Mapping[str, RouteSettings | None],
    detectors: frozenset[str],
) -> RouteTable:
    entries = document.data.get("classify") or []
    if not isinstance(entries, list):
        document.add_fault(("classify",), "is not a list; write each rule as - {when: {...}, route: NAME}")
        return RouteTable(names)
    places: list[Place] = []
    rules: list[Rule] = []
    targets: dict[str, tuple[Place, Target]] = {}
    for index, entry in enumerate(entries):
        place: Place = ("classify", index)
        if isinstance(entry, dict) and (key := next((key for key in _TARGETS if key in entry), None)):
            _check_order(document, place, key, is_last=index == len(entries) - 1, twice=key in targets)
            if target := _target(document, place, key, entry):
                targets[key] = ((*place, key), target)
        elif rule := _rule(document, place, entry):
            places.append(place)
            rules.append(rule)
    default, unsure = (targets[key][1] if key in targets else None for key in ("otherwise", "unsure"))
    table = RouteTable(names, tuple(rules), default, unsure, detectors)
    _check_complete(document, entries, bool(detectors))
    complete = len(places) == sum(not (isinstance(e, dict) and _TARGETS.keys() & e.keys()) for e in entries)
    _check_table(document, table, places, {key: place for key, (place, _) in targets.items()}, complete=complete)
    _check_people(document, [*zip(places, rules, strict=True), *targets.values()], routes, names)
    return table


_TARGETS: Mapping[str, type[OtherwiseSection | UnsureSection]] = {
    "otherwise": OtherwiseSection,
    "unsure": UnsureSection,
}


def _check_order(document: Document, place: Place, key: str, *, is_last: bool, twice: bool) -> None:
    if key == "otherwise" and not is_last:
        document.add_fault(place, "`otherwise` takes all that is left; move it to the end, once")
    elif key == "unsure" and twice:
        document.add_fault(place, f"`{key}` stands here a second time; keep one of them")


def _check_complete(document: Document, entries: list[Any], detects: bool) -> None:
    """Where requests go that no rule takes, or that detectors leave in doubt, is said and not guessed."""
    given = {key for entry in entries if isinstance(entry, dict) for key in entry}
    if entries and "otherwise" not in given:
        message = "has no default; end it with `- otherwise: ROUTE`, or `- otherwise: none`"
        document.add_fault(("classify",), message, at_key=True)
    if detects and entries and "unsure" not in given:
        message = "does not say where requests go that detectors doubt; add `- unsure: {route: ROUTE, to: human}`"
        document.add_fault(("classify",), message, at_key=True)


def _target(document: Document, place: Place, key: str, entry: object) -> Target | None:
    section = validated(document, _TARGETS[key], place, entry)
    target: TargetSection | None = getattr(section, key) if section else None
    return Target(target.route, target.to == "human") if target else None


def _rule(document: Document, place: Place, entry: object) -> Rule | None:
    section = validated(document, RuleSection, place, entry)
    if section is None:
        return None
    rule = Rule(_conditions(section.when), section.route, section.to == "human", section.name or "")
    if rule.when.admit_all:
        document.add_fault((*place, "when"), "admits every request; name a condition, or write it as `otherwise`")
        return None
    return rule


def _conditions(when: WhenSection) -> Conditions:
    return Conditions(
        routes=tuple(when.route),
        content_types=tuple(when.content_type),
        size=when.size,
        tenants=tuple(when.tenant),
        parameters=tuple(ParameterTest(name, tuple(accepted)) for name, accepted in when.parameters.items()),
        traits=tuple(
            TraitTest(name, tuple(test.one_of), tuple(test.none_of), test.confidence)
            for name, test in when.traits.items()
        ),
    )


def _check_table(
    document: Document, table: RouteTable, places: list[Place], targets: Mapping[str, Place], *, complete: bool
) -> None:
    for fault in faults(table):
        if fault.field == "when" and not complete:
            continue  # it counts rules, and one is missing
        place = targets[fault.field] if fault.rule is None else (*places[fault.rule], *fault.field.split("."))
        document.add_fault(place, fault.message)


def _check_people(
    document: Document,
    targets: Iterable[tuple[Place, Rule | Target]],
    routes: Mapping[str, RouteSettings | None],
    names: frozenset[str],
) -> None:
    """Whoever is sent straight to a route's people must find some there."""
    for place, target in targets:
        route = routes.get(target.route)
        peopled = route.human is not None if route else target.route in routes
        if target.to_person and target.route in names and not peopled:
            document.add_fault((*place, "to"), f"route {target.route!r} has no people; give it `human`, or remove `to`")


# --- server, store, pool, security ---


def _server(document: Document, data: object) -> ServerOptions | None:
    section = validated(document, ServerSection, ("server",), data)
    if section is None:
        return None
    options = ServerOptions(
        host=section.host,
        http_port=section.http_port,
        grpc_port=section.grpc_port,
        grpc_transport=_grpc_transport(document, section),
        control_port=section.control_port,
        max_body_bytes=section.max_body,
        drain_s=section.drain,
        tls=_tls(document, section.tls),
        trusted_hosts=section.trusted_hosts,
        shared_memory=_shared_memory(document, section),
        workers=section.workers,
        model_control=section.model_control,
    )
    if (why := options.why_not_workers()) is not None:
        document.add_fault(("server", "workers"), why)
    taken: dict[int, str] = {}
    for key in ("http_port", "grpc_port", "control_port"):
        port = getattr(options, key)
        if port and port in taken:
            document.add_fault(("server", key), f"is {port}, as {taken[port]} is; give each a port of its own")
        taken.setdefault(port, key)
    return options


def _grpc_transport(document: Document, section: ServerSection) -> Transport:
    if section.grpc_transport is Transport.NATIVE and (why := why_not_native()) is not None:
        document.add_fault(("server", "grpc_transport"), f"native {why}")
    return section.grpc_transport


def _shared_memory(document: Document, section: ServerSection) -> SharedMemoryOptions:
    memory = section.shared_memory
    if memory.enabled and not is_loopback(section.host):
        message = f"is for clients on this machine, but host {section.host!r} lets others in"
        document.add_fault(("server", "shared_memory", "enabled"), f"{message}; set host: 127.0.0.1, or enabled: false")
    return SharedMemoryOptions(memory.enabled, memory.max_regions, memory.limit, memory.pass_through, memory.pass_from)


def _tls(document: Document, section: TlsSection | None) -> TlsOptions | None:
    if section is None:
        return None
    options = TlsOptions(document.base / section.cert, document.base / section.key)
    try:
        options.context()
    except OSError as error:  # ssl.SSLError is one
        document.add_fault(("server", "tls"), f"cannot be used: {error}; name PEM files of a certificate and its key")
    return options


def _store(document: Document, data: object) -> StoreOptions | None:
    place: Place = ("store",)
    section = validated(document, StoreSection, place, data)
    if section is None:
        return None
    where = document.base / section.path if section.postgres is None else _postgres(document, section.postgres)
    if section.postgres is not None and "path" in section.model_fields_set:
        document.add_fault((*place, "path"), "stands beside `postgres`; keep one of them")
    if section.postgres is not None and section.postgres.url_env and not section.key_env and not section.key_file:
        message = "needs `key_env` or `key_file` beside it: all who share a store need the same key"
        document.add_fault((*place, "postgres"), message + "; `pointsman store key` makes one")
    written = section.retention
    kept = Retention(written.payloads, written.decisions, written.feedback, written.messages, written.keys)
    for name, why in kept.faults(written.answers):
        document.add_fault((*place, "retention", name.removesuffix("_s")), why)
    if section.key_env is not None and section.key_file is not None:
        document.add_fault((*place, "key_file"), "stands beside key_env; keep one of them", at_key=True)
    return StoreOptions(
        where,
        written.answers,
        section.limit,
        undo_s=section.undo,
        kept=kept,
        key_env=section.key_env,
        key_file=None if section.key_file is None else document.base / section.key_file,
    )


def _postgres(document: Document, section: PostgresSection) -> Postgres:
    place: Place = ("store", "postgres")
    if (why := why_not_postgres()) is not None:
        document.add_fault(place, why)
    if (section.url_env is None) == (section.url_file is None):
        document.add_fault(place, "needs `url_env` or `url_file`, one of them: where the address of the database is")
    return Postgres(section.url_env, None if section.url_file is None else document.base / section.url_file)


def _pool(document: Document, data: object) -> PoolOptions | None:
    section = validated(document, PoolSection, ("pool",), data)
    if section is None:
        return None
    return PoolOptions() if section.memory is None else PoolOptions(section.memory)


def _cluster(document: Document, data: object, models: Mapping[str, ModelSettings | None]) -> ClusterOptions | None:
    section = validated(document, ClusterSection, ("cluster",), data)
    if section is None:
        return None
    targets = None if section.targets is None else document.base / section.targets
    pools = {name: _replicas(document, ("cluster", "pools", name), pool) for name, pool in section.pools.items()}
    for name in pools:
        if not _NAME.fullmatch(name):
            message = "is no name; use 1 to 128 letters, digits, '_', '-' and '.'"
            document.add_fault(("cluster", "pools", name), message, at_key=True)
    for name, model in models.items():
        if model is not None and model.shares is not None and model.shares not in pools:
            document.add_fault(("models", name, "serve", "pool"), unknown_name("pool", model.shares, pools))
    return ClusterOptions(section.replicas, section.num_cpus, targets, pools)


def _webhook(document: Document, name: str, data: object, routes: Collection[str]) -> WebhookOptions | None:
    place: Place = ("webhooks", name)
    if not _NAME.fullmatch(name):
        document.add_fault(place, "is no name; use 1 to 128 letters, digits, '_', '-' and '.'", at_key=True)
    section = validated(document, WebhookSection, place, data)
    if section is None:
        return None
    for index, route in enumerate(section.routes):
        if route not in routes:
            document.add_fault((*place, "routes", index), unknown_name("route", route, routes))
    if (section.secret_env is None) == (section.secret_file is None):
        document.add_fault(place, "needs `secret_env` or `secret_file`, one of them: what its messages are signed with")
        return None
    options = WebhookOptions(
        name=name,
        url=section.url,
        secret_env=section.secret_env,
        secret_file=None if section.secret_file is None else document.base / section.secret_file,
        tenant=section.tenant,
        routes=frozenset(section.routes),
        private=section.private,
        answers=section.answers,
    )
    if (why := options.why_not_url()) is not None:
        document.add_fault((*place, "url"), why)
    return options


def _listed(document: Document, section: str) -> list[Any]:
    """The entries of a *section* that is a list (Any: as they are written)."""
    entries = document.data.get(section) or []
    if isinstance(entries, list):
        return entries
    document.add_fault((section,), "is not a list; write each entry as - {...}")
    return []


def _mask(document: Document, index: int, data: object, routes: Collection[str]) -> MaskOptions | None:
    place: Place = ("mask", index)
    section = validated(document, MaskSection, place, data)
    if section is None:
        return None
    for at, route in enumerate(section.routes):
        if route not in routes:
            document.add_fault((*place, "routes", at), unknown_name("route", route, routes))
    given = [one for one in (section.parameter, section.path, section.text) if one is not None]
    if len(given) != 1:
        document.add_fault(place, "needs `parameter`, `path` or `text`, one of them: what is masked")
    routes_ = frozenset(section.routes)
    return MaskOptions(section.parameter, section.path, section.text, section.by, routes_)


def _notify(
    document: Document,
    index: int,
    data: object,
    queues: Collection[str],
    webhooks: Collection[str],
    *,
    has_smtp: bool,
) -> NotifyOptions | None:
    place: Place = ("notify", index)
    section = validated(document, NotifySection, place, data)
    if section is None:
        return None
    if section.queue not in queues:
        document.add_fault((*place, "queue"), unknown_name("queue", section.queue, queues))
    if (section.webhook is None) == (not section.email):
        document.add_fault(place, "needs `webhook` or `email`, one of them: who is told")
    if section.webhook is not None and section.webhook not in webhooks:
        document.add_fault((*place, "webhook"), unknown_name("webhook", section.webhook, webhooks))
    for at, mailbox in enumerate(section.email):
        if not is_mailbox(mailbox):
            message = f"is {mailbox!r}, which is no mailbox; write it like anna@example.org"
            document.add_fault((*place, "email", at), message)
    if section.email and not has_smtp:
        document.add_fault((*place, "email"), "needs a server that takes mail; add `smtp: {host: ..., sender: ...}`")
    return NotifyOptions(
        queue=section.queue,
        webhook=section.webhook,
        email=tuple(section.email),
        on=frozenset(section.on),
        tenant=section.tenant,
        digest_s=section.digest,
        ahead_s=section.ahead,
        link=section.link or "",
    )


def _check_told_once(document: Document, rules: Sequence[NotifyOptions | None]) -> None:
    """Whoever is told of a queue by two rules would be told by one of them alone: it marks what it has told."""
    known: dict[str, int] = {}
    for index, rule in enumerate(rules):
        if rule is not None and known.setdefault(rule.rule.id, index) != index:
            message = f"tells the same of queue {rule.queue!r} as entry {known[rule.rule.id]} does; make them one"
            document.add_fault(("notify", index), message)


def _smtp(document: Document, data: object) -> SmtpOptions | None:
    place: Place = ("smtp",)
    section = validated(document, SmtpSection, place, data)
    if section is None:
        return None
    if not is_mailbox(section.sender):
        message = f"is {section.sender!r}, which is no mailbox; write it like pointsman@example.org"
        document.add_fault((*place, "sender"), message)
    passwords = [one for one in (section.password_env, section.password_file) if one is not None]
    if len(passwords) != (section.user is not None):
        document.add_fault(place, "needs `user` and one of `password_env` and `password_file`, or none of them")
    if section.user is not None and section.security is MailSecurity.NONE and not is_loopback(section.host):
        message = "is none, so the password would be sent as it is; use starttls or tls, or leave out the user"
        document.add_fault((*place, "security"), message)
    ca = None if section.ca is None else document.base / section.ca
    if ca is not None and not ca.is_file():
        document.add_fault((*place, "ca"), f"{ca} does not exist; correct the path")
    return SmtpOptions(
        host=section.host,
        sender=section.sender,
        port=section.port,
        security=section.security,
        user=section.user,
        password_env=section.password_env,
        password_file=None if section.password_file is None else document.base / section.password_file,
        ca=ca,
        timeout_s=section.timeout,
    )


def _traces(document: Document, data: object) -> TracesOptions | None:
    telemetry = validated(document, TelemetrySection, ("telemetry",), data)
    if telemetry is None or telemetry.traces is None:
        return None
    section, place = telemetry.traces, ("telemetry", "traces")
    if (why := why_not_tracing()) is not None:
        document.add_fault(place, why)
    headers = None if section.headers_file is None else document.base / section.headers_file
    if headers is not None:
        try:
            read_headers(headers)
        except ValueError as error:
            document.add_fault((*place, "headers_file"), str(error))
    ca = None if section.ca is None else document.base / section.ca
    if ca is not None and not ca.is_file():
        document.add_fault((*place, "ca"), f"{ca} does not exist; correct the path")
    rest = (section.sample, section.service_name, headers, ca, section.timeout, section.max_queue)
    try:
        return TracesOptions(section.endpoint, *rest)
    except ValueError as error:
        document.add_fault(place, str(error))
        return None


def _security(document: Document, data: object, queues: Mapping[str, QueueOptions]) -> SecurityOptions | None:
    place: Place = ("security",)
    section = validated(document, SecuritySection, place, data, secret=True)
    if section is None:
        return None
    if section.api_keys_file is None:
        return _api_keys(document, (*place, "api_keys"), section.api_keys, queues)
    if section.api_keys:
        document.add_fault((*place, "api_keys_file"), "stands beside api_keys; keep one of them")
        return None
    inner, options = _api_keys_in(document.base / section.api_keys_file, queues)
    document.faults += inner.faults
    return options


def load_api_keys(file: Path, queues: Mapping[str, QueueOptions]) -> SecurityOptions:
    """The keys in *file*, a list of its own.

    Args:
        queues: those in which their owners may review.

    Raises:
        SettingsError: with every fault.
    """
    document, options = _api_keys_in(file, queues)
    if options is None or document.faults:
        raise SettingsError(tuple(document.faults))
    return options


def _api_keys_in(file: Path, queues: Mapping[str, QueueOptions]) -> tuple[Document, SecurityOptions | None]:
    """The keys in a file of their own, and that file, which has their faults."""
    document = read_document(file)
    keys = None if document.faults else validated(document, list[ApiKeySection], (), document.data, secret=True)
    options = None if keys is None else _api_keys(document, (), keys, queues)
    return document, None if options is None else replace(options, file=file)


def _api_keys(
    document: Document, place: Place, sections: list[ApiKeySection], queues: Mapping[str, QueueOptions]
) -> SecurityOptions | None:
    keys: list[ApiKey] = []
    for index, section in enumerate(sections):
        _check_reviewer(document, (*place, index), section, queues)
        scope = scope_of(section.queues, section.skills, queues)
        try:
            keys.append(ApiKey(section.name, section.sha256, section.tenant, frozenset(section.roles), scope))
        except ValueError as error:
            document.add_fault((*place, index), str(error))
    try:
        return SecurityOptions(tuple(keys))
    except ValueError as error:
        document.add_fault(place, str(error))
        return None


def _check_reviewer(document: Document, place: Place, section: ApiKeySection, queues: Collection[str]) -> None:
    """No message repeats what is written: it may be a key in the wrong place."""
    if Role.REVIEWER not in section.roles:
        for key in ("queues", "skills"):
            if getattr(section, key):
                message = "is for reviewers; add reviewer to its `roles`, or remove it"
                document.add_fault((*place, key), message, at_key=True)
    unknown = [queue for queue in section.queues or () if queue != EVERY_QUEUE and queue not in queues]
    if unknown:
        message = f"names a queue that is none (it is not shown); known: {', '.join(sorted(queues)) or 'none'}"
        document.add_fault((*place, "queues"), message)
