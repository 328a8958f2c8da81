"""What are a text's tokens where there is no tokenizer, and what does a model say that isn't there?

Every ``token_bytes`` bytes of a text are a token, whose id is a hash of them; what is left at the end is one more. So
two texts have as many tokens in common as they have whole pieces in common, and a text's length tells the number. A
message of a chat is a mark for its role, its content (counted from its own beginning), and a mark for its end.

An answer is made of `WORDS` words of exactly ``token_bytes`` bytes. Which one comes next is a hash of *all* tokens
before it: the same prompt always gets the same answer, whoever continues a part of an answer says what would have come,
and an answer that comes back within the next turn's prompt has the tokens that it had. The hash is a polynomial modulo
2**64 (Rabin and Karp), of which numpy makes a prompt's in one pass, and each new token updates it.
"""

from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

VOCABULARY: Final = 128_256
"""Ids are below this: as many as Llama 3 has."""
WORDS: Final = 4096
_MIX: Final = 0x9E3779B97F4A7C15
_BASE: Final = 0x5851F42D4C957F2D
_MASK: Final = 2**64 - 1
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_LEAST: Final = 2
_MOST: Final = 8
_ROLE: Final = "\x01"
_END: Final = "\x02"


class Word(NamedTuple):
    """A token that may be said: its id, and its text."""

    id: int
    text: str


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


class Codec:
    """Texts to tokens. ``words`` are what answers are made of."""

    def __init__(self, token_bytes: int = 4) -> None:
        """A token is ``token_bytes`` bytes of text.

        Raises:
            ValueError: that isn't between 2 and 8.
        """
        if not _LEAST <= token_bytes <= _MOST:
            raise ValueError(f"a token of {token_bytes} bytes: it has {_LEAST} to {_MOST}")
        self.token_bytes = token_bytes
        draw = Random(0).choices
        texts = [f" {''.join(draw(_LETTERS, k=token_bytes - 1))}" for _ in range(WORDS)]
        self.words = [Word(*pair) for pair in zip(self.encode("".join(texts)), texts, strict=True)]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; none of an empty one."""
        data = text.encode()
        size = self.token_bytes
        count = -(-len(data) // size)
        pieces = np.zeros((count, 8), np.uint8)
        pieces[:, :size] = np.frombuffer(data.ljust(count * size, b"\0"), np.uint8).reshape(count, size)
        mixed = pieces.view("<u8").ravel() * np.uint64(_MIX)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(_MIX)
        found: list[int] = ((mixed >> np.uint64(16)) % np.uint64(VOCABULARY)).tolist()
        return found

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat, up to where the assistant's next message begins."""
        tokens: list[int] = []
        for role, content in messages:
            tokens += [self._mark(_ROLE + role), *self.encode(content), self._mark(_END)]
        tokens.append(self._mark(f"{_ROLE}assistant"))
        return tokens

    def _mark(self, name: str) -> int:
        """The one token of what no text begins with: its first ``token_bytes`` bytes."""
        return self.encode(name)[0]


class Voice:
    """Says what comes next, word by word."""

    __slots__ = ("_power", "_state", "_words")

    def __init__(self, codec: Codec, before: Sequence[int]) -> None:
        """``before`` are all tokens so far: the prompt, and what of the answer there is."""
        powers = _powers(len(before) + 1)
        tokens = np.fromiter(before, np.uint64, len(before))
        self._words = codec.words
        self._state = int((tokens * powers[: len(before)]).sum(dtype=np.uint64))
        self._power = int(powers[len(before)])

    def next(self) -> Word:
        """The next word, which is then one of those before."""
        mixed = (self._state ^ self._state >> 29) * _MIX & _MASK
        word = self._words[(mixed ^ mixed >> 32) * _MIX >> 40 & WORDS - 1]
        self._state = (self._state + word.id * self._power) & _MASK
        self._power = self._power * _BASE & _MASK
        return word


_table: NDArray[np.uint64] = np.ones(1, np.uint64)


def _powers(count: int) -> NDArray[np.uint64]:
    """The first ``count`` powers of the base, modulo 2**64. They are kept, and grow by doubling."""
    global _table
    if len(_table) < count:
        factors = np.full(max(count, 2 * len(_table), 4096), _BASE, np.uint64)
        factors[0] = 1
        _table = factors.cumprod(dtype=np.uint64)
    return _table[:count]
