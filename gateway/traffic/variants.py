"""Which of a model's variants does a request get? The same one for the same user, and more users as weights rise.

Each canary draws a number in [0, 1) from who asks, the model and a salt, and takes the request if it is below the
canary's share of what the canaries before it left over; what no canary takes is the stable variant's. So to raise one
canary's weight moves users to canaries only, never from one back to the stable variant or between canaries that come
before it, and to lower it again brings back exactly those (DESIGN §5). Weights are relative: 95 and 5 are what 19 and 1
are.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

_RANGE: Final = 2**64


class Weighted(NamedTuple):
    """A variant's name and weight; the first of several is the stable one."""

    name: str
    weight: float


class Variants:
    """The variants of one model.

    Args:
        model: the name that clients send.
        variants: the stable one first; weights of 0 and more, at least one above.
        salt: another one assigns users anew.

    Raises:
        ValueError: a weight is negative, or none is above 0.
    """

    def __init__(self, model: str, variants: Sequence[Weighted], salt: str = "") -> None:
        total = sum(variant.weight for variant in variants)
        if total <= 0 or any(variant.weight < 0 for variant in variants):
            raise ValueError(f"the weights of {model!r} must be 0 or more, and one of them above")
        self.stable = variants[0].name
        self.names = frozenset(variant.name for variant in variants)
        self._canaries: list[tuple[str, bytes, float]] = []
        left = total
        for variant in variants[1:]:
            if variant.weight:
                self._canaries.append((variant.name, _salt(salt, model, variant.name), variant.weight / left))
                left -= variant.weight

    def choose(self, key: str) -> str:
        """The variant for who or what ``key`` is."""
        return self.draw(key)[0]

    def draw(self, key: str) -> tuple[str, float | None]:
        """The same, and the number in [0, 1) that decided; None where there is nothing to decide."""
        drawn = None
        for name, salt, share in self._canaries:
            drawn = _draw(key, salt)
            if drawn < share:
                return name, drawn
        return self.stable, drawn


SESSION: Final = b"x-session-id"
"""The header that says which session a request is of."""


class Asking(NamedTuple):
    """Who asks, as far as a request says: an arm may stick to any of it."""

    user: str = ""
    session: str = ""
    key: str = ""
    headers: Mapping[str, str] = {}
    request: str = ""


def sticky_key(rule: str, asking: Asking) -> tuple[str, bool]:
    """What a request's variant sticks to, and whether that is more than the request itself.

    ``rule``: ``user``, ``session``, ``key``, ``header:NAME`` or ``none``. A request that doesn't say stands for itself.
    """
    if rule.startswith("header:"):
        found = asking.headers.get(rule.removeprefix("header:").lower(), "")
    else:
        found = {"user": asking.user, "session": asking.session, "key": asking.key}.get(rule, "")
    return (f"{rule}={found}", True) if found else (f"request={asking.request}", False)


def _salt(*parts: str) -> bytes:
    return blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _draw(key: str, salt: bytes) -> float:
    """A number in [0, 1), evenly distributed over keys."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8, key=salt).digest(), "big") / _RANGE
