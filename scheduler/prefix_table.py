"""Which workers believe in which block? An open-addressing table in three flat arrays, and the loops over it.

A slot is 24 bytes: a block's 64-bit hash, a bit for each worker that is known to hold it, and a second bit for each
worker, which `scheduler.prefix_index` uses as it needs. Probing is linear and removal shifts the followers back, so
there are no tombstones and nothing is ever rebuilt but to grow.

Each loop is written once. As they stand they run on memory views, as plain Python; `compiled` makes machine code of
the very same source, for numpy arrays. All integers are signed 64-bit ones, for Numba would turn a sum of a signed and
an unsigned one into a float.
"""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Final, NamedTuple

# No block has this hash: it marks an empty slot.
EMPTY: Final = 0

Ints = Any
"""A memory view or a numpy array of int64."""


def find(hashes: Ints, mask: int, block: int) -> int:
    """The slot that has ``block``, or else ``-1 - slot`` of the empty one where it would go."""
    slot = block & mask
    while True:
        there = hashes[slot]
        if there == block:
            return slot
        if there == EMPTY:
            return -1 - slot
        slot = (slot + 1) & mask


def discard(hashes: Ints, known: Ints, second: Ints, mask: int, slot: int) -> None:
    """Empty a slot, and move back whoever was pushed on by it (Knuth, TAOCP 3, 6.4, algorithm R)."""
    gap = slot
    while True:
        slot = (slot + 1) & mask
        block = hashes[slot]
        if block == EMPTY:
            break
        # It may move if its home isn't after the gap, going round.
        if (slot - (block & mask)) & mask >= (slot - gap) & mask:
            hashes[gap] = block
            known[gap] = known[slot]
            second[gap] = second[slot]
            gap = slot
    hashes[gap] = EMPTY
    known[gap] = 0
    second[gap] = 0


def ends(hashes: Ints, known: Ints, second: Ints, mask: int, chain: Ints, length: int, out: Ints) -> int:
    """Where do workers' shares of a chain end? Pairs of (blocks, workers that have these and no more), into ``out``.

    Chains are closed under prefixes, so the set of workers only shrinks along one: each end is found by galloping, then
    by bisection, in O(log length) probes.

    Returns:
        How many pairs there are; the workers of the last one may have all ``length`` blocks.
    """
    found = 0
    begin = 0
    having = -1
    # Whoever has the last block has all of them: where that is everybody who has the first one, it was all.
    slot = find(hashes, mask, chain[length - 1])
    if slot >= 0:
        having = known[slot] | second[slot]
        slot = find(hashes, mask, chain[0])
        if slot >= 0 and known[slot] | second[slot] == having:
            out[0] = length
            out[1] = having
            return 1
        having = -1
    while begin < length:
        slot = find(hashes, mask, chain[begin])
        here = (known[slot] | second[slot]) & having if slot >= 0 else 0
        if here != having and begin > 0:
            out[2 * found] = begin
            out[2 * found + 1] = having & ~here
            found += 1
        having = here
        if having == 0:
            return found
        # All of `having` have the blocks up to `low`; the first that some lack is at most `high`.
        low = begin
        stride = 1
        high = length
        while low + stride < length:
            slot = find(hashes, mask, chain[low + stride])
            if slot >= 0 and (known[slot] | second[slot]) & having == having:
                low += stride
                stride += stride
            else:
                high = low + stride
                break
        if high == length and low + 1 < length:
            slot = find(hashes, mask, chain[length - 1])
            if slot >= 0 and (known[slot] | second[slot]) & having == having:
                low = length - 1
            else:
                high = length - 1
        while high - low > 1:
            middle = (low + high) >> 1
            slot = find(hashes, mask, chain[middle])
            if slot >= 0 and (known[slot] | second[slot]) & having == having:
                low = middle
            else:
                high = middle
        begin = low + 1
    if having != 0 and length > 0:
        out[2 * found] = length
        out[2 * found + 1] = having
        found += 1
    return found


def store(
    hashes: Ints, known: Ints, second: Ints, mask: int, chain: Ints, start: int, stop: int, bit: int, counts: Ints
) -> None:
    """A worker holds the blocks ``start`` to ``stop`` of a chain. Counts slots and the worker's blocks up."""
    for place in range(start, stop):
        slot = find(hashes, mask, chain[place])
        if slot < 0:
            slot = -1 - slot
            hashes[slot] = chain[place]
            counts[0] += 1
        if known[slot] & bit == 0:
            known[slot] |= bit
            counts[1] += 1


def remove(
    hashes: Ints, known: Ints, second: Ints, mask: int, chain: Ints, start: int, stop: int, bit: int, counts: Ints
) -> None:
    """A worker no longer holds these blocks, whatever was believed of them. Counts slots and blocks down."""
    for place in range(start, stop):
        slot = find(hashes, mask, chain[place])
        if slot < 0:
            continue
        if known[slot] & bit != 0:
            known[slot] &= ~bit
            counts[1] -= 1
        second[slot] &= ~bit
        if known[slot] | second[slot] == 0:
            discard(hashes, known, second, mask, slot)
            counts[0] -= 1


def expect(
    hashes: Ints, known: Ints, second: Ints, mask: int, chain: Ints, start: int, stop: int, bit: int, counts: Ints
) -> None:
    """A worker is about to hold these blocks: their second bit says so. Counts slots up."""
    for place in range(start, stop):
        slot = find(hashes, mask, chain[place])
        if slot < 0:
            slot = -1 - slot
            hashes[slot] = chain[place]
            counts[0] += 1
        second[slot] |= bit


