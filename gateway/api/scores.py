"""What did the model think of each token? Log-probabilities as the worker sends them and as endpoints write them."""

from collections.abc import Iterable, Sequence
from math import isnan, nan
from typing import Final

import numpy as np

from engine.link import Output, PromptScores
from gateway.api.form import TokenScore
from gateway.text.tokenizer import Tokenizer
from gateway.wire.chat import ChoiceLogprobs, PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob
from gateway.wire.completions import CompletionLogprobs

LEAST: Final = -9999.0
"""JSON has no infinity: what can't be drawn has this log-probability, as at OpenAI."""


def output_scores(output: Output) -> list[TokenScore]:
    """The scores of the tokens that a step brought."""
    if not output.top_tokens:
        return [TokenScore(id, finite(logprob)) for id, logprob in zip(output.tokens, output.logprobs, strict=True)]
    return [
        TokenScore(id, finite(logprob), _likeliest(ids, logprobs))
        for id, logprob, ids, logprobs in zip(
            output.tokens, output.logprobs, output.top_tokens, output.top_logprobs, strict=True
        )
    ]


def prompt_scores(prompt: Sequence[int], found: PromptScores) -> list[TokenScore]:
    """The scores of all of a prompt's tokens; that of the first is NaN."""
    logprobs = np.frombuffer(found.logprobs, "<f4").tolist()
    ranks = np.frombuffer(found.ranks, "<i4").tolist()
    ids = np.frombuffer(found.top_tokens, "<i4").reshape(len(logprobs), found.top).tolist()
    tops = np.frombuffer(found.top_logprobs, "<f4").reshape(len(logprobs), found.top).tolist()
    scores = [TokenScore(prompt[0], nan)]
    for token, logprob, rank, row, row_logprobs in zip(prompt[1:], logprobs, ranks, ids, tops, strict=True):
        scores.append(TokenScore(token, finite(logprob), _likeliest(row, row_logprobs), rank))
    return scores


def _likeliest(ids: Sequence[int], logprobs: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens; where fewer are possible at all, the rest of the ids is below 0."""
    return tuple((id, finite(logprob)) for id, logprob in zip(ids, logprobs, strict=True) if id >= 0)


def finite(logprob: float) -> float:
    """``logprob``, or the least that is sent."""
    return max(logprob, LEAST)


class TokenNames:
    """How tokens are written in log-probabilities: their text, or ``token_id:7`` where that was asked for."""

    __slots__ = ("_as_ids", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def name(self, id: int) -> str:
        """The token's text; bytes that are no whole character become U+FFFD."""
        if self._as_ids:
            return f"token_id:{id}"
        return self._tokenizer.token_bytes(id).decode(errors="replace")

    def chat(self, scores: Iterable[TokenScore]) -> ChoiceLogprobs:
        """As chat completions have it."""
        return ChoiceLogprobs(
            [
                TokenLogprob(
                    self.name(score.id),
                    score.logprob,
                    list(self._tokenizer.token_bytes(score.id)),
                    [
                        TopLogprob(self.name(id), logprob, list(self._tokenizer.token_bytes(id)))
                        for id, logprob in score.top
                    ],
                )
                for score in scores
            ]
        )

    def completion(self, scores: Iterable[TokenScore], offset: int, alternatives: bool) -> CompletionLogprobs:
        """As completions have it; ``offset`` is where the first token's text begins."""
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for score in scores:
            name = self.name(score.id)
            unknown = isnan(score.logprob)
            tokens.append(name)
            logprobs.append(None if unknown else score.logprob)
            tops.append(None if unknown else {self.name(id): top for id, top in score.top} | {name: score.logprob})
            offsets.append(offset)
            offset += len(name)
        return CompletionLogprobs(tokens, logprobs, tops if alternatives else None, offsets)

    def prompt(self, scores: Sequence[TokenScore]) -> PromptLogprobs:
        """As vLLM has a prompt's: the token itself first, then the likeliest ones."""
        return [None if isnan(score.logprob) else self._place(score) for score in scores]

    def _place(self, score: TokenScore) -> dict[int, PromptLogprob]:
        place = {score.id: PromptLogprob(score.logprob, score.rank, self.name(score.id))}
        for rank, (id, logprob) in enumerate(score.top, 1):
            place.setdefault(id, PromptLogprob(logprob, rank, self.name(id)))
        return place
