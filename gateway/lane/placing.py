"""Which target gets a request? The seam between the lane and placement, and placement as cheap as the lane needs it.

Upstreams say little of themselves, so what is known is what the gateway sent and saw return, and what their Prometheus
pages say of requests that others sent. `CacheAware` is the fleet's `immediate` policy (DESIGN: wait, plus work at the
price of capacity) in bytes of prompt instead of seconds, with the index of `scheduler.prefix_index` as its memory of
which prefix went where. It takes 7 µs for eight targets, where the general `scheduler.placement.Placer` takes 20; all
other policies are that one's, by `gateway.lane.placer`.
"""

from collections.abc import Mapping
from math import inf
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.target import Target
from gateway.lane.fingerprints import NONE, PIECE_ENDS
from scheduler.prefix_index import WORKERS, PrefixIndex

_BYTES_PER_TOKEN: Final = 4
_BLOCKS: Final = 65_536  # remembered of a target that doesn't say how large its cache is
_BLOCK_BYTES: Final = 512  # what a piece stands for on average, where it does
_DEAREST: Final = 12.0
_SETS: Final = 1024
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


def _handicapped(target: Target, cost: float, now: float) -> float:
    """What ``cost`` becomes for a target that has requests from others, or starts slowly."""
    cost += PER_REQUEST * target.foreign
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

    def choose(self, targets: list[Target], prompt: Prompt, now: float) -> Target:
        count = len(targets)
        self._turn = turn = (self._turn + 1) % count
        size, chain = prompt.size, prompt.chain
        price = min(1.0 + self.waiting / count, _DEAREST)
        best, least, hit, looked_at = targets[0], inf, 0, 0
        shares = self._index.shares(chain)
        for place in range(0, len(shares), 2):
            covered = _COVERED[shares[place]]
            work = price * (size - covered)
            among = self._among(targets, shares[place + 1])
            looked_at += len(among)
            for target in among[turn:] + among[:turn]:  # in turn, where nothing tells them apart
                cost = work + target.backlog
                if target.foreign or target.breaker.slow:
                    cost = _handicapped(target, cost, now)
                if cost < least:
                    best, least, hit = target, cost, covered
        if looked_at < count:
            work = price * size
            for target in targets[turn:] + targets[:turn]:
                cost = work + target.backlog
                if target.foreign or target.breaker.slow:
                    cost = _handicapped(target, cost, now)
                if cost < least:
                    best, least, hit = target, cost, 0
        self._hit = hit
        return best

    def work(self, prompt: Prompt) -> int:
        """Bytes of the prompt that was last chosen for, beside those that its target has cached."""
        return prompt.size - self._hit

    def _among(self, targets: list[Target], workers: int) -> tuple[Target, ...]:
        """Those of ``targets`` that are in a set of the index's. What was found is kept while they are the same."""
        if targets is not self._targets:
            self._targets = targets
            self._sets.clear()
        found = self._sets.get(workers)
        if found is None:
            if len(self._sets) >= _SETS:
                self._sets.clear()
            names = self._index.workers(workers)
            found = self._sets[workers] = tuple(target for target in targets if target.name in names)
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
            self._index.add(target.name, kv_tokens * _BYTES_PER_TOKEN // _BLOCK_BYTES or _BLOCKS)
            self._indexed.add(target.name)

    def removed(self, target: Target) -> None:
        if target.name in self._indexed:
            self._sets.clear()
            self._index.drop(target.name)
            self._indexed.remove(target.name)
