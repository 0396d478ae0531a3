"""Which entry spoiled a batch: what failed in company is run again in halves, until the one to blame is alone.

**Order.** Large groups before small ones, the earlier before the later. Most of the innocent are then answered by the
first few calls, and when the bound is met only small groups are left. Going down to the first poisonous entry before
looking at the other half was rejected: two of them could keep half of the batch from being tried at all.

**Bound.** Among n entries one that is poisonous is alone after ceil(log2 n) halvings. A batch is halved once more
than that at most, which is 2·ceil(log2 n) + 2 calls on top of its own: room for most pairs, and for a model that fails
on everything, a limit. A group that fails after that fails as a whole.

**Blame.** `Unavailable`, `DeadlineExceeded`, `Cancelled` and a cancelled call tell of the backend, not of an item, and
running halves would only load it more. Neither is an answer that does not fit its batch (a row too many, another
type) anybody's fault: a backend that miscounts may miscount half a batch in such a way that the number fits, and
then every row would reach somebody, though not its owner.

Rejected: taking the second half for guilty, unseen, when the first was answered. It saves a call where failures
repeat exactly, and condemns the innocent where they do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from backends.errors import Cancelled, DeadlineExceeded, Unavailable

E = TypeVar("E")

_NOBODYS_FAULT: Final = (Unavailable, DeadlineExceeded, Cancelled)


def may_be_an_items_fault(error: BaseException) -> bool:
    """Whether a backend may have raised *error* for one item, and may answer the others without it."""
    return isinstance(error, Exception) and not isinstance(error, _NOBODYS_FAULT)


class Isolation(Generic[E]):
    """One failed batch, taken apart: the groups of its entries that are to be run again.

    Args:
        entries: how many the batch had.
    """

    __slots__ = ("_groups", "_halvings_left")

    def __init__(self, entries: int) -> None:
        self._groups: deque[Sequence[E]] = deque()
        self._halvings_left = (entries - 1).bit_length() + 1  # ceil(log2 entries), and one

    def halve(self, group: Sequence[E]) -> bool:
        """Line up the two halves of *group*, which failed; False where the bound is met, so that its error is final.

        Args:
            group: at least two entries.
        """
        if self._halvings_left == 0:
            return False
        self._halvings_left -= 1
        middle = len(group) // 2
        self._groups += (group[:middle], group[middle:])
        return True

    def next_group(self) -> Sequence[E]:
        """Take out the group to be run next; empty where none is left."""
        return self._groups.popleft() if self._groups else ()

    def entries(self) -> list[E]:
        """Everything that is lined up."""
        return [entry for group in self._groups for entry in group]
