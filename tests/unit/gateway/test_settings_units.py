"""Numbers with units as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.settings.units import DURATIONS, SIZES, duration_s, number_range, portion, share, size_bytes, size_range
from router.table import Range


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("1.5s", 1.5), ("20 s", 20.0), ("1m", 60.0), ("4h", 14_400.0), ("30d", 2_592_000.0), (0, 0.0)],
)
def test_a_duration_comes_to_seconds(text: object, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"), [("512B", 512), ("64KiB", 65_536), ("2GB", 2 * 10**9), ("1kB", 1000), ("0.5MiB", 524_288)]
)
def test_a_size_comes_to_bytes(text: object, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    "value", ["", "5", 5, 2.5, "ms", "-1s", "1e3s", "1 y", "1ms ", "٣s", None, True, [], "9" * 99 + "d"]
)
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="which is not a duration; write it like 250ms, 20s, 1m, 4h or 30d"):
        duration_s(value)


@pytest.mark.parametrize(("value", "number"), [("2%", 0.02), (0.02, 0.02), ("0.5", 0.5), ("99.9%", 0.999)])
def test_a_share_is_a_percentage_or_a_fraction(value: object, number: float) -> None:
    assert share(value) == pytest.approx(number)


@pytest.mark.parametrize("value", ["0%", "100%", 0, 1, 1.0, -0.1, "200%"])
def test_a_share_lies_between_nothing_and_all(value: object) -> None:
    with pytest.raises(ValueError, match="use a share between 0% and 100%, such as 2%"):
        share(value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<= 1MiB", Range(high=1024**2)),
        (">=1KiB,<1MiB", Range(1024, 1024**2, high_open=True)),
        ("> 0", Range(low=0, low_open=True)),
    ],
)
def test_a_range_of_sizes_has_one_end_or_two(text: str, wanted: Range) -> None:
    assert size_range(text) == wanted


@pytest.mark.parametrize("text", ["", "3", "= 3", "<> 3", "< 3,", "< 3 < 4", "< x", "< nan", "> inf", 3, None])
def test_what_compares_nothing_is_no_range(text: object) -> None:
    with pytest.raises(ValueError, match="write it like"):
        number_range(text)


@given(st.integers(0, 10**12), st.sampled_from(sorted(SIZES)))
def test_every_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert size_bytes(f"{number}{unit}") == pytest.approx(number * SIZES[unit])


@given(st.floats(0, 1e9).map(lambda x: round(x, 3)), st.sampled_from(sorted(DURATIONS)))
def test_every_duration_is_its_number_times_its_unit(number: float, unit: str) -> None:
    assert duration_s(f"{number:.3f}{unit}") == pytest.approx(number * DURATIONS[unit])


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0.0), ("0", 0.0), ("0%", 0.0), ("1%", 0.01), (0.25, 0.25), ("100%", 1.0), (1, 1.0)]
)
def test_a_portion_is_a_share_nothing_or_all(value: object, number: float) -> None:
    assert portion(value) == pytest.approx(number)


@pytest.mark.parametrize("value", ["", "101%", 1.5, -0.1, "5", True, None, [], float("nan")])
def test_nothing_else_is_a_portion(value: object) -> None:
    with pytest.raises(ValueError, match=r"which is not a share|use a share from 0% to 100%"):
        portion(value)
