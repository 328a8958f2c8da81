"""In which order are steps planned, launched, drawn and taken in?

Where the runner computes on its own (`Runner.ahead`), step N+1 is planned and launched while N runs, and only then does
the host wait for N. What N's tokens decide is asked for after that, when N+1 draws:

    plan N+1 · launch N+1 · land N · commit N · draw N+1 · plan N+2 · …

Otherwise each step is over before the next is planned.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from engine.job import Job
from engine.runner import NO_TOKEN, Runner, StepResult, Top
from scheduler.batch import Plan, Scheduler

log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """A token that a step drew for a job; log-probability and entropy in nats, ``low_margin`` 1 or 0."""

    job: Job
    token: int
    logprob: float
    entropy: float
    low_margin: int
    top: Top | None = None


class Stuck(NamedTuple):
    """A job that ended because there was no token left that it might draw, and why."""

    job: Job
    reason: str


class Outcome(NamedTuple):
    """What one step brought, and how many seconds it took. ``embedded`` jobs have been read to their end."""

    drawn: list[Drawn]
    plan: Plan[Job]
    seconds: float
    stuck: Sequence[Stuck] = ()
    embedded: Sequence[Job] = ()


class _UnderWay(NamedTuple):
    """A step that was launched at ``since`` (seconds), has not landed, and should at ``ends``."""

    plan: Plan[Job]
    step: Any
    since: float
    ends: float


class Pipeline:
    """A scheduler and a runner at work. Only safe to use from one thread."""

    def __init__(self, scheduler: Scheduler[Job], runner: Runner, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds."""
        self._scheduler = scheduler
        self._runner = runner
        self._clock = clock
        self._under_way: _UnderWay | None = None
        self._landed = float("-inf")

    @property
    def busy(self) -> bool:
        """Whether `step` would do anything."""
        return self._scheduler.busy or self._under_way is not None

    def step(self) -> Outcome | None:
        """Run what is due. What the step that ended by now has brought; None if none did.

        Raises:
            torch.OutOfMemoryError: not even the smallest step fits the device any more.
        """
        now = begins = self._clock()
        if self._under_way:
            # The device takes it up when it is done with the last one: deadlines are judged from there.
            begins = max(now, self._under_way.ends)
        plan = self._scheduler.schedule(begins)
        if not plan.slices:
            return self._land() if self._under_way else None
        shortage: torch.OutOfMemoryError | None = None
        try:
            step = self._runner.launch(plan)
        except torch.OutOfMemoryError as error:
            shortage = error
        outcome = self._land() if self._under_way else None
        if shortage is None:
            try:
                self._runner.draw(step)
            except torch.OutOfMemoryError as error:
                shortage = error
        if shortage is not None:
            self._make_room(plan, shortage)
            return outcome
        self._scheduler.advance(plan)
        self._under_way = _UnderWay(plan, step, now, begins + plan.predicted)
        return outcome if self._runner.ahead else self._land()

    def _land(self) -> Outcome:
        """Wait for the step that is under way, and take in what it brought."""
        assert self._under_way is not None
        plan, step, since, _ = self._under_way
        self._under_way = None
        result = self._runner.land(step)
        now = self._clock()
        seconds, self._landed = now - max(since, self._landed), now
        jobs = [piece.request for piece in plan.slices if piece.samples]
        if NO_TOKEN in result.tokens or not all(job.holds_kv for job in jobs):
            return self._commit_with_gaps(plan, jobs, result, seconds)
        self._scheduler.commit(plan, result.tokens, now, seconds)
        drawn = list(map(Drawn, jobs, *result))
        return Outcome(drawn, plan, seconds)

    def _commit_with_gaps(self, plan: Plan[Job], jobs: list[Job], result: StepResult, seconds: float) -> Outcome:
        """Commit a step of which not every token counts.

        Embeddings are done, whoever is stuck ends here, and who has ended or lost its KV since the step was planned
        gets nothing of it.
        """
        made = [Drawn(*one) for one in zip(jobs, *result, strict=True) if one[0].holds_kv]
        gaps = [one.job for one in made if one.token == NO_TOKEN]
        stuck = [Stuck(job, _why_stuck(job)) for job in gaps if job.pooler is None]
        for job, _ in stuck:
            self._scheduler.abort(job.uid)
        self._scheduler.commit(plan, result.tokens, self._landed, seconds)
        drawn = [one for one in made if one.token != NO_TOKEN]
        return Outcome(drawn, plan, seconds, stuck, [job for job in gaps if job.pooler is not None])

    def _make_room(self, plan: Plan[Job], shortage: torch.OutOfMemoryError) -> None:
        """Give a step up that the device's memory doesn't hold, and plan smaller ones from now on."""
        config = self._scheduler.config
        least = config.max_running + config.min_prefill_tokens
        if config.max_batch_tokens <= least:
            raise shortage
        smaller = max(config.max_batch_tokens // 2, least)
        log.warning("out of memory in a step of %d tokens: from now on at most %d", plan.work.tokens, smaller)
        self._scheduler.config = replace(config, max_batch_tokens=smaller)
        self._scheduler.retreat(plan)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _why_stuck(job: Job) -> str:
    """What to tell somebody whose request can draw no token."""
    fault = job.constraint.fault if job.constraint else ""
    drawn = job.generated - 1  # the last one is what could not be drawn
    if fault:
        return f"after {drawn} tokens, the grammar became too much: {fault}"
    return (
        f"after {drawn} tokens, there is none left that the request may draw: its grammar, allowed_token_ids, "
        "bad_words and min_tokens exclude each other"
    )
