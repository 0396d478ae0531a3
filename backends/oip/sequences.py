"""How a call says which step of which sequence it is: Triton's parameters, which other servers have taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from backends.contract import SEQUENCE, ParameterValue


def step_parameters(write_id: Callable[[int], int | str] = int) -> Mapping[str, ParameterValue]:
    """The parameters of the call at hand, to a model that keeps state.

    Args:
        write_id: as the model takes ids.
    """
    call = SEQUENCE.get()
    assert call is not None, "a model that keeps state was called outside a sequence. This is a bug."
    return {"sequence_id": write_id(call.id), "sequence_start": call.starts, "sequence_end": call.ends}
