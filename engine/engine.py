"""What happens in one engine step, and what is an engine made of?

An engine is a scheduler, which says what runs next, and a runner, which runs it. It knows neither sockets nor clients:
the worker drives it for gateways, and a benchmark drives it directly.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from llguidance import LLMatcher

from engine.config import ModelConfig, resolve_model
from engine.constraints import Constraint
from engine.grammar import Grammars, fresh
from engine.job import Job
from engine.link import Load, Sampling
from engine.loader import load_model
from engine.memory import kv_budget
from engine.options import WorkerOptions
from engine.runner import NO_TOKEN, Runner, StepResult, Top, kv_bytes_per_block
from scheduler.batch import Plan, Scheduler, SchedulerConfig
from scheduler.blocks import BlockEvent, BlockPool
from scheduler.steptime import StepTime

log = logging.getLogger(__name__)

# Prefill that one step computes at most: bounds the memory that a step takes beside weights and KV cache.
_BATCH_TOKENS = 8192
# Every device has a kernel for bfloat16, which is half the bytes of float32.
_DTYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class Drawn(NamedTuple):
    """A token that a step drew for a job; log-probability and entropy in nats."""

    job: Job
    token: int
    logprob: float
    entropy: float
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


@dataclass(slots=True)
class Engine:
    """One model on one device, answering many requests at a time. ``dtype`` is that of its weights.

    Only safe to use from one thread.
    """

    name: str
    folder: Path
    config: ModelConfig
    device: str
    dtype: str
    max_model_len: int
    pool: BlockPool
    scheduler: Scheduler[Job]
    runner: Runner
    grammars: Grammars | None

    @classmethod
    def build(cls, options: WorkerOptions, progress: Callable[[str, int, int], None]) -> "Engine":
        """Load the model and make it ready to answer; ``progress`` is called with (stage, done, total).

        Raises:
            UnsupportedModel: the architecture isn't one of ours.
            ModelFault: the folder's files are missing, damaged or don't fit each other.
            ValueError: the options don't fit the model or the machine.
        """
        folder = resolve_model(options.model)
        config = ModelConfig.load(folder)
        device = _choose_device(options.device)
        dtype = _DTYPES[options.dtype]
        longest = config.max_position_embeddings
        if options.max_model_len is not None and options.max_model_len > longest:
            raise ValueError(
                f"--max-model-len {options.max_model_len}: the model was made for at most {longest} tokens"
            )
        if options.threads:
            torch.set_num_threads(options.threads)
        int8 = options.quantization == "int8"
        if int8 and device.type != "cpu":
            raise ValueError("--quantization int8 is for CPUs: leave it out, or choose --device cpu")
        model = load_model(config, dtype, device, max_positions=options.max_model_len, int8=int8, progress=progress)
        budget = kv_budget(
            device=device.type,
            bytes_per_block=kv_bytes_per_block(config, options.block_size, dtype, device),
            block_size=options.block_size,
            longest=longest,
            max_model_len=options.max_model_len,
            max_running=options.max_running,
            asked=options.kv_memory,
        )
        tokens = budget.blocks * options.block_size
        log.info("KV cache: %.0f MiB, %s tokens (%s)", budget.bytes / 2**20, f"{tokens:,}", budget.reason)
        if options.max_model_len is None and budget.max_model_len < longest:
            log.info("context: %s of the model's %s tokens, as the KV cache holds", budget.max_model_len, longest)
        runner = Runner(model, budget.blocks, options.block_size)
        runner.warm_up(progress)
        pool = BlockPool(budget.blocks, options.block_size, record_events=options.kv_events is not None)
        limits = SchedulerConfig(
            max_running=options.max_running,
            max_batch_tokens=options.max_running + _BATCH_TOKENS,
            ttft=options.ttft,
            tpot=options.tpot,
        )
        scheduler: Scheduler[Job] = Scheduler(limits, pool, StepTime())
        return cls(
            name=options.name or _name_of(options.model),
            folder=folder,
            config=config,
            device=device.type,
            dtype="int8" if int8 else str(dtype).removeprefix("torch."),
            max_model_len=budget.max_model_len,
            pool=pool,
            scheduler=scheduler,
            runner=runner,
            grammars=Grammars.load(config),
        )

    @property
    def block_size(self) -> int:
        """Tokens in a KV block."""
        return self.pool.block_size

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV pool holds in all."""
        return self.pool.num_blocks * self.pool.block_size

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.busy

    def stop_ids(self, sampling: Sampling) -> frozenset[int]:
        """The tokens that end a request: its own, and the model's unless it ignores them.

        A grammar permits the model's only where the answer may end, so that they aren't ignored there. Ids outside the
        vocabulary can't be drawn, so they aren't among them; the sampler relies on that.
        """
        ignored = sampling.ignore_eos and not sampling.grammar
        ids = sampling.stop_token_ids if ignored else sampling.stop_token_ids + self.config.eos_token_ids
        return frozenset(token for token in ids if 0 <= token < self.config.vocab_size)

    def constraint(self, sampling: Sampling, compiled: "Future[LLMatcher] | None" = None) -> Constraint | None:
        """What a request may draw, by its grammar, which has been ``compiled``, and its allowed ids; None: anything.

        Raises:
            GrammarFault: the grammar can't be used.
        """
        if compiled is None and not sampling.allowed_token_ids:
            return None
        return Constraint(
            self.config.vocab_size,
            matcher=fresh(compiled) if compiled else None,
            allowed=sampling.allowed_token_ids,
            eos_token_ids=[token for token in self.config.eos_token_ids if token < self.config.vocab_size],
        )

    def add(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ValueError: it can never fit the KV pool.
        """
        self.scheduler.add(job, time.monotonic())

    def abort(self, uid: int) -> None:
        """Forget a job and free its blocks, wherever it is; an unknown one is no fault."""
        self.scheduler.abort(uid)

    def step(self) -> Outcome | None:
        """Run what is due. None when nothing was."""
        start = time.monotonic()
        plan = self.scheduler.schedule(start)
        if not plan.slices:
            return None
        result = self.runner.execute(plan)
        end = time.monotonic()
        jobs = [piece.request for piece in plan.slices if piece.samples]
        if NO_TOKEN in result.tokens:
            return self._commit_with_gaps(plan, jobs, result, end, end - start)
        self.scheduler.commit(plan, result.tokens, end, end - start)
        return Outcome(_drawn(jobs, result), plan, end - start)

    def _commit_with_gaps(
        self, plan: Plan[Job], jobs: list[Job], result: StepResult, now: float, seconds: float
    ) -> Outcome:
        """Commit a step in which some drew no token: embeddings are done, and whoever is stuck ends here."""
        gaps = [job for job, token in zip(jobs, result.tokens, strict=True) if token == NO_TOKEN]
        stuck = [Stuck(job, _why_stuck(job)) for job in gaps if job.pooler is None]
        for job, _ in stuck:
            self.scheduler.abort(job.uid)
        self.scheduler.commit(plan, result.tokens, now, seconds)
        drawn = [made for made in _drawn(jobs, result) if made.token != NO_TOKEN]
        return Outcome(drawn, plan, seconds, stuck, [job for job in gaps if job.pooler is not None])

    def load(self, now: float) -> Load:
        """How busy the engine is."""
        return Load(**self.scheduler.load(now)._asdict())

    def take_events(self) -> list[BlockEvent]:
        """What became of KV blocks since the last call."""
        return self.pool.take_events()


def _drawn(jobs: Sequence[Job], result: StepResult) -> list[Drawn]:
    return list(map(Drawn, jobs, result.tokens, result.logprobs, result.entropies, result.tops))


def _why_stuck(job: Job) -> str:
    """What to tell somebody whose request can draw no token."""
    fault = job.constraint.fault if job.constraint else ""
    if fault:
        return f"after {job.generated} tokens, the grammar became too much: {fault}"
    return (
        f"after {job.generated} tokens, there is none left that the request may draw: its grammar, allowed_token_ids, "
        "bad_words and min_tokens exclude each other"
    )


def _choose_device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu, or install a CUDA build")
    return torch.device("cpu" if asked == "auto" else asked)


def _name_of(model: str | None) -> str:
    if model is None:
        from engine.demo import NAME

        return NAME
    return Path(model).resolve().name if Path(model).is_dir() else model
