import random

import pytest

from gateway.traffic.shadow.agreement import Agreement


def test_nothing_is_known_of_nothing() -> None:
    assert Agreement().share is None
    assert Agreement().bounds() == (0.0, 1.0)


def test_bounds_close_in_on_the_share() -> None:
    wide, narrow = Agreement(9, 1), Agreement(9000, 1000)
    assert wide.bounds()[0] < narrow.bounds()[0] < 0.9 < narrow.bounds()[1] < wide.bounds()[1]
    low, high = narrow.bounds()
    assert high - low < 0.03
    assert narrow.bounds(0.001)[0] < low


@pytest.mark.parametrize(("agreed", "differed"), [(50, 0), (0, 50)])
def test_all_or_none(agreed: int, differed: int) -> None:
    low, high = Agreement(agreed, differed).bounds()
    assert (high == 1.0 and 0.85 < low < 1) if agreed else (low == 0.0 and 0 < high < 0.15)


def test_bounds_hold_at_every_moment() -> None:
    rng, missed = random.Random(2), 0
    for _ in range(60):
        agreement = Agreement()
        for count in range(400):
            agreement.add(rng.random() < 0.8)
            if count % 10 == 9:
                low, high = agreement.bounds(0.1)
                if not low <= 0.8 <= high:
                    missed += 1
                    break
    assert missed <= 6  # at most a tenth; the seed is fixed
