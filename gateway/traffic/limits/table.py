"""What has an account used up, and may it use up more? A row of whole numbers for each, and the arithmetic on it.

Levels count millionths and times microseconds, so that all of it is exact. What is reserved stands in a column of who
reserved it (a *holder*: one process), so that it can be freed when the holder has died. Every write is of one word, and
those of a change have an order in which a holder that dies between two of them leaves rather too much counted than too
little, until its column is freed.
"""

import math
from typing import Final, NamedTuple

from gateway.traffic.limits.contract import Refused, Standing
from gateway.traffic.limits.limit import Limits, Rate

MICRO: Final = 1_000_000
_DAY: Final = 86_400 * MICRO
_REQUESTS, _REQUESTS_AT, _TOKENS, _TOKENS_AT, _DAYS, _DAY_USED = range(6)  # each level has its time behind it
COMMON: Final = 6
"""Words of a row before its holders' columns, which have two words each: tokens held, requests running."""
_CONCURRENT_RETRY: Final = 1.0  # seconds; nobody knows when a request ends


class Use(NamedTuple):
    """What an account has used up, as of ``now`` (microseconds): levels in millionths, the rest in ones."""

    now: int
    requests: int
    tokens: int
    day: int
    held: int
    running: int


class Table:
    """Rows of ``holders`` columns in ``words`` (64-bit, signed); holds are written into column ``holder``.

    ``columns`` is one word: so many columns, the first ones, may hold anything.
    """

    def __init__(
        self, words: "memoryview[int]", columns: "memoryview[int]", *, holders: int = 1, holder: int = 0
    ) -> None:
        self.words = words
        self.width = COMMON + 2 * holders
        self._columns = columns
        self._held = COMMON + 2 * holder

    def use(self, row: int, limits: Limits, now: int) -> Use:
        """What ``row`` says, with what has flowed off until ``now``."""
        words = self.words
        start = row * self.width
        first = start + COMMON
        count = self._columns[0]
        if count == 1:
            held, running = words[first], words[first + 1]
        else:
            columns = words[first : first + 2 * count]
            held, running = sum(columns[::2]), sum(columns[1::2])
        return Use(
            now,
            self._level(start + _REQUESTS, now, limits.requests),
            self._level(start + _TOKENS, now, limits.tokens),
            words[start + _DAY_USED] if words[start + _DAYS] == now // _DAY else 0,
            held,
            running,
        )

    def hold(self, row: int, use: Use, tokens: int) -> None:
        """Count one more request, whose tokens are reserved."""
        words = self.words
        start = row * self.width
        words[start + self._held] += tokens
        words[start + self._held + 1] += 1
        words[start + _REQUESTS_AT] = max(words[start + _REQUESTS_AT], use.now)
        words[start + _REQUESTS] = use.requests + MICRO

    def settle(self, row: int, use: Use, reserved: int, used: int) -> None:
        """A request is over, and used this many tokens."""
        words = self.words
        start = row * self.width
        words[start + _TOKENS_AT] = max(words[start + _TOKENS_AT], use.now)
        words[start + _TOKENS] = use.tokens + used * MICRO
        words[start + _DAY_USED] = use.day + used
        words[start + _DAYS] = use.now // _DAY
        held = start + self._held
        words[held] = max(0, words[held] - reserved)
        words[held + 1] = max(0, words[held + 1] - 1)

    def free(self, row: int, holder: int) -> bool:
        """Forget what ``holder`` holds in ``row``; returns whether that was anything."""
        place = row * self.width + COMMON + 2 * holder
        words = self.words
        if not words[place] and not words[place + 1]:
            return False
        words[place] = words[place + 1] = 0
        return True

    def _level(self, place: int, now: int, rate: Rate | None) -> int:
        """What is left of the level at ``place``. While a clock goes back, nothing flows off."""
        if rate is None:
            return 0
        words = self.words
        level, at = words[place], words[place + 1]
        if now <= at:
            if at - now > MICRO:  # no jitter: somebody has set the clock
                words[place + 1] = now
            return level
        return max(0, level - (now - at) * rate.amount // rate.seconds)


def refusal(use: Use, limits: Limits, tokens: int) -> Refused | None:
    """Why one more request with this many tokens must wait; None if it may go on."""
    concurrent, requests, rate, budget = limits.concurrent, limits.requests, limits.tokens, limits.tokens_per_day
    if concurrent is not None and use.running >= concurrent:
        return Refused("concurrent", concurrent, use.running, 1, _CONCURRENT_RETRY)
    if requests is not None and (over := use.requests + MICRO - requests.amount * MICRO) > 0:
        return Refused("requests", requests.amount, -(-use.requests // MICRO), 1, _seconds(over, requests))
    if rate is not None and (over := use.tokens + (use.held + tokens - rate.amount) * MICRO) > 0:
        wait = _seconds(over, rate) if tokens <= rate.amount else math.inf
        return Refused("tokens", rate.amount, -(-use.tokens // MICRO) + use.held, tokens, wait)
    if budget is not None and use.day + use.held + tokens > budget:
        wait = (_DAY - use.now % _DAY) / MICRO if tokens <= budget else math.inf
        return Refused("day", budget, use.day + use.held, tokens, wait)
    return None


def standing(level: int, rate: Rate | None) -> Standing | None:
    """What clients are told of a rate with so many millionths used up or held."""
    if rate is None:
        return None
    return Standing(rate.amount, max(0, rate.amount - -(-level // MICRO)), _seconds(level, rate))


def standings(use: Use, limits: Limits) -> tuple[Standing | None, Standing | None]:
    """How an account stands towards its rates of requests and of tokens."""
    return standing(use.requests, limits.requests), standing(use.tokens + use.held * MICRO, limits.tokens)


def tighter(one: Standing | None, other: Standing | None) -> Standing | None:
    """The one of which less is left."""
    if one is None or other is None:
        return one or other
    return one if one.remaining <= other.remaining else other


def _seconds(level: int, rate: Rate) -> float:
    """How long it takes until so much has flowed off."""
    return level * rate.seconds / (rate.amount * MICRO)
