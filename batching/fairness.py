"""Whose turn it is, when there is not room for everybody: start-time fair queuing between tenants.

Every entry gets a *turn* when it comes: the virtual time at which its tenant has used up what it was given before.
A tenant that sends little has turns near the present, one that sends a flood has them far ahead, so that serving by
turn gives both the same share and lets nobody save up: virtual time is the latest turn that was served. What was
refused or left gives its share back, or a tenant would pay for a flood that was never answered.

What is served out of turn, since its deadline says so, moves virtual time as if its tenant's next in turn had been: a
tenant that has an urgent entry at the end of its flood would else push everybody who comes behind all of it.

Turns decide only where deadlines cannot: policies serve by deadline as long as everybody makes it.

Source: Goyal, Vin, Cheng, "Start-time fair queuing" (SIGCOMM 1996). Rejected: a queue for each tenant with a quota in
items (half of the accelerator idles when one of two tenants does); deficit round robin (needs the queues too, and an
order between rounds).
"""

from __future__ import annotations

_MOST_IDLE = 1024


class FairShare:
    """Turns for the entries of every tenant, in items."""

    __slots__ = ("_finish", "_now", "_queued")

    def __init__(self) -> None:
        self._now = 0.0
        self._finish: dict[str, float] = {}
        self._queued: dict[str, int] = {}  # items that wait, of tenants that have any

    @property
    def is_contended(self) -> bool:
        """Whether entries of more than one tenant wait."""
        return len(self._queued) > 1

    def come(self, tenant: str, size: int) -> float:
        """The turn of *size* items of *tenant* that have come."""
        turn = max(self._now, self._finish.get(tenant, 0.0))
        self._finish[tenant] = turn + size
        self._queued[tenant] = self._queued.get(tenant, 0) + size
        if len(self._finish) > _MOST_IDLE + len(self._queued):
            self._forget_idle()
        return turn

    def serve(self, tenant: str, size: int) -> None:
        """They are served."""
        self._now = max(self._now, self._finish[tenant] - self._queued[tenant])  # the turn of its next
        self._leave(tenant, size)

    def refund(self, tenant: str, size: int) -> None:
        """They are gone, and were not served."""
        self._leave(tenant, size)
        if tenant in self._finish:
            self._finish[tenant] -= size

    def copy(self) -> FairShare:
        """The same, to try things on."""
        copy = FairShare()
        copy._now, copy._finish, copy._queued = self._now, self._finish.copy(), self._queued.copy()
        return copy

    def is_within_share(self, tenant: str, size: int) -> bool:
        """Whether *tenant*, with *size* more items, would have no more of what waits than others have on average."""
        others = len(self._queued) - (tenant in self._queued)
        own = self._queued.get(tenant, 0)
        return others > 0 and (own + size) * others <= sum(self._queued.values()) - own

    def greediest(self) -> str:
        """The tenant of which most items wait.

        Raises:
            ValueError: nothing waits.
        """
        return max(self._queued, key=self._queued.__getitem__)

    def _leave(self, tenant: str, size: int) -> None:
        left = self._queued[tenant] - size
        if left:
            self._queued[tenant] = left
        else:
            del self._queued[tenant]

    def _forget_idle(self) -> None:
        """Drop the tenants that have nothing waiting: they start again at the present."""
        self._finish = {tenant: finish for tenant, finish in self._finish.items() if tenant in self._queued}
