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

# Below all token ids that requests have.
STOP: Final = 1
_FIRST: Final = 2


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
                # 64 bits of a chain, and 64 for the place in the block: told apart as well as the scheduler does.
                root = blake2b(root + block.to_bytes(8, "big"), digest_size=8).digest()
                hashes += [root + end for end in self._ends(place * block_tokens % self._size, block_tokens)]
            del hashes[full:]
        if len(hashes) < full:
            own = blake2b(uid.to_bytes(8, "big"), digest_size=8, person=b"own").digest()
            hashes += [own + place.to_bytes(8, "big") for place in range(len(hashes), full)]
        return Prompt([_FIRST + uid] * length, hashes)

    def _ends_in(self, phase: int, tokens: int) -> list[bytes]:
        """Where KV blocks end within a block of so many ``tokens`` that begins ``phase`` tokens into one of them."""
        return [end.to_bytes(8, "big") for end in range(self._size - phase, tokens + 1, self._size)]


def token(uid: int) -> int:
    """The token that is drawn for request ``uid``, again and again."""
    return _FIRST + uid
