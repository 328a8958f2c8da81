"""How do the fleet's placement policies serve the lane? Requests become jobs of a `scheduler.placement.Placer`.

The policies `held` and `immediate` have a cheaper form here (`gateway.lane.placing.CacheAware`, and where targets say
what they have cached `gateway.lane.precise.Precise`). To hold requests back
in the gateway needs workers that say how much they have left to do, and upstreams don't.
"""

from itertools import count
from time import perf_counter
from typing import Final

from gateway.fleet.upstream.connection import Connection
from gateway.fleet.upstream.target import Target
from gateway.lane.placing import BYTES_PER_TOKEN, Placing, Prompt
from gateway.lane.precise import Precise
from scheduler.placement import Job, Placed, PlacementConfig, Placer, Report, WorkerInfo

_CHAIN: Final = "text"
_BLOCK_TOKENS: Final = 128  # what a fingerprint stands for on average; pieces grow


def placing(policy: str) -> Placing:
    """What places the lane's requests by ``policy``, one of `scheduler.placement.POLICIES`."""
    return Precise(holds=policy == "held") if policy in ("held", "immediate") else ByPlacer(policy)


class ByPlacer:
    """Any policy of the fleet's that decides at once."""

    def __init__(self, policy: str) -> None:
        self._placer = Placer(PlacementConfig(policy=policy))
        self._uids = count(1)
        self._uid = 0
        self._shown: dict[Target, object] = {}
        self.fingerprints = policy in ("predicted-ttft", "prefix-load", "lmetric")

    def choose(self, targets: list[Target], prompt: Prompt, now: float) -> Target:
        self._uid = uid = next(self._uids)
        able = {target.name: target for target in targets}
        for target in self._shown:
            self._tell(target, now)
        job = Job(
            uid=uid,
            prompt_tokens=max(1, prompt.size // BYTES_PER_TOKEN),
            chains={_CHAIN: prompt.chain} if self.fingerprints else {},
            session=prompt.session,
            arrival=now,
            excluded=frozenset(self._placer.workers.keys() - able.keys()),
        )
        self._placer.arrived(job, now)
        for decision in self._placer.decide(now):
            if isinstance(decision, Placed) and decision.job is job:
                return able[decision.worker]
        self._placer.finished(uid, now)  # nobody it knows comes into question: any of them, then
        return targets[uid % len(targets)]

    def sent(self, connection: Connection, prompt: Prompt) -> None:
        connection.ticket = self._uid

    def answered(self, connection: Connection) -> None:
        self._placer.first_token(connection.ticket, perf_counter())

    def ended(self, connection: Connection) -> None:
        self._placer.finished(connection.ticket, perf_counter())

    def added(self, target: Target) -> None:
        kv_tokens = target.load.kv_tokens if target.load is not None else 0
        info = WorkerInfo(name=target.name, chain=_CHAIN, block_tokens=_BLOCK_TOKENS, kv_tokens=kv_tokens)
        self._placer.worker_up(info, perf_counter())
        self._shown[target] = None

    def removed(self, target: Target) -> None:
        self._placer.worker_down(target.name, perf_counter())
        del self._shown[target]

    def _tell(self, target: Target, now: float) -> None:
        """Pass on how fast a target may be filled, and what its page said since the last time."""
        weight = target.breaker.weight(now)
        if self._placer.workers[target.name].weight != weight:
            self._placer.allow(target.name, True, weight)
        load = target.load
        if load is not None and load is not self._shown[target]:
            self._shown[target] = load
            used = int(load.kv_used * load.kv_tokens) if load.kv_tokens else None
            report = Report(
                waiting=int(load.waiting), running=int(load.running), kv_used=used, kv_total=load.kv_tokens or None,
                age=target.options.load_every,
            )  # fmt: skip
            self._placer.report(target.name, report, now)
