from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.demo import domains, names
from engine.demo.names import Names, Split, belongs

POOLS = [pool for domain in (*domains.TRAINED, *domains.UNTRAINED) for pool in (domain.places, domain.things)]


def every(pool: Names) -> list[str]:
    return [pool.form.format(first, second) for first in pool.first for second in pool.second]


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_a_name_belongs_to_exactly_one_split(name: str) -> None:
    assert belongs(name, "train") != belongs(name, "test")
    assert belongs(name, "test") == belongs(name.upper(), "test")


@pytest.mark.parametrize("pool", [*POOLS, names.PEOPLE], ids=lambda pool: f"{pool.form} {pool.first[0]}")
def test_every_pool_has_names_enough_for_a_sheet_in_each_split(pool: Names) -> None:
    held_out = {name for name in every(pool) if belongs(name, "test")}
    assert len(held_out) >= 8
    assert len(set(every(pool)) - held_out) > 3 * len(held_out)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["train", "test"]),
    st.sampled_from([domain.things for domain in (*domains.TRAINED, *domains.UNTRAINED)]),
)
def test_sampled_names_share_no_part_and_keep_to_their_split(seed: int, split: Split, pool: Names) -> None:
    drawn = pool.sample(Random(seed), split, 8)
    assert all(belongs(name, split) for name in drawn)
    for place, name in enumerate(drawn):
        assert not pool.alike(name, drawn[:place])
        assert pool.alike(name, [name])
