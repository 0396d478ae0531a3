"""Which replicas of a pool have which of its models in memory, as a gateway knows it, and where a call goes by that.

The models of a pool share its replicas (`gateway.cluster.pools`), each of which has a `WarmPool`: idle times and memory
decide what is loaded there. A replica tells of every model that it does not have cold (`told_of`), by Serve's routing
stats: to Serve's controller each second, and from there to every gateway where anything has changed.

**Where a call goes** (`Residence.ranked`), the next kind where replicas of one are full:

1. replicas that have the model warm, those of the gateway's node first;
2. one that loads it, or that was asked for it so lately that nothing was told since: for one load, however many calls;
3. those with room for it, then those where loading it puts something else out, then those where it could not be
   loaded lately: each kind by rendezvous hashing of model and replica, so that all gateways ask the same one without
   asking each other, and models spread over replicas.

Rejected: Serve's own multiplexing (a replica forgets what was not asked for longest, which knows neither what a load
costs nor who comes back on the hour, and a call goes to whichever has the fewest models); residence that gateways agree
on by the store (a load is decided in milliseconds, and one too many does no harm).

Source: rendezvous hashing is Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.warm.entry import Warmth
from backends.warm.policy import Phase

TOLD_EVERY_S: Final = 1.0
"""How often Serve asks a replica for its routing stats."""

_STALE_S: Final = 3 * TOLD_EVERY_S
"""For which what this gateway has seen itself counts beside what is told: that may be older."""

_ROOM, _MODELS = "room", "models"


@dataclass(frozen=True, slots=True)
class Residing:
    """A model in a replica.

    Attributes:
        phase: where it is.
        load_s: what loading it takes, in seconds.
        nbytes: memory that it takes.
    """

    phase: Phase
    load_s: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class Told:
    """What a replica has told last.

    Attributes:
        room_bytes: memory that is free; infinity: there is no limit.
        models: those that are not cold, by their digests.
    """

    room_bytes: float
    models: Mapping[str, Residing]


def told_of(told: Told) -> dict[str, Any]:
    """*told* as routing stats (Any: Serve pickles them), rounded: whatever changes is sent to all gateways."""
    return {
        _ROOM: None if math.isinf(told.room_bytes) else int(told.room_bytes),
        _MODELS: {digest: (str(one.phase), round(one.load_s, 1), one.nbytes) for digest, one in told.models.items()},
    }


def told_by(stats: Mapping[str, Any]) -> Told:
    """What *stats*, from `told_of`, say; nothing, where the replica has told nothing yet."""
    models = {
        digest: Residing(Phase(phase), load_s, nbytes)
        for digest, (phase, load_s, nbytes) in stats.get(_MODELS, {}).items()
    }
    room = stats.get(_ROOM)
    return Told(math.inf if room is None else float(room), models)


class Residence:
    """What is known of one pool. Belongs to one event loop; *now* is of its clock, in seconds."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}
        self._asked: dict[tuple[str, str], float] = {}  # until when it counts, by model and replica
        self._warm: dict[str, float] = {}  # likewise, by model

    def tell(self, stats: Mapping[str, Mapping[str, Any]]) -> None:
        """Replicas tell, by their names; those that are not among them are no more."""
        self._told = {replica: told_by(one) for replica, one in stats.items()}
        self._asked = {(digest, name): until for (digest, name), until in self._asked.items() if name in stats}

    def asks(self, digest: str, replica: str, now: float) -> None:
        """A call of the model *digest* goes to *replica*."""
        self._asked[digest, replica] = now + _STALE_S

    def is_warm(self, digest: str, now: float) -> None:
        """A replica has said right now that it has the model."""
        self._warm[digest] = now + _STALE_S

    def warmth(self, digest: str, load_s: float, now: float) -> Warmth:
        """How warm the model is where it is warmest.

        Args:
            load_s: what a load takes where no replica has told.
        """
        found = [told.models[digest] for told in self._told.values() if digest in told.models]
        nbytes = max((one.nbytes for one in found), default=0)
        if self._warm.get(digest, -math.inf) > now or any(one.phase is Phase.WARM for one in found):
            return Warmth(Phase.WARM, 0.0, nbytes)
        load_s = max((one.load_s for one in found), default=load_s)
        if any(one.phase is Phase.LOADING for one in found):
            return Warmth(Phase.LOADING, load_s, nbytes)
        if found and len(found) == len(self._told) and all(one.phase is Phase.FAILED for one in found):
            return Warmth(Phase.FAILED, load_s, nbytes)
        return Warmth(Phase.COLD, load_s, nbytes)

    def ranked(self, digest: str, replicas: Iterable[str], near: Collection[str], now: float) -> list[list[str]]:
        """*replicas*, those to be asked first for the model first; see the module."""
        names = set(replicas)
        having = {name for name in names if self._phase(digest, name) is Phase.WARM}
        loading = {
            name
            for name in names - having
            if self._phase(digest, name) is Phase.LOADING or self._asked.get((digest, name), -math.inf) > now
        }
        nbytes = self.warmth(digest, 0.0, now).nbytes

        def unfit(name: str) -> tuple[bool, bool, bytes]:
            failed = self._phase(digest, name) is Phase.FAILED
            return failed, self._room_bytes(name) <= nbytes, _weight(digest, name)

        others = sorted(names - having - loading, key=unfit)
        kinds = (having & set(near), having - set(near), loading)
        return [*(sorted(kind) for kind in kinds if kind), *([name] for name in others)]

    def _phase(self, digest: str, replica: str) -> Phase:
        told = self._told.get(replica)
        residing = None if told is None else told.models.get(digest)
        return Phase.COLD if residing is None else residing.phase

    def _room_bytes(self, replica: str) -> float:
        told = self._told.get(replica)
        return math.inf if told is None else told.room_bytes


def _weight(digest: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{digest} {replica}".encode(), digest_size=8).digest()


_RESIDENCES: dict[tuple[str, str], Residence] = {}


def residence_of(deployment: str, app: str) -> Residence:
    """What this process knows of the pool *deployment* in *app*: Serve makes routers by itself, and tells them."""
    return _RESIDENCES.setdefault((deployment, app), Residence())
