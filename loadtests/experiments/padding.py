"""What do length buckets and padding bring on a real encoder of text, and are its answers those that it gives alone?

    python -m loadtests.experiments.padding [--texts N] [--rounds N]

Real messages of the demo's data set (tweets and product reviews; MIT), tokenised one by one as a caller would, go
through the gateway's `Batcher` to MiniLM in ONNX Runtime (int8 weights; Apache-2.0). All of them wait from the start,
which is what a server under load sees, and batches are full (eager dispatch, 16 at most), so that what differs is only
who shares a batch, and how it is padded:

- `alone`: every text by itself;
- `equal lengths`: no option is set, so that only texts of as many tokens share a batch;
- `one lane, to the longest`: `padding`, without buckets;
- `buckets, to the longest`: `length_buckets` and `padding`;
- `buckets, to the bound`: the same, and every text is as long as the bound of its bucket when it comes.

Sides take turns in every round, in an order that turns over from round to round; a figure is the median over rounds,
with quartiles, and a ratio that of medians, with a bootstrap interval.

**Equality.** States of tokens, cut back, and embeddings (their mean, normalised) are compared with those of the text
alone; `padded alone` is a text with padding and no company. Only the weights of this model are int8: it computes in
floating point, row by row, and masks what is padded. One that quantises activations by the range of a whole batch would
answer a text according to its company, padded or not, and `equal lengths` would then show how much of a difference is
not the padding's.

Limits: a CPU takes for a batch nearly what its tokens take, so that every padded token costs, and few calls save
little; `batches` says what would be saved where calls are dear. How many texts of equal length wait at once depends on
the load; here it is all of them, which favours `equal lengths`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from backends.contract import NO_DEADLINE, Backend, Batch, Deadline, Limits, Signature, State, Tensor, Tensors
from backends.onnx import OnnxOptions, open_onnx
from batching.batcher import Batcher
from batching.options import BatchingOptions
from batching.simulation.baselines import Eager
from gateway.demo.data import read_snippets
from gateway.demo.packages import ENCODER, SNIPPETS, TOKENIZER, cache_folder, fetch
from kernels.text import Tokenizer
from loadtests.peers.machine import machine
from loadtests.ratios import ratio, spread

RESULT = Path(__file__).parent.parent / "results" / "padding.json"
BOUNDS = (12, 16, 24, 32, 48)
"""Of the buckets, in tokens."""

_MAX_BATCH = 16
_MAX_TOKENS = 128
_STATES = "last_hidden_state"
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_ALONE, _LANE, _BOUND = "alone", "one lane, to the longest", "buckets, to the bound"

States: TypeAlias = NDArray[np.float32]


def _padding(*bounds: int) -> BatchingOptions:
    return BatchingOptions(
        max_batch=_MAX_BATCH,
        length_buckets=bounds,
        padding=dict.fromkeys(_INPUTS, 0),
        trim={_STATES: _INPUTS[0]},
    )


SIDES: Mapping[str, BatchingOptions] = {
    _ALONE: BatchingOptions(max_batch=1),
    "equal lengths": BatchingOptions(max_batch=_MAX_BATCH),
    _LANE: _padding(),
    "buckets, to the longest": _padding(*BOUNDS),
    _BOUND: _padding(*BOUNDS),
}


@dataclass(slots=True)
class Side:
    """What one side did, round by round.

    Attributes:
        per_s: texts a second.
        tokens: that the model was given, padding included.
        batches: that it was given.
    """

    per_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Counting:
    """A backend that counts what it is given; the caller closes *backend*."""

    backend: Backend
    batches: int = 0
    tokens: int = 0

    @property
    def signature(self) -> Signature:
        """The backend's."""
        return self.backend.signature

    @property
    def version(self) -> str:
        """The backend's."""
        return self.backend.version

    @property
    def limits(self) -> Limits:
        """The backend's."""
        return self.backend.limits

    @property
    def state(self) -> State:
        """The backend's."""
        return self.backend.state

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Count, and let the backend answer."""
        self.batches += 1
        self.tokens += batch.inputs[_INPUTS[0]].numpy().size
        return await self.backend.infer(batch, deadline)

    async def aclose(self) -> None:
        """There is nothing of its own to close."""


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def messages(count: int) -> list[Batch]:
    """*count* messages of the data set, each with its tokens as a batch of one."""
    cache = cache_folder()
    tokenize = Tokenizer(fetch(TOKENIZER, cache, _progress), _MAX_TOKENS)
    snippets = read_snippets(fetch(SNIPPETS, cache, _progress))
    chosen = np.random.default_rng(0).permutation(len(snippets))[:count]
    made = []
    for index in chosen:
        arrays = tokenize(np.array([[snippets[index].text.encode()]], object))
        made.append(_batch(dict(zip(_INPUTS, arrays, strict=True))))
    return made


def _batch(arrays: Mapping[str, NDArray[np.int64]]) -> Batch:
    return Batch({name: Tensor.of(array) for name, array in arrays.items()}, 1)


def tokens(text: Batch) -> int:
    """How many tokens *text* has."""
    return text.inputs[_INPUTS[0]].shape[1]


def lengthened(text: Batch, length: int) -> Batch:
    """*text*, padded to *length* tokens."""
    more = ((0, 0), (0, length - tokens(text)))
    return _batch({name: np.pad(tensor.numpy(), more) for name, tensor in text.inputs.items()})


def _to_bound(text: Batch) -> Batch:
    return lengthened(text, next((bound for bound in BOUNDS if tokens(text) <= bound), tokens(text)))


async def run(
    backend: Backend, options: BatchingOptions, texts: Sequence[Batch]
) -> tuple[float, Counting, list[States]]:
    """Answer *texts*, which all wait from the start: seconds taken, what was counted, and the states of every text."""
    counting = Counting(backend)
    eager = Eager(options.max_batch or _MAX_BATCH)
    async with Batcher("minilm", counting, options, policy=eager) as batcher:
        started_s = time.perf_counter()
        replies = await asyncio.gather(*(batcher.submit(text, NO_DEADLINE) for text in texts))
        taken_s = time.perf_counter() - started_s
    return taken_s, counting, [reply[_STATES].numpy()[0] for reply in replies]


def embedding(states: States) -> NDArray[np.float64]:
    """The normalised mean of the *states* of a text's tokens, (tokens, 384)."""
    mean = states.mean(axis=0, dtype=np.float64)
    return np.asarray(mean / np.linalg.norm(mean))


