"""Is step N+1 launched before N has landed, and drawn after; and what if a step doesn't fit?"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine.job import Job
from engine.pipeline import Pipeline
from engine.runner import ProgressCallback, Runner, StepResult
from scheduler.batch import Plan, Scheduler, SchedulerConfig, Slice
from scheduler.blocks import BlockPool
from scheduler.request import PENDING
from scheduler.steptime import StepTime, Work
from tests.engine.driving import job


class Diary(Runner):
    """Writes down what it is asked to do; each token that it draws is the position it will have."""

    def __init__(self, ahead: bool, broken: Sequence[str] = ()) -> None:
        self.ahead = ahead
        self.entries: list[str] = []
        self.known: list[list[int]] = []
        self._broken = list(broken)
        self._count = 0

    def launch(self, plan: Plan[Job]) -> Any:
        self._count += 1
        self._write(f"launch {self._count}")
        return self._count, plan

    def draw(self, step: Any) -> None:
        self.known.append([piece.request.tokens[-1] for piece in step[1].slices])
        self._write(f"draw {step[0]}")

    def land(self, step: Any) -> StepResult:
        self._write(f"land {step[0]}")
        tokens = [piece.start + piece.count for piece in step[1].slices if piece.samples]
        count = len(tokens)
        return StepResult(tokens, [0.0] * count, [0.0] * count, [0] * count, [None] * count)

    def logits(self, slices: Sequence[Slice[Job]]) -> torch.Tensor:
        raise NotImplementedError

    def warm_up(self, progress: ProgressCallback = lambda stage, done, total: None) -> None:
        raise NotImplementedError

    def _write(self, entry: str) -> None:
        self.entries.append(entry)
        if entry in self._broken:
            self._broken.remove(entry)
            raise torch.OutOfMemoryError("CUDA out of memory")


def begin(runner: Runner, *jobs: Job, most: int = 100) -> tuple[Pipeline, Scheduler[Job]]:
    config = SchedulerConfig(max_running=4, max_batch_tokens=most, min_prefill_tokens=4)
    scheduler: Scheduler[Job] = Scheduler(config, BlockPool(50, 4), StepTime())
    for one in jobs:
        scheduler.add(one, 0.0)
    return Pipeline(scheduler, runner), scheduler


def drive(pipeline: Pipeline) -> list[int]:
    tokens = []
    while pipeline.busy:
        outcome = pipeline.step()
        tokens += [made.token for made in outcome.drawn] if outcome else []
    return tokens


def test_a_step_is_launched_while_the_one_before_runs() -> None:
    diary = Diary(ahead=True)
    pipeline, _ = begin(diary, job(1, [9, 9], 3))
    assert drive(pipeline) == [2, 3, 4]
    expected = ["launch 1", "draw 1", "launch 2", "land 1", "draw 2", "launch 3", "land 2", "draw 3", "land 3"]
    assert diary.entries == expected
    # What is drawn next may depend on what was drawn last: by then it is known.
    assert diary.known == [[9], [2], [3]]


def test_in_turn_where_the_runner_is_not_ahead() -> None:
    diary = Diary(ahead=False)
    pipeline, _ = begin(diary, job(1, [9, 9], 2))
    assert drive(pipeline) == [2, 3]
    assert diary.entries == ["launch 1", "draw 1", "land 1", "launch 2", "draw 2", "land 2"]


def test_a_step_beyond_a_requests_end_brings_nothing() -> None:
    diary = Diary(ahead=True)
    ours, other = job(1, [9, 9], 9, stop_ids=frozenset({3})), job(2, [9], 6)
    pipeline, scheduler = begin(diary, ours, other)
    drawn: list[tuple[int, int]] = []
    while pipeline.busy:
        outcome = pipeline.step()
        drawn += [(made.job.uid, made.token) for made in outcome.drawn] if outcome else []
        scheduler.check_integrity()
    assert [token for uid, token in drawn if uid == 1] == [2, 3] == ours.tokens[2:]
    assert [token for uid, token in drawn if uid == 2] == [1, 2, 3, 4, 5, 6]
    assert ours.finish == "stop" and PENDING not in ours.tokens


def test_an_abort_between_steps() -> None:
    pipeline, scheduler = begin(Diary(ahead=True), job(1, [9, 9], 9), job(2, [9], 4))
    pipeline.step()
    scheduler.abort(1)
    assert drive(pipeline) == [1, 2, 3, 4]
    assert scheduler.pool.used == 0


def test_deadlines_are_judged_from_when_the_device_is_free() -> None:
    pipeline, scheduler = begin(Diary(ahead=True), job(1, [9, 9], 5))
    now = 10.0
    pipeline._clock = lambda: now
    pipeline.step()
    predicted = scheduler.steptime.predict(Work(2, 2, 3, 1))
    late = job(2, [9], 1)
    scheduler.add(late, now)
    pipeline.step()
    assert predicted > 0
    assert late.first_scheduled == pytest.approx(10.0 + predicted)


@pytest.mark.parametrize("where", ["launch 2", "draw 2", "launch 1", "draw 1"])
@pytest.mark.parametrize("ahead", [True, False])
def test_what_does_not_fit_the_memory_is_done_in_smaller_steps(where: str, ahead: bool) -> None:
    diary = Diary(ahead, broken=[where])
    ours, other = job(1, [9, 9], 4), job(2, [9], 3)
    pipeline, scheduler = begin(diary, ours, other)
    drive(pipeline)
    assert (ours.tokens, other.tokens) == ([9, 9, 2, 3, 4, 5], [9, 1, 2, 3])
    assert scheduler.config.max_batch_tokens == 50
    assert scheduler.load(0.0).preemptions_total == 2
    assert scheduler.pool.used == 0


def test_the_end_is_when_nothing_smaller_is_left() -> None:
    pipeline, _ = begin(Diary(True, broken=["launch 1", "launch 2"]), job(1, [9], 2), most=9)
    pipeline.step()
    with pytest.raises(torch.OutOfMemoryError):
        drive(pipeline)
