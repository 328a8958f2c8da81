"""Which tokens may a job draw next, and who works that out while the model computes?

A constraint is a bitmask over the vocabulary. A grammar's changes with each token drawn, and llguidance needs a few
microseconds for it: a thread of its own does that for all constrained jobs of a step during the model's forward pass,
so that the mask is there before the logits are. 32 jobs under a JSON schema, vocabulary of 8,192: 0.1 ms (Xeon).
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from llguidance import LLMatcher

from engine.grammar import first_line, mask_words

if TYPE_CHECKING:
    from engine.job import Job


class Constraint:
    """What one job may draw: what its grammar permits, and of that only the allowed ids, where any are named.

    ``fault`` says why nothing may be drawn any more, once the grammar has become too much for llguidance.
    """

    __slots__ = ("_allowed", "_consumed", "_matcher", "fault")

    def __init__(
        self,
        vocab_size: int,
        *,
        matcher: LLMatcher | None = None,
        allowed: Sequence[int] = (),
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        """Constrain by a grammar's ``matcher`` (the job's own), by ``allowed`` ids (none: all are), or by both.

        A grammar's end can be reached whatever is allowed: that is what ``eos_token_ids`` are for.
        """
        self._matcher = matcher
        self._consumed = 0
        self._allowed: np.ndarray | None = None
        if allowed:
            self._allowed = bitmask([*allowed, *(eos_token_ids if matcher else ())], vocab_size)
        self.fault = ""

    def fill(self, row: np.ndarray, job: "Job") -> None:
        """Write the mask of the job's next token into ``row`` [ceil(vocabulary / 32)] int32."""
        if self._matcher is None:
            assert self._allowed is not None, "a constraint constrains"
            row[:] = self._allowed
            return
        self._consume(job)
        if not self.fault:
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            if self._matcher.is_error():
                self.fault = first_line(self._matcher.get_error())
        if self.fault:
            row[:] = 0
            return
        if self._allowed is not None:
            row &= self._allowed
        if job.generated < job.min_tokens and _only(row, job.stop_ids):
            # The grammar is through: what it has left is to stop, and it may.
            job.min_tokens = 0

    def _consume(self, job: "Job") -> None:
        """Tell the matcher what was drawn since the last call; tokens stay a job's when it is preempted."""
        assert self._matcher is not None
        for token in job.tokens[job.prompt_len + self._consumed :]:
            if not self._matcher.consume_token(token):
                self.fault = first_line(self._matcher.get_error())
                return
            self._consumed += 1


class StepMask(NamedTuple):
    """``rows`` [M, ceil(vocabulary / 32)] int32 and, for each of the step's R draws, the row that holds, or -1."""

    rows: np.ndarray
    row_of: np.ndarray


class Masks:
    """Makes each step's mask. Only safe to use from one thread, one step at a time."""

    def __init__(self, vocab_size: int) -> None:
        self._rows = np.empty((0, mask_words(vocab_size)), np.int32)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def begin(self, jobs: Sequence["Job"]) -> "Future[None] | None":
        """Start to fill the rows of those of ``jobs``, a step's draws, that are constrained; None if nobody is."""
        constrained = [job for job in jobs if job.constraint is not None]
        if not constrained:
            return None
        if len(constrained) > len(self._rows):
            self._rows = np.empty((2 * len(constrained), self._rows.shape[1]), np.int32)
        return self._thread.submit(self._fill, constrained)

    def finish(self, jobs: Sequence["Job"], begun: "Future[None] | None") -> StepMask:
        """Wait until what was begun for ``jobs`` is done. The mask is valid until the next `begin`."""
        row_of = np.full(len(jobs), -1, np.int32)
        if begun is None:
            return StepMask(self._rows[:0], row_of)
        begun.result()
        places = [place for place, job in enumerate(jobs) if job.constraint is not None]
        row_of[places] = np.arange(len(places))
        return StepMask(self._rows[: len(places)], row_of)

    def _fill(self, jobs: Sequence["Job"]) -> None:
        for row, job in zip(self._rows, jobs, strict=False):
            assert job.constraint is not None
            job.constraint.fill(row, job)


def bitmask(tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """[ceil(vocabulary / 32)] int32 in which the bits of ``tokens`` are set."""
    bits = np.zeros(32 * mask_words(vocab_size), np.bool_)
    bits[np.array(tokens, np.int64)] = True
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def _only(row: np.ndarray, tokens: frozenset[int]) -> bool:
    """Whether a mask allows no token but these."""
    return not (row & ~bitmask(sorted(tokens), 32 * len(row))).any()
