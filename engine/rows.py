"""Which request has which row of the state on the device, and what of it must be brought up to date?

A row is given to a request when it first takes part in a step, and taken back, when rows run short, from one that has
ended or lost its KV. From step to step only new block ids travel: one for each 16 tokens drawn.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.job import Job
from engine.sampler import top_k_of
from kernels.step_inputs import PARAMETERS
from scheduler.batch import Slice


class Updates(NamedTuple):
    """``values`` [U] int32 for ``places`` [U] int32, as `kernels.step_inputs.update` takes them."""

    places: np.ndarray
    values: np.ndarray


@dataclass(slots=True)
class _Row:
    """``blocks`` is the job's own list, of which the first ``uploaded`` are on the device."""

    index: int
    job: Job
    blocks: list[int]
    uploaded: int


class Rows:
    """``count`` rows for block tables of ``width`` blocks each; row ``count`` is nobody's, for padding."""

    def __init__(self, count: int, width: int) -> None:
        self.padding = count
        self._width = PARAMETERS + width
        self._free = list(range(count))
        self._taken: dict[int, _Row] = {}

    def place(self, slices: Sequence[Slice[Job]]) -> tuple[list[int], Updates]:
        """The row of each slice's request, and what to update before the step runs.

        Raises:
            RuntimeError: more requests run than there are rows.
        """
        indices: list[int] = []
        places: list[int] = []
        values: list[int] = []
        for piece in slices:
            job = piece.request
            row = self._taken.get(job.uid)
            if row is None or row.job is not job:
                row = self._take(job, row)
            blocks = job.blocks
            if row.blocks is not blocks or row.uploaded < len(blocks):
                base = row.index * self._width
                if row.blocks is not blocks:
                    places += range(base, base + PARAMETERS)
                    values += parameters(job)
                    row.blocks, row.uploaded = blocks, 0
                places += range(base + PARAMETERS + row.uploaded, base + PARAMETERS + len(blocks))
                values += blocks[row.uploaded :]
                row.uploaded = len(blocks)
            indices.append(row.index)
        return indices, Updates(np.array(places, np.int32), np.array(values, np.int32))

    def _take(self, job: Job, stale: _Row | None) -> _Row:
        """A row for a job that has none; ``stale`` is one of an earlier job with its uid."""
        if stale is not None:
            self._free.append(stale.index)
        elif not self._free:
            self._sweep()
        row = self._taken[job.uid] = _Row(self._free.pop(), job, [], 0)
        return row

    def _sweep(self) -> None:
        """Take back the rows of jobs that hold no KV. Steps under way have read them before any new one writes."""
        over = [uid for uid, row in self._taken.items() if not row.job.holds_kv]
        if not over:
            raise RuntimeError(f"all {len(self._taken)} rows of the device's state are in use")
        self._free += [self._taken.pop(uid).index for uid in over]


def parameters(job: Job) -> tuple[int, ...]:
    """The first `PARAMETERS` values of a job's row: how its tokens are drawn."""
    wish = job.sampling
    bits = struct.unpack("<3i", struct.pack("<3f", wish.temperature, wish.top_p, wish.min_p))
    seed = struct.unpack("<2i", struct.pack("<Q", job.seed & 0xFFFFFFFFFFFFFFFF))
    return (*bits, top_k_of(wish), *seed, wish.top_logprobs, 0)
