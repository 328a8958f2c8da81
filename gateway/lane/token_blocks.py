"""Which of our chains of tokens are the blocks that an upstream says it has cached?

Upstreams publish hashes that mean something to nobody but themselves, and the tokens that they stand for. Each block
gets a hash of ours, over its tokens and all before them, the same for every upstream; so a prompt's are looked up once.
Ours are made with Python's own hash (SipHash, keyed anew in each process): 0.4 µs for a block of 16 tokens.

vLLM may hold several copies of a block: two requests have computed it at the same time, or a prompt was cached to its
very end, and its last block is computed once more. It says so of each copy, both when it comes and when it goes; what
is believed here is whether there is one at all.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence

from gateway.fleet.kv_events import Stored
from gateway.lane.block_names import BlockNames
from scheduler.prefix_index import PrefixIndex, chain


def root(adapter: str = "", salt: str = "") -> int:
    """What stands before a first block: what keeps apart prompts that may not share blocks."""
    return hash((adapter, salt))


def token_chain(tokens: Iterable[int], block_tokens: int, before: int) -> "array[int]":
    """A hash (int64, never 0) for each full block of ``block_tokens``, after the block (or `root`) ``before``."""
    data = array("q", tokens).tobytes()
    width = 8 * block_tokens
    found = array("q")
    for start in range(0, len(data) - width + 1, width):
        before = hash((before, data[start : start + width])) or 1
        found.append(before)
    return found


class CachedBlocks:
    """Tells an index what one upstream has cached: a `gateway.fleet.kv_events.KvSink`.

    Args:
        name: the upstream's in the index.
        index_of: the index of blocks of so many tokens, in which the upstream then is.
    """

    def __init__(self, name: str, index_of: Callable[[int, str], PrefixIndex]) -> None:
        self._name = name
        self._index_of = index_of
        self._index: PrefixIndex | None = None
        self._block_tokens = 0
        self._ours = BlockNames()
        self._further: dict[int, int] = {}  # copies beside the first
        self.strange = 0
        """Blocks that could not be understood: without tokens, or of another size than the first."""

    def __len__(self) -> int:
        return len(self._ours)

    def stored(self, blocks: Stored) -> None:
        """Blocks are cached now. Those whose beginning isn't known could not be found by anybody, and are left out."""
        ours, hashes = self._ours, blocks.hashes
        before = root(blocks.adapter, blocks.salt) if blocks.parent is None else ours.get(blocks.parent)
        if before is None:
            return
        index = self._index or self._begin(blocks.block_size)
        made = token_chain(blocks.tokens, blocks.block_size, before) if blocks.block_size > 0 else array("q")
        if index is None or blocks.block_size != self._block_tokens or len(made) != len(hashes):
            self.strange += len(hashes)
            return
        for block, our in zip(hashes, made, strict=True):
            if ours.put(block, our):
                self._further[block] = self._further.get(block, 0) + 1
        if not index.stored(self._name, chain(made)):
            self._forget()  # more than it can hold

    def removed(self, hashes: Sequence[int]) -> None:
        """Copies of blocks are no longer cached."""
        ours = self._ours
        gone = array("q", [ours.pop(block) for block in hashes if self._is_last(block)])
        if self._index is not None and gone:
            self._index.removed(self._name, chain(gone))

    def cleared(self) -> None:
        """Nothing is cached, or nothing is known."""
        self._forget()
        if self._index is not None:
            self._index.clear(self._name)

    def _begin(self, block_tokens: int) -> PrefixIndex | None:
        if block_tokens > 0:
            self._block_tokens = block_tokens
            self._index = self._index_of(block_tokens, self._name)
        return self._index

    def _is_last(self, block: int) -> bool:
        """Whether the copy of a block that goes is the last one."""
        further = self._further.pop(block, 0)
        if further > 1:
            self._further[block] = further - 1
        return not further and block in self._ours

    def _forget(self) -> None:
        self._ours.clear()
        self._further.clear()
