"""Who uses a model of a Triton: counted over processes, and forgotten with them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.contract import Deadline
from backends.errors import DeadlineExceeded, InvalidInput
from backends.triton.claims import Claim

ANOTHER = """
import sys
from pathlib import Path
from backends.triton.claims import Claim
claim = Claim.opened(Path(sys.argv[1]), "http://one", "dbl")
claim.hold()
claim.is_ours = True
print("held", flush=True)
sys.stdin.read()
"""


def soon() -> Deadline:
    return Deadline(time.monotonic() + 0.2)


@contextmanager
def another_user(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the model loaded."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANOTHER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_process_that_is_killed_uses_nothing_any_more_and_its_load_is_still_known(tmp_path: Path) -> None:
    claim = Claim.opened(tmp_path, "http://one", "dbl")
    with another_user(tmp_path) as process:
        claim.hold()
        assert not claim.is_alone()

        process.kill()
        process.wait()

    claim.hold()
    assert claim.is_alone()
    assert claim.is_ours
    claim.is_ours = False
    claim.close()
    again = Claim.opened(tmp_path, "http://one", "dbl")
    assert not again.is_ours
    again.close()


def test_models_and_servers_are_told_apart(tmp_path: Path) -> None:
    claims = [Claim.opened(tmp_path, server, model) for server in ("http://one", "http://two") for model in "ab"]
    for claim in claims:
        claim.hold()
    claims[0].is_ours = True

    assert all(claim.is_alone() for claim in claims)
    assert [claim.is_ours for claim in claims] == [True, False, False, False]
    for claim in claims:
        claim.close()


async def test_only_one_decides_at_a_time_and_the_others_wait_no_longer_than_they_can(tmp_path: Path) -> None:
    one, other = (Claim.opened(tmp_path, "http://one", "dbl") for _ in range(2))
    async with one.turn(soon()):
        with pytest.raises(DeadlineExceeded, match="another process"):
            async with other.turn(soon()):
                pass
    async with other.turn(soon()):
        pass
    one.close()
    other.close()


def test_a_folder_that_cannot_be_written_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InvalidInput, match="set XDG_STATE_HOME"):
        Claim.opened(tmp_path / "file" / "folder", "http://one", "dbl")
