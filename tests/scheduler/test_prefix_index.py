"""`scheduler.prefix_index`: what it believes is what it was told, plain and compiled alike, within its bounds."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.blocks import chain_hashes, root_hash, short_hash
from scheduler.prefix_index import Chain, PrefixIndex, Sequence64, chain, chain_of_digests
from scheduler.prefix_table import compiled

# Blocks of a few families of chains that fork; all of one family share their homes in a small table.
FAMILIES = [[1024 * (1 + place) + home for place in range(24)] for home in (3, 4, 1023)]


def forked(family: int, length: int, other: int = 0, fork: int = 24) -> list[int]:
    """A chain of a family, that goes on in its own way from ``fork`` on."""
    own = [(other + 1) * 1_000_003 + 1024 * place for place in range(24)]
    return [*FAMILIES[family][: min(fork, length)], *own[fork:length]]


CHAINS = st.builds(forked, st.integers(0, 2), st.integers(0, 24), st.integers(0, 2), st.integers(0, 24))
WORKERS = ("a", "b", "c")


def both(exact: bool, blocks: int = 1000) -> tuple[PrefixIndex, PrefixIndex]:
    indexes = PrefixIndex(exact=exact), PrefixIndex(exact=exact, fast=True)
    for index in indexes:
        for worker in WORKERS:
            index.add(worker, blocks)
    return indexes


def leading(held: set[int], blocks: list[int]) -> int:
    return next((place for place, block in enumerate(blocks) if block not in held), len(blocks))


STEPS = st.lists(
    st.tuples(st.sampled_from(["store", "remove", "expect", "settle", "clear"]), st.sampled_from(WORKERS), CHAINS),
    max_size=30,
)


@settings(max_examples=80, deadline=None)
@given(STEPS, CHAINS)
def test_an_exact_index_believes_what_it_was_told(steps: list[tuple[str, str, list[int]]], asked: list[int]) -> None:
    plain, fast = both(exact=True)
    known: dict[str, set[int]] = {worker: set() for worker in WORKERS}
    awaited: dict[str, set[int]] = {worker: set() for worker in WORKERS}
    for what, worker, blocks in steps:
        half = len(blocks) // 2
        for index in (plain, fast):
            change: dict[str, Callable[[], object]] = {
                "store": lambda: index.stored(worker, chain(blocks)),  # noqa: B023
                "remove": lambda: index.removed(worker, chain(blocks[half:])),  # noqa: B023
                "expect": lambda: index.placed(worker, chain(blocks), half),  # noqa: B023
                "settle": lambda: index.settled(worker, chain(blocks), half),  # noqa: B023
                "clear": lambda: index.clear(worker),  # noqa: B023
            }
            change[what]()
        mine, coming, behind = known[worker], awaited[worker], set(blocks[half:])
        if what == "store":
            mine |= set(blocks)
        elif what == "expect":
            coming |= behind
        elif what == "clear":
            mine.clear()
            coming.clear()
        else:
            coming -= behind
            if what == "remove":
                mine -= behind
    everything = set().union(*known.values(), *awaited.values())
    for index in (plain, fast):
        assert index.blocks == len(everything)
        assert [index.held(worker) for worker in WORKERS] == [len(known[worker]) for worker in WORKERS]
        for block in everything:
            holders = {worker for worker in WORKERS if block in known[worker] | awaited[worker]}
            assert index.match(chain([block])) == dict.fromkeys(holders, 1)
    # A chain with holes may be over-estimated, but never ends in a block that isn't there; without any it is exact.
    found = plain.match(chain(asked))
    assert found == fast.match(chain(asked))
    for worker in WORKERS:
        held = known[worker] | awaited[worker]
        exact, claimed = leading(held, asked), found.get(worker, 0)
        assert claimed >= exact if asked and asked[0] in held else claimed == 0
        assert claimed == 0 or asked[claimed - 1] in held
        if not any(block in held for block in asked[exact:]):
            assert claimed == exact


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORKERS), CHAINS), max_size=30), st.integers(1, 40), CHAINS)
def test_a_remembered_worker_keeps_no_more_than_fits_it(
    placed: list[tuple[str, list[int]]], room: int, asked: list[int]
) -> None:
    plain, fast = both(exact=False, blocks=room)
    for worker, blocks in placed:
        for index in (plain, fast):
            index.placed(worker, chain(blocks))
            assert index.held(worker) <= room
    sent = {worker: {block for name, blocks in placed if name == worker for block in blocks} for worker in WORKERS}
    for index in (plain, fast):
        assert index.blocks <= sum(index.held(worker) for worker in WORKERS)
        for worker in WORKERS:
            believed = {block for block in sent[worker] if index.match(chain([block])).get(worker)}
            assert len(believed) == index.held(worker)
            assert len(sent[worker]) > room or believed == sent[worker]
    assert plain.match(chain(asked)) == fast.match(chain(asked))


def test_what_was_used_again_outlives_what_was_not() -> None:
    index = PrefixIndex(exact=False)
    index.add("a", 100)
    hot, cold = chain(range(1, 41)), chain(range(1001, 1041))
    index.placed("a", cold)
    index.placed("a", hot)
    for start in range(2000, 6000, 20):
        index.placed("a", hot)
        index.placed("a", chain(range(start, start + 20)))
    assert index.match(hot) == {"a": 40}
    assert index.match(cold) == {}


def test_a_chain_is_forgotten_from_its_end() -> None:
    index = PrefixIndex(exact=False)
    index.add("a", 100)
    old = chain(range(1, 81))
    index.placed("a", old)
    index.placed("a", chain(range(1000, 1050)))
    assert index.match(old) == {"a": 50}


@pytest.mark.parametrize("fast", [False, True])
def test_sixty_four_workers_are_told_apart(fast: bool) -> None:
    index = PrefixIndex(exact=True, fast=fast)
    blocks = chain(range(10_000, 12_048))
    for number in range(64):
        index.add(f"w{number}", 60_000)
        index.stored(f"w{number}", blocks[: 32 * number])
    assert index.match(blocks) == {f"w{number}": 32 * number for number in range(1, 64)}
    with pytest.raises(ValueError, match="takes 64 workers"):
        index.add("one more", 1)
    index.drop("w63")
    index.add("new", 100)
    assert index.match(blocks) == {f"w{number}": 32 * number for number in range(1, 63)}
    assert index.blocks == 32 * 62


def test_a_table_grows_and_stays_within_its_bytes() -> None:
    index = PrefixIndex(exact=True)
    index.add("a", 200_000)
    draw = Random(5)
    chains = [chain([draw.getrandbits(64) for _ in range(500)]) for _ in range(100)]
    for blocks in chains:
        index.stored("a", blocks)
    assert index.blocks == 50_000
    assert index.memory / index.blocks <= 64
    assert all(index.match(blocks) == {"a": 500} for blocks in chains)


def test_who_claims_more_than_it_can_hold_is_believed_nothing() -> None:
    index = PrefixIndex(exact=True)
    index.add("a", 800)
    index.add("b", 800)
    index.stored("b", chain(range(1, 11)))
    assert index.stored("a", chain(range(1, 900)))
    assert not index.stored("a", chain(range(1000, 1200)))
    assert index.held("a") == 0
    assert index.match(chain(range(1, 101))) == {"b": 10}


@pytest.mark.parametrize(("name", "blocks", "fault"), [("a", 10, "already"), ("b", 0, "at least 1")])
def test_a_worker_that_cannot_be_is_refused(name: str, blocks: int, fault: str) -> None:
    index = PrefixIndex(exact=True)
    index.add("a", 10)
    with pytest.raises(ValueError, match=fault):
        index.add(name, blocks)


def test_hashes_are_packed_as_others_know_them() -> None:
    digests = chain_hashes(list(range(64)), 16, root_hash("", ""))
    ours: Chain = chain([short_hash(digest) for digest in digests])
    assert np.array_equal(ours, chain_of_digests(digests))
    assert chain([2**64 - 1, -1, 0]).tolist() == [-1, -1, 1]
    assert not len(chain([])) and not len(chain_of_digests([]))
    with pytest.raises(ValueError, match="read-only"):
        ours[0] = 5


def test_an_empty_chain_matches_nothing() -> None:
    index = PrefixIndex(exact=True)
    index.add("a", 10)
    index.stored("a", chain([1, 2]))
    assert index.match(chain([])) == {} == index.match(chain([9, 1]))


def test_compiled_loops_are_made_once() -> None:
    assert compiled() is compiled()


def test_a_sequence_sees_gaps_and_repetitions() -> None:
    sequence = Sequence64()
    assert [sequence.take(number) for number in (7, 8, 8, 7, 9)] == ["apply", "apply", "skip", "skip", "apply"]
    assert sequence.take(12) == "gap" and sequence.expected == 10
    assert [sequence.take(number) for number in (10, 11, 12)] == ["apply", "apply", "apply"]
    assert sequence.take(20) == "gap"
    sequence.restart(20)
    assert sequence.take(20) == "apply" and sequence.gaps == 2
