"""What must something do that executes planned steps?

`Runner` is the contract; `engine.host_runner` keeps it on a CPU, where a step is over when `Runner.launch` returns, and
`engine.device_runner` on a GPU, which computes while the host plans the next step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from engine.config import ModelConfig
from engine.job import Job
from engine.models.decoder import Decoder
from kernels.kv_cache import bytes_per_block
from scheduler.batch import Plan, Slice

ProgressCallback = Callable[[str, int, int], None]

# In place of a token: there was none to draw, or the job wants none.
NO_TOKEN: Final = -1


class Top(NamedTuple):
    """The likeliest tokens at one place, the likeliest first, with their log-probabilities in nats."""

    tokens: list[int]
    logprobs: list[float]


class StepResult(NamedTuple):
    """One entry per sampling slice, in the plan's order; log-probabilities and entropies in nats.

    ``low_margins`` are 1 where the model's two likeliest tokens were close, see `kernels.sample.reference.Samples`.

    A token is `NO_TOKEN` where the job's edits and constraint leave none to draw, and where the job wants an embedding.
    ``tops`` are None for jobs that didn't ask for them.
    """

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    low_margins: list[int]
    tops: list[Top | None]


class Runner(ABC):
    """Executes steps of one model on one device. Only safe to use from one thread.

    Each plan is given to `launch`, then `draw`, then `land`. Between `launch` and `draw` the step before may land: what
    its tokens decide (which tokens are permitted, penalties) is not asked for earlier.
    """

    # Whether `launch` returns before the step is over, so that it is worth planning the next one meanwhile.
    ahead: bool = False

    @abstractmethod
    def launch(self, plan: Plan[Job]) -> Any:
        """Begin a step; what comes back is for `draw` and `land`.

        Raises:
            torch.OutOfMemoryError: the step doesn't fit beside what is there; nothing but KV was written.
        """

    @abstractmethod
    def draw(self, step: Any) -> None:
        """Have the tokens drawn, now that all tokens of earlier steps are known.

        Raises:
            torch.OutOfMemoryError: as `launch`.
        """

    @abstractmethod
    def land(self, step: Any) -> StepResult:
        """Wait until a step is over; what it brought."""

    @abstractmethod
    def logits(self, slices: Sequence[Slice[Job]]) -> torch.Tensor:
        """Run the slices; the logits [R, vocabulary] of those that sample, in order."""

    @abstractmethod
    def warm_up(self, progress: ProgressCallback = lambda stage, done, total: None) -> None:
        """Compile and capture whatever takes long the first time, so that no request waits for it.

        Must be called before anything was computed: it scribbles over the first block.
        """

    def execute(self, plan: Plan[Job]) -> StepResult:
        """One step from beginning to end."""
        step = self.launch(plan)
        self.draw(step)
        return self.land(step)


def draws(piece: Slice[Job]) -> bool:
    """Whether the step draws a token for this slice."""
    return piece.samples and piece.request.pooler is None


def show_readers(model: Decoder, slices: Sequence[Slice[Job]], starts: np.ndarray, hidden: torch.Tensor) -> None:
    """Show the slices' hidden states to those who want more of their prompt than the next token.

    ``hidden`` [T, hidden] is as the model's layers give it; slice s begins at ``starts[s]``.
    """
    for begin, piece in zip(starts, slices, strict=False):
        reader = piece.request.reader
        if reader is not None and not reader.done:
            first = int(begin)
            reader.read(model, piece.start, hidden[first : first + piece.count])
            # From now on the cache will do, should the job be preempted.
            piece.request.reads_cache |= reader.done


def with_embeddings(slices: Sequence[Slice[Job]], result: StepResult) -> StepResult:
    """Put the places of those that want an embedding among what was drawn for the others."""
    sampling = [piece.request for piece in slices if piece.samples]
    if len(sampling) > len(result.tokens):
        for place, job in enumerate(sampling):
            if job.pooler is not None:
                result.tokens.insert(place, NO_TOKEN)
                result.logprobs.insert(place, 0.0)
                result.entropies.insert(place, 0.0)
                result.low_margins.insert(place, 0)
                result.tops.insert(place, None)
    return result


def tops_of(counts: Sequence[int], tokens: list[list[int]], logprobs: list[list[float]]) -> list[Top | None]:
    """Of each row's likeliest tokens as many as its job asked for; None for 0."""
    return [Top(tokens[row][:count], logprobs[row][:count]) if count else None for row, count in enumerate(counts)]


def kv_bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """What one KV block takes over all layers, in bytes."""
    return config.num_layers * bytes_per_block(config.num_kv_heads, config.head_dim, block_size, dtype, device)
