"""Small fleets, whose figures are easy to reckon with: 10,000 tokens/s of prefill, blocks of 10 tokens."""

from collections.abc import Iterable
from typing import Any

from scheduler.placement import Decision, Job, Placed, PlacementConfig, Placer, WorkerInfo
from scheduler.prefix_index import chain
from scheduler.steptime import Coefficients

SPEED = Coefficients(step=0.01, token=1e-4, context=0.0, pair=0.0, request=0.0)


def fleet(policy: str = "held", workers: int = 2, exact: bool = True, **settings: Any) -> Placer:
    """Workers ``a``, ``b``, … with room for 10,000 tokens."""
    placer = Placer(PlacementConfig(policy=policy, **settings))
    for name in "abcdefgh"[:workers]:
        placer.worker_up(info(name, exact=exact), 0.0)
    return placer


def info(name: str, **changes: Any) -> WorkerInfo:
    known: dict[str, Any] = {"chain": "10", "block_tokens": 10, "kv_tokens": 10_000, "exact": True, "speed": SPEED}
    return WorkerInfo(name=name, **{**known, **changes})


def job(uid: int, tokens: int, blocks: Iterable[int] = (), **more: Any) -> Job:
    """A job of so many tokens, the first of them in these ``blocks``."""
    return Job(uid=uid, prompt_tokens=tokens, chains={"10": chain(blocks)}, **{"output_tokens": 10, **more})


def where(decisions: list[Decision]) -> dict[int | str, str]:
    """Who was placed where."""
    return {one.job.uid: one.worker for one in decisions if isinstance(one, Placed)}


def ask(placer: Placer, now: float, *jobs: Job) -> dict[int | str, str]:
    """These jobs arrive: who is placed where now."""
    for one in jobs:
        placer.arrived(one, now)
    return where(placer.decide(now))
