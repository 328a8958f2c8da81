"""Which KV blocks are free, which hold what, and which may be forgotten first?

A block holds the KV of `block_size` tokens. A full block can be published under its hash, and is then found by every
request whose tokens begin the same way. Its hash is chained: it covers the block's tokens and, through the parent's
hash, all tokens before them, the adapter and the salt. Equal hashes therefore mean equal KV.

Blocks that nobody holds stay findable until they are needed for something else. They wait in two doubly linked lists
threaded through two plain ones, so that taking a block out of the middle is O(1). The first is used up first: empty
blocks at its head, then what background work has cached. The second is what the foreground has cached. Both have the
least recently used first, so the head is always the block that is missed least, and a batch of millions of prompts
wears out its own cache before anybody else's.

Background work holds blocks on recall: those that nobody else holds count as `recallable`, and whoever has precedence
may reckon with them as if they were free.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple


class BlockStored(NamedTuple):
    """Consecutive blocks became findable. Hashes are 64-bit; ``tokens`` are those of all the blocks together."""

    hashes: list[int]
    parent_hash: int | None
    tokens: list[int]
    block_size: int
    adapter: str


class BlockRemoved(NamedTuple):
    """Blocks were evicted: they can't be found any more."""

    hashes: list[int]


class AllBlocksCleared(NamedTuple):
    """Everything was forgotten at once."""


BlockEvent = BlockStored | BlockRemoved | AllBlocksCleared


class IntegrityError(RuntimeError):
    """The bookkeeping contradicts itself: a fault of this package, never of its input."""


def root_hash(adapter: str, salt: str) -> bytes:
    """The parent (16 bytes) of a first block: what separates requests that may not share KV."""
    return blake2b(f"{len(adapter)}:{adapter}{salt}".encode(), digest_size=16).digest()


def chain_hashes(tokens: Sequence[int], block_size: int, parent: bytes) -> list[bytes]:
    """Hash the full blocks of ``tokens``, each over its parent's hash and its token ids as little-endian int32.

    Args:
        tokens: token ids below 2**31, beginning at a block's boundary; a last block that isn't full is left out.
        parent: the hash of the block before, or `root_hash`.

    Returns:
        One 16-byte hash for each full block.
    """
    full = len(tokens) // block_size
    ids = array("i", tokens[: full * block_size])
    if sys.byteorder == "big":
        ids.byteswap()
    data, width = ids.tobytes(), block_size * ids.itemsize
    hashes = []
    for start in range(0, full * width, width):
        parent = blake2b(parent + data[start : start + width], digest_size=16).digest()
        hashes.append(parent)
    return hashes


def short_hash(digest: bytes) -> int:
    """The 64 bits under which others know a block: the first eight bytes, big-endian."""
    return int.from_bytes(digest[:8], "big")


