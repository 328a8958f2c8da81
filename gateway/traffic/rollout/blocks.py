"""Which requests may be compared? Those of one block: they came one after another, and no two blocks share one.

Requests get into blocks in the order in which they *came*, when all that is known of them is their arm, so that what
becomes of them can't decide whom they are compared with: a control that answers late, or a canary that fails fast,
stays where it was. A block is over once it is large enough and has both arms, and is compared once everything is known
of it. As long as nothing but chance gave requests their arms, all ways of giving a block's outcomes to its arms are
then equally likely where the arms are equally good, whatever load does from block to block. That is all that
`gateway.traffic.rollout.evidence` asks for.

Where arms stick to users, chance gave *users* their arms. A user's requests resemble each other, so each user counts
once within `_AGAIN` seconds.

Some values come late: a user's opinion, minutes after the answer. A block is handed out as soon as all else is known of
it, and a second time for those, after `LATE` seconds.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

SMALLEST: Final = 8
"""Requests in a block, at least: one canary among seven controls ranks about as finely as among a thousand."""
LARGEST: Final = 64
"""Requests in a block, at most: one that has a single arm by then is dropped."""
_AGAIN: Final = 600.0  # seconds
_PATIENCE: Final = 120.0  # seconds after which what isn't known of a request counts as it stands
LATE: Final = 600.0
"""Seconds after a block's last request came for which values that come late are waited for."""
_UNITS: Final = 100_000  # users remembered at most
_RATED: Final = 50_000  # requests at most to which a late value can be added
_WAITING: Final = 10_000  # blocks at most of which something isn't known yet; more are dropped


class Outcome(NamedTuple):
    """What became of a request: each measure's value (times in seconds), None where it has none.

    ``events`` are the bad things that happened, such as ``error``; ``unknown`` those of which that can't be said.
    """

    values: dict[str, float]
    events: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()


class Compared(NamedTuple):
    """A block of which everything is known."""

    control: list[Outcome]
    canary: list[Outcome]


Uid = int | tuple[int, int]
"""Which request: of this process, or of the process that the first number stands for."""


class _Member:
    __slots__ = ("came", "canary", "first", "lost", "outcome")

    def __init__(self, canary: bool, came: float) -> None:
        self.canary = canary
        self.came = came
        self.first: float | None = None
        self.outcome: Outcome | None = None
        self.lost = False  # it never will have one


class Blocks:
    """Puts requests into blocks. Memory is bounded by the requests under way, `_WAITING`, `_UNITS` and `_RATED`.

    Args:
        late: hand blocks out a second time, with what became known late.
    """

    def __init__(self, *, late: bool = False) -> None:
        self._late = late
        self._open: list[_Member] = []
        self._closed: deque[list[_Member]] = deque()
        self._compared: deque[list[_Member]] = deque(maxlen=_WAITING)
        self._members: dict[Uid, _Member] = {}
        self._ratable: dict[str, _Member] = {}
        self._seen: OrderedDict[int, float] = OrderedDict()  # who counted last, last

    def came(self, uid: Uid, canary: bool, unit: str, now: float) -> None:
        """A request came and was given its arm. ``unit``: what the arm sticks to; "" for each request by itself."""
        if unit and not self._counts(unit, now):
            return
        member = self._members[uid] = _Member(canary, now)
        block = self._open
        block.append(member)
        canaries = sum(one.canary for one in block)
        if len(block) >= SMALLEST and 0 < canaries < len(block):
            if len(self._closed) < _WAITING:
                self._closed.append(block)
            self._open = []
        elif len(block) == LARGEST:
            self._open = []

    def began(self, uid: Uid, ttft: float) -> None:
        """The first of a request's answer is there; to know it helps where the rest takes longer than we wait."""
        member = self._members.get(uid)
        if member is not None:
            member.first = ttft

    def ended(self, uid: Uid, outcome: Outcome, name: str = "") -> None:
        """Everything is known of a request but what comes late, for which ``name`` is remembered.

        A request that is unknown, because it doesn't count, is ignored.
        """
        member = self._members.pop(uid, None)
        if member is None:
            return
        member.outcome = outcome
        if self._late and name:
            self._ratable[name] = member
            if len(self._ratable) > _RATED:
                del self._ratable[next(iter(self._ratable))]

    def lose(self, process: int) -> None:
        """Nothing more will be known of this process' requests under way: their blocks are dropped, all of each."""
        for uid in [uid for uid in self._members if isinstance(uid, tuple) and uid[0] == process]:
            self._members.pop(uid).lost = True

    def add(self, name: str, measure: str, value: float) -> bool:
        """Add what came late to the request called ``name``; False where that is none that still counts."""
        member = self._ratable.get(name)
        if member is None or member.outcome is None:
            return False
        member.outcome.values[measure] = value
        return True

    def compared(self, now: float) -> Iterator[Compared]:
        """The blocks that are complete by now, each once, in the order in which they were closed."""
        waiting: deque[list[_Member]] = deque()
        for block in self._closed:
            if any(one.lost for one in block):
                continue
            if all(one.outcome is not None for one in block) or now - block[-1].came > _PATIENCE:
                if self._late:
                    self._compared.append(block)
                yield _compare(block, now)
            else:
                waiting.append(block)
        self._closed = waiting

    def late(self, now: float) -> Iterator[Compared]:
        """The compared blocks for which late values have been waited for long enough, each once."""
        while self._compared and now - self._compared[0][-1].came > LATE:
            yield _compare(self._compared.popleft(), now)
        while self._ratable and now - (first := next(iter(self._ratable.items())))[1].came > LATE:
            del self._ratable[first[0]]

    def restart(self) -> None:
        """Forget the block that is being filled: from now on chance gives the arms in other shares."""
        self._open = []

    def _counts(self, unit: str, now: float) -> bool:
        user = hash(unit)  # what clients call themselves may be long
        last = self._seen.get(user)
        if last is not None and now - last < _AGAIN:
            return False
        if last is None and len(self._seen) >= _UNITS:
            self._seen.popitem(last=False)
        self._seen[user] = now
        self._seen.move_to_end(user)
        return True


def _compare(block: list[_Member], now: float) -> Compared:
    control: list[Outcome] = []
    canary: list[Outcome] = []
    for one in block:
        (canary if one.canary else control).append(one.outcome or _so_far(one, now - one.came))
    return Compared(control, canary)


def _so_far(one: _Member, waited: float) -> Outcome:
    """What is known of a request that has not ended: it has ``waited`` so long at least."""
    return Outcome({"ttft": waited if one.first is None else one.first, "e2e": waited})
