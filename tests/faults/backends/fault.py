"""The ways in which a backend fails."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """What a `FaultProxy` does."""

    NONE = "none"
    # on the wire, to everything
    REFUSE = "refuse"  # no connection, and those that there were are reset
    BLACKHOLE = "blackhole"  # silence; connections are never established
    RESET = "reset"  # in the middle of a reply's body
    DRIP = "drip"  # replies of one byte a second
    # to inferences alone; health and metadata are as ever
    HANG = "hang"  # headers, and nothing more
    ERRORS = "errors"  # bursts of 5xx as proxies and gateways make them; UNAVAILABLE over gRPC
    MODEL_ERRORS = "model_errors"  # 500, or INTERNAL, as Triton says it of a model that fails
    MALFORMED = "malformed"  # what cannot be read
    OVERSIZED = "oversized"  # more than anybody can want
    WRONG = "wrong"  # outputs of a shape, type or name that the model does not have
    SWAPPED = "swapped"  # each gets the reply of the one before
    SLOW = "slow"  # a grey failure


BURST, PAUSE = 10, 5
"""So many errors in a row, then so many calls that are well."""

OVERSIZED_BYTES = 8 << 20
