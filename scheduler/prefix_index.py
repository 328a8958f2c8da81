"""What does the gateway believe each worker has cached?

Blocks are known by chained hashes: equal ones mean equal beginnings, up to and including that block. What is hashed is
the caller's business: a worker's own token blocks, or chunks of a text for workers that are only spoken to over HTTP.
But their low bits must look random, as those of any decent hash do: that is where in the table they go.

An *exact* worker says what it stores and removes (KV events), and the index follows. What was placed there and isn't
confirmed yet is *expected*: it counts as cached, until it is settled. Of any other worker the index remembers what was
placed there, as much as fits its cache, and forgets what hasn't been used for longest.

A block costs 24 bytes a slot of a table that is 40 to 80 % full, and once for all workers that share it; a remembered
one 8 bytes more for each worker. A lookup is some bisections over the chain (`scheduler.prefix_table.ends`), so it
errs where a chain has a hole: a worker that removed a block and kept one that follows it. Workers that evict the least
recently used block first, chains from their ends, make none.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from scheduler.prefix_table import EMPTY, PLAIN, Loops, compiled, grow

WORKERS: Final = 64
"""Workers that one table has bits for."""
_FULLEST: Final = 0.8
_SETS: Final = 1024
_FIRST_SIZE: Final = 1024
_WORD: Final = 1 << 64
_SIGN: Final = 1 << 63

Chain = Any
"""A prompt's block hashes, packed by `chain`: a read-only int64 array."""


def chain(hashes: Iterable[int]) -> Chain:
    """Pack the 64-bit hashes (signed or not) of a prompt's blocks, first block first."""
    values = array("Q", [value % _WORD for value in hashes]) if not isinstance(hashes, array) else hashes
    return _packed(np.frombuffer(values, np.int64)) if len(values) else _packed(np.zeros(0, np.int64))


def chain_of_digests(digests: Sequence[bytes]) -> Chain:
    """Pack digests of 16 bytes under the 64 bits by which others know them (`scheduler.blocks.short_hash`)."""
    pairs = np.frombuffer(b"".join(digests), ">i8")
    return _packed(pairs[::2].astype(np.int64))


def _packed(values: Any) -> Chain:
    if not values.all():
        values = np.where(values == EMPTY, 1, values)
    values.flags.writeable = False
    return values


@dataclass(slots=True)
class _Held:
    """One worker's part: its number in the table, its most blocks, and its clock if it is remembered.

    Its arrays are memory views where loops are plain, as the table's are.
    """

    slot: int
    bit: int
    limit: int
    counts: Any
    ring: Any = None
    hand: int = 0


