"""Which requests are copied to which shadow? A share of them, drawn by their ids.

The same request is always drawn the same way, whoever draws. What one shadow gets says nothing about what another gets.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Literal

import msgspec

_RANGE: Final = 2**64


class ShadowPlan(msgspec.Struct, frozen=True):
    """A shadow of a model: the target that is asked as well, and the share of requests, 0 to 1, for which it is.

    ``keep``: pairs of answers, with the request, are kept for review, or nothing but counts.
    """

    target: str
    sample: float = 1.0
    keep: Literal["pairs", "none"] = "pairs"


class Sampling:
    """The shadows of one model.

    Args:
        model: the name that clients send.
        plans: its shadows, of different targets.
    """

    __slots__ = ("_always", "_drawn", "plans")

    def __init__(self, model: str, plans: Sequence[ShadowPlan]) -> None:
        self.plans = tuple(plans)
        self._always = self.plans if all(plan.sample >= 1 for plan in plans) else None
        self._drawn = [(plan, _salt(model, plan.target), plan.sample * _RANGE) for plan in plans]

    def draw(self, request_id: str) -> tuple[ShadowPlan, ...]:
        """Those that get a copy of the request: 1 µs for each on one core of a small cloud machine."""
        if self._always is not None:
            return self._always
        name = request_id.encode()
        return tuple([plan for plan, salt, below in self._drawn if _draw(name, salt) < below])


def _salt(model: str, target: str) -> bytes:
    return blake2b(f"shadow\0{model}\0{target}".encode(), digest_size=16).digest()


def _draw(name: bytes, salt: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8, salt=salt).digest(), "big")
