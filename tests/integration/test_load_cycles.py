"""Models that come and go under traffic; a thousand times in `loadtests/load_cycles.py`."""

from __future__ import annotations

from pathlib import Path

from loadtests.load_cycles import measure


def test_a_stage_that_is_unloaded_and_loaded_again_and_again_fails_no_request(tmp_path: Path) -> None:
    report = measure(tmp_path, cycles=40, clients=4)

    assert report.errors == {}
    assert report.completed > 100
    assert report.rss_mib[-1] - report.rss_mib[1] < 40  # each load is of 4 MiB: what stayed would be 160
