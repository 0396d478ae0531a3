"""Operations on what models give: scores to probabilities and labels, hidden states to embeddings.

Not-a-number is never hidden: a row that holds one gives NaN probabilities, no indices (-1) and an empty label, so
that nobody downstream can take it for a sure answer. Infinite scores cannot be ranked against each other, and count
as NaN in `softmax`. Results are float32 whatever the model computes in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Array


def softmax(logits: NDArray[np.floating[Any]], *, temperature: float = 1.0) -> NDArray[np.float32]:
    """exp(x / temperature) / sum over the last axis, shifted by its maximum so that nothing overflows.

    Args:
        logits: (..., classes), floating.
        temperature: above 1 flattens, below 1 sharpens.

    Returns:
        (..., classes), float32, each row summing to 1; all NaN where a row has a NaN, an infinity, or only -infinity.
    """
    scores = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity - infinity is NaN, as it should be
        scores -= scores.max(axis=-1, keepdims=True)
        scores /= temperature
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
    return _float32(scores)


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) for each element, without overflow: negative x as exp(x) / (1 + exp(x)); NaN stays NaN.

    Args:
        logits: any shape, floating.

    Returns:
        the same shape, float32.
    """
    small = np.exp(-np.abs(logits.astype(np.result_type(logits.dtype, np.float32))))
    return _float32(np.where(logits < 0, small, 1.0) / (1.0 + small))


def mean_pool(hidden: NDArray[np.floating[Any]], mask: Array) -> NDArray[np.float32]:
    """Average the hidden states of the tokens that *mask* keeps.

    Args:
        hidden: (n, T, features), floating.
        mask: (n, T), bool or integers; 0 leaves a token out, whatever its state holds.

    Returns:
        (n, features), float32; zeros where the mask keeps nothing.

    Source:
        `mean_pooling` of sentence-transformers, except that states left out may hold NaN.
    """
    kept = mask.astype(bool)[..., np.newaxis]
    counts = np.maximum(kept.sum(axis=-2), 1)
    sums: Array = np.where(kept, hidden, 0).sum(axis=-2, dtype=np.float32)
    return _float32(sums / counts)


def l2_normalize(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Scale each vector of the last axis to length 1; a zero vector stays zero.

    Args:
        vectors: (..., features), floating.

    Returns:
        the same shape, float32.

    Source:
        PyTorch's `normalize` with eps = 1e-12; the length is computed in float64, so that squares do not overflow.
    """
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.square(wide).sum(axis=-1, keepdims=True))
        return _float32(wide / np.maximum(lengths, 1e-12))


def top_k(scores: NDArray[np.floating[Any]], k: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """The *k* highest of the last axis, highest first; of equals the one with the lower index first.

    Args:
        scores: (..., classes), floating.
        k: 1 to classes.

    Returns:
        the values, (..., k), dtype of *scores*, and their indices, (..., k), int64; NaN and -1 where a row has a NaN.
    """
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(scores, order, axis=-1)
    unranked = np.isnan(scores).any(axis=-1, keepdims=True)
    return np.where(unranked, scores.dtype.type(np.nan), values), np.where(unranked, -1, order)


def label(scores: NDArray[np.floating[Any]], labels: NDArray[np.object_]) -> NDArray[np.object_]:
    """The label of each row's highest score; of equals the first.

    Args:
        scores: (n, classes), floating.
        labels: (classes,), object: UTF-8 `bytes` by class index.

    Returns:
        (n, 1), object; b"" where a row has a NaN.

    Raises:
        ValueError: there are more or fewer classes than labels.
    """
    if scores.shape[-1] != len(labels):
        raise ValueError(f"{scores.shape[-1]} scores for {len(labels)} labels; list one label a class")
    chosen: NDArray[np.object_] = labels[scores.argmax(axis=-1)]
    chosen[np.isnan(scores).any(axis=-1)] = b""
    return chosen[:, np.newaxis]


def _float32(values: Array) -> NDArray[np.float32]:
    return values.astype(np.float32, copy=False)
