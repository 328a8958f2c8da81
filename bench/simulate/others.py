"""How do others place requests? Restated from their documentation, over the same index and the same workers.

Each sees what its original does: most count what they sent themselves, some read the workers' metrics (`News.reports`),
some follow KV events (`News.exact`). Those that remember what they sent do so for as much as theirs keep.

Sources, as looked up in November 2026:

- ``cache_aware``: SGLang Model Gateway's and vllm-router's documentation, "Cache-Aware Routing": threshold 0.3, 64
  requests and 1.5 times; the tighter setting is in the spirit of the first release's (0.5, 32 and 1.0001).
- llm-d: its default scheduling profile (queue 2, KV utilisation 2, prefix 3; Red Hat's "Configuring scheduler settings"
  names 2 and 3 for queue and prefix), and ``prefix-cache-scorer``'s parameters ``maxPrefixBlocksToMatch`` 256 and
  ``lruCapacityPerServer`` 31,250.
- Dynamo: "KV Cache Routing": blocks to prefill (overlap weight 1) plus active blocks, the smallest sum (temperature 0),
  with its own predictions of which are active.
- bounded loads: Mirrokni, Thorup and Zadimoghaddam 2018, at 1.25, as several proxies ship it.
- least requests and two choices: what every load balancer has (Mitzenmacher 2001).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from bench.simulate.gateway import CHAIN, News
from scheduler.placement import Job, Worker
from scheduler.placement.policies import Policy, mixed, one_after_the_other, outstanding, two_of_them

_BEGINNING: Final = 1024
"""Tokens by which the hashes tell prompts apart: the best such baseline on Mooncake's trace, two blocks of 512."""
_BOUND: Final = 1.25
"""Of the mean load: what a worker takes under consistent hashing with bounded loads."""
_TREE: Final = 4_000_000
"""Tokens that sglang-router's tree keeps of each worker: 2^24 characters."""
_LRU: Final = 31_250 * 64
"""Tokens that llm-d's approximate scorer keeps of each worker: 31,250 blocks of 64."""
_MATCHED: Final = 256 * 64
"""Tokens of a prompt that it looks at: 256 blocks of 64."""


@dataclass(frozen=True, slots=True)
class Other:
    """A policy, and what it hears of its workers. ``remembered``: tokens of each that it keeps of what it sent."""

    policy: Policy
    news: News


def _requests(worker: Worker) -> int:
    return len(worker.sent)


def ring(job: Job, workers: Sequence[Worker], key: int) -> list[Worker]:
    """The workers in the order in which a prompt's hash prefers them."""
    return sorted(workers, key=lambda worker: mixed(key ^ mixed(int(worker.name))), reverse=True)


def _beginning(job: Job, workers: Sequence[Worker]) -> int:
    blocks = job.chains.get(CHAIN)
    first = _BEGINNING // workers[0].info.block_tokens
    if blocks is None or not len(blocks):
        return mixed(int(job.uid))
    return int(blocks[min(first, len(blocks)) - 1]) % (1 << 64)


def by_prefix(job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
    """By a hash of the prompt's beginning."""
    return ring(job, workers, _beginning(job, workers))[:1]


def by_bounded_prefix(job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
    """The same, but nobody gets more than 1.25 times the mean (Mirrokni, Thorup and Zadimoghaddam 2018)."""
    most = ceil(_BOUND * (sum(map(_requests, workers)) + 1) / len(workers))
    for worker in ring(job, workers, _beginning(job, workers)):
        if _requests(worker) + 1 <= most:
            return (worker,)
    return workers


@dataclass(frozen=True, slots=True)
class CacheAware:
    """sglang-router's and vllm-router's ``cache_aware``.

    The shortest queue if the longest is more than ``absolute`` requests and ``relative`` times as long; else the best
    prefix match, if it is above a ``threshold`` of the prompt; else whoever's tree is smallest.
    """

    threshold: float = 0.3
    absolute: int = 64
    relative: float = 1.5

    def __call__(self, job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
        """The one."""
        counts = list(map(_requests, workers))
        if max(counts) - min(counts) > self.absolute and max(counts) > self.relative * min(counts):
            return (workers[counts.index(min(counts))],)
        best = max(workers, key=lambda worker: hits.get(worker.name, 0))
        if hits.get(best.name, 0) > self.threshold * job.prompt_tokens:
            return (best,)
        return (min(workers, key=lambda worker: worker.taken),)


@dataclass(frozen=True, slots=True)
class Scorers:
    """llm-d's default: the highest weighted sum of scores from 0 to 1 for queue, KV use and cached prefix.

    Queue and KV use come from the workers' metrics, the prefix from what it sent (approximate: the first 256 blocks
    of 64 tokens) or from KV events (precise).
    """

    queue: float = 2.0
    kv: float = 2.0
    prefix: float = 3.0
    matched: int = 1 << 30

    def __call__(self, job: Job, workers: Sequence[Worker], hits: Mapping[str, int], turn: int) -> Sequence[Worker]:
        """The one; of equals another one each time."""
        queues = [worker.said.waiting or 0 for worker in workers]
        shortest, longest = min(queues), max(queues)
        looked = min(job.prompt_tokens, self.matched)

        def score(place: int) -> tuple[float, int]:
            worker = workers[place]
            queue = (longest - queues[place]) / (longest - shortest) if longest > shortest else 1.0
            used = (worker.said.kv_used or 0) / worker.said.kv_total if worker.said.kv_total else 0.0
            share = min(hits.get(worker.name, 0), looked) / looked
            return self.queue * queue + self.kv * (1 - used) + self.prefix * share, (place - turn) % len(workers)

        return (workers[max(range(len(workers)), key=score)],)


def dynamo(job: Job, worker: Worker, hit: int, seconds: float, wait: float, price: float) -> float:
    """Dynamo's router at its defaults: tokens to prefill there, and tokens of KV that are active there, as blocks."""
    active = sum(one.job.prompt_tokens + one.produced for one in worker.sent.values())
    return (worker.tokens + job.prompt_tokens - hit + active + job.prompt_tokens) / worker.info.block_tokens


_ALONE: Final = News(exact=False, reports=False, remembered=_TREE)
OTHERS: Final[Mapping[str, Other]] = {
    "round robin": Other(Policy(outstanding, one_after_the_other), _ALONE),
    "least requests": Other(Policy(outstanding), _ALONE),
    "two choices": Other(Policy(outstanding, two_of_them), _ALONE),
    "prefix hash": Other(Policy(outstanding, by_prefix), _ALONE),
    "bounded-load hash": Other(Policy(outstanding, by_bounded_prefix), _ALONE),
    "cache_aware": Other(Policy(outstanding, CacheAware()), _ALONE),
    "cache_aware, tighter": Other(Policy(outstanding, CacheAware(0.5, 8, 1.1)), _ALONE),
    "llm-d approximate": Other(Policy(outstanding, Scorers(matched=_MATCHED)), News(exact=False, remembered=_LRU)),
    "llm-d precise": Other(Policy(outstanding, Scorers()), News()),
    "Dynamo": Other(Policy(dynamo), News(reports=False)),
}
"""What ships, by name."""
