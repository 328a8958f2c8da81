"""What are the tokens of a prompt that nobody wrote?

An outline says how long a prompt is and which blocks it has in common with others. The scheduler asks for no more: the
hashes of a request's KV blocks are made from these blocks' ids, and not from tokens, so an hour with 145 million prompt
tokens takes a second. Token ids are there for their number only; those of one request are all the same, and no other
request has them, so what is drawn for one is never taken for another's.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Below all token ids that requests have.
STOP: Final = 1
_FIRST: Final = 2

Places = NDArray[np.uint64]


class Prompt(NamedTuple):
    """A prompt for `scheduler.batch`: token ids, and the hashes of its full blocks."""

    tokens: list[int]
    hashes: list[bytes]


class Prompts:
    """Makes prompts, for workers with KV blocks of one size (in tokens)."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._ends = lru_cache(1024)(self._ends_in)

    def make(
        self, uid: int, length: int, blocks: Sequence[int] = (), block_tokens: int = 0, before: Sequence[bytes] = ()
    ) -> Prompt:
        """The prompt of request ``uid``, of ``length`` tokens.

        It begins with the KV blocks ``before`` (those of a conversation so far), or else with ``blocks`` of
        ``block_tokens`` tokens each, equal ones for equal ids; what follows them is its own.
        """
        full = length // self._size
        hashes = list(before[:full])
        if not hashes and block_tokens:
            root = block_tokens.to_bytes(8, "big")
            for place, block in enumerate(blocks):
                root = blake2b(root + block.to_bytes(8, "big"), digest_size=8).digest()
                hashes += _hashes(root, self._ends(place * block_tokens % self._size, block_tokens))
            del hashes[full:]
        if len(hashes) < full:
            own = blake2b(uid.to_bytes(8, "big"), digest_size=8, person=b"own").digest()
            hashes += _hashes(own, np.arange(len(hashes), full, dtype=np.uint64))
        return Prompt([_FIRST + uid] * length, hashes)

    def _ends_in(self, phase: int, tokens: int) -> Places:
        """Where KV blocks end within a block of so many ``tokens`` that begins ``phase`` tokens into one of them."""
        return np.arange(self._size - phase, tokens + 1, self._size, dtype=np.uint64)


def _hashes(root: bytes, places: Places) -> list[bytes]:
    """A hash for each place behind a ``root`` of 64 bits: 64 that look random, then the root.

    The first are the place and the root, mixed by SplitMix64's last step, so that they alone tell blocks apart too.
    """
    pairs = np.empty((len(places), 2), ">u8")
    mixed = places * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(root, "big"))
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    pairs[:, 0] = mixed ^ mixed >> np.uint64(31)
    pairs[:, 1] = int.from_bytes(root, "big")
    data = pairs.tobytes()
    return [data[start : start + 16] for start in range(0, len(data), 16)]


def token(uid: int) -> int:
    """The token that is drawn for request ``uid``, again and again."""
    return _FIRST + uid
