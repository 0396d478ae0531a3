"""What stands for a model that could not be opened yet, until it is."""

from __future__ import annotations

from backends.contract import Batch, Deadline, Limits, Signature, State, Tensors
from backends.errors import Unavailable


class Absent:
    """A backend of which nothing is known: it has failed, and whoever opens failed models anew will open it."""

    signature = Signature((), ())
    version = ""
    limits = Limits(max_batch=1)

    def __init__(self, model_name: str) -> None:
        """Stand for the model *model_name*."""
        self._name = model_name
        self.state = State.FAILED

    def __repr__(self) -> str:
        return f"<Absent {self._name!r}>"

    async def infer(self, batch: Batch, deadline: Deadline) -> Tensors:
        """Refuse *batch*.

        Raises:
            Unavailable: always.
        """
        raise Unavailable(f"model {self._name!r} could not be opened yet; try again later")

    async def aclose(self) -> None:
        """It has nothing to free."""
        self.state = State.CLOSED
