"""Which target gets a request, where targets tell what they have cached? `CacheAware`, with their word for its memory.

An index for each size of blocks has what targets say by KV events. A prompt whose tokens are known is looked up there;
targets that say nothing are placed by what was sent to them, as before. What a request will leave in its target's cache
is expected there at once, and no longer if no event has confirmed it a second after the first byte.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from math import inf
from time import perf_counter
from typing import Any, Final, NamedTuple

import msgspec

from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.target import Target
from gateway.lane.fingerprints import PIECE_ENDS
from gateway.lane.placing import PER_REQUEST, CacheAware, Prompt
from gateway.lane.token_blocks import CachedBlocks, root, token_chain
from scheduler.prefix_index import PrefixIndex, chain

_MOST_BLOCKS: Final = 1 << 22  # of one target; it may say that it has so many
_COVERED: Final = (0, *PIECE_ENDS)
_DEAREST: Final = 12.0
_SETTLE: Final = 1.0  # seconds from a first byte until what was expected must be confirmed


class _Expected(NamedTuple):
    """What a request will leave in a target's cache, of which ``hit`` blocks were believed to be there."""

    block_tokens: int
    name: str
    blocks: Any
    hit: int


class Precise(CacheAware):
    """`CacheAware`, that follows targets' caches where they can be followed.

    ``believed`` is how many tokens of the prompt that was last chosen for its target is believed to have cached.
    ``holds``: requests are to wait in the gateway until a target is about to be free (`gateway.lane.holding`).
    """

    def __init__(self, *, holds: bool = False) -> None:
        super().__init__()
        self.holds = holds
        self.believed = 0
        self._indexes: dict[int, PrefixIndex] = {}
        self._blocks_of: dict[str, int] = {}  # the size of the blocks of each target that has told of one
        self._expected: dict[Connection, _Expected] = {}
        self._unsettled: deque[tuple[float, _Expected]] = deque()

    def follow(self, target: Target) -> CachedBlocks:
        """Who is to be told what a target has cached."""
        return CachedBlocks(target.name, self._index_of)

    @property
    def block_sizes(self) -> Sequence[int]:
        """Tokens of a block, for each size that there is."""
        return tuple(self._indexes)

    def with_tokens(self, prompt: Prompt, tokens: Sequence[int], salt: str = "") -> Prompt:
        """``prompt``, of which the tokens are known."""
        ids, before = array("q", tokens), root(salt=salt)
        chains = {size: chain(token_chain(ids, size, before)) for size in self._indexes} if ids else {}
        return msgspec.structs.replace(prompt, tokens=len(ids), chains=chains)

    def choose(self, targets: list[Target], prompt: Prompt, now: float) -> Target:
        if not prompt.chains:  # as cheap as can be: nobody tells anything here, or nothing is known of this prompt
            self.believed = 0
            return super().choose(targets, prompt, now)
        self._settle(now)
        hits = self._hits(prompt)
        text = self._index.match(prompt.chain) if len(prompt.chain) else {}
        bytes_per_token = prompt.size / prompt.tokens
        count = len(targets)
        self._turn = turn = (self._turn + 1) % count
        price = min(1.0 + self.waiting / count, _DEAREST)
        best, least, covered = targets[0], inf, 0.0
        for target in targets[turn:] + targets[:turn]:
            name = target.name
            hit = hits.get(name, 0) * bytes_per_token if name in self._blocks_of else _COVERED[text.get(name, 0)]
            cost = target.backlog + price * (prompt.size - hit) + PER_REQUEST * target.foreign
            if target.breaker.slow:
                cost = (cost + PER_REQUEST) * target.handicap(now)
            if cost < least:
                best, least, covered = target, cost, hit
        self._hit = int(covered)
        self.believed = hits.get(best.name, 0) if best.name in self._blocks_of else 0
        return best

    def sent(self, connection: Connection, prompt: Prompt) -> None:
        super().sent(connection, prompt)
        if not prompt.chains:
            return
        name = connection.target.name
        size = self._blocks_of.get(name)
        blocks = prompt.chains.get(size) if size is not None else None
        if size is not None and blocks is not None and len(blocks):
            hit = min(self.believed // size, len(blocks))
            self._indexes[size].placed(name, blocks, hit)
            self._expected[connection] = _Expected(size, name, blocks, hit)

    def answered(self, connection: Connection) -> None:
        super().answered(connection)
        expected = self._expected.pop(connection, None) if self._expected else None
        if expected is not None:
            self._unsettled.append((perf_counter() + _SETTLE, expected))

    def removed(self, target: Target) -> None:
        super().removed(target)
        size = self._blocks_of.pop(target.name, None)
        if size is not None:
            self._indexes[size].drop(target.name)

    def _hits(self, prompt: Prompt) -> dict[str, int]:
        """Tokens of the prompt that each target has cached; the last one never is."""
        found: dict[str, int] = {}
        for size, blocks in prompt.chains.items():
            index = self._indexes.get(size)
            if index is not None:
                for name, count in index.match(blocks).items():
                    found[name] = min(count * size, (prompt.tokens - 1) // size * size)
        return found

    def _settle(self, now: float) -> None:
        unsettled = self._unsettled
        while unsettled and unsettled[0][0] <= now:
            _, (size, name, blocks, hit) = unsettled.popleft()
            if self._blocks_of.get(name) == size:
                self._indexes[size].settled(name, blocks, hit)

    def _index_of(self, block_tokens: int, name: str) -> PrefixIndex:
        index = self._indexes.get(block_tokens)
        if index is None:
            index = self._indexes[block_tokens] = PrefixIndex(exact=True)
        index.add(name, _MOST_BLOCKS)
        self._blocks_of[name] = block_tokens
        return index
