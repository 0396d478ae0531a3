"""The demo's four models: how each is fitted, and how it becomes an ONNX file with one output, `probabilities`.

- digits, fast: logistic regression on 14x14 means of the picture. 8 kB.
- digits, strong: a perceptron with one hidden layer on 28x28 pixels, trained on each digit in nine positions, one
  pixel apart, because 2,000 digits alone teach it their places (0.963 right, against 0.93 without).
- feedback, fast: logistic regression on TF-IDF weighted words.
- feedback, strong: MiniLM, mean pooling and logistic regression, joined into one graph; the encoder stays as it is.

Settled by trying, for the text model (scikit-learn 1.9, skl2onnx 1.20): words only, since pairs of words drift by 0.03
in the exported model; no `sublinear_tf`, which the export drops silently; the texts arrive lower-cased, because ONNX's
own lower-casing needs a locale that slim machines lack; the same token pattern on both sides.

Rejected: a support vector machine for the strong digits. It is as good (0.952), and its one-against-one votes are no
confidences; `probability=True` is deprecated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

# Any, throughout: scikit-learn and ONNX have no types of their own.

PROBABILITIES = "probabilities"
"""The one output of every model: (n, classes), float32."""

_OPSETS = {"": 17, "ai.onnx.ml": 3, "com.microsoft": 1}
_WORDS = "[a-zA-Z0-9_]+"
_HIDDEN = 256
_EPOCHS = 12
_EMBEDDING = "sentence_embedding"


def fit_linear(features: NDArray[np.float32], labels: NDArray[np.int64], *, strength: float) -> Any:
    """Logistic regression on dense *features*, (n, d); *strength* is scikit-learn's C."""
    with _one_thread():
        return LogisticRegression(C=strength, max_iter=2000).fit(features, labels)


def fit_perceptron(pixels: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int) -> Any:
    """A perceptron with one hidden layer on *pixels*, (n, d), in [0, 1]."""
    model = MLPClassifier((_HIDDEN,), alpha=1e-3, batch_size=128, random_state=seed)
    classes = np.unique(labels)
    with _one_thread():
        for _ in range(_EPOCHS):
            model.partial_fit(pixels, labels, classes=classes)
    return model


def fit_words(texts: Sequence[str], labels: NDArray[np.int64]) -> Any:
    """Logistic regression on the TF-IDF weights of the words of *texts*, which are lower-case already."""
    words = TfidfVectorizer(lowercase=False, token_pattern=_WORDS, min_df=2)
    with _one_thread():
        return make_pipeline(words, LogisticRegression(C=2.0, max_iter=2000)).fit(texts, labels)


def _one_thread() -> Any:
    """Sums in one order, whatever the number of cores; and on busy machines, threads that wait for each other crawl."""
    return threadpool_limits(limits=1)


def shifted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w) as (9 n, h, w): every image in nine positions, up to a pixel off; what leaves is black on return."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    height, width = images.shape[1:]
    return np.concatenate([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])


def export_dense(model: Any, name: str, width: int, classes: int) -> bytes:
    """A fitted classifier of dense features as ONNX: input *name*, (n, *width*), float32."""
    converted = to_onnx(
        model,
        initial_types=[(name, FloatTensorType([None, width]))],
        options={"zipmap": False},
        target_opset=_OPSETS,
    )
    return _with_one_output(converted, classes)


def export_words(model: Any, name: str, classes: int) -> bytes:
    """A pipeline of `fit_words` as ONNX: input *name*, (n, 1), strings."""
    words, classifier = model.steps[0][1], model.steps[1][1]
    converted = to_onnx(
        model,
        initial_types=[(name, StringTensorType([None, 1]))],
        options={id(words): {"tokenexp": _WORDS}, id(classifier): {"zipmap": False}},
        target_opset=_OPSETS,
    )
    return _with_one_output(converted, classes)


def _with_one_output(model: Any, classes: int) -> bytes:
    """Keep the probabilities alone, with their shape, which the selection drops."""
    selected = select_model_inputs_outputs(model, outputs=[PROBABILITIES])
    return _finished(selected, PROBABILITIES, classes)


def with_pooling(encoder: bytes) -> bytes:
    """A sentence encoder that gives hidden states, as one that gives `sentence_embedding`: their mean, at length one.

    Args:
        encoder: ONNX; inputs `input_ids`, `attention_mask` and `token_type_ids`, (n, T), int64; output
            `last_hidden_state`, (n, T, d), float32.
    """
    model = onnx.load_from_string(encoder)
    width = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "pool_last"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "pool_tokens"))
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["pool_kept"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["pool_kept", "pool_last"], ["pool_weights"]),
            helper.make_node("Mul", ["last_hidden_state", "pool_weights"], ["pool_states"]),
            # The sum instead of the mean: they differ by a factor, which the length takes away again.
            helper.make_node("ReduceSum", ["pool_states", "pool_tokens"], ["pool_sum"], keepdims=0),
            helper.make_node("LpNormalization", ["pool_sum"], [_EMBEDDING], axis=1, p=2),
        ]
    )
    return _finished(model, _EMBEDDING, width)


def with_head(pooled: bytes, head: Any) -> bytes:
    """What `with_pooling` gives, joined with a logistic regression that was fitted on its embeddings."""
    model = onnx.load_from_string(pooled)
    weights = head.coef_.T.astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "head_weights"))
    model.graph.initializer.append(numpy_helper.from_array(head.intercept_.astype(np.float32), "head_bias"))
    model.graph.node.extend(
        [
            helper.make_node("Gemm", [_EMBEDDING, "head_weights", "head_bias"], ["head_scores"]),
            helper.make_node("Softmax", ["head_scores"], [PROBABILITIES], axis=1),
        ]
    )
    return _finished(model, PROBABILITIES, weights.shape[1])


def _finished(model: Any, output: str, width: int) -> bytes:
    """*model* with the one output *output*, (n, *width*), checked and serialised."""
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", width]))
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content
