"""Operations on what models give: scores to probabilities and labels, hidden states to embeddings.

Not-a-number is never hidden: a row that holds one gives NaN probabilities, no indices (-1) and an empty label, so
that nobody downstream can take it for a sure answer. Infinite scores cannot be ranked against each other, and count
as NaN in `softmax`. Results are float32 whatever the model computes in.

What works on numbers alone takes arrays of any library, as `kernels.images` does; boxes and labels are the host's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.arrays import Array, as_type, namespace_of


def softmax(logits: NDArray[np.floating[Any]], *, temperature: float = 1.0) -> NDArray[np.float32]:
    """exp(x / temperature) / sum over the last axis, shifted by its maximum so that nothing overflows.

    Args:
        logits: (..., classes), floating.
        temperature: above 1 flattens, below 1 sharpens.

    Returns:
        (..., classes), float32, each row summing to 1; all NaN where a row has a NaN, an infinity, or only -infinity.
    """
    xp = namespace_of(logits)
    scores = as_type(logits, xp.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity - infinity is NaN, as it should be
        scores = scores - xp.max(scores, axis=-1, keepdims=True)
        scores /= temperature
        scores = xp.exp(scores)
        scores /= xp.sum(scores, axis=-1, keepdims=True)
    return _float32(scores)


def log_softmax(logits: NDArray[np.floating[Any]], *, temperature: float = 1.0) -> NDArray[np.float32]:
    """The logarithm of `softmax`, exact where a probability would underflow to 0: x - max - log(sum(exp(x - max))).

    Args:
        logits: (..., classes), floating.
        temperature: divides the scores first.

    Returns:
        (..., classes), float32, at most 0; all NaN where `softmax` is.
    """
    xp = namespace_of(logits)
    scores = as_type(logits, xp.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = scores - xp.max(scores, axis=-1, keepdims=True)
        scores /= temperature
        scores -= xp.log(xp.sum(xp.exp(scores), axis=-1, keepdims=True))
        return _float32(scores)


def margin(scores: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """How far the highest of the last axis is above the second: of probabilities, 0 (torn) to 1 (sure).

    Args:
        scores: (..., classes), floating, at least 2 classes.

    Returns:
        (..., 1), float32; NaN where a row has a NaN.

    Source:
        Scheffer, Decomain, Wrobel: Active Hidden Markov Models for Information Extraction (2001).
    """
    xp = namespace_of(scores)
    best = xp.sort(as_type(scores, xp.float64), axis=-1)  # NaN at the end, wherever the standard is not silent
    with np.errstate(invalid="ignore", over="ignore"):
        return _float32(best[..., -1:] - best[..., -2:-1])


def entropy(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Shannon's entropy of the last axis in nats: 0 (sure) to log(classes) (no idea); 0 log 0 is 0.

    Args:
        probabilities: (..., classes), floating, each row a distribution.

    Returns:
        (..., 1), float32; NaN where a row has a NaN or a number below 0.
    """
    xp = namespace_of(probabilities)
    wide = as_type(probabilities, xp.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = xp.where(wide == 0, xp.zeros_like(wide), wide * xp.log(wide))
    return _float32(xp.abs(xp.sum(terms, axis=-1, keepdims=True)))


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) for each element, without overflow: negative x as exp(x) / (1 + exp(x)); NaN stays NaN.

    Args:
        logits: any shape, floating.

    Returns:
        the same shape, float32.
    """
    xp = namespace_of(logits)
    small = xp.exp(-xp.abs(as_type(logits, xp.result_type(logits.dtype, xp.float32))))
    return _float32(xp.where(logits < 0, small, xp.ones_like(small)) / (1.0 + small))


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
    xp = namespace_of(hidden)
    kept = as_type(mask, xp.bool)[..., None]
    counts = xp.sum(as_type(kept, xp.float64), axis=-2)
    sums = xp.sum(xp.where(kept, hidden, xp.zeros_like(hidden)), axis=-2, dtype=xp.float32)
    return _float32(as_type(sums, xp.float64) / xp.maximum(counts, xp.ones_like(counts)))


def first_token(hidden: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The state of each text's first token (CLS), which stands for the whole in models trained so.

    Args:
        hidden: (n, T, features), floating, T at least 1.

    Returns:
        (n, features), float32.
    """
    return _float32(hidden[..., 0, :])


