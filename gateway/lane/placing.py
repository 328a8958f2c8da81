"""Which target gets a request? The seam between the lane and placement, and the fingerprints of prompts.

A prompt's beginning is known by hashes of ever longer beginnings of its JSON: those of two prompts agree as far as the
prompts do. Pieces are 256 bytes long at first and grow to a quarter of what is before them, so that a prompt of 1 KB
has 3 hashes and one of 64 KB has 24. A hash is multilinear (Lemire and Kaser, Strongly universal string hashing is
fast, section 3) over mixed 64-bit words with random multipliers: numpy makes all of them in one pass over the text.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from gateway.fleet.upstream.target import Target

_FIRST: Final = 256
_LONGEST: Final = 1 << 20  # of a prompt, in bytes, that is looked at


def _ends() -> list[int]:
    """Where pieces end, in bytes."""
    ends, end = [], 0
    while end < _LONGEST:
        end += max(_FIRST, end // 4 // _FIRST * _FIRST)
        ends.append(end)
    return [end for end in ends if end <= _LONGEST]


PIECE_ENDS: Final = _ends()
"""PIECE_ENDS[i]: so many bytes are covered by the first i + 1 hashes of a prompt."""
_ENDS: Final = np.array(PIECE_ENDS)
_LAST_WORDS: Final = _ENDS // 8 - 1
_random: Final = np.random.default_rng()
_MULTIPLIERS: Final = _random.integers(0, 2**63, _LONGEST // 8, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_HALF: Final = np.uint64(32)


class Prompt(NamedTuple):
    """What placement may know of a request: its length in bytes, its fingerprints, its session ("" for none)."""

    size: int
    chain: Any
    session: str


NO_PROMPT: Final = Prompt(0, None, "")


def fingerprints(text: bytes, seed: int = 0) -> Any:
    """The hashes of ``text``'s beginnings: an array of int64, one for each full piece, none of them 0.

    ``seed`` tells apart what is equal but not shared, such as prompts for different models. The hashes mean the same
    only within one process.
    """
    words = min(len(text), _LONGEST) // 8
    count = int(_LAST_WORDS.searchsorted(words))
    if not count:
        return _NONE
    words = PIECE_ENDS[count - 1] // 8
    mixed = np.frombuffer(text, np.uint64, words) * _MIX
    mixed ^= mixed >> _HALF
    mixed *= _MULTIPLIERS[:words]
    sums = mixed.cumsum()[_LAST_WORDS[:count]]
    sums += np.uint64(seed)
    sums *= _MIX
    sums ^= sums >> _HALF  # an index takes its slot from the low bits
    found = sums.view(np.int64)
    found[found == 0] = 1
    return found


_NONE: Final = np.zeros(0, np.int64)


class Placing(Protocol):
    """Decides where requests go."""

    fingerprints: bool
    """Whether it wants prompts to have their ``chain``."""

    def choose(self, targets: Sequence[Target], prompt: Prompt, now: float) -> Target:
        """One of ``targets``, of which there is at least one; it will be sent there."""

    def answered(self, target: Target, prompt: Prompt, now: float) -> None:
        """The first byte of an answer came from where ``prompt`` was sent."""

    def ended(self, target: Target, prompt: Prompt, now: float) -> None:
        """The request left ``target``, whatever its end was."""

    def added(self, target: Target) -> None:
        """A target came."""

    def removed(self, target: Target) -> None:
        """A target went."""


class LeastInFlight:
    """The target with the fewest requests under way, taken in turn where there are several."""

    fingerprints = False

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, targets: Sequence[Target], prompt: Prompt, now: float) -> Target:
        self._turn = turn = self._turn + 1
        count = len(targets)
        best = targets[turn % count]
        least = best.pressure(now)
        for step in range(1, count):
            target = targets[(turn + step) % count]
            pressure = target.pressure(now)
            if pressure < least:
                best, least = target, pressure
        return best

    def answered(self, target: Target, prompt: Prompt, now: float) -> None:
        pass

    def ended(self, target: Target, prompt: Prompt, now: float) -> None:
        pass

    def added(self, target: Target) -> None:
        pass

    def removed(self, target: Target) -> None:
        pass
