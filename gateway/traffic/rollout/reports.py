"""What does a gateway process that follows tell the one that leads of its requests, so that they are evidence, too?

What chance and time have made of requests in any process may be compared, as long as chance alone decides which of the
requests of a block are the canary's (`gateway.traffic.rollout.blocks`). That is so here, for these reasons:

- The leader makes the blocks, of all requests in the order in which it hears of them. It hears that a request *came*
  when all that is known of it is its arm, a moment after it did, with all others that came to that process in the
  meantime. Nothing of what becomes of a request decides when its coming is told, or between which others.
- Which requests are told of is decided when they come, by how many came just before (`_MOST`): not by their arms, and
  not by what becomes of them. Users who come to several processes count once, as they do in one.
- A request only counts if its arm was drawn with the weight, and for the rollout, that are the leader's at that moment:
  a process that has yet to follow to another weight draws in other shares.
- What can't be told ends the connection (`gateway.traffic.leader`). Of requests that were under way on it nothing more
  will be known, so the blocks that have one of these are dropped, controls and canaries alike. Which blocks that are
  may depend on how long requests took, but not on whose they were where arms are equal: of the blocks that stay, all
  ways of giving their outcomes to their arms are as likely as before.
"""

from collections.abc import Callable, Iterable
from hashlib import blake2b
from time import monotonic
from typing import Final

import msgspec

from gateway.traffic.rollout.blocks import Outcome

_MOST: Final = 50  # requests that are told of within `_WINDOW`: many processes must not keep the leader from its own
_WINDOW: Final = 0.1  # seconds
_LONGEST: Final = 64  # characters of what clients call themselves; of more, a digest


class Came(msgspec.Struct, frozen=True, array_like=True, tag="came"):
    """A request was given its arm by chance. ``drawn`` says for which rollout, and with which weight."""

    uid: int
    model: str
    drawn: str
    canary: bool
    unit: str


class Began(msgspec.Struct, frozen=True, array_like=True, tag="began"):
    """The first of a request's answer was there after ``ttft`` seconds."""

    uid: int
    model: str
    ttft: float


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """A request is over. ``name``: what feedback calls it, "" where there will be none that counts."""

    uid: int
    model: str
    outcome: Outcome
    name: str


class Reporting:
    """What is told of the requests of a process that follows.

    Args:
        tell: has something told.
        clock: seconds, of a clock that is never set.

    Attributes:
        untold: requests that count for no rollout, because the leader was away or there were too many of them.
    """

    def __init__(self, tell: Callable[[Came | Began | Ended], None], clock: Callable[[], float] = monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._since = 0.0
        self._room = 0
        self._under_way: set[int] = set()
        self.untold = 0

    def came(self, uid: int, model: str, drawn: str, canary: bool, unit: str) -> None:
        """A request came."""
        now = self._clock()
        if now - self._since >= _WINDOW:
            self._since, self._room = now, _MOST
        if not self._room:
            self.untold += 1
            return
        self._room -= 1
        self._under_way.add(uid)
        self._tell(Came(uid, model, drawn, canary, unit))

    def began(self, uid: int, model: str, ttft: float) -> None:
        """The first of its answer is there."""
        if uid in self._under_way:
            self._tell(Began(uid, model, ttft))

    def ended(self, uid: int, model: str, outcome: Outcome, name: str) -> None:
        """It is over."""
        if uid in self._under_way:
            self._under_way.remove(uid)
            self._tell(Ended(uid, model, outcome, name))

    def lose(self, waiting: Iterable[object]) -> None:
        """Of requests under way the end will not be heard of, nor what is ``waiting`` to be told."""
        self.untold += len(self._under_way) + sum(isinstance(one, Ended) for one in waiting)
        self._under_way.clear()


def short(unit: str) -> str:
    """What an arm sticks to, in a few characters."""
    return unit if len(unit) <= _LONGEST else blake2b(unit.encode(errors="replace"), digest_size=16).hexdigest()