def l2_normalize(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Scale each vector of the last axis to length 1; a zero vector stays zero.

    Args:
        vectors: (..., features), floating.

    Returns:
        the same shape, float32.

    Source:
        PyTorch's `normalize` with eps = 1e-12; the length is computed in float64, where squares of what float32 holds
        do not overflow.
    """
    xp = namespace_of(vectors)
    wide = as_type(vectors, xp.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = xp.sqrt(xp.sum(wide * wide, axis=-1, keepdims=True))
        return _float32(wide / xp.maximum(lengths, xp.full_like(lengths, 1e-12)))


def top_k(scores: NDArray[np.floating[Any]], k: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """The *k* highest of the last axis, highest first; of equals the one with the lower index first.

    Args:
        scores: (..., classes), floating.
        k: 1 to classes.

    Returns:
        the values, (..., k), dtype of *scores*, and their indices, (..., k), int64; NaN and -1 where a row has a NaN.
    """
    xp = namespace_of(scores)
    # Stable: NumPy must be asked for it; the standard's is so unasked, and so is CuPy's, which cannot be asked.
    order = (np.argsort(-scores, axis=-1, stable=True) if xp is np else xp.argsort(-scores, axis=-1))[..., :k]
    values = xp.take_along_axis(scores, order, axis=-1)
    unranked = xp.any(xp.isnan(scores), axis=-1, keepdims=True)
    return (
        xp.where(unranked, xp.full_like(values, xp.nan), values),
        xp.where(unranked, xp.full_like(order, -1), order),
    )


def non_maximum_suppression(
    boxes: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    *,
    overlap: float = 0.5,
    min_score: float = 0.0,
    limit: int = 100,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Keep the best box of each object: highest score first, those of its class that overlap it too much go.

    Each box counts for its best class alone, of equals the first.

    Args:
        boxes: (n, boxes, 4), floating: left, top, right, bottom.
        scores: (n, boxes) or (n, boxes, classes), floating; a box with a NaN in its scores, or a corner that is no
            finite float32, is left out.
        overlap: intersection over union above which a box goes, 0 to 1.
        min_score: boxes below it are left out.
        limit: most boxes that are kept of an item.

    Returns:
        boxes, (n, limit, 4), float32, scores, (n, limit), float32, and classes, (n, limit), int64, best first; where
        fewer are kept the rest is 0, 0 and -1. Of equal scores the one with the lower index comes first.

    Source:
        torchvision's `batched_nms`, with the padded outputs of TensorRT's EfficientNMS.
    """
    by_class = scores if scores.ndim == 3 else scores[..., np.newaxis]
    kept_boxes = np.zeros((len(boxes), limit, 4), dtype=np.float32)
    kept_scores = np.zeros((len(boxes), limit), dtype=np.float32)
    kept_classes = np.full((len(boxes), limit), -1, dtype=np.int64)
    with np.errstate(over="ignore"):
        narrow = boxes.astype(np.float32)
    for item, (corners, rated) in enumerate(zip(narrow, by_class, strict=True)):
        best, classes = rated.max(axis=-1), rated.argmax(axis=-1)
        usable = np.flatnonzero((best >= min_score) & np.isfinite(corners).all(axis=-1))  # NaN is never above
        order = usable[np.argsort(-best[usable], kind="stable")]
        kept = _survivors(corners[order].astype(np.float64), classes[order], overlap, limit)
        chosen = order[kept]
        kept_boxes[item, : len(chosen)] = corners[chosen]
        kept_scores[item, : len(chosen)] = best[chosen]
        kept_classes[item, : len(chosen)] = classes[chosen]
    return kept_boxes, kept_scores, kept_classes


def _survivors(corners: NDArray[np.float64], classes: NDArray[np.int64], overlap: float, limit: int) -> list[int]:
    """The places of boxes that no earlier survivor of their class overlaps too much.

    In float64, since an area of finite float32 sides need not be one.
    """
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    areas = sides[:, 0] * sides[:, 1]
    alive = np.ones(len(corners), dtype=bool)
    kept: list[int] = []
    while len(kept) < limit and alive.any():
        first = int(alive.argmax())
        kept.append(first)
        shared = np.minimum(corners[first, 2:], corners[:, 2:]) - np.maximum(corners[first, :2], corners[:, :2])
        intersection = np.maximum(shared, 0).prod(axis=-1)
        union = areas[first] + areas - intersection
        alive &= (classes != classes[first]) | (intersection <= overlap * union)
        alive[: first + 1] = False
    return kept


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
    return as_type(values, namespace_of(values).float32)
