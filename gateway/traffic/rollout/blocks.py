"""Which requests may be compared? Those of one block: they came one after another, and no two blocks share one.

Requests get into blocks in the order in which they *came*, when all that is known of them is their arm, so that what
becomes of them can't decide whom they are compared with: a control that answers late, or a canary that fails fast,
stays where it was. A block is over once it is large enough and has both arms, and is compared once everything is known
of it. As long as nothing but chance gave requests their arms, all ways of giving a block's outcomes to its arms are
then equally likely where the arms are equally good, whatever load does from block to block. That is all that
`gateway.traffic.rollout.evidence` asks for.

Where arms stick to users, chance gave *users* their arms. A user's requests resemble each other, so each user counts
once within `_AGAIN` seconds.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

SMALLEST: Final = 8
"""Requests in a block, at least: one canary among seven controls ranks about as finely as among a thousand."""
LARGEST: Final = 64
"""Requests in a block, at most: one that has a single arm by then is dropped."""
_AGAIN: Final = 600.0  # seconds
_PATIENCE: Final = 120.0  # seconds after which what isn't known of a request counts as it stands
_UNITS: Final = 100_000  # users remembered at most


class Outcome(NamedTuple):
    """What became of a request: each measure's value (times in seconds), None where it has none.

    ``events`` are the bad things that happened, such as ``error``.
    """

    values: dict[str, float]
    events: frozenset[str] = frozenset()


class Compared(NamedTuple):
    """A block of which everything is known."""

    control: list[Outcome]
    canary: list[Outcome]


class _Member:
    __slots__ = ("came", "canary", "outcome")

    def __init__(self, canary: bool, came: float) -> None:
        self.canary = canary
        self.came = came
        self.outcome: Outcome | None = None


class Blocks:
    """Puts requests into blocks. Memory is bounded by the requests under way in `_PATIENCE` seconds, and `_UNITS`."""

    def __init__(self) -> None:
        self._open: list[_Member] = []
        self._closed: deque[list[_Member]] = deque()
        self._members: dict[int, _Member] = {}
        self._seen: dict[str, float] = {}

    def came(self, uid: int, canary: bool, unit: str, now: float) -> None:
        """A request came and was given its arm. ``unit``: what the arm sticks to; "" for each request by itself."""
        if unit and not self._counts(unit, now):
            return
        member = self._members[uid] = _Member(canary, now)
        block = self._open
        block.append(member)
        canaries = sum(one.canary for one in block)
        if len(block) >= SMALLEST and 0 < canaries < len(block):
            self._closed.append(block)
            self._open = []
        elif len(block) == LARGEST:
            self._open = []

    def ended(self, uid: int, outcome: Outcome) -> None:
        """Everything is known of a request. One that is unknown, because it doesn't count, is ignored."""
        member = self._members.pop(uid, None)
        if member is not None:
            member.outcome = outcome

    def compared(self, now: float) -> Iterator[Compared]:
        """The blocks that are complete by now, each once, in the order in which they were closed."""
        waiting: deque[list[_Member]] = deque()
        for block in self._closed:
            if all(one.outcome is not None for one in block) or now - block[-1].came > _PATIENCE:
                yield _compared(block, now)
            else:
                waiting.append(block)
        self._closed = waiting

    def restart(self) -> None:
        """Forget the block that is being filled: from now on chance gives the arms in other shares."""
        self._open = []

    def _counts(self, unit: str, now: float) -> bool:
        last = self._seen.get(unit)
        if last is not None and now - last < _AGAIN:
            return False
        if len(self._seen) >= _UNITS:
            self._seen = {one: when for one, when in self._seen.items() if now - when < _AGAIN}
            while len(self._seen) >= _UNITS:
                del self._seen[next(iter(self._seen))]
        self._seen[unit] = now
        return True


def _compared(block: list[_Member], now: float) -> Compared:
    control: list[Outcome] = []
    canary: list[Outcome] = []
    for one in block:
        outcome = one.outcome or Outcome({"ttft": now - one.came})  # it has waited so long at least
        (canary if one.canary else control).append(outcome)
    return Compared(control, canary)
