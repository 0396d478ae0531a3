"""From a file to `Settings`, or to every fault in it at once.

Each section is checked by itself (`gateway.settings.validate`), and whatever came out whole is then checked against
the rest: a misspelt key in one model hides no fault of another. Names count as known as soon as they are written, so
that one fault is not told twice, as an unknown reference too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.contract import Datatype, TensorSpec
from backends.errors import PointsmanError
from backends.registry import BackendType, backend_type
from batching.options import BatchingOptions
from gateway.security import ApiKey, SecurityOptions
from gateway.settings.document import Document, Fault, Place, read_document, read_file
from gateway.settings.options import ModelSettings, RouteSettings, ServerOptions, Settings
from gateway.settings.validate import keys_of, unknown_key, unknown_name, validated
from gateway.settings.written import (
    NAME_PATTERN,
    AcceptSection,
    ApiKeySection,
    BatchingSection,
    ModelSection,
    OtherwiseSection,
    RouteSection,
    RuleSection,
    SecuritySection,
    ServerSection,
    SettingsSection,
    StoreSection,
    WhenSection,
)
from gateway.store.options import StoreOptions
from kernels.decode import DECODERS
from kernels.plan import PlanError, parse_spec
from router.calibration import Calibration
from router.confidence import Measure
from router.contract import AUTO, HumanPolicy, MinConfidence
from router.table import Conditions, Default, ParameterTest, RouteTable, Rule, faults

LABELS_LIMIT_BYTES = 1024 * 1024
CALIBRATION_LIMIT_BYTES = 16 * 1024 * 1024

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
    table = _table(document, frozenset(routes) | exposed, routes)
    server = _server(document, data.get("server") or {})
    store = _store(document, data.get("store") or {})
    security = _security(document, data.get("security") or {})
    if document.faults or server is None or store is None or security is None:
        return None
    return Settings(
        file=document.file,
        models={name: model for name, model in models.items() if model},
        routes={name: route for name, route in routes.items() if route},
        table=table,
        server=server,
        store=store,
        security=security,
    )


def _entries(document: Document, section: str) -> Mapping[str, Any]:
    entries = document.data.get(section) or {}
    if isinstance(entries, dict):
        return entries
    document.add_fault((section,), "is not a mapping; write each entry as NAME: {...}")
    return {}


def _check_names(document: Document, models: Mapping[str, ModelSettings | None], routes: Mapping[str, Any]) -> None:
    for section, names in (("models", models), ("routes", routes)):
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
        measure=section.confidence or (calibration.how if calibration else Measure()),
        calibration=calibration,
        batching=_batching(section.batching),
        cost=section.cost,
        expose=section.expose,
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
    try:
        content = read_file(file, CALIBRATION_LIMIT_BYTES)
    except ValueError as error:
        document.add_fault(place, str(error))
        return None
    try:
        calibration = Calibration.from_dict(json.loads(content))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        document.add_fault(place, f"{file} is not JSON; fit the calibration again")
        return None
    except ValueError as error:
        document.add_fault(place, f"{file}: {error}")
        return None
    if calibration.model != name:
        document.add_fault(place, f"{file} was fitted for model {calibration.model!r}; fit one for {name!r}")
    if section.confidence not in (None, calibration.how):
        message = f"{file} was fitted for confidence {calibration.how}, not {section.confidence}; make them the same"
        document.add_fault(place, message)
    return calibration


def _batching(section: BatchingSection) -> BatchingOptions:
    return BatchingOptions(section.max_batch, section.max_delay, section.max_queue, section.max_queue_bytes)


# --- routes ---


def _route(
    document: Document, name: str, data: object, models: Mapping[str, ModelSettings | None]
) -> RouteSettings | None:
    place: Place = ("routes", name)
    _check_cascade(document, place, data, models)
    section = validated(document, RouteSection, place, data)
    if section is None:
        return None
    _check_decode(document, place, section)
    labels = _shared_labels(document, place, section.cascade, models)
    return RouteSettings(
        name=name,
        inputs=tuple(TensorSpec(key, spec.datatype, tuple(spec.shape)) for key, spec in section.input.items()),
        decode=section.decode,
        cascade=tuple(section.cascade),
        labels=labels,
        accept=_accept(document, place, section.accept),
        human=_human(document, place, section, labels, models),
        on_defer=section.on_defer,
        deadline_s=section.slo.deadline,
        max_error=section.accept.max_error,
    )


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


def _accept(document: Document, place: Place, section: AcceptSection) -> MinConfidence:
    if section.min_confidence is None and section.max_error is not None:
        message = "certified error budgets are not available in this version; add min_confidence"
        document.add_fault((*place, "accept", "max_error"), message, at_key=True)
    elif section.min_confidence is None:
        document.add_fault((*place, "accept", "min_confidence"), "is missing; add it, such as 0.9", at_key=True)
    return MinConfidence(1.0 if section.min_confidence is None else section.min_confidence)


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
        message = "there are no labels to choose from; add labels to the models, or set form: text"
        document.add_fault((*place, "human", "form"), message)
    return HumanPolicy(human.queue, human.due, (labels or ()) if human.form == "labels" else ())


# --- classify ---


def _table(document: Document, names: frozenset[str], routes: Mapping[str, RouteSettings | None]) -> RouteTable:
    entries = document.data.get("classify") or []
    if not isinstance(entries, list):
        document.add_fault(("classify",), "is not a list; write each rule as - {when: {...}, route: NAME}")
        return RouteTable(names)
    places: list[Place] = []
    rules: list[Rule] = []
    default: Default | None = None
    for index, entry in enumerate(entries):
        place: Place = ("classify", index)
        if isinstance(entry, dict) and "otherwise" in entry:
            default = _default(document, place, entry, is_last=index == len(entries) - 1)
        elif rule := _rule(document, place, entry):
            places.append(place)
            rules.append(rule)
    table = RouteTable(names, tuple(rules), default)
    _check_table(document, table, places, len(entries))
    _check_people(document, table, places, routes, len(entries))
    return table


def _default(document: Document, place: Place, entry: object, *, is_last: bool) -> Default | None:
    if not is_last:
        document.add_fault(place, "`otherwise` takes all that is left; move it to the end, once")
    section = validated(document, OtherwiseSection, place, entry)
    return Default(section.otherwise.route, section.otherwise.to == "human") if section else None


def _rule(document: Document, place: Place, entry: object) -> Rule | None:
    section = validated(document, RuleSection, place, entry)
    if section is None:
        return None
    rule = Rule(_conditions(section.when), section.route, section.to == "human")
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
    )


def _check_table(document: Document, table: RouteTable, places: list[Place], count: int) -> None:
    complete = len(places) + (table.default is not None) == count
    for fault in faults(table):
        if fault.field == "when" and not complete:
            continue  # it counts rules, and one is missing
        keys = fault.field.split(".")
        place = (*places[fault.rule], *keys) if fault.rule is not None else ("classify", count - 1, "otherwise")
        document.add_fault(place, fault.message)


def _check_people(
    document: Document,
    table: RouteTable,
    places: list[Place],
    routes: Mapping[str, RouteSettings | None],
    count: int,
) -> None:
    """Whoever is sent straight to a route's people must find some there."""
    targets: list[tuple[Place, Rule | Default]] = [*zip(places, table.rules, strict=True)]
    if table.default:
        targets.append((("classify", count - 1, "otherwise"), table.default))
    for place, target in targets:
        route = routes.get(target.route)
        peopled = route.human is not None if route else target.route in routes
        if target.to_person and target.route in table.routes and not peopled:
            document.add_fault((*place, "to"), f"route {target.route!r} has no people; give it `human`, or remove `to`")


# --- server, store, security ---


def _server(document: Document, data: object) -> ServerOptions | None:
    section = validated(document, ServerSection, ("server",), data)
    if section is None:
        return None
    options = ServerOptions(
        host=section.host,
        http_port=section.http_port,
        grpc_port=section.grpc_port,
        control_port=section.control_port,
        max_body_bytes=section.max_body,
        drain_s=section.drain,
        trusted_hosts=section.trusted_hosts,
    )
    taken: dict[int, str] = {}
    for key in ("http_port", "grpc_port", "control_port"):
        port = getattr(options, key)
        if port and port in taken:
            document.add_fault(("server", key), f"is {port}, as {taken[port]} is; give each a port of its own")
        taken.setdefault(port, key)
    return options


def _store(document: Document, data: object) -> StoreOptions | None:
    section = validated(document, StoreSection, ("store",), data)
    if section is None:
        return None
    return StoreOptions(document.base / section.path, section.retention, section.limit)


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
