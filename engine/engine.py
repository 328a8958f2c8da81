"""What is an engine made of, and how is one built?

An engine is a scheduler, which says what runs next, a runner, which runs it, and the order in which they take turns
(`engine.pipeline`). It knows neither sockets nor clients: the worker drives it for gateways, and a benchmark drives it
directly.
"""

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from llguidance import LLMatcher

from engine.config import ModelConfig, resolve_model
from engine.constraints import Constraint
from engine.device_runner import DeviceLimits, DeviceRunner, step_bytes
from engine.grammar import Grammars, fresh
from engine.host_runner import HostRunner
from engine.job import Job
from engine.link import Load, Sampling
from engine.loader import load_model
from engine.memory import kv_budget
from engine.options import WorkerOptions
from engine.pipeline import Outcome, Pipeline
from engine.runner import Runner, kv_bytes_per_block
from kernels.linear import quantization_fault
from scheduler.batch import Scheduler, SchedulerConfig
from scheduler.blocks import BlockEvent, BlockPool
from scheduler.steptime import StepTime

log = logging.getLogger(__name__)

# Prefill that one step computes at most: bounds the memory that a step takes beside weights and KV cache.
_BATCH_TOKENS = 8192
_BLOCK_SIZE = 16
# Every device has a kernel for bfloat16, which is half the bytes of float32.
_DTYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
    pipeline: Pipeline
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
        adapter = resolve_model(options.adapter) if options.adapter is not None else None
        device = _choose_device(options.device)
        dtype = _DTYPES[options.dtype]
        longest = config.max_position_embeddings
        if options.max_model_len is not None and options.max_model_len > longest:
            raise ValueError(
                f"--max-model-len {options.max_model_len}: the model was made for at most {longest} tokens"
            )
        if options.threads:
            torch.set_num_threads(options.threads)
        block_size = options.block_size or _BLOCK_SIZE
        rounded = options.quantization
        if fault := quantization_fault(rounded, device):
            raise ValueError(f"--quantization {fault}")
        positions = options.max_model_len
        model = load_model(
            config, dtype, device, adapter=adapter, max_positions=positions, quantization=rounded, progress=progress
        )
        kv_dtype = _kv_dtype(options, dtype, device)
        on_gpu = device.type == "cuda"
        max_running = options.max_running or (256 if on_gpu else 128)
        limits = DeviceLimits(
            max_running=max_running,
            max_batch_tokens=max_running + _BATCH_TOKENS,
            max_model_len=positions or longest,
        )
        budget = kv_budget(
            device=device.type,
            bytes_per_block=kv_bytes_per_block(config, block_size, kv_dtype, device),
            block_size=block_size,
            longest=longest,
            max_model_len=options.max_model_len,
            max_running=max_running,
            asked=options.kv_memory,
            gpu_share=options.gpu_memory,
            step_bytes=step_bytes(model, block_size, limits) if on_gpu and not options.kv_memory else 0,
        )
        tokens = budget.blocks * block_size
        log.info("KV cache: %.0f MiB, %s tokens (%s)", budget.bytes / 2**20, f"{tokens:,}", budget.reason)
        if options.max_model_len is None and budget.max_model_len < longest:
            log.info("context: %s of the model's %s tokens, as the KV cache holds", budget.max_model_len, longest)
        runner: Runner
        if on_gpu:
            limits = replace(limits, max_model_len=budget.max_model_len)
            runner = DeviceRunner(model, budget.blocks, block_size, limits, kv_dtype=kv_dtype)
        else:
            runner = HostRunner(model, budget.blocks, block_size)
        runner.warm_up(progress)
        pool = BlockPool(budget.blocks, block_size, record_events=options.kv_events is not None)
        scheduling = SchedulerConfig(
            max_running=max_running,
            max_batch_tokens=limits.max_batch_tokens,
            ttft=options.ttft,
            tpot=options.tpot,
        )
        scheduler: Scheduler[Job] = Scheduler(scheduling, pool, StepTime())
        return cls(
            name=options.name or _name_of(options.adapter or options.model),
            folder=folder,
            config=config,
            device=device.type,
            dtype=str(dtype).removeprefix("torch.") if rounded == "none" else rounded,
            max_model_len=budget.max_model_len,
            pool=pool,
            scheduler=scheduler,
            pipeline=Pipeline(scheduler, runner),
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
        return self.pipeline.busy

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
        """Run what is due. What the step that ended by now has brought; None if none did."""
        return self.pipeline.step()

    def load(self, now: float) -> Load:
        """How busy the engine is."""
        return Load(**self.scheduler.load(now)._asdict(), coefficients=self.scheduler.steptime.coefficients)

    def take_events(self) -> list[BlockEvent]:
        """What became of KV blocks since the last call."""
        return self.pool.take_events()


def _choose_device(asked: str) -> torch.device:
    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise ValueError("--device cuda: torch sees no CUDA device here; use --device cpu, or install a CUDA build")
    if asked == "cpu" or not found:
        return torch.device("cpu")
    if importlib.util.find_spec("triton") is None:
        raise ValueError("a GPU needs Triton: pip install 'penstock[gpu]', or choose --device cpu")
    if not any(map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))):
        raise ValueError("a GPU needs a C compiler, with which Triton makes its launchers: install gcc, or set CC")
    return torch.device("cuda", torch.cuda.current_device())


def _kv_dtype(options: WorkerOptions, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What keys and values are kept in."""
    if options.kv_dtype == "auto":
        return dtype
    if device.type == "cpu":
        raise ValueError("--kv-dtype fp8 is for GPUs: leave it out")
    if fault := quantization_fault("fp8", device):
        raise ValueError(f"--kv-dtype {fault}")
    return torch.float8_e4m3fn


def _name_of(model: str | None) -> str:
    if model is None:
        from engine.demo import NAME

        return NAME
    return Path(model).resolve().name if Path(model).is_dir() else model
