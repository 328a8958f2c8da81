"""Runs jobs through the real scheduler and a runner, as the worker does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.constraints import Constraint
from engine.job import Job
from engine.link import Pooling, Sampling
from engine.pipeline import Pipeline
from engine.runner import Runner, Top
from scheduler.batch import Plan, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.steptime import StepTime


@dataclass(slots=True)
class Run:
    """What a run brought: each job's tokens, who got stuck, and how often one was preempted."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    low_margins: dict[int, list[int]] = field(default_factory=dict)
    tops: dict[int, list[Top | None]] = field(default_factory=dict)
    stuck: list[int] = field(default_factory=list)
    preemptions: int = 0
    steps: int = 0
    cached: int = 0


def job(
    uid: int,
    tokens: Sequence[int],
    count: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop_ids: frozenset[int] = frozenset(),
    arrival: float = 0.0,
    constraint: Constraint | None = None,
    embed: Pooling = "",
    sketched: bool = False,
) -> Job:
    """A job that draws up to ``count`` tokens, greedily unless told otherwise."""
    sampling = sampling or Sampling(max_tokens=count, temperature=0.0)
    return Job(
        sampling=sampling,
        seed=seed,
        uid=uid,
        tokens=list(tokens),
        max_tokens=count,
        max_len=256,
        stop_ids=stop_ids,
        min_tokens=sampling.min_tokens,
        arrival=arrival,
        ttft=1.0,
        tpot=0.05,
        constraint=constraint,
        embed=embed,
        sketched=sketched,
    )


def run(
    runner: Runner,
    jobs: Sequence[Job],
    *,
    num_blocks: int = 40,
    block_size: int = 4,
    config: SchedulerConfig | None = None,
    after_step: Callable[[Scheduler[Job], Plan[Job]], None] = lambda scheduler, plan: None,
) -> Run:
    """Add each job at its arrival (in steps, one a second) and run until all have ended."""
    pool = BlockPool(num_blocks, block_size)
    scheduler: Scheduler[Job] = Scheduler(config or SchedulerConfig(), pool, StepTime())
    now = 0.0
    pipeline = Pipeline(scheduler, runner, lambda: now)
    waiting = sorted(jobs, key=lambda job: job.arrival)
    result = Run()
    while waiting or pipeline.busy:
        while waiting and waiting[0].arrival <= now:
            scheduler.add(waiting.pop(0), now)
        outcome = pipeline.step()
        if outcome is not None:
            for made in outcome.drawn:
                result.tokens.setdefault(made.job.uid, []).append(made.token)
                result.logprobs.setdefault(made.job.uid, []).append(made.logprob)
                result.low_margins.setdefault(made.job.uid, []).append(made.low_margin)
                result.tops.setdefault(made.job.uid, []).append(made.top)
            result.stuck += [stuck.job.uid for stuck in outcome.stuck]
            result.steps += 1
            after_step(scheduler, outcome.plan)
        scheduler.check_integrity()
        pool.check_integrity()
        now += 1.0
    result.preemptions = scheduler.load(now).preemptions_total
    result.cached = sum(done.cached for done in jobs)
    return result
