"""How does what a job has said change the logits of what it may say next? Penalties, biases and bans.

Each job keeps a list of the tokens whose logits are edited, with a scale and an offset for each, and brings it up to
date with the tokens that were drawn since: a step costs by what is new, not by how much was said. A job that asks for
nothing of this has no `Edits`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from engine.link import Sampling

_BANNED: Final = np.float32("-inf")
_SPARE: Final = 64  # room for tokens to come, beside those that are known at the start


class Row(NamedTuple):
    """One row's edits: ``tokens`` [E] int32, ``scale`` and ``offset`` [E] float32, as `kernels.sample` takes them."""

    tokens: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


class Edits:
    """The edits of one job. Tokens are only ever appended to a job's, so what was counted stays counted."""

    __slots__ = (
        "_bad_ends",
        "_bad_words",
        "_counted",
        "_counts",
        "_offset",
        "_places",
        "_prompt_len",
        "_sampling",
        "_scale",
        "_stops",
        "_tokens",
    )

    def __init__(self, sampling: Sampling, prompt: Sequence[int], stop_ids: Iterable[int]) -> None:
        self._sampling = sampling
        self._prompt_len = self._counted = len(prompt)
        known: list[int] = list(np.unique(np.array(prompt, np.int32))) if sampling.repetition_penalty != 1 else []
        self._tokens = np.empty(len(known) + _SPARE, np.int32)
        self._scale = np.ones(len(known) + _SPARE, np.float32)
        self._offset = np.zeros(len(known) + _SPARE, np.float32)
        self._places: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        for token in known:
            place = self._place(int(token))
            self._scale[place] = sampling.repetition_penalty
        for token, bias in sampling.logit_bias.items():
            place = self._place(token)  # first: it may replace the arrays
            self._offset[place] = bias
        self._stops = [self._place(token) for token in stop_ids] if sampling.min_tokens > 0 else []
        # Words of one token are banned always, longer ones where the answer ends in all of them but the last token.
        self._bad_ends = [self._place(word[0]) for word in sampling.bad_words if len(word) == 1]
        self._bad_words: dict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)
        for word in sampling.bad_words:
            if len(word) > 1:
                self._bad_words[word[-2]].append((word[:-1], self._place(word[-1])))

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int], stop_ids: Iterable[int]) -> "Edits | None":
        """The edits that a request asks for, or None."""
        asked = (
            sampling.repetition_penalty != 1
            or sampling.presence_penalty
            or sampling.frequency_penalty
            or sampling.logit_bias
            or sampling.bad_words
            or sampling.min_tokens > 0
        )
        return cls(sampling, prompt, stop_ids) if asked else None

    def row(self, tokens: Sequence[int], stops_banned: bool) -> Row:
        """The edits for the token that follows ``tokens``, prompt and answer. Valid until the next call."""
        self._count(tokens)
        banned = [*self._bad_ends, *(self._stops if stops_banned else ()), *self._completing(tokens)]
        size = len(self._places)
        offset = self._offset[:size]
        if banned:
            offset = offset.copy()
            offset[banned] = _BANNED
        return Row(self._tokens[:size], self._scale[:size], offset)

    def _count(self, tokens: Sequence[int]) -> None:
        """Take in what was drawn since the last call."""
        sampling = self._sampling
        penalised = sampling.presence_penalty or sampling.frequency_penalty
        if not penalised and sampling.repetition_penalty == 1:
            return
        for token in tokens[self._counted :]:
            place = self._place(token)
            self._scale[place] = sampling.repetition_penalty
            if penalised:
                count = self._counts[token] = self._counts.get(token, 0) + 1
                self._offset[place] = (
                    sampling.logit_bias.get(token, 0.0) - sampling.presence_penalty - sampling.frequency_penalty * count
                )
        self._counted = len(tokens)

    def _completing(self, tokens: Sequence[int]) -> list[int]:
        """The places of the tokens that would complete a bad word of several tokens."""
        words = self._bad_words.get(tokens[-1]) if self._bad_words else None
        if not words:
            return []
        generated = len(tokens) - self._prompt_len
        return [
            place
            for beginning, place in words
            if len(beginning) <= generated and tuple(tokens[len(tokens) - len(beginning) :]) == beginning
        ]

    def _place(self, token: int) -> int:
        """Where a token is in the arrays; it gets a place, at which nothing is changed yet, if it has none."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == len(self._tokens):
                grown = place * 2
                # Views that went out with earlier rows keep the old memory: np.resize copies.
                self._tokens = np.resize(self._tokens, grown)
                self._scale = np.resize(self._scale, grown)
                self._offset = np.resize(self._offset, grown)
            self._tokens[place], self._scale[place], self._offset[place] = token, 1.0, 0.0
        return place
