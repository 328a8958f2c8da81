"""`scheduler.blocks`: allocation, reuse, eviction, events, and that faults are found."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.blocks import (
    AllBlocksCleared,
    BlockPool,
    BlockRemoved,
    BlockStored,
    IntegrityError,
    chain_hashes,
    root_hash,
    short_hash,
)

ROOT = root_hash("", "")


def stored(pool: BlockPool, tokens: list[int]) -> tuple[list[int], list[bytes]]:
    """Allocate, publish: the blocks that hold ``tokens``, and their chain."""
    hashes = chain_hashes(tokens, pool.block_size, ROOT)
    blocks = pool.allocate(len(hashes))
    pool.publish(blocks, hashes, 0, len(hashes), tokens)
    return blocks, hashes


def test_hashes_cover_everything_before() -> None:
    one = chain_hashes([1, 2, 3, 4, 5, 6], 2, ROOT)
    other = chain_hashes([1, 2, 9, 4, 5, 6], 2, ROOT)
    assert [len(digest) for digest in one] == [16, 16, 16]
    assert one[0] == other[0]
    assert one[1] != other[1] and one[2] != other[2]


def test_hashes_can_be_continued() -> None:
    tokens = list(range(50))
    whole = chain_hashes(tokens, 4, ROOT)
    begun = chain_hashes(tokens[:20], 4, ROOT)
    assert begun + chain_hashes(tokens[20:], 4, begun[-1]) == whole
    assert len(whole) == 12


def test_adapter_and_salt_separate() -> None:
    roots = {root_hash(adapter, salt) for adapter, salt in [("", ""), ("a", ""), ("", "a"), ("a", "b"), ("ab", "")]}
    assert len(roots) == 5


def test_token_ids_are_four_bytes_each() -> None:
    assert chain_hashes([1, 0], 2, ROOT) != chain_hashes([0, 1], 2, ROOT)
    assert chain_hashes([2**31 - 1], 1, ROOT) != chain_hashes([2**15 - 1], 1, ROOT)
    with pytest.raises(OverflowError):
        chain_hashes([2**31], 1, ROOT)


def test_a_pool_needs_blocks() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(0, 16)
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(1, 0)


def test_allocate_and_release() -> None:
    pool = BlockPool(4, 2)
    blocks = pool.allocate(3)
    assert len(set(blocks)) == 3 and pool.free == 1 and pool.used == 3
    with pytest.raises(ValueError, match="2 blocks asked for, 1 free"):
        pool.allocate(2)
    assert pool.free == 1
    pool.release(blocks)
    assert pool.free == 4
    pool.check_integrity([])


def test_published_blocks_are_found_again() -> None:
    pool = BlockPool(8, 2)
    blocks, hashes = stored(pool, [1, 2, 3, 4, 5, 6])
    other = chain_hashes([1, 2, 3, 4, 7, 8], 2, ROOT)
    assert (pool.match(hashes), pool.match(other), pool.probe(other)) == (3, 2, 2)
    assert pool.match(hashes, 1) == 1
    shared = pool.acquire(other[:2])
    assert shared == blocks[:2]
    pool.release(blocks)
    assert pool.used == 2
    pool.release(shared)
    assert pool.used == 0 and pool.match(hashes) == 3
    pool.check_integrity([])


def test_acquire_of_what_is_gone_takes_nothing() -> None:
    pool = BlockPool(4, 2)
    blocks, hashes = stored(pool, [1, 2])
    pool.release(blocks)
    with pytest.raises(KeyError):
        pool.acquire([hashes[0], b"unknown"])
    assert pool.used == 0
    pool.check_integrity([])


def test_eviction_takes_empty_blocks_first_then_the_stalest_chain_from_its_end() -> None:
    pool = BlockPool(5, 2)
    old, old_hashes = stored(pool, [1, 2, 3, 4])
    new, new_hashes = stored(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    spare = pool.allocate(1)
    assert not set(spare) & {*old, *new}
    assert pool.allocate(1) == [old[1]]
    assert pool.match(old_hashes) == 1
    pool.release(pool.acquire(old_hashes[:1]))
    assert pool.allocate(2) == [new[1], new[0]]
    assert (pool.match(old_hashes), pool.match(new_hashes)) == (1, 0)


def test_the_same_prefix_computed_twice() -> None:
    pool = BlockPool(4, 2)
    first, hashes = stored(pool, [1, 2, 3, 4])
    second, _ = stored(pool, [1, 2, 3, 4])
    assert pool.acquire(hashes) == first
    pool.release(first)
    pool.release(second)
    pool.check_integrity([first])
    # The copies bear no hash: they are taken before anything cached.
    assert set(pool.allocate(2)) == set(second)
    assert pool.match(hashes) == 2


def test_events_tell_what_can_be_found() -> None:
    pool = BlockPool(3, 2, record_events=True)
    tokens = [1, 2, 3, 4, 5, 6]
    hashes = chain_hashes(tokens, 2, ROOT)
    blocks = pool.allocate(3)
    pool.publish(blocks, hashes, 0, 1, tokens, "lora")
    pool.publish(blocks, hashes, 1, 3, tokens, "lora")
    short = [short_hash(digest) for digest in hashes]
    assert pool.take_events() == [
        BlockStored(short[:1], None, [1, 2], 2, "lora"),
        BlockStored(short[1:], short[0], [3, 4, 5, 6], 2, "lora"),
    ]
    assert pool.take_events() == []
    pool.release(blocks)
    pool.release(pool.allocate(2))
    assert pool.take_events() == [BlockRemoved([short[2], short[1]])]
    pool.reset()
    assert pool.take_events() == [AllBlocksCleared()]
    assert all(0 <= value < 2**64 for value in short)


def test_a_duplicate_in_the_middle_splits_the_event() -> None:
    pool = BlockPool(9, 1, record_events=True)
    tokens = [1, 2, 3]
    hashes = chain_hashes(tokens, 1, ROOT)
    first = pool.allocate(3)
    pool.publish(first, hashes, 1, 2, tokens)
    pool.take_events()
    pool.publish(pool.allocate(3), hashes, 0, 3, tokens)
    short = [short_hash(digest) for digest in hashes]
    assert pool.take_events() == [
        BlockStored(short[:1], None, [1], 1, ""),
        BlockStored(short[2:], short[1], [3], 1, ""),
    ]


def test_no_events_unless_asked_for() -> None:
    pool = BlockPool(2, 1)
    stored(pool, [1])
    assert pool.take_events() == []


def test_reset_forgets_and_refuses_while_blocks_are_held() -> None:
    pool = BlockPool(2, 1)
    blocks, hashes = stored(pool, [1])
    with pytest.raises(RuntimeError, match="1 of 2 blocks are still held"):
        pool.reset()
    pool.release(blocks)
    pool.reset()
    assert pool.match(hashes) == 0
    pool.check_integrity([])


def test_blocks_that_background_work_alone_holds_are_on_recall() -> None:
    pool = BlockPool(6, 2)
    blocks, hashes = stored(pool, [1, 2, 3, 4])
    pool.release(blocks)
    table = pool.acquire(hashes, background=True) + pool.allocate(1, background=True)
    assert (pool.used, pool.recallable) == (3, 3)
    assert pool.acquire(hashes[:1], background=True) == blocks[:1]
    assert pool.acquire(hashes[:1]) == blocks[:1]
    assert (pool.used, pool.recallable) == (3, 2)
    pool.check_integrity([blocks[:1]], [table, blocks[:1]])
    pool.release(blocks[:1])
    assert pool.recallable == 3
    pool.release(table, background=True)
    assert (pool.used, pool.recallable) == (1, 1)
    pool.release(blocks[:1], background=True)
    pool.check_integrity([], [])
    assert pool.recallable == 0
    pool.recallable = 1
    with pytest.raises(IntegrityError, match="background work alone holds 0 blocks, 1 are counted"):
        pool.check_integrity()


def test_what_background_work_has_cached_is_forgotten_before_what_the_foreground_has() -> None:
    pool = BlockPool(6, 2)
    ours, our_hashes = stored(pool, [1, 2, 3, 4])
    theirs, their_hashes = stored(pool, [5, 6, 7, 8])
    pool.release(ours)
    pool.release(pool.acquire(their_hashes, background=True), background=True)
    pool.release(theirs)
    # Who let go of it last decides.
    pool.release(pool.acquire(their_hashes, background=True), background=True)
    pool.check_integrity([])
    taken = pool.allocate(5)
    assert taken[2:] == [theirs[1], theirs[0], ours[1]]
    assert (pool.match(our_hashes), pool.match(their_hashes), pool.free) == (1, 0, 1)
    pool.check_integrity([taken])
    pool.release(taken)
    assert pool.allocate(6)[5] == ours[0]


def test_faults_are_found() -> None:
    pool = BlockPool(4, 1)
    blocks = pool.allocate(2)
    with pytest.raises(IntegrityError, match="counts 1 holders and is in 0 block tables"):
        pool.check_integrity([])
    with pytest.raises(IntegrityError, match="is in 2 block tables"):
        pool.check_integrity([blocks, blocks])
    pool.free += 1
    with pytest.raises(IntegrityError, match="2 and 0 blocks in the free lists, 3 counted"):
        pool.check_integrity()
    pool.free -= 1
    pool.release(blocks)
    with pytest.raises(IntegrityError, match="holders"):
        pool.release(blocks)
        pool.check_integrity()


class PoolAgainstModel(RuleBasedStateMachine):
    """Random chains over a tiny pool, against counters and a list in the order of last use."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7, 2, record_events=True)
        self.tables: list[tuple[list[int], bool]] = []
        self.content: dict[int, bytes] = {}
        self.findable: set[int] = set()

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9), background=st.booleans())
    def take(self, tokens: list[int], background: bool) -> None:
        pool = self.pool
        hashes = chain_hashes(tokens, 2, ROOT)
        found = pool.match(hashes)
        assert pool.probe(hashes) <= len(hashes)
        table = pool.acquire(hashes[:found], background)
        for block, digest in zip(table, hashes, strict=False):
            assert self.content[block] == digest, "a cached block holds something else"
        need = -(-len(tokens) // 2) - found
        if need > pool.free:
            pool.release(table, background)
            return
        fresh = pool.allocate(need, background)
        held = {block for other, _ in self.tables for block in other}
        assert not held & set(fresh), "a held block was given away"
        table += fresh
        for block, digest in zip(table, hashes, strict=False):
            self.content[block] = digest
        pool.publish(table, hashes, found, len(hashes), tokens)
        self.tables.append((table, background))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(*self.tables.pop(index))

    @precondition(lambda self: not self.tables)
    @rule()
    def reset(self) -> None:
        self.pool.reset()

    @invariant()
    def sound(self) -> None:
        foreground, background = ([table for table, back in self.tables if back == lane] for lane in (False, True))
        self.pool.check_integrity(foreground, background)
        counts = Counter(block for table, _ in self.tables for block in table)
        assert self.pool.used == len(counts)
        assert self.pool.recallable == len(counts.keys() - {block for table in foreground for block in table})

    @invariant()
    def events_say_what_can_be_found(self) -> None:
        for event in self.pool.take_events():
            if isinstance(event, BlockStored):
                assert not self.findable & set(event.hashes)
                assert len(event.tokens) == 2 * len(event.hashes)
                self.findable |= set(event.hashes)
            elif isinstance(event, BlockRemoved):
                assert self.findable >= set(event.hashes)
                self.findable -= set(event.hashes)
            else:
                self.findable.clear()
        known = {short_hash(digest) for digest in self.content.values() if self.pool.match([digest])}
        assert self.findable == known


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
