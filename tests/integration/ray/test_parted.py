"""The network between a gateway and its models' replicas is cut, and packets are gone without a word.

The tests are in this order, each on what the one before has left. A request fails over before its deadline; what was
accepted for people is kept once.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.store import StoreOptions
from gateway.store.places import read_beside
from tests.integration.process import wait_for
from tests.integration.ray.clusters import CLUSTER_CONFIG, why_not
from tests.integration.ray.orders import Script, followed

_CONFIG = CLUSTER_CONFIG.replace("serve: {replicas: 2, num_cpus: 0.1}", "serve: {replicas: 2, num_cpus: 3}").replace(
    "cluster: {replicas: 2, num_cpus: 0.1,", "cluster: {replicas: 1, num_cpus: 2,"
)
_CONFIG = _CONFIG.replace("models:double\n", "ray.served:double_and_say_who\n").replace(
    "outputs: [{name: y, datatype: FP32, shape: [-1]}]",
    "outputs: [{name: y, datatype: FP32, shape: [-1]}, {name: process, datatype: INT32, shape: [1]}]",
)
_CONFIG = _CONFIG.replace(
    "routes:\n",
    "routes:\n  halves: {input: {x: {datatype: FP32, shape: [2]}}, cascade: [double], accept: {min_confidence: 0.9}, "
    "human: {queue: halves, due: 1h, form: text}, on_defer: provisional, slo: {deadline: 5s}}\n",
)
_APART = ("unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child")
_TRIED = "mount -t tmpfs none /run && ip netns add a && ip link add eth0 type veth peer name far netns a"

_DEADLINE_S, _SHORT_DEADLINE_S = 5.0, 2.0
_LATE_S = 0.5
"""What a refusal may take beyond its deadline, on a machine that is busy."""

_WINK_S = 1.0
_OUTAGE_S = 4.0
_DEAD_S, _AGAIN_S = 40.0, 60.0


def _no_networks() -> str | None:
    """Why there can be no networks of a test's own here, or None where there can."""
    try:
        tried = subprocess.run(
            [*_APART, "sh", "-c", _TRIED], capture_output=True, text=True, timeout=20, check=False
        )  # fmt: skip
    except OSError as error:
        return f"no networks of our own: {error}"
    return None if tried.returncode == 0 else f"no networks of our own: {tried.stderr.strip()}"


@dataclass(slots=True)
class Lap:
    """What came of requests for a while; waits in seconds."""

    waits_s: list[float]
    failed: list[str]
    longest_failed_s: float

    def __str__(self) -> str:
        cuts = [1000 * cut for cut in statistics.quantiles(self.waits_s, n=100)]
        longest = 1000 * max(self.waits_s)
        answers = f"{len(self.waits_s)} answers, p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms, longest {longest:.0f} ms"
        return answers + f"; {len(self.failed)} failed, longest {1000 * self.longest_failed_s:.0f} ms"


