"""How is a planned step executed?

The runner owns the KV caches. It flattens the slices of a `Plan` into one batch, runs the decoder over it, and draws
the next token of every slice that reaches the end of what is known of its request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from engine.config import ModelConfig
from engine.link import Sampling
from engine.models.decoder import Decoder, StepInputs
from engine.sampler import Draw, sampling_batch
from kernels.kv_cache import allocate, bytes_per_block
from kernels.paged_attention import AttentionMetadata
from kernels.sample import sample
from kernels.warm_up import warm_up as warm_up_kernels
from scheduler.batch import Plan, Request, Slice

ProgressCallback = Callable[[str, int, int], None]


class Job(Request):
    """A request with what the sampler must know: ``seed`` is always there, drawn at random if the client gave none."""

    __slots__ = ("sampling", "seed")

    def __init__(self, *, sampling: Sampling, seed: int, **request: Any) -> None:
        super().__init__(**request)
        self.sampling = sampling
        self.seed = seed


@dataclass(frozen=True, slots=True)
class StepResult:
    """One entry per sampling slice, in the plan's order; log-probabilities and entropies in nats."""

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """A plan's slices as arrays; S slices, T tokens. ``sampled`` [R] are the rows of T whose logits are wanted."""

    token_ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    query_starts: np.ndarray
    context_lengths: np.ndarray
    block_tables: np.ndarray
    sampled: np.ndarray


class Runner:
    """Executes steps of one model, with a pool of ``num_blocks`` KV blocks of ``block_size`` tokens each."""

    def __init__(self, model: Decoder, num_blocks: int, block_size: int) -> None:
        config = model.config
        self._model = model
        self._block_size = block_size
        self._caches = [
            allocate(num_blocks, config.num_kv_heads, config.head_dim, block_size, model.dtype, model.device)
            for _ in range(config.num_layers)
        ]

    def execute(self, plan: Plan[Job]) -> StepResult:
        """Compute the keys and values of all slices and draw a token for those that sample."""
        return self._run(plan.slices)

    def logits(self, slices: Sequence[Slice[Job]]) -> torch.Tensor:
        """Run the slices; the logits [R, vocabulary] of those that sample, in order."""
        with torch.inference_mode():
            return self._logits(flatten(slices, self._block_size))

    def warm_up(self, progress: ProgressCallback = lambda stage, done, total: None) -> None:
        """Compile what is compiled at run time (or load it from its disk cache), so that no request waits for it.

        Must be called before anything was computed: it scribbles over the first block.
        """
        warm_up_kernels(self._model.device, self._model.dtype, progress)
        job = Job(
            sampling=Sampling(max_tokens=1),
            seed=0,
            uid=0,
            tokens=[0],
            max_tokens=1,
            max_len=2,
            ttft=1.0,
            tpot=1.0,
        )
        job.blocks = [0]
        self._run([Slice(job, 0, 1, True)])

    def _run(self, slices: Sequence[Slice[Job]]) -> StepResult:
        draws = [_draw_of(piece.request) for piece in slices if piece.samples]
        with torch.inference_mode():
            logits = self._logits(flatten(slices, self._block_size))
            if not draws:
                return StepResult([], [], [])
            drawn = sample(logits, sampling_batch(draws, self._model.device))
        return StepResult(drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.entropies.tolist())

    def _logits(self, batch: Batch) -> torch.Tensor:
        device = self._model.device

        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        attention = AttentionMetadata(
            query_starts=put(batch.query_starts),
            context_lengths=put(batch.context_lengths),
            block_tables=put(batch.block_tables),
        )
        step = StepInputs(put(batch.token_ids), put(batch.positions), put(batch.slots), attention)
        hidden = self._model.hidden_states(step, self._caches)
        if len(batch.sampled) != len(batch.token_ids):
            hidden = hidden[put(batch.sampled)]
        return self._model.logits(hidden)


def flatten(slices: Sequence[Slice[Job]], block_size: int) -> Batch:
    """Lay the slices' tokens one after the other, with what attention must know of each."""
    starts = np.array([piece.start for piece in slices], np.int32)
    counts = np.array([piece.count for piece in slices], np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    total = int(ends[-1])
    ids = chain.from_iterable(piece.request.tokens[piece.start : piece.start + piece.count] for piece in slices)
    owner = np.repeat(np.arange(len(slices)), counts)
    positions = np.arange(total, dtype=np.int32) + (starts - ends + counts)[owner]
    tables = _block_tables([piece.request.blocks for piece in slices])
    samples = np.array([piece.samples for piece in slices], np.bool_)
    return Batch(
        token_ids=np.fromiter(ids, np.int32, total),
        positions=positions,
        slots=tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size,
        query_starts=np.concatenate((np.zeros(1, np.int32), ends)),
        context_lengths=starts + counts,
        block_tables=tables,
        sampled=(ends[samples] - 1).astype(np.int64),
    )


def kv_bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """What one KV block takes over all layers, in bytes."""
    return config.num_layers * bytes_per_block(config.num_kv_heads, config.head_dim, block_size, dtype)


def _block_tables(blocks: Sequence[Sequence[int]]) -> np.ndarray:
    """[S, most blocks] int32; the rest of each row is zero."""
    lengths = np.array([len(row) for row in blocks])
    tables = np.zeros((len(blocks), int(lengths.max())), np.int32)
    filled = np.arange(tables.shape[1]) < lengths[:, None]
    tables[filled] = np.fromiter(chain.from_iterable(blocks), np.int32, int(lengths.sum()))
    return tables


def _draw_of(job: Job) -> Draw:
    banned = tuple(job.stop_ids) if job.generated < job.sampling.min_tokens else ()
    return Draw(job.sampling, job.seed, len(job.tokens), banned)
