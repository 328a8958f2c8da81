"""What may a request want of its prompt besides the next token? Scores of its tokens, or an embedding of it.

Both read the prompt's hidden states as the steps compute them, slice by slice. A request that is preempted computes
its prompt again; what was read by then isn't read twice.
"""

from typing import Protocol

import numpy as np
import torch

from engine.link import PromptScores
from engine.models.decoder import Decoder
from kernels.score import score

# Logits at a time: 64 rows of a vocabulary of 152k are 39 MiB in float32.
_ROWS = 64


class PromptReader(Protocol):
    """Reads a prompt's hidden states; ``done`` once it has seen all that it needs."""

    # Whether each token must be computed: KV from the cache comes without hidden states.
    needs_all: bool

    @property
    def done(self) -> bool: ...

    def read(self, model: Decoder, start: int, hidden: torch.Tensor) -> None:
        """Take in ``hidden`` [count, hidden], as `Decoder.hidden_states` gives it, of the tokens from ``start`` on.

        Slices come in order, from 0 or from where the prefix cache ended; after a preemption they begin anew.
        """


class Scorer:
    """The log-probability and rank of each token of a prompt but the first, and the ``top`` likeliest in its place."""

    needs_all = True

    def __init__(self, prompt: list[int], top: int) -> None:
        count = len(prompt) - 1
        self._targets = torch.tensor(prompt[1:], dtype=torch.int32)
        self._top = top
        self._scored = 0
        self._logprobs = np.empty(count, np.float32)
        self._ranks = np.empty(count, np.int32)
        self._top_tokens = np.empty((count, top), np.int32)
        self._top_logprobs = np.empty((count, top), np.float32)

    @property
    def done(self) -> bool:
        return self._scored == len(self._targets)

    def read(self, model: Decoder, start: int, hidden: torch.Tensor) -> None:
        """Score the tokens that ``hidden`` predicts, a bounded number of rows at a time."""
        end = min(start + len(hidden), len(self._targets))
        while self._scored < end:
            begin, stop = self._scored, min(self._scored + _ROWS, end)
            logits = model.logits(hidden[begin - start : stop - start])
            scores = score(logits, self._targets[begin:stop].to(logits.device), self._top)
            self._logprobs[begin:stop] = scores.logprobs.cpu().numpy()
            self._ranks[begin:stop] = scores.ranks.cpu().numpy()
            self._top_tokens[begin:stop] = scores.top_tokens.cpu().numpy()
            self._top_logprobs[begin:stop] = scores.top_logprobs.cpu().numpy()
            self._scored = stop

    def result(self) -> PromptScores:
        """The scores, once `done`."""
        return PromptScores(
            top=self._top,
            logprobs=self._logprobs.astype("<f4").tobytes(),
            ranks=self._ranks.astype("<i4").tobytes(),
            top_tokens=self._top_tokens.astype("<i4").tobytes(),
            top_logprobs=self._top_logprobs.astype("<f4").tobytes(),
        )


class Pooler(PromptReader, Protocol):
    """A reader that makes one vector of a prompt."""

    def result(self) -> bytes:
        """The embedding [hidden] float32, little-endian, once `done`."""


class MeanPooler:
    """The mean of a prompt's hidden states after the final norm."""

    needs_all = True

    def __init__(self, count: int) -> None:
        self._count = count
        self._read = 0
        self._sum: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        return self._read == self._count

    def read(self, model: Decoder, start: int, hidden: torch.Tensor) -> None:
        """Add what is new in ``hidden``."""
        end = start + len(hidden)
        if end <= self._read:
            return
        added = model.normed(hidden[self._read - start :]).float().sum(0)
        self._sum = added if self._sum is None else self._sum + added
        self._read = end

    def result(self) -> bytes:
        assert self._sum is not None, "a prompt has tokens"
        return _bytes(self._sum / self._count)


class LastPooler:
    """The hidden state of a prompt's last token, after the final norm."""

    needs_all = False

    def __init__(self, count: int) -> None:
        self._count = count
        self._state: torch.Tensor | None = None

    @property
    def done(self) -> bool:
        return self._state is not None

    def read(self, model: Decoder, start: int, hidden: torch.Tensor) -> None:
        """Keep the last token's state, if it is among these."""
        if start + len(hidden) == self._count:
            self._state = model.normed(hidden[-1:])[0].float()

    def result(self) -> bytes:
        assert self._state is not None, "the last token of a prompt is always computed"
        return _bytes(self._state)


def _bytes(vector: torch.Tensor) -> bytes:
    result: bytes = vector.cpu().numpy().astype("<f4").tobytes()
    return result
