"""What can be limited? Requests and tokens in a time, tokens of a day, and requests at the same time."""

import re
from typing import Final, NamedTuple

import msgspec

SECONDS: Final = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_THOUSANDS: Final = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_MOST: Final = 10**12
_MOST_OF_RATE: Final = 10**9
"""Its millionths count exactly in what Redis computes with, which are doubles."""


class Rate:
    """So much in so many seconds: ``amount`` is how much can be had at once, and comes back in ``seconds``."""

    __slots__ = ("amount", "seconds")

    def __init__(self, amount: int, seconds: int) -> None:
        self.amount = amount
        self.seconds = seconds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rate) and (self.amount, self.seconds) == (other.amount, other.seconds)

    def __hash__(self) -> int:
        return hash((self.amount, self.seconds))

    def __repr__(self) -> str:
        return f"Rate({self.amount}, {self.seconds})"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an account may use up; None is no limit."""

    requests: Rate | None = None
    tokens: Rate | None = None
    concurrent: int | None = None
    tokens_per_day: int | None = None

    def __bool__(self) -> bool:
        return self != NO_LIMITS


NO_LIMITS: Final = Limits()


class Account(NamedTuple):
    """Who uses something up, and how much that may be: a key (``team-a``) or a key with a model (``team-a/chat``)."""

    name: str
    limits: Limits


def parse_amount(text: str) -> int:
    """How much ``500``, ``200k`` or ``1.5M`` is.

    Raises:
        ValueError: the text is no amount above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)", text.strip().lower())
    amount = round(float(match[1]) * _THOUSANDS[match[2]]) if match else 0
    if not 0 < amount <= _MOST:
        raise ValueError(f"{text!r} is no amount above 0: write 500, 200k or 1.5M")
    return amount


def parse_rate(text: str) -> Rate:
    """What ``600/min`` or ``200k/min`` allows; the time may be s, min or h.

    Raises:
        ValueError: the text is no rate above 0.
    """
    amount, slash, time = text.partition("/")
    seconds = SECONDS.get(time.strip())
    if not slash or seconds is None:
        raise ValueError(f"{text!r} is no rate: write 600/min or 200k/min (or /s, /h)")
    rate = Rate(parse_amount(amount), seconds)
    if rate.amount > _MOST_OF_RATE:
        raise ValueError(f"{text!r} is no limit any more: write up to 1G")
    return rate