class PrefixIndex:
    """Chains that begin alike, and which of the workers have how much of them.

    Workers are known by name. One index takes up to 64 that make the same hashes; they may come and go.
    """

    def __init__(self, *, exact: bool, fast: bool = False) -> None:
        """An index of no workers. ``fast`` compiles its loops, now: see `scheduler.prefix_table.compiled`."""
        self.exact = exact
        self._fast = fast
        self._loops: Loops = compiled() if fast else PLAIN
        self._held: dict[str, _Held] = {}
        self._names: list[str | None] = [None] * WORKERS
        self._sets: dict[int, tuple[str, ...]] = {}
        found: Any = np.zeros(2 * WORKERS + 2, np.int64)
        self._found: Any = found if fast else memoryview(found)
        self._used = 0
        self._arrays: list[Any] = [np.zeros(_FIRST_SIZE, np.int64) for _ in range(3)]
        self._view()

    @property
    def blocks(self) -> int:
        """Different blocks that are known of, over all workers."""
        return self._used

    @property
    def memory(self) -> int:
        """Bytes that it takes."""
        rings = [held.ring for held in self._held.values() if held.ring is not None]
        return sum(int(one.nbytes) for one in [*self._arrays, *rings])

    def held(self, worker: str) -> int:
        """How many blocks a worker is known to hold."""
        return int(self._held[worker].counts[1])

    def add(self, worker: str, blocks: int) -> None:
        """A worker comes, with an empty cache of so many ``blocks``.

        Raises:
            ValueError: it is there already, has no room, or is one more than an index takes.
        """
        if worker in self._held:
            raise ValueError(f"{worker} is in the index already")
        if blocks < 1:
            raise ValueError(f"{worker}: a cache of {blocks} blocks: must be at least 1")
        if None not in self._names:
            raise ValueError(f"{worker}: an index takes {WORKERS} workers")
        slot = self._names.index(None)
        self._names[slot] = worker
        self._sets.clear()
        ring = None if self.exact else self._loopable(np.zeros(blocks, np.int64))
        bit = 1 << slot
        counts = self._loopable(np.zeros(2, np.int64))
        self._held[worker] = _Held(slot, bit if bit < _SIGN else bit - _WORD, blocks, counts, ring)

    def drop(self, worker: str) -> None:
        """A worker has gone."""
        self.clear(worker)
        self._names[self._held.pop(worker).slot] = None
        self._sets.clear()

    def clear(self, worker: str) -> None:
        """Nothing is believed of this worker any more: all its blocks are gone, or there is a gap in what it said."""
        held = self._held[worker]
        _, known, second = self._arrays
        known &= ~held.bit
        second &= ~held.bit
        held.counts[1] = 0
        held.hand = 0
        if held.ring is not None:
            np.frombuffer(held.ring, np.int64)[:] = EMPTY
        self._resize(len(known))

    def stored(self, worker: str, blocks: Chain) -> bool:
        """An exact worker stored these blocks. False if it claims more than it can hold, and is believed nothing now.

        It may hold some blocks more than its cache for a moment, while events of removals are on their way.
        """
        self._change(self._loops.store, worker, blocks, 0, len(blocks))
        held = self._held[worker]
        if held.counts[1] > held.limit + (held.limit >> 3) + 64:
            self.clear(worker)
            return False
        return True

    def removed(self, worker: str, blocks: Chain) -> None:
        """An exact worker removed these blocks."""
        self._change(self._loops.remove, worker, blocks, 0, len(blocks))

    def match(self, blocks: Chain) -> dict[str, int]:
        """How many leading blocks each worker has; those with none are left out."""
        shares = self.shares(blocks)
        found: dict[str, int] = {}
        for place in range(0, len(shares), 2):
            found.update(dict.fromkeys(self.workers(shares[place + 1]), shares[place]))
        return found

    def shares(self, blocks: Chain) -> list[int]:
        """As `match`, in pairs: so many leading blocks, and the set (see `workers`) of who has these and no more."""
        if not self._used or not len(blocks):
            return []
        hashes, known, second = self._views
        out = self._found
        packed = blocks if type(blocks) is array else self._loopable(blocks)
        pairs = self._loops.ends(hashes, known, second, len(hashes) - 1, packed, len(blocks), out)
        return out[: 2 * pairs].tolist()  # type: ignore[no-any-return]

    def workers(self, bits: int) -> tuple[str, ...]:
        """The names of a set of workers. There are few sets: what was found is kept."""
        names = self._sets.get(bits)
        if names is None:
            if len(self._sets) >= _SETS:
                self._sets.clear()
            workers = bits % _WORD
            found = [name for slot, name in enumerate(self._names) if name is not None and workers >> slot & 1]
            names = self._sets[bits] = tuple(found)
        return names

    def placed(self, worker: str, blocks: Chain, hit: int = 0) -> None:
        """A prompt with these blocks was sent to a worker, which is believed to have the first ``hit``."""
        if self.exact:
            self._change(self._loops.expect, worker, blocks, hit, len(blocks))
            return
        held = self._held[worker]
        stop = min(len(blocks), held.limit)
        if self._used + stop > self._most:
            self._reserve(stop)
        hashes, known, second = self._views
        counts = held.counts
        before = counts[0]
        packed = blocks if type(blocks) is array else self._loopable(blocks)
        held.hand = self._loops.remember(
            hashes, known, second, len(hashes) - 1, packed, 0, stop, held.bit, counts, held.ring, held.hand
        )
        self._used += int(counts[0] - before)

    def settled(self, worker: str, blocks: Chain, hit: int = 0) -> None:
        """What `placed` expected has been confirmed by events now, or never will be. Else nothing happens."""
        if self.exact:
            self._change(self._loops.settle, worker, blocks, hit, len(blocks))

    def _change(self, loop: Any, worker: str, blocks: Chain, start: int, stop: int) -> None:
        held = self._held[worker]
        self._reserve(stop - start)
        hashes, known, second = self._views
        counts = held.counts
        before = counts[0]
        loop(hashes, known, second, len(hashes) - 1, self._loopable(blocks), start, stop, held.bit, counts)
        self._used += int(counts[0] - before)

    def _reserve(self, more: int) -> None:
        """Make room for so many blocks more."""
        if self._used + more <= self._most:
            return
        size = len(self._arrays[0])
        while self._used + more > _FULLEST * size:
            size *= 2
        self._resize(size)

    def _resize(self, size: int) -> None:
        self._arrays = grow(self._arrays, size)
        self._used = int(np.count_nonzero(self._arrays[0]))
        self._view()

    def _view(self) -> None:
        self._views = [self._loopable(one) for one in self._arrays]
        self._most = int(_FULLEST * len(self._arrays[0]))

    def _loopable(self, values: Any) -> Any:
        """What the loops index fast: Python's own array as it is, numpy's through a view, unless they are compiled."""
        return values if self._fast or type(values) is array else memoryview(values)


@dataclass(slots=True)
class Sequence64:
    """Which event of a worker comes next? Numbers begin anywhere and go up by one; a gap must be filled or confessed.

    `take` says what to do with the event of a number. ``expected`` is the next one; None before the first.
    """

    expected: int | None = None
    gaps: int = field(default=0)

    def take(self, number: int) -> str:
        """``apply``, ``skip`` (it was applied already), or ``gap``: replay from ``expected``, or `restart` after it."""
        if self.expected is None or number == self.expected:
            self.expected = number + 1
            return "apply"
        if number < self.expected:
            return "skip"
        self.gaps += 1
        return "gap"

    def restart(self, number: int) -> None:
        """What was missed can't be had: the worker's blocks were cleared, and ``number`` is applied next."""
        self.expected = number
