"""What does the real engine do with a workload? Drives one on this machine's CPU, without sockets, and logs its steps.

The loop is a worker's: take in what has arrived, run a step, hand out what it brought. A step's logged time is that of
the whole turn, host included, because that is what a simulated step has to take. Prompts are made before the clock
starts: in production that is somebody else's work. A request that comes because another has ended is not there yet when
the next step is planned, just as no client on a socket is so quick; the simulator has it the same way.
"""

import gc
import heapq
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from bench.load.prompts import UNKNOWN, Prompts
from bench.load.records import Record
from bench.load.workload import Load, Outline
from bench.simulate.calibrate import Step
from bench.simulate.fleet import Agenda, rounded
from scheduler.config import SchedulerConfig

if TYPE_CHECKING:
    from engine.job import Job
    from engine.runner import Runner

_KV_TOKENS: Final = 65_536
_PREPARED: Final = 20_000
"""Prompts that are made before the clock starts; a workload's later ones are made when they are wanted."""


@dataclass
class Measured:
    """One run: what became of each request, and every step."""

    records: list[Record]
    steps: list[Step]
    preemptions: int = 0


@dataclass
class _Live:
    job: "Job"
    outline: Outline
    at: float
    times: "array[float]"


class RealWorker:
    """A model on the CPU, for many runs under different settings."""

    def __init__(self, folder: Path, *, block_size: int = 16, kv_tokens: int = _KV_TOKENS) -> None:
        """Load the model and compile its kernels: seconds."""
        import torch

        from engine.config import ModelConfig
        from engine.host_runner import HostRunner
        from engine.loader import load_model

        self.config = ModelConfig.load(folder)
        self.block_size = block_size
        self.kv_tokens = kv_tokens
        self.max_len = self.config.max_position_embeddings

        def quiet(stage: str, done: int, total: int) -> None:
            pass

        model = load_model(self.config, torch.bfloat16, torch.device("cpu"), progress=quiet)
        self._runner: Runner = HostRunner(model, kv_tokens // block_size, block_size)
        self._runner.warm_up(quiet)
        # As a worker does it: no collection, in the middle of a step, has to look at what is here now.
        gc.collect()
        gc.freeze()

    def run(self, load: Load, config: SchedulerConfig, *, by_group: bool = False) -> Measured:
        """Serve a workload in real time, with an empty cache and a scheduler that knows nothing yet.

        ``by_group``: each of its groups is a tenant.
        """
        return _Run(self, self._runner, load, config, by_group).measure()


class _Run:
    """One workload on one engine."""

    def __init__(
        self, worker: RealWorker, runner: "Runner", load: Load, config: SchedulerConfig, by_group: bool
    ) -> None:
        from engine.job import Job
        from engine.pipeline import Pipeline
        from scheduler.batch import Scheduler
        from scheduler.blocks import BlockPool
        from scheduler.steptime import StepTime

        pool = BlockPool(worker.kv_tokens // worker.block_size, worker.block_size)
        self._scheduler: Scheduler[Job] = Scheduler(config, pool, StepTime())
        self._pipeline = Pipeline(self._scheduler, runner)
        self._prompts = Prompts(UNKNOWN, "tokens", load.seed)
        self._prepared = {one.index: self._prompt(one) for one in islice(load.outlines(), _PREPARED)}
        self._config = config
        self._by_group = by_group
        self._max_len = worker.max_len
        self._agenda = Agenda(load)
        self._arrivals: list[tuple[float, int]] = []
        self._live: dict[int, _Live] = {}
        self._measured = Measured([], [])

    def measure(self) -> Measured:
        """Until nothing is left to do."""
        arrivals, steps = self._arrivals, self._measured.steps
        for arrival in self._agenda.first():
            heapq.heappush(arrivals, arrival)
        began = turn = time.monotonic()
        while arrivals or self._pipeline.busy:
            if not self._pipeline.busy:
                time.sleep(max(0.0, arrivals[0][0] - (time.monotonic() - began)))
                turn = time.monotonic()
                self._take_in(turn - began, began)
                continue
            outcome = self._pipeline.step()
            assert outcome is not None, "the CPU runs one step at a time"
            now = time.monotonic()
            ended: list[tuple[float, int]] = []
            for drawn in outcome.drawn:
                self._live[drawn.job.uid].times.append(now - began)
                if drawn.job.finish is not None:
                    ended += self._end(drawn.job.uid, now - began)
            # Before those that come because somebody's answer ended.
            self._take_in(now - began, began)
            for arrival in ended:
                heapq.heappush(arrivals, arrival)
            later = time.monotonic()
            steps.append(Step(*outcome.plan.work, seconds=later - turn))
            turn = later
        self._measured.preemptions = self._scheduler.load(time.monotonic()).preemptions_total
        return self._measured

    def _take_in(self, now: float, began: float) -> None:
        """Whoever has arrived."""
        while self._arrivals and self._arrivals[0][0] <= now:
            self._arrive(*heapq.heappop(self._arrivals), began)

    def _prompt(self, outline: Outline) -> list[int]:
        prompt = self._prompts.make(outline.index, outline.input_tokens, outline.blocks, outline.block_tokens).prompt
        return cast(list[int], prompt)

    def _arrive(self, at: float, number: int, began: float) -> None:
        from engine.job import Job
        from engine.link import Sampling

        outline, said, _ = self._agenda.pop(number)
        if said:
            raise ValueError("conversations can't be measured here: their answers would have to be kept")
        job = Job(
            uid=outline.index,
            tokens=self._prepared.pop(number, None) or self._prompt(outline),
            sampling=Sampling(max_tokens=outline.output_tokens, temperature=0.0, ignore_eos=True),
            seed=0,
            max_tokens=outline.output_tokens,
            max_len=self._max_len,
            arrival=began + at,
            ttft=self._config.ttft,
            tpot=self._config.tpot,
            tenant=outline.group if self._by_group else "",
        )
        self._live[job.uid] = _Live(job, outline, at, array("d"))
        self._scheduler.add(job, time.monotonic())
        for arrival in self._agenda.next():
            heapq.heappush(self._arrivals, arrival)

    def _end(self, uid: int, now: float) -> Iterator[tuple[float, int]]:
        """Keep the record of a request that has ended. Who comes because of that."""
        live = self._live.pop(uid)
        times = live.times
        self._measured.records.append(
            Record(
                index=uid,
                at=rounded(live.at),
                outcome="ok",
                end=rounded(now),
                sent=rounded(live.at),
                first=rounded(times[0]),
                last=rounded(times[-1]),
                gaps=[rounded(later - earlier) for earlier, later in pairwise(times)],
                gap_tokens=[1] * (len(times) - 1),
                prompt_tokens=live.job.prompt_len,
                cached_tokens=live.job.cached,
                output_tokens=len(times),
                asked_tokens=live.job.max_tokens,
                group=live.outline.group,
            )
        )
        return self._agenda.ended(live.outline, now)
