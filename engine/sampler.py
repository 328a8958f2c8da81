"""Which sampling parameters go with which row of a step's logits?"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import is_
from typing import Final

import numpy as np
import torch

from engine.constraints import StepMask
from engine.edits import Row
from engine.job import Job
from engine.link import Sampling
from kernels.sample import SamplingBatch

_MOST_TOP_K: Final = 2**31 - 1
_UNEDITED: Final = Row(np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32))


class Sampler:
    """Puts the parameters of a step's rows together, on a CPU. Only safe to use from one thread, one step at a time."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._positions = np.empty(0, np.int64)
        self._batch: SamplingBatch | None = None

    def batch(self, jobs: Sequence[Job], mask: StepMask) -> SamplingBatch:
        """The parameters of all rows, one for each of ``jobs``; valid until the next call.

        From one step to the next the same jobs mostly differ in their tokens' positions alone.
        """
        if self._batch is not None and len(jobs) == len(self._jobs) and all(map(is_, jobs, self._jobs)):
            self._positions[:] = [len(job.tokens) for job in jobs]
            return self._batch
        batch = sampling_batch(jobs, mask)
        plain = not len(mask.rows) and all(job.edits is None for job in jobs)
        if plain:
            self._jobs, self._batch, self._positions = list(jobs), batch, batch.position.numpy()
        else:
            self._jobs, self._batch = [], None
        return batch


def sampling_batch(
    jobs: Sequence[Job], mask: StepMask, put: Callable[[np.ndarray], torch.Tensor] = torch.from_numpy
) -> SamplingBatch:
    """The parameters of all rows, one for each of ``jobs``, as the kernel wants them; ``put`` brings them to it."""
    wishes = [job.sampling for job in jobs]
    floats = np.array([(wish.temperature, wish.top_p, wish.min_p) for wish in wishes], np.float32)
    temperature, top_p, min_p = np.ascontiguousarray(floats.T)
    seeds = np.array([job.seed & 0xFFFFFFFFFFFFFFFF for job in jobs], np.uint64).view(np.int64)
    edits = [_UNEDITED if job.edits is None else job.edit_row(job.edits) for job in jobs]
    tops = [wish.top_logprobs for wish in wishes]
    starts = list(accumulate((len(row.tokens) for row in edits), initial=0))
    return SamplingBatch(
        temperature=put(temperature),
        top_k=put(np.array([top_k_of(wish) for wish in wishes], np.int32)),
        top_p=put(top_p),
        min_p=put(min_p),
        seed=put(seeds),
        position=put(np.array([len(job.tokens) for job in jobs], np.int64)),
        edited=put(np.concatenate([row.tokens for row in edits])),
        edit_starts=put(np.array(starts, np.int32)),
        edit_scale=put(np.concatenate([row.scale for row in edits])),
        edit_offset=put(np.concatenate([row.offset for row in edits])),
        mask=put(mask.rows),
        mask_row=put(mask.row_of),
        top=put(np.array(tops, np.int32)),
        width=max(tops, default=0),
    )


def top_k_of(wish: Sampling) -> int:
    """The top_k that a request asks for, as a kernel's int32; 0: off."""
    return min(max(wish.top_k, 0), _MOST_TOP_K)
