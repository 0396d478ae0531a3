"""From a file to `Settings`, or to every fault in it at once.

Each section is checked by itself (`gateway.settings.validate`), and whatever came out whole is then checked against
the rest: a misspelt key in one model hides no fault of another. Names count as known as soon as they are written, so
that one fault is not told twice, as an unknown reference too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from backends.contract import Datatype, TensorSpec
from backends.errors import PointsmanError
from backends.registry import BackendType, backend_type
from backends.warm.entry import WarmOptions
from batching.options import BatchingOptions
from gateway.grpc_edge.transport import Transport, why_not_native
from gateway.security import ApiKey, SecurityOptions, is_loopback
from gateway.settings.document import Document, Fault, Place, read_document, read_file
from gateway.settings.options import (
    CertifiedSettings,
    DetectorSettings,
    ModelSettings,
    PoolOptions,
    RouteSettings,
    ServerOptions,
    Settings,
    TlsOptions,
)
from gateway.settings.validate import keys_of, unknown_key, unknown_name, validated
from gateway.settings.written import (
    NAME_PATTERN,
    ApiKeySection,
    BatchingSection,
    DetectorSection,
    ModelSection,
    OtherwiseSection,
    PoolSection,
    RouteSection,
    RuleSection,
    SecuritySection,
    ServerSection,
    SettingsSection,
    StoreSection,
    TargetSection,
    TlsSection,
    UnsureSection,
    WhenSection,
)
from gateway.shared_memory import SharedMemoryOptions
from gateway.store.options import StoreOptions
from kernels.decode import DECODERS
from kernels.plan import PlanError, parse_spec
from router.calibration import Calibration
from router.certificate import Certificate
from router.certification import DEFAULT_CONFIDENCE, Budget
from router.contract import AUTO, AcceptRule, HumanPolicy, MinConfidence, Observe
from router.table import Conditions, ParameterTest, RouteTable, Rule, Target, TraitTest, faults

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
    document = read_document(path)
    settings = _settings(document)
    if settings is None or document.faults:
        raise SettingsError(
            tuple(sorted(document.faults, key=lambda fault: (str(fault.file), fault.line, fault.column)))
        )
    return settings


def _settings(document: Document) -> Settings | None:
    data = document.data
    if not isinstance(data, dict):
        if not document.faults:
            document.add_fault((), "is not a mapping; begin with `models:` and `routes:`")
        return None
    for key in data.keys() - keys_of(SettingsSection).keys():
        document.add_fault((key,), unknown_key(key, keys_of(SettingsSection)), at_key=True)
    written = {name: _entries(document, name) for name in ("models", "routes")}
    models = {name: _model(document, name, entry) for name, entry in written["models"].items()}
    routes = {name: _route(document, name, entry, models) for name, entry in written["routes"].items()}
    _check_names(document, models, routes)
    exposed = {name for name, model in models.items() if model is None or model.expose}
    written_detectors = _entries(document, "detectors")
    detectors = {trait: _detector(document, trait, entry, models) for trait, entry in written_detectors.items()}
    table = _table(document, frozenset(routes) | exposed, routes, frozenset(detectors))
    server = _server(document, data.get("server") or {})
    store = _store(document, data.get("store") or {})
    security = _security(document, data.get("security") or {})
    pool = _pool(document, data.get("pool") or {})
    if document.faults or server is None or store is None or security is None or pool is None:
        return None
    return Settings(
        file=document.file,
        models={name: model for name, model in models.items() if model},
        routes={name: route for name, route in routes.items() if route},
        detectors={trait: detector for trait, detector in detectors.items() if detector},
        table=table,
        server=server,
        store=store,
        security=security,
        pool=pool,
    )


def _entries(document: Document, section: str) -> Mapping[str, Any]:
    entries = document.data.get(section) or {}
    if isinstance(entries, dict):
        return entries
    document.add_fault((section,), "is not a mapping; write each entry as NAME: {...}")
    return {}


def _check_names(document: Document, models: Mapping[str, ModelSettings | None], routes: Mapping[str, Any]) -> None:
    for section, names in (("models", models), ("routes", routes), ("detectors", _entries(document, "detectors"))):
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
    )


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


def _route(
    document: Document, name: str, data: object, models: Mapping[str, ModelSettings | None]
) -> RouteSettings | None:
    place: Place = ("routes", name)
    _check_cascade(document, place, data, models)
    section = validated(document, RouteSection, place, data)
    if section is None:
        return None
    _check_stages(document, place, section)
    _check_decode(document, place, section)
    labels = _shared_labels(document, place, section.cascade, models)
    return RouteSettings(
        name=name,
        inputs=tuple(TensorSpec(key, spec.datatype, tuple(spec.shape)) for key, spec in section.input.items()),
        decode=section.decode,
        cascade=tuple(section.cascade),
        labels=labels,
        accept=_accept(document, place, section),
        human=_human(document, place, section, labels, models),
        on_defer=section.on_defer,
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
    2. observe; 3. a threshold by hand: max_error is stated beside either, and nothing is proven
    4. max_error: certified
    """
    accept = section.accept
    if not section.cascade or accept is None:
        if accept is not None:
            document.add_fault(
                (*place, "accept"), "says when a stage is sure, and there is none; remove it", at_key=True
            )
        return Observe()
    inner = (*place, "accept")
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
    return HumanPolicy(human.queue, human.due, (labels or ()) if human.form == "labels" else ())


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
    return SharedMemoryOptions(memory.enabled, memory.max_regions, memory.limit)


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
    section = validated(document, StoreSection, ("store",), data)
    if section is None:
        return None
    return StoreOptions(document.base / section.path, section.retention, section.limit)


def _pool(document: Document, data: object) -> PoolOptions | None:
    section = validated(document, PoolSection, ("pool",), data)
    if section is None:
        return None
    return PoolOptions() if section.memory is None else PoolOptions(section.memory)


def _security(document: Document, data: object) -> SecurityOptions | None:
    place: Place = ("security",)
    section = validated(document, SecuritySection, place, data, secret=True)
    if section is None:
        return None
    if section.api_keys_file is None:
        return _api_keys(document, (*place, "api_keys"), section.api_keys)
    if section.api_keys:
        document.add_fault((*place, "api_keys_file"), "stands beside api_keys; keep one of them")
        return None
    return _api_keys_in(document, section.api_keys_file)


def _api_keys_in(document: Document, file: str) -> SecurityOptions | None:
    """The keys in a file of their own, whose faults are told with its name."""
    inner = read_document(document.base / file)
    keys = None if inner.faults else validated(inner, list[ApiKeySection], (), inner.data, secret=True)
    options = None if keys is None else _api_keys(inner, (), keys)
    document.faults += inner.faults
    return options


def _api_keys(document: Document, place: Place, sections: list[ApiKeySection]) -> SecurityOptions | None:
    keys: list[ApiKey] = []
    for index, section in enumerate(sections):
        try:
            keys.append(ApiKey(section.name, section.sha256, section.tenant, frozenset(section.roles)))
        except ValueError as error:
            document.add_fault((*place, index), str(error))
    try:
        return SecurityOptions(tuple(keys))
    except ValueError as error:
        document.add_fault(place, str(error))
        return None