def differences(found: Sequence[States], alone: Sequence[States]) -> dict[str, float]:
    """How far *found* is from *alone*, text by text."""
    off = [float(np.abs(one - other).max()) for one, other in zip(found, alone, strict=True)]
    cosines = [float(embedding(one) @ embedding(other)) for one, other in zip(found, alone, strict=True)]
    return {"texts_with_equal_bits": off.count(0.0), "largest_of_a_state": max(off), "least_cosine": min(cosines)}


async def measure(texts: Sequence[Batch], rounds: int) -> dict[str, Any]:
    """The report but for where it was made."""
    backend = await open_onnx("minilm", OnnxOptions(fetch(ENCODER, cache_folder(), _progress), max_batch=_MAX_BATCH))
    sides = {name: Side() for name in SIDES}
    sent = {name: [_to_bound(text) for text in texts] if name == _BOUND else texts for name in SIDES}
    states: dict[str, list[States]] = {}
    for turn in range(rounds + 1):
        for name in list(SIDES)[:: 1 if turn % 2 else -1]:
            taken_s, counted, found = await run(backend, SIDES[name], sent[name])
            if turn == 0:  # warms up
                states[name] = [one[: tokens(text)] for one, text in zip(found, texts, strict=True)]
                continue
            sides[name].per_s.append(len(texts) / taken_s)
            sides[name].tokens.append(counted.tokens)
            sides[name].batches.append(counted.batches)
        _progress(f"round {turn} of {rounds}")
    longer = [lengthened(text, tokens(text) + _MAX_BATCH) for text in texts]
    padded = (await run(backend, SIDES[_ALONE], longer))[2]
    again = (await run(backend, SIDES[_ALONE], texts))[2]
    await backend.aclose()
    states["alone, again"] = again
    states["padded alone"] = [one[: tokens(text)] for one, text in zip(padded, texts, strict=True)]
    compared = partial(differences, alone=states[_ALONE])
    return {
        "sides": {name: _summary(side, sides[_LANE], sum(map(tokens, texts))) for name, side in sides.items()},
        "differences_from_alone": {name: compared(found) for name, found in states.items() if name != _ALONE},
    }


def _summary(side: Side, lane: Side, own_tokens: int) -> dict[str, Any]:
    return {
        "texts_per_s": asdict(spread(side.per_s)),
        "ratio_to_one_lane": asdict(ratio(side.per_s, lane.per_s)),
        "padding": round(1.0 - own_tokens / float(np.median(side.tokens)), 3),
        "batches": int(np.median(side.batches)),
    }


def main() -> int:
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=512, help="how many (512)")
    parser.add_argument("--rounds", type=int, default=5, help="of every side, after one to warm up (5)")
    arguments = parser.parse_args()
    where = machine()
    texts = messages(arguments.texts)
    lengths = sorted(map(tokens, texts))
    report = {
        "machine": where,
        "onnxruntime": onnxruntime.__version__,
        "model": f"{ENCODER.requirement}, one thread",
        "texts": {
            "of": SNIPPETS.requirement,
            "count": len(texts),
            "tokens": {f"p{share}": int(np.percentile(lengths, share)) for share in (0, 25, 50, 75, 95, 100)},
        },
        "bounds": BOUNDS,
        "max_batch": _MAX_BATCH,
        **asyncio.run(measure(texts, arguments.rounds)),
    }
    print(json.dumps(report, indent=1))
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