class BlockPool:
    """``num_blocks`` blocks, numbered from 0. Counts who holds each, finds the cached ones, evicts the stalest.

    Whoever takes a block (`acquire`, `allocate`) holds it until `release`, and says each time whether it is background
    work. Blocks with holders are never evicted.
    """

    __slots__ = (
        "_events",
        "_found",
        "_guests",
        "_hash",
        "_holders",
        "_next",
        "_prev",
        "block_size",
        "free",
        "num_blocks",
        "recallable",
    )

    def __init__(self, num_blocks: int, block_size: int, *, record_events: bool = False) -> None:
        """All blocks are free and empty.

        Raises:
            ValueError: ``num_blocks`` or ``block_size`` isn't positive.
        """
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens: both must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._events: list[BlockEvent] | None = [] if record_events else None
        self._empty_out()

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.free

    def match(self, hashes: Sequence[bytes], limit: int | None = None) -> int:
        """How many of the leading ``hashes`` (at most ``limit`` of them) are cached now."""
        found = self._found
        count = 0
        for digest in hashes if limit is None else hashes[:limit]:
            if digest not in found:
                break
            count += 1
        return count

    def probe(self, hashes: Sequence[bytes]) -> int:
        """What `match` would say, in O(log n) lookups. Good enough to rank requests by.

        It errs only where a chain has a hole, which takes two requests that computed the same block at once.
        """
        found = self._found
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) >> 1
            if hashes[middle] in found:
                low = middle + 1
            else:
                high = middle
        return low

    def acquire(self, hashes: Sequence[bytes], background: bool = False) -> list[int]:
        """Hold the cached blocks with these hashes.

        Raises:
            KeyError: one of them isn't cached; nothing has been taken then.
        """
        found, holders, following, preceding = self._found, self._holders, self._next, self._prev
        guests = self._guests
        blocks = [found[digest] for digest in hashes]
        for block in blocks:
            held = holders[block]
            if held == 0:
                after, before = following[block], preceding[block]
                following[before] = after
                preceding[after] = before
                self.free -= 1
                self.recallable += background
            elif held == guests[block] and not background:
                self.recallable -= 1
            holders[block] = held + 1
            guests[block] += background
        return blocks

    def allocate(self, count: int, background: bool = False) -> list[int]:
        """Hold ``count`` blocks with no content, evicting the least recently used cached ones as needed.

        Raises:
            ValueError: fewer than ``count`` are free; nothing has been taken then.
        """
        if count > self.free:
            raise ValueError(f"{count} blocks asked for, {self.free} free")
        holders, following, hashes = self._holders, self._next, self._hash
        end = self.num_blocks
        block = following[end]
        blocks: list[int] = []
        evicted: list[bytes] = []
        for _ in range(count):
            if block == end:
                # Nothing is left but what the foreground has cached.
                following[end] = self._prev[end] = end
                end += 1
                block = following[end]
            digest = hashes[block]
            if digest is not None:
                del self._found[digest]
                hashes[block] = None
                evicted.append(digest)
            holders[block] = 1
            blocks.append(block)
            block = following[block]
        following[end] = block
        self._prev[block] = end
        self.free -= count
        if background:
            self.recallable += count
            for block in blocks:
                self._guests[block] = 1
        if evicted and self._events is not None:
            self._events.append(BlockRemoved([short_hash(digest) for digest in evicted]))
        return blocks

    def release(self, blocks: Sequence[int], background: bool = False) -> None:
        """Let go of a request's blocks, given in the order of its tokens.

        The last block of a chain becomes the stalest of them, for it is of use to the fewest. Blocks without
        content are the next to be taken.
        """
        holders, following, preceding, hashes = self._holders, self._next, self._prev, self._hash
        guests = self._guests
        end = self.num_blocks
        cached = end if background else end + 1
        for block in reversed(blocks):
            left = holders[block] - 1
            holders[block] = left
            guests[block] -= background
            if left == 0:
                self.recallable -= background
                before, after = (end, following[end]) if hashes[block] is None else (preceding[cached], cached)
                following[before] = block
                preceding[block] = before
                following[block] = after
                preceding[after] = block
                self.free += 1
            elif left == guests[block] and not background:
                self.recallable += 1

    def publish(
        self,
        blocks: Sequence[int],
        hashes: Sequence[bytes],
        start: int,
        stop: int,
        tokens: Sequence[int],
        adapter: str = "",
    ) -> None:
        """Make blocks ``start`` to ``stop`` of a request findable, now that they are computed in full.

        Where another block is known under the same hash already (two requests computed the same prefix at once),
        that one stays known, and this one stays its holder's own.

        Args:
            blocks: the request's block table.
            hashes: the request's chain, at least ``stop`` long.
            tokens: the request's tokens from the first; recorded in the event.
        """
        found, known = self._found, self._hash
        run = start
        for index in range(start, stop):
            digest = hashes[index]
            if digest in found:
                self._record_stored(hashes, run, index, tokens, adapter)
                run = index + 1
                continue
            block = blocks[index]
            found[digest] = block
            known[block] = digest
        self._record_stored(hashes, run, stop, tokens, adapter)

    def reset(self) -> None:
        """Forget what is cached (after new weights, for example).

        Raises:
            RuntimeError: somebody still holds blocks.
        """
        if self.used:
            raise RuntimeError(f"{self.used} of {self.num_blocks} blocks are still held: finish or abort first")
        self._empty_out()
        if self._events is not None:
            self._events.append(AllBlocksCleared())

    def record_events(self) -> None:
        """Note from now on what becomes of blocks, for `take_events`."""
        if self._events is None:
            self._events = []

    def cached(self) -> list[int]:
        """The hashes of all blocks that can be found, in 64 bits, parents before their children."""
        return [short_hash(digest) for digest in self._found]

    def take_events(self) -> list[BlockEvent]:
        """What became of blocks since the last call, in order. Always empty unless events are recorded."""
        events = self._events
        if not events:
            return []
        self._events = []
        return events

    def check_integrity(
        self, tables: Iterable[Sequence[int]] | None = None, background: Iterable[Sequence[int]] = ()
    ) -> None:
        """Look for contradictions, in O(blocks).

        Args:
            tables: all block tables in use; if given, each block must have exactly as many holders as appear here.
            background: those of background work, which ``tables`` don't include.

        Raises:
            IntegrityError: saying what is wrong.
        """
        end = self.num_blocks
        free = self._walk(end)
        kept = self._walk(end + 1)
        for place, block in enumerate(free):
            if place and self._hash[block] is None and self._hash[free[place - 1]] is not None:
                raise IntegrityError(f"empty block {block} waits behind cached ones")
        for block in kept:
            if self._hash[block] is None:
                raise IntegrityError(f"empty block {block} waits among those that the foreground has cached")
        waiting = {*free, *kept}
        if len(free) + len(kept) != self.free or len(waiting) != self.free:
            raise IntegrityError(f"{len(free)} and {len(kept)} blocks in the free lists, {self.free} counted")
        if tables is not None:
            lent = list(background)
            self._check_counts(self._holders, "holders", [*tables, *lent])
            self._check_counts(self._guests, "background holders", lent)
        recallable = sum(held == guests > 0 for held, guests in zip(self._holders, self._guests, strict=True))
        if recallable != self.recallable:
            raise IntegrityError(f"background work alone holds {recallable} blocks, {self.recallable} are counted")
        for block in range(end):
            if self._holders[block] < 0 or (self._holders[block] == 0) != (block in waiting):
                raise IntegrityError(f"block {block} has {self._holders[block]} holders; free: {block in waiting}")
            digest = self._hash[block]
            if digest is not None and self._found.get(digest) != block:
                raise IntegrityError(f"block {block} can't be found under its hash {digest.hex()}")
        if len(self._found) != sum(digest is not None for digest in self._hash):
            raise IntegrityError("a hash leads to a block that doesn't bear it")

    def _walk(self, start: int) -> list[int]:
        """The blocks of one free list, from its head."""
        blocks: dict[int, None] = {}
        before, block = start, self._next[start]
        while block != start:
            if block in blocks:
                raise IntegrityError(f"a free list runs in a circle at block {block}")
            if self._prev[block] != before:
                raise IntegrityError(f"free block {block} points back to {self._prev[block]}, not to {before}")
            if block >= self.num_blocks or self._holders[block] != 0:
                raise IntegrityError(f"block {block} is in a free list and has holders")
            blocks[block] = None
            before, block = block, self._next[block]
        if self._prev[start] != before:
            raise IntegrityError(f"a free list ends at block {before}, and says {self._prev[start]}")
        return list(blocks)

    def _check_counts(self, counts: Sequence[int], what: str, tables: Iterable[Sequence[int]]) -> None:
        held = [0] * self.num_blocks
        for table in tables:
            for block in table:
                held[block] += 1
        for block, (counted, seen) in enumerate(zip(counts, held, strict=True)):
            if counted != seen:
                raise IntegrityError(f"block {block} counts {counted} {what} and is in {seen} block tables")

    def _empty_out(self) -> None:
        end = self.num_blocks
        # Entries `end` and `end + 1` are head and tail of the two free lists.
        self._next = [*range(1, end + 1), 0, end + 1]
        self._prev = [end, *range(end), end + 1]
        self._holders = [0] * end
        # How many of the holders are background work, and how many blocks have no others.
        self._guests = [0] * end
        self.recallable = 0
        self._hash: list[bytes | None] = [None] * end
        self._found: dict[bytes, int] = {}
        self.free = end

    def _record_stored(
        self, hashes: Sequence[bytes], start: int, stop: int, tokens: Sequence[int], adapter: str
    ) -> None:
        if self._events is None or start == stop:
            return
        size = self.block_size
        self._events.append(
            BlockStored(
                hashes=[short_hash(digest) for digest in hashes[start:stop]],
                parent_hash=short_hash(hashes[start - 1]) if start else None,
                tokens=list(tokens[start * size : stop * size]),
                block_size=size,
                adapter=adapter,
            )
        )
