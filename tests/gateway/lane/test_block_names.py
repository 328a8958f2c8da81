"""A map of integers, held against a dict."""

import random

import pytest

from gateway.lane.block_names import BlockNames


def test_it_is_a_map() -> None:
    chance = random.Random(1)
    names, known = BlockNames(), dict[int, int]()
    for step in range(30_000):
        # Unsigned ones, signed ones, and many with the same home.
        name = chance.choice([chance.getrandbits(64), -chance.getrandbits(63), 1024 * chance.randrange(500) + 7])
        if chance.random() < 0.6 or not known:
            assert names.put(name, step + 1) == (name in known)
            known[name] = step + 1
        else:
            gone = chance.choice(list(known)) if step % 7 else name
            if gone in known:
                assert names.pop(gone) == known.pop(gone)
            else:
                with pytest.raises(KeyError):
                    names.pop(gone)
        assert len(names) == len(known)
    assert all(names.get(name) == ours for name, ours in known.items())
    assert names.get(5) is None and 5 not in names


def test_it_takes_little_memory() -> None:
    names = BlockNames()
    for number in range(100_000):
        names.put(hash((number,)), number + 1)
    assert names.memory / len(names) <= 40
    names.clear()
    assert len(names) == 0 and names.memory < 20_000
