"""Which sizes of steps are captured, and which of them does a step take?

A graph runs a fixed number of tokens and sequences; a smaller step is padded. Steps in which each sequence has one
token (nearly all) have sizes of their own, so close to each other that little is wasted; small steps with prefill take
one of a few. What is larger than these runs without a graph: its kernels take longer than their launches.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

_MIXED_TOKENS: Final = (64, 128, 256, 512)


class Shape(NamedTuple):
    """How many tokens and sequences a step has; as many of both where each sequence has one."""

    tokens: int
    sequences: int

    @property
    def decodes_only(self) -> bool:
        return self.tokens == self.sequences


def decode_shapes(most: int) -> list[Shape]:
    """The sizes of steps in which each of up to ``most`` sequences has one token, ascending."""
    sizes = {1, 2, 4, *range(8, min(most, 256) + 1, 8), *range(256, most + 1, 32), most}
    return [Shape(size, size) for size in sorted(sizes) if size <= most]


def mixed_shapes(most: int, longest: int) -> list[Shape]:
    """The sizes of small steps with prefill, ascending; at most ``most`` sequences take part, and one that pads.

    That one may have all the tokens, so that they are no more than ``longest``, what a sequence can have.
    """
    few = min(16, most) + 1
    # One with as many tokens as sequences would be one of decodes.
    return [
        Shape(tokens, count)
        for tokens in _MIXED_TOKENS
        for count in sorted({few, most + 1})
        if count < tokens <= longest
    ]


def fit(shape: Shape, shapes: Iterable[Shape]) -> Shape | None:
    """The smallest of the ascending ``shapes`` that a step fits; None if it fits none."""
    for candidate in shapes:
        if candidate.decodes_only != shape.decodes_only or candidate.tokens < shape.tokens:
            continue
        # Tokens of padding in a step with prefill need a sequence of their own.
        if candidate.decodes_only or candidate.sequences > shape.sequences:
            return candidate
    return None
