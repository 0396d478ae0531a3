"""Objects of shared memory are never taken for those that a killed gateway left behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

from backends.triton.shared_memory import FOLDER, Region, _abandoned


def test_a_region_that_is_being_made_is_not_swept_away() -> None:
    over = Event()

    def sweep() -> None:
        while not over.is_set():
            _abandoned()

    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            threads.submit(sweep)
        made = []
        try:
            for _ in range(2000):
                made.append(region := Region(4096))
                assert (FOLDER / region.name).exists()
                region.unlink()
        finally:
            over.set()
            for region in made:
                region.unlink()


def test_what_is_left_of_a_region_goes_when_its_name_does() -> None:
    region = Region(4096)
    region.unlink()
    region.unlink()

    assert not [path for path in FOLDER.iterdir() if region.name in path.name]
