"""How is a planned step executed on a CPU?

The runner owns the KV caches. It flattens the slices of a `Plan` into one batch, runs the decoder over it, and draws
the next token of every slice that reaches the end of what is known of its request. Which tokens the constrained jobs
may draw is worked out meanwhile, on a thread of its own.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from engine.constraints import Masks
from engine.job import Job
from engine.link import Sampling
from engine.models.decoder import Decoder, StepInputs
from engine.runner import ProgressCallback, Runner, StepResult, Top, draws, show_readers, tops_of, with_embeddings
from engine.sampler import Sampler
from engine.sketch import Sketcher, asking, keep
from kernels.kv_cache import allocate
from kernels.paged_attention import AttentionMetadata
from kernels.sample import Samples, sample
from kernels.warm_up import warm_up as warm_up_kernels
from scheduler.batch import Plan, Slice


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


@dataclass(slots=True)
class _Step:
    """A step whose layers have run: the hidden states of the rows that are drawn from, and who draws."""

    slices: Sequence[Slice[Job]]
    jobs: list[Job]
    mask: "Future[None] | None"
    rows: torch.Tensor
    drawn: Samples | None = None


class HostRunner(Runner):
    """Executes steps of one model, with a pool of ``num_blocks`` KV blocks of ``block_size`` tokens each."""

    def __init__(self, model: Decoder, num_blocks: int, block_size: int) -> None:
        config = model.config
        self._model = model
        self._block_size = block_size
        self._masks = Masks(config.vocab_size)
        self._sampler = Sampler()
        self._sketcher = Sketcher(model)
        self._caches = [
            allocate(num_blocks, config.num_kv_heads, config.head_dim, block_size, model.dtype, model.device)
            for _ in range(config.num_layers)
        ]

    def launch(self, plan: Plan[Job]) -> _Step:
        return self._launch(plan.slices)

    def draw(self, step: _Step) -> None:
        if step.jobs:
            with torch.inference_mode():
                logits = self._model.logits(step.rows)
                mask = self._masks.finish(step.jobs, step.mask)
                step.drawn = sample(logits, self._sampler.batch(step.jobs, mask))
                self._sketch(step)

    def land(self, step: _Step) -> StepResult:
        return with_embeddings(step.slices, _result(step.jobs, step.drawn))

    def logits(self, slices: Sequence[Slice[Job]]) -> torch.Tensor:
        with torch.inference_mode():
            return self._model.logits(self._launch(slices).rows)

    def warm_up(self, progress: ProgressCallback = lambda stage, done, total: None) -> None:
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
        self.draw(self._launch([Slice(job, 0, 1, True)]))

    def _sketch(self, step: _Step) -> None:
        """Make the sketches that are due, by the rows that the tokens were drawn from."""
        places = asking([piece for piece in step.slices if draws(piece)])
        if places:
            keep([step.jobs[place] for place in places], self._sketcher.sketch(step.rows[places]))

    def _launch(self, slices: Sequence[Slice[Job]]) -> _Step:
        jobs = [piece.request for piece in slices if draws(piece)]
        mask = self._masks.begin(jobs)
        with torch.inference_mode():
            batch = flatten(slices, self._block_size)
            attention = AttentionMetadata(
                query_starts=torch.from_numpy(batch.query_starts),
                context_lengths=torch.from_numpy(batch.context_lengths),
                block_tables=torch.from_numpy(batch.block_tables),
            )
            inputs = StepInputs(
                token_ids=torch.from_numpy(batch.token_ids),
                positions=torch.from_numpy(batch.positions),
                slots=torch.from_numpy(batch.slots),
                attention=attention,
            )
            hidden = self._model.hidden_states(inputs, self._caches)
            show_readers(self._model, slices, batch.query_starts, hidden)
            if len(batch.sampled) < len(batch.token_ids):
                hidden = hidden[torch.from_numpy(batch.sampled)]
        return _Step(slices, jobs, mask, hidden)


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
    samples = np.array([draws(piece) for piece in slices], np.bool_)
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
        sampled=rows[:-1][[draws(piece) for piece in slices]],
    )


def _block_tables(blocks: Sequence[Sequence[int]]) -> np.ndarray:
    """[S, most blocks] int32; the rest of each row is zero."""
    if len(blocks) == 1:
        return np.array(blocks, np.int32)
    lengths = np.array([len(row) for row in blocks])
    tables = np.zeros((len(blocks), int(lengths.max())), np.int32)
    filled = np.arange(tables.shape[1]) < lengths[:, None]
    tables[filled] = np.fromiter(chain.from_iterable(blocks), np.int32, int(lengths.sum()))
    return tables


def _result(jobs: Sequence[Job], drawn: Samples | None) -> StepResult:
    """What was drawn for ``jobs``."""
    if drawn is None:
        return StepResult([], [], [], [], [])
    tops: list[Top | None] = [None] * len(jobs)
    if drawn.top_tokens.shape[1]:
        counts = [job.sampling.top_logprobs for job in jobs]
        tops = tops_of(counts, drawn.top_tokens.tolist(), drawn.top_logprobs.tolist())
    return StepResult(
        drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.entropies.tolist(), drawn.low_margins.tolist(), tops
    )