def settle(
    hashes: Ints, known: Ints, second: Ints, mask: int, chain: Ints, start: int, stop: int, bit: int, counts: Ints
) -> None:
    """What was expected of these blocks is known by now, or false. Counts slots down."""
    for place in range(start, stop):
        slot = find(hashes, mask, chain[place])
        if slot < 0:
            continue
        second[slot] &= ~bit
        if known[slot] | second[slot] == 0:
            discard(hashes, known, second, mask, slot)
            counts[0] -= 1


def remember(
    hashes: Ints,
    known: Ints,
    second: Ints,
    mask: int,
    chain: Ints,
    start: int,
    stop: int,
    bit: int,
    counts: Ints,
    ring: Ints,
    hand: int,
) -> int:
    """A worker of which we only know what we sent has used these blocks just now. Returns where the clock's hand is.

    Its memory is a clock of fixed size (Corbato 1968: second chance): the second bit says that a block was used since
    the hand passed. A chain goes in with its end first, so that the hand meets the end before the beginning.
    """
    for place in range(stop - 1, start - 1, -1):
        block = chain[place]
        slot = block & mask
        if hashes[slot] != block:  # a call spared where it is at home, which counts where this isn't compiled
            slot = find(hashes, mask, block)
        if slot >= 0 and known[slot] & bit != 0:
            if second[slot] & bit == 0:
                second[slot] |= bit
            continue
        while ring[hand] != EMPTY:
            old = find(hashes, mask, ring[hand])
            if second[old] & bit == 0:
                known[old] &= ~bit
                counts[1] -= 1
                if known[old] | second[old] == 0:
                    discard(hashes, known, second, mask, old)
                    counts[0] -= 1
                break
            second[old] &= ~bit
            hand += 1
            if hand == len(ring):
                hand = 0
        ring[hand] = block
        hand += 1
        if hand == len(ring):
            hand = 0
        # The removal may have moved the place that was found.
        slot = find(hashes, mask, block)
        if slot < 0:
            slot = -1 - slot
            hashes[slot] = block
            counts[0] += 1
        known[slot] |= bit
        counts[1] += 1
    return hand


class Loops(NamedTuple):
    """The loops above, plain or compiled."""

    ends: Callable[..., int]
    store: Callable[..., None]
    remove: Callable[..., None]
    expect: Callable[..., None]
    settle: Callable[..., None]
    remember: Callable[..., int]


PLAIN: Final = Loops(ends, store, remove, expect, settle, remember)
_COMPILED: list[Loops] = []


def compiled() -> Loops:
    """The loops as machine code: compiled at the first call ever, loaded from Numba's disk cache at later starts.

    Costs a process about 70 MiB and, where nothing is cached yet, some seconds; so a gateway asks for it only where it
    follows KV events, and before it says that it is ready.
    """
    if not _COMPILED:
        from numba import int64, void

        table = (int64[::1], int64[::1], int64[::1], int64)
        # Chains come from whoever has them, and may not be written to.
        chain = _readonly()
        names: dict[str, Any] = {"EMPTY": EMPTY}
        names["find"] = _machine_code(find, int64(int64[::1], int64, int64), names)
        names["discard"] = _machine_code(discard, void(*table, int64), names)
        changes = (*table, chain, int64, int64, int64, int64[::1])
        _COMPILED.append(
            Loops(
                ends=_machine_code(ends, int64(*table, chain, int64, int64[::1]), names),
                store=_machine_code(store, void(*changes), names),
                remove=_machine_code(remove, void(*changes), names),
                expect=_machine_code(expect, void(*changes), names),
                settle=_machine_code(settle, void(*changes), names),
                remember=_machine_code(remember, int64(*changes, int64[::1], int64), names),
            )
        )
    return _COMPILED[0]


def _readonly() -> Any:
    from numba import types

    return types.Array(types.int64, 1, "C", readonly=True)


def _machine_code(function: Callable[..., Any], signature: Any, names: dict[str, Any]) -> Any:
    """Compile a loop for one signature, at once; those that it calls are the compiled ones among ``names``."""
    from numba import njit

    assert isinstance(function, FunctionType)
    twin = FunctionType(function.__code__, {**names, "__name__": __name__}, function.__name__)
    twin.__module__ = __name__
    try:
        return njit(signature, cache=True)(twin)
    except RuntimeError:
        # There is no folder where it could keep what it compiles.
        return njit(signature)(twin)


def grow(arrays: Sequence[Any], size: int) -> list[Any]:
    """The table's content in a table of ``size`` slots (a power of two): arrays like these three.

    All blocks go to their homes at once; those that find somebody there go on to the next slot, until nobody is left.
    """
    import numpy as np

    hashes, known, second = arrays
    fresh: list[Any] = [np.zeros(size, np.int64) for _ in range(3)]
    left = np.flatnonzero((hashes != EMPTY) & ((known | second) != 0))
    slots = hashes[left] & (size - 1)
    while len(left):
        free = np.flatnonzero(fresh[0][slots] == EMPTY)
        _, first = np.unique(slots[free], return_index=True)
        settled = free[first]
        for new, old in zip(fresh, arrays, strict=True):
            new[slots[settled]] = old[left[settled]]
        keep = np.ones(len(left), bool)
        keep[settled] = False
        left, slots = left[keep], (slots[keep] + 1) & (size - 1)
    return fresh