@dataclass(slots=True)
class Parted:
    """The cluster that `parted.py` has made, on *folder*'s configuration, and its callers.

    Attributes:
        handed: ids of the answers that were accepted for people, since the beginning.
    """

    script: Script
    folder: Path
    handed: list[str] = field(default_factory=list)

    def nodes(self, which: str) -> set[str]:
        """Those that are alive, or answering."""
        return set(self.script.order(which)["nodes"])

    def lap(self, named: str) -> Lap:
        """What came since the last one."""
        lap = Lap(**self.script.order("lap"))
        print(f"\n{named}: {lap}", end="")
        return lap

    def many_more(self, answers: int = 100) -> None:
        """Wait until so many have come."""
        most = self.answered() + answers
        wait_for(lambda: self.answered() >= most)

    def answered(self) -> int:
        """How many answers the callers have."""
        return int(self.script.order("answered")["answered"])

    @contextmanager
    def calling(self, deadline_s: float = _DEADLINE_S) -> Iterator[None]:
        """Callers go on until the end of the block; what was handed over by then is kept, once."""
        self.script.order(f"begin {deadline_s}")
        try:
            yield
        finally:
            self.handed += self.script.order("end")["handed"]

    @contextmanager
    def cut(self, *nodes: str) -> Iterator[None]:
        """Nothing comes from or to *nodes* until the end of the block."""
        for node in nodes:
            self.script.order(f"cut {node}")
        try:
            yield
        finally:
            for node in nodes:
                self.script.order(f"heal {node}")

    def assert_kept(self) -> None:
        """What was accepted for people is theirs, once, and nothing else is."""
        store = StoreOptions(self.folder / "store.db")
        kept = read_beside(
            store, lambda connection: [*connection.execute(text("SELECT answer_id FROM reviews")).scalars()]
        )
        assert len(self.handed) == len(set(self.handed))
        assert sorted(kept) == sorted(self.handed)


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parted]:
    """The head with the gateway, and `b` and `c` with a replica of its model each."""
    if reason := why_not() or _no_networks():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("parted")
    (folder / "my.yaml").write_text(_CONFIG)
    short = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp"))
    program = Path(__file__).with_name("parted.py")
    try:
        with followed([*_APART, sys.executable, str(program), str(folder / "my.yaml"), str(short)]) as script:
            found = Parted(script, folder)
            for node in ("here", "b", "c"):
                script.order(f"join {node}")
            script.order("serve")
            yield found
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _pass(seconds: float) -> None:
    """An outage is as long as it is."""
    threading.Event().wait(seconds)


def test_a_cut_of_a_second_costs_nobody_an_answer(parted: Parted) -> None:
    assert parted.nodes("answering") == {"b", "c"}
    with parted.calling():
        parted.many_more()
        before = parted.lap("before")
        with parted.cut("b"):
            _pass(_WINK_S)
        parted.many_more(200)
        after = parted.lap("cut for a second")

    assert before.failed == after.failed == []
    assert max(after.waits_s) < _DEADLINE_S
    parted.assert_kept()
    wait_for(lambda: parted.nodes("answering") == {"b", "c"})
    assert parted.nodes("alive") == {"here", "b", "c"}


def test_a_cut_from_all_replicas_keeps_nobody_beyond_the_deadline(parted: Parted) -> None:
    """Requests are refused by then, or go to people; as soon as the network is whole, there are answers again."""
    with parted.calling(_SHORT_DEADLINE_S):
        parted.many_more()
        before = parted.lap("before")
        with parted.cut("b", "c"):
            _pass(_OUTAGE_S)
        parted.many_more(50)
        during = parted.lap("cut from all")
        parted.many_more()
        after = parted.lap("afterwards")

    assert before.failed == after.failed == []
    assert [each for each in during.failed if "deadline" not in each and "overloaded" not in each] == []
    assert max(*during.waits_s, during.longest_failed_s) < _SHORT_DEADLINE_S + _LATE_S
    parted.assert_kept()
    wait_for(lambda: parted.nodes("answering") == {"b", "c"})
    assert parted.nodes("alive") == {"here", "b", "c"}


@pytest.mark.timeout(180)
def test_a_replica_that_is_cut_off_costs_nobody_an_answer_and_serves_again_when_its_node_is_back(
    parted: Parted,
) -> None:
    with parted.calling():
        parted.many_more()
        before = parted.lap("before")
        with parted.cut("b"):
            wait_for(lambda: parted.nodes("alive") == {"here", "c"}, _DEAD_S)
            unnoticed = parted.lap("cut off, alive as far as Ray knows")
            assert parted.nodes("answering") == {"c"}
            parted.many_more()
            dead = parted.lap("dead as far as Ray knows")
        parted.script.order("join b")
        wait_for(lambda: parted.nodes("answering") == {"b", "c"}, _AGAIN_S)
        parted.many_more()
        again = parted.lap("back")

    laps = [before, unnoticed, dead, again]
    assert [lap.failed for lap in laps] == [[], [], [], []]
    assert max(max(lap.waits_s) for lap in laps) < _DEADLINE_S
    parted.assert_kept()
