"""What is drawn follows from the secret and the names, and from nothing else."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.binomial import two_sided
from router.draws import is_drawn

names = st.lists(st.text(), min_size=1, max_size=4)
shares = st.floats(0.0, 1.0)


@given(secret=st.binary(min_size=16), share=shares, named=names)
def test_the_same_is_drawn_again(secret: bytes, share: float, named: list[str]) -> None:
    assert is_drawn(secret, share, *named) is is_drawn(secret, share, *named)


@given(secret=st.binary(min_size=16), one=shares, other=shares, named=names)
def test_what_a_smaller_share_draws_a_larger_one_draws_too(
    secret: bytes, one: float, other: float, named: list[str]
) -> None:
    low, high = sorted((one, other))
    assert is_drawn(secret, high, *named) or not is_drawn(secret, low, *named)


@given(secret=st.binary(min_size=16), named=names)
def test_nothing_is_drawn_of_no_share_and_everything_of_all(secret: bytes, named: list[str]) -> None:
    assert not is_drawn(secret, 0.0, *named)
    assert is_drawn(secret, 1.0, *named)


def test_it_is_hmac_sha256_over_names_whose_ends_are_told() -> None:
    digest = hmac.new(b"secret", b"6:second1:a2:bc", hashlib.sha256).digest()
    exactly = int.from_bytes(digest[:8]) / 2**64
    assert not is_drawn(b"secret", exactly - 2**-50, "second", "a", "bc")
    assert is_drawn(b"secret", exactly + 2**-50, "second", "a", "bc")


@pytest.mark.parametrize("share", [0.02, 0.05, 0.5])
def test_as_many_are_drawn_as_the_share_says(share: float) -> None:
    drawn = sum(is_drawn(b"secret", share, "second", "acme", f"{number:032x}", "0") for number in range(20_000))
    low, high = two_sided(drawn, 20_000, 0.9999)
    assert low <= share <= high


def test_two_samples_of_the_same_things_know_nothing_of_each_other() -> None:
    both = sum(
        is_drawn(b"secret", 0.5, "second", str(number)) and is_drawn(b"secret", 0.5, "gold", str(number))
        for number in range(10_000)
    )
    low, high = two_sided(both, 10_000, 0.9999)
    assert low <= 0.25 <= high
