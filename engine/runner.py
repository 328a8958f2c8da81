"""How is a planned step executed?

The runner owns the KV caches. It flattens the slices of a `Plan` into one batch, runs the decoder over it, and draws
the next token of every slice that reaches the end of what is known of its request. Which tokens the constrained jobs
may draw is worked out meanwhile, on a thread of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import torch

from engine.config import ModelConfig
from engine.constraints import Masks
from engine.job import Job
from engine.link import Sampling
from engine.models.decoder import Decoder, StepInputs
from engine.sampler import Sampler
from kernels.kv_cache import allocate, bytes_per_block
from kernels.paged_attention import AttentionMetadata
from kernels.sample import Samples, sample
from kernels.warm_up import warm_up as warm_up_kernels
from scheduler.batch import Plan, Slice

ProgressCallback = Callable[[str, int, int], None]


# In place of a token: there was none to draw, or the job wants none.
NO_TOKEN: Final = -1


class Top(NamedTuple):
    """The likeliest tokens at one place, the likeliest first, with their log-probabilities in nats."""

    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One entry per sampling slice, in the plan's order; log-probabilities and entropies in nats.

    A token is `NO_TOKEN` where the job's edits and constraint leave none to draw, and where the job wants an embedding.
    ``tops`` are None for jobs that didn't ask for them.
    """

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    tops: list[Top | None]


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
        self._masks = Masks(config.vocab_size)
        self._sampler = Sampler(model.device)
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
            batch = flatten(slices, self._block_size)
            return self._model.logits(self._sampled(batch, self._hidden_states(batch)))

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
        jobs = [piece.request for piece in slices if _draws(piece)]
        mask = self._masks.begin(jobs)
        with torch.inference_mode():
            batch = flatten(slices, self._block_size)
            hidden = self._hidden_states(batch)
            self._show_readers(slices, batch, hidden)
            drawn = None
            if jobs:
                logits = self._model.logits(self._sampled(batch, hidden))
                drawn = sample(logits, self._sampler.batch(jobs, self._masks.finish(jobs, mask)))
        return _result(slices, jobs, drawn)

    def _show_readers(self, slices: Sequence[Slice[Job]], batch: Batch, hidden: torch.Tensor) -> None:
        """Show the slices' hidden states to those who want more of their prompt than the next token."""
        for place, piece in enumerate(slices):
            reader = piece.request.reader
            if reader is not None and not reader.done:
                begin = int(batch.query_starts[place])
                reader.read(self._model, piece.start, hidden[begin : begin + piece.count])
                # From now on the cache will do, should the job be preempted.
                piece.request.reads_cache |= reader.done

    def _hidden_states(self, batch: Batch) -> torch.Tensor:
        device = self._model.device
        on_cpu = device.type == "cpu"

        def put(array: np.ndarray) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            return tensor if on_cpu else tensor.to(device)

        attention = AttentionMetadata(
            query_starts=put(batch.query_starts),
            context_lengths=put(batch.context_lengths),
            block_tables=put(batch.block_tables),
        )
        step = StepInputs(put(batch.token_ids), put(batch.positions), put(batch.slots), attention)
        return self._model.hidden_states(step, self._caches)

    def _sampled(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """The rows of ``hidden`` whose logits are wanted."""
        if len(batch.sampled) == len(batch.token_ids):
            return hidden
        return hidden[torch.from_numpy(batch.sampled).to(self._model.device)]


def flatten(slices: Sequence[Slice[Job]], block_size: int) -> Batch:
    """Lay the slices' tokens one after the other, with what attention must know of each."""
    if all(piece.count == 1 for piece in slices):
        return _flatten_single(slices, block_size)
    starts = np.array([piece.start for piece in slices], np.int32)
    counts = np.array([piece.count for piece in slices], np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    total = int(ends[-1])
    ids = chain.from_iterable(piece.request.tokens[piece.start : piece.start + piece.count] for piece in slices)
    owner = np.repeat(np.arange(len(slices)), counts)
    positions = np.arange(total, dtype=np.int32) + (starts - ends + counts)[owner]
    tables = _block_tables([piece.request.blocks for piece in slices])
    samples = np.array([_draws(piece) for piece in slices], np.bool_)
    return Batch(
        token_ids=np.fromiter(ids, np.int32, total),
        positions=positions,
        slots=tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size,
        query_starts=np.concatenate((np.zeros(1, np.int32), ends)),
        context_lengths=starts + counts,
        block_tables=tables,
        sampled=(ends[samples] - 1).astype(np.int64),
    )


def _flatten_single(slices: Sequence[Slice[Job]], block_size: int) -> Batch:
    """The same where every slice is one token, as in most steps."""
    positions = np.array([piece.start for piece in slices], np.int32)
    tables = _block_tables([piece.request.blocks for piece in slices])
    rows = np.arange(len(slices) + 1)
    block, offset = np.divmod(positions, block_size)
    return Batch(
        token_ids=np.array([piece.request.tokens[piece.start] for piece in slices], np.int32),
        positions=positions,
        slots=tables[rows[:-1], block].astype(np.int64) * block_size + offset,
        query_starts=rows.astype(np.int32),
        context_lengths=positions + 1,
        block_tables=tables,
        sampled=rows[:-1][[_draws(piece) for piece in slices]],
    )


def kv_bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """What one KV block takes over all layers, in bytes."""
    return config.num_layers * bytes_per_block(config.num_kv_heads, config.head_dim, block_size, dtype, device)


def _block_tables(blocks: Sequence[Sequence[int]]) -> np.ndarray:
    """[S, most blocks] int32; the rest of each row is zero."""
    if len(blocks) == 1:
        return np.array(blocks, np.int32)
    lengths = np.array([len(row) for row in blocks])
    tables = np.zeros((len(blocks), int(lengths.max())), np.int32)
    filled = np.arange(tables.shape[1]) < lengths[:, None]
    tables[filled] = np.fromiter(chain.from_iterable(blocks), np.int32, int(lengths.sum()))
    return tables


def _draws(piece: Slice[Job]) -> bool:
    """Whether the step draws a token for this slice."""
    return piece.samples and piece.request.pooler is None


def _result(slices: Sequence[Slice[Job]], jobs: Sequence[Job], drawn: Samples | None) -> StepResult:
    """What was drawn for ``jobs``, with the embeddings' places among them."""
    if drawn is None:
        result = StepResult([], [], [], [])
    else:
        tops: list[Top | None] = [None] * len(jobs)
        if drawn.top_tokens.shape[1]:
            tops = _tops(jobs, drawn)
        result = StepResult(drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.entropies.tolist(), tops)
    sampling = [piece.request for piece in slices if piece.samples]
    if len(sampling) > len(jobs):
        for place, job in enumerate(sampling):
            if job.pooler is not None:
                result.tokens.insert(place, NO_TOKEN)
                result.logprobs.insert(place, 0.0)
                result.entropies.insert(place, 0.0)
                result.tops.insert(place, None)
    return result


def _tops(jobs: Sequence[Job], drawn: Samples) -> list[Top | None]:
    tokens, logprobs = drawn.top_tokens.tolist(), drawn.top_logprobs.tolist()
    return [
        Top(tokens[row][:count], logprobs[row][:count]) if (count := job.sampling.top_logprobs) else None
        for row, job in enumerate(jobs)
    ]
