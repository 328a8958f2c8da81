"""What does a run say of a router? Figures of its records and of the processes' own counts."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np

from bench.load.records import Record

TTFT_BASE: Final = 1.0
TTFT_TOKEN: Final = 0.2e-3
TPOT: Final = 0.05


class Judging(msgspec.Struct, frozen=True):
    """What is asked of an answer. A first token is due `TTFT_BASE` seconds after the request, and `TTFT_TOKEN` more for
    each token of the prompt; the others `TPOT` seconds apart in the mean: all divided by the workers' ``speed``.

    The first ``warm_up`` (a share) of the requests aren't judged: caches are empty, and nobody has learnt anything yet.
    """

    speed: float = 1.0
    warm_up: float = 0.1

    def good(self, record: Record) -> bool:
        """Whether a request was answered in time."""
        if record.outcome != "ok" or record.ttft is None:
            return False
        in_time = record.ttft * self.speed <= TTFT_BASE + TTFT_TOKEN * record.prompt_tokens
        return in_time and (record.tpot is None or record.tpot * self.speed <= TPOT)


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What records alone say. Times in seconds.

    ``rate`` is of answered requests, ``goodput`` a share of all offered ones, ``hit_rate`` one of the prompts' tokens,
    by the answers' ``usage``; ``late`` is the client's own delay at the 99th percentile.
    """

    offered: int
    rate: float
    offered_rate: float
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    tpot_mean: float
    tpot_p99: float
    goodput: float
    hit_rate: float
    late: float
    errors: dict[str, int]


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes used. ``*_cpu`` in cores (seconds a second), memory in bytes.

    ``router_request`` is the router's CPU seconds a request, ``imbalance`` the most prompt tokens that a worker
    computed, over the mean. ``machine`` is the share of all cores that was busy, ``foreign`` what of it somebody else
    used. ``lost`` is the worst worker's share of the time by which it was too late to simulate what it should.
    """

    router_request: float
    router_memory: int
    router_cpu: float
    workers_cpu: float
    client_cpu: float
    machine: float
    foreign: float
    imbalance: float
    lost: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One side's run."""

    side: str
    version: str
    round: int
    date: str
    answers: Answers
    use: Use


def judge(records: Iterable[Record], judging: Judging) -> Answers:
    """The figures of these records.

    Raises:
        ValueError: not one of those that count was answered.
    """
    every = sorted(records, key=lambda record: record.at)
    counted = every[int(len(every) * judging.warm_up) :]
    ok = [record for record in counted if record.outcome == "ok" and record.ttft is not None]
    if not ok:
        raise ValueError("no request was answered")
    ttft = np.array([record.ttft for record in ok])
    tpot = np.array([record.tpot for record in ok if record.tpot is not None] or [0.0])
    prompts = sum(record.prompt_tokens for record in ok)
    seconds = max(record.end for record in counted) - counted[0].at
    return Answers(
        offered=len(counted),
        rate=len(ok) / seconds if seconds else 0.0,
        offered_rate=_rate([record.at for record in counted]),
        ttft_mean=float(ttft.mean()),
        ttft_p50=float(np.quantile(ttft, 0.5)),
        ttft_p99=float(np.quantile(ttft, 0.99)),
        tpot_mean=float(tpot.mean()),
        tpot_p99=float(np.quantile(tpot, 0.99)),
        goodput=sum(map(judging.good, counted)) / len(counted),
        hit_rate=sum(record.cached_tokens for record in ok) / prompts,
        late=float(np.quantile([record.delay or 0.0 for record in counted], 0.99)),
        errors=_errors(every),
    )


def imbalance(computed: Sequence[float]) -> float:
    """The greatest over the mean; 1 where nobody did anything."""
    total = sum(computed)
    return max(computed) * len(computed) / total if total else 1.0


def _rate(times: Sequence[float]) -> float:
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return len(gaps) / sum(gaps) if sum(gaps) else 0.0


def _errors(records: Iterable[Record]) -> dict[str, int]:
    """How often each error was, of all requests: those of the warm-up, too."""
    found: dict[str, int] = {}
    for record in records:
        if record.outcome != "ok":
            name = f"{record.outcome}: {record.error}"
            found[name] = found.get(name, 0) + 1
    return found
