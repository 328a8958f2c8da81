"""Which worker gets a request? Four simple answers, and the seam for better ones.

They see what a gateway can know without delay: what it placed, what was answered, and (the last one) what each worker
has cached.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

from bench.simulate.worker import SimRequest, SimWorker


class Placement(Protocol):
    """A gateway's decision."""

    def place(self, request: SimRequest, workers: Sequence[SimWorker], now: float) -> int:
        """The index of the worker that gets ``request``, which arrives ``now`` (seconds)."""


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def place(self, request: SimRequest, workers: Sequence[SimWorker], now: float) -> int:
        """The one after the last."""
        chosen = self._next % len(workers)
        self._next = chosen + 1
        return chosen


class LeastOutstanding:
    """The worker with the fewest tokens of requests under way, prompts and answers; the first of several."""

    def place(self, request: SimRequest, workers: Sequence[SimWorker], now: float) -> int:
        """The least busy one."""
        return min(range(len(workers)), key=lambda index: workers[index].outstanding)


class PrefixHash:
    """By a hash of the prompt's first ``tokens`` tokens: whoever begins the same way meets the same cache."""

    def __init__(self, tokens: int = 1024) -> None:
        self._tokens = tokens

    def place(self, request: SimRequest, workers: Sequence[SimWorker], now: float) -> int:
        """The one that its beginning hashes to."""
        size = workers[0].scheduler.pool.block_size
        beginning = request.hashes[: self._tokens // size]
        text = beginning[-1] if beginning else request.uid.to_bytes(8, "big")
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") % len(workers)


class MatchMinusLoad:
    """The worker with the fewest prompt tokens to compute: those that wait there, and those of this one not cached."""

    def place(self, request: SimRequest, workers: Sequence[SimWorker], now: float) -> int:
        """The one that will have read this prompt first, as far as tokens tell."""

        def cost(index: int) -> tuple[int, int]:
            worker = workers[index]
            pool = worker.scheduler.pool
            return worker.unread - pool.probe(request.hashes) * pool.block_size, worker.outstanding

        return min(range(len(workers)), key=cost)


PLACEMENTS: dict[str, Callable[[], Placement]] = {
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
    "prefix-hash": PrefixHash,
    "match-minus-load": MatchMinusLoad,
}
