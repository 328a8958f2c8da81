"""Which target gets a request? The seam between the lane and placement, and placement as cheap as the lane needs it.

Upstreams say little of themselves, so what is known is what the gateway sent and saw return, and what their Prometheus
pages say of requests that others sent. `CacheAware` is the fleet's `immediate` policy (DESIGN: wait, plus work at the
price of capacity) in bytes of prompt instead of seconds, with the index of `scheduler.prefix_index` as its memory of
which prefix went where. It takes 7 µs for eight targets, where the general `scheduler.placement.Placer` takes 20; all
other policies are that one's, by `gateway.lane.placer`.
"""

from collections.abc import Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.target import Target
from gateway.lane.fingerprints import NONE, PIECE_ENDS
from scheduler.prefix_index import WORKERS, PrefixIndex

BYTES_PER_TOKEN: Final = 4
"""About, where nothing is tokenised."""
_BLOCKS: Final = 65_536  # remembered of a target that doesn't say how large its cache is
_BLOCK_BYTES: Final = 512  # what a piece stands for on average, where it does
_DEAREST: Final = 12.0
_SETS: Final = 1024
_LOOK: Final = 0.05  # seconds; pages of targets are read, and slow starts last, for far longer
_COVERED: Final = (0, *PIECE_ENDS)
PER_REQUEST: Final = 512
"""Bytes of prompt: what a request under way slows another one's prefill down by."""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What placement may know of a request: its length in bytes, its fingerprints, its session ("" for none).

    Where its tokens are known, how many there are, and the hashes of their blocks for each size of blocks.
    """

    size: int
    chain: Any
    session: str
    tokens: int = 0
    chains: Mapping[int, Any] = MappingProxyType({})


NO_PROMPT: Final = Prompt(0, NONE, "")


class Placing(Protocol):
    """Decides where requests go. Each `choose` is followed by `sent`, and that by `ended`, whatever the end was."""

    fingerprints: bool
    """Whether it wants prompts to have their ``chain``."""

    def choose(self, targets: list[Target], prompt: Prompt, now: float) -> Target:
        """One of ``targets``, of which there is at least one."""

    def sent(self, connection: Connection, prompt: Prompt) -> None:
        """The request goes to the target that was chosen. ``connection.ticket`` is the placement's to use."""

    def answered(self, connection: Connection) -> None:
        """The first byte of an answer came."""

    def ended(self, connection: Connection) -> None:
        """The request left the target."""

    def added(self, target: Target) -> None:
        """A target came."""

    def removed(self, target: Target) -> None:
        """A target went."""


class LeastInFlight:
    """The target with the fewest requests under way, taken in turn where there are several."""

    fingerprints = False

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, targets: list[Target], prompt: Prompt, now: float) -> Target:
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

    def sent(self, connection: Connection, prompt: Prompt) -> None:
        pass

    def answered(self, connection: Connection) -> None:
        pass

    def ended(self, connection: Connection) -> None:
        pass

    def added(self, target: Target) -> None:
        pass

    def removed(self, target: Target) -> None:
        pass


def _cost(target: Target, work: float, now: float) -> float:
    """What ``work`` costs with a target that may have requests from others, or start slowly."""
    cost = work + target.backlog + PER_REQUEST * target.foreign
    return (cost + PER_REQUEST) * target.handicap(now) if target.breaker.slow else cost


class CacheAware:
    """The target where the least is to be computed, for this request and before it.

    The price of capacity rises with the requests that wait for a first byte: what a cache hit spares is spared for all
    of them. ``waiting`` is how many do, whoever has them.
    """

    fingerprints = True

    def __init__(self) -> None:
        self._index = PrefixIndex(exact=False)
        self._indexed: set[str] = set()
        self.waiting = 0
        self._hit = 0
        self._turn = 0
        self._targets: list[Target] = []  # those that were chosen from last, and the sets of workers among them
        self._sets: dict[int, tuple[Target, ...]] = {}
        self._alike = True
        self._look_at = -inf

    def choose(self, targets: list[Target], prompt: Prompt, now: float) -> Target:
        if targets is not self._targets or now >= self._look_at:
            self._look(targets, now)
        count = len(targets)
        self._turn = turn = (self._turn + 1) % count  # in turn, where nothing tells them apart
        size = prompt.size
        price = min(1.0 + self.waiting / count, _DEAREST)
        best, least, hit, looked_at = targets[0], inf, 0, 0
        shares = self._index.shares(prompt.chain)
        for place in range(0, len(shares), 2):
            covered = _COVERED[shares[place]]
            among = self._sets.get(shares[place + 1]) or self._among(shares[place + 1])
            if among:
                looked_at += len(among)
                target, cost = self._cheapest(among[turn:] + among[:turn], price * (size - covered), now)
                if cost < least:
                    best, least, hit = target, cost, covered
        if looked_at < count:
            target, cost = self._cheapest(targets[turn:] + targets[:turn], price * size, now)
            if cost < least:
                best, hit = target, 0
        self._hit = hit
        return best

    def work(self, prompt: Prompt) -> int:
        """Bytes of the prompt that was last chosen for, beside those that its target has cached."""
        return prompt.size - self._hit

    def _look(self, targets: list[Target], now: float) -> None:
        """See whether ``targets`` are alike but for what we gave them: that spares each choice a look at all of them.

        Eight targets take 0.2 µs instead of 0.4 (CPython 3.11, Zen 5).
        """
        if targets is not self._targets:
            self._targets = targets
            self._sets.clear()
        self._alike = not any(target.foreign or target.breaker.slow for target in targets)
        self._look_at = now + _LOOK

    def _cheapest(self, among: Sequence[Target], work: float, now: float) -> tuple[Target, float]:
        """Who has this ``work`` done first, counting what it has to do before; and when."""
        if self._alike:
            best = among[0]
            least = best.backlog
            for target in among:
                backlog = target.backlog
                if backlog < least:
                    best, least = target, backlog
            return best, work + least
        costs = [_cost(target, work, now) for target in among]
        cost = min(costs)
        return among[costs.index(cost)], cost

    def _among(self, workers: int) -> tuple[Target, ...]:
        """Those of the targets that are in a set of the index's. What was found is kept while they are the same."""
        if len(self._sets) >= _SETS:
            self._sets.clear()
        names = self._index.workers(workers)
        found = self._sets[workers] = tuple(target for target in self._targets if target.name in names)
        return found

    def sent(self, connection: Connection, prompt: Prompt) -> None:
        connection.ticket = work = prompt.size - self._hit
        target = connection.target
        target.backlog += work + PER_REQUEST
        self.waiting += 1
        if len(prompt.chain) and target.name in self._indexed:
            self._index.placed(target.name, prompt.chain)

    def answered(self, connection: Connection) -> None:
        connection.target.backlog -= connection.ticket
        connection.ticket = -1
        self.waiting -= 1

    def ended(self, connection: Connection) -> None:
        if connection.ticket >= 0:
            self.answered(connection)
        connection.target.backlog -= PER_REQUEST

    def added(self, target: Target) -> None:
        if len(self._indexed) < WORKERS:
            kv_tokens = target.load.kv_tokens if target.load is not None else 0
            self._sets.clear()
            self._index.add(target.name, kv_tokens * BYTES_PER_TOKEN // _BLOCK_BYTES or _BLOCKS)
            self._indexed.add(target.name)

    def removed(self, target: Target) -> None:
        if target.name in self._indexed:
            self._sets.clear()
            self._index.drop(target.name)
            self._indexed.remove(target.name)
