"""Sets the demo up: trains its models, calibrates them, chooses thresholds, and writes a configuration to serve.

Everything is trained through the very plans that the gateway runs (`kernels.plan`), so that what a model saw in
training is what it sees in service. Every random choice has a fixed seed.

What is written lies in one folder of the cache, whose name is a hash of all that shapes it: the data, the sources that
train and preprocess, and the libraries. It is built beside its place and renamed into it, so it is there whole or not
at all.

The labels are divided four ways, and no part does another's work: models are fitted on one, calibrators on the next,
thresholds are chosen on the third, and the fourth is held out for the demo to send.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import kernels
from backends.contract import Tensor
from backends.ort import ort
from gateway.demo import models
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
from gateway.demo.items import Item, write_items
from gateway.demo.packages import DIGITS, ENCODER, SNIPPETS, TOKENIZER, Progress, fetch, sha256_of
from gateway.demo.thresholds import Judged, Threshold, choose_threshold
from kernels.decode import DECODERS, decode
from kernels.plan import Plan
from router.calibration import Calibration, confidences, fit_temperature
from router.confidence import Measure, probabilities

CONFIG = "demo.yaml"
ITEMS = "items.jsonl"
TOKENIZER_FILE = "tokenizer.json"

MAX_ERROR = {"digits": 0.02, "feedback": 0.20}
"""What each route promises of the answers that its models give. Of feedback even a person is wrong one time in six."""

_SEED = 20140601
_BATCH = 32
_MODEL_VERSION = "1"
_MEASURE = Measure()
_SOURCES = ("binomial", "data", "items", "models", "thresholds", "train")
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
_CONTENT_TYPES = {"digits": "image/*", "feedback": "text/*"}
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
        threshold: the least confidence that it accepts.
        held_out: items that nothing was fitted or chosen on.
    """

    threshold: Threshold
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
        SetupFailed: the data cannot be had.
    """
    folder = cache / "models" / _key()
    if folder.is_dir():
        return folder
    files = {file: fetch(file, cache, progress) for file in (DIGITS, SNIPPETS, TOKENIZER, ENCODER)}
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
        write_items(built / ITEMS, [item for route in routes.values() for item in route.held_out])
        thresholds = {name: route.threshold.value for name, route in routes.items()}
        (built / CONFIG).write_text(yaml.safe_dump(configuration(thresholds), sort_keys=False))
        _put(built, folder)
    return folder


def _put(built: Path, folder: Path) -> None:
    try:
        built.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another run was faster, and built the same
            raise


def _key() -> str:
    """Names all that shapes what is built."""
    here = Path(__file__).parent
    sources = [here / f"{name}.py" for name in _SOURCES] + sorted(Path(kernels.__path__[0]).glob("*.py"))
    parts = [sha256_of(source.read_bytes()) for source in sources]
    parts += [file.sha256 for file in (DIGITS, SNIPPETS, TOKENIZER, ENCODER)]
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
    threshold = _finish(folder, (fast, strong), as_decoded(digits.images), digits.labels, parts, max_error)
    held_out = (
        Item("digits", "image/png", png(digits.images[i]), DIGIT_LABELS[digits.labels[i]]) for i in parts.held_out
    )
    return BuiltRoute(threshold, tuple(held_out))


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
    threshold = _finish(folder, (fast, strong), texts, labels, parts, max_error)
    return BuiltRoute(threshold, tuple(_feedback_item(snippets[i]) for i in parts.held_out))


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
) -> Threshold:
    """Write every stage and its calibration, and choose the route's threshold."""
    confidence, right = [], []
    for stage in stages:
        rows = run_model(stage, items[np.concatenate([parts.fit, parts.choose])])
        fit, choose = rows[: len(parts.fit)], rows[len(parts.fit) :]
        calibration = calibrate(stage.name, fit, labels[parts.fit])
        (folder / f"{stage.name}.onnx").write_bytes(stage.content)
        (folder / f"{stage.name}.json").write_text(json.dumps(calibration.to_dict(), indent=2) + "\n")
        outputs = {models.PROBABILITIES: Tensor.of(choose)}
        confidence.append(confidences(_MEASURE, calibration.calibrator, outputs, len(choose)))
        right.append(choose.argmax(axis=1) == labels[parts.choose])
    return choose_threshold(Judged(np.stack(confidence), np.stack(right)), max_error)


def calibrate(name: str, rows: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibration:
    """The temperature of the model *name*, from its probabilities (n, classes) for items with these *labels*."""
    outputs = {models.PROBABILITIES: Tensor.of(rows)}
    temperature = fit_temperature(probabilities(_MEASURE, outputs, len(rows)), labels)
    return Calibration(temperature, _MEASURE, len(rows), name, _MODEL_VERSION)


def configuration(thresholds: Mapping[str, float]) -> dict[str, Any]:
    """What `demo.yaml` holds for the routes of *thresholds*; files are named relative to it. Any: YAML."""
    return {
        "models": {name: _model(name) for name in _PREPROCESS if _route_of(name) in thresholds},
        "routes": {name: _route(name, value) for name, value in thresholds.items()},
        "classify": [
            {"when": {"route": "auto", "content_type": content_type}, "route": route}
            for route, content_type in _CONTENT_TYPES.items()
            if route in thresholds
        ],
        "store": {"path": "demo.db", "retention": "1d", "limit": "1GiB"},
    }


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


def _route(name: str, threshold: float) -> dict[str, Any]:
    return {
        **_ROUTES[name],
        "cascade": [f"{name}-fast", f"{name}-strong"],
        "accept": {"min_confidence": threshold, "max_error": f"{MAX_ERROR[name]:.0%}"},
        "human": {"queue": name, "due": "4h", "form": "labels"},
        "on_defer": "provisional",
        "slo": {"deadline": "2s"},
    }
