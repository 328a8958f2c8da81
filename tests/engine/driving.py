"""Runs jobs through the real scheduler and a runner, as the worker does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.constraints import Constraint
from engine.job import Job
from engine.link import Pooling, Sampling
from engine.runner import NO_TOKEN, Runner, Top
from scheduler.batch import Plan, Scheduler, SchedulerConfig
from scheduler.blocks import BlockPool
from scheduler.steptime import StepTime


@dataclass(slots=True)
class Run:
    """What a run brought: each job's tokens, who got stuck, and how often one was preempted."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
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
    waiting = sorted(jobs, key=lambda job: job.arrival)
    result = Run()
    now = 0.0
    while waiting or scheduler.busy:
        while waiting and waiting[0].arrival <= now:
            scheduler.add(waiting.pop(0), now)
        plan = scheduler.schedule(now)
        if plan.slices:
            drawn = runner.execute(plan)
            jobs_drawn = [piece.request for piece in plan.slices if piece.samples]
            for place, owner in enumerate(jobs_drawn):
                if drawn.tokens[place] != NO_TOKEN:
                    result.tokens.setdefault(owner.uid, []).append(drawn.tokens[place])
                    result.logprobs.setdefault(owner.uid, []).append(drawn.logprobs[place])
                    result.tops.setdefault(owner.uid, []).append(drawn.tops[place])
                elif owner.pooler is None:
                    result.stuck.append(owner.uid)
                    scheduler.abort(owner.uid)
            scheduler.commit(plan, drawn.tokens, now, 0.01)
            result.preemptions += len(plan.preempted)
            result.steps += 1
        scheduler.check_integrity()
        pool.check_integrity()
        after_step(scheduler, plan)
        now += 1.0
    result.cached = sum(done.cached for done in jobs)
    return result
