"""What do a request's outputs from vLLM become on the link?"""

from array import array
from typing import Any, Final

from engine.link import Finish, Output, PromptScores

_FINISHES: Final[dict[str, Finish]] = {"stop": "stop", "length": "length", "repetition": "stop"}


class Unanswered(Exception):
    """vLLM ended a request without finishing it; the message says how."""


def output_of(number: int, made: Any, *, top: int, first: bool) -> Output:
    """The link's output for request ``number`` of what vLLM ``made`` (a ``RequestOutput`` with what is new in it).

    ``top`` is how many of the likeliest tokens were asked for beside each one drawn, and ``first`` says that nothing
    came before. vLLM doesn't tell entropies.

    Raises:
        Unanswered: the request ended by a fault of vLLM's.
    """
    (completion,) = made.outputs
    tokens = [int(token) for token in completion.token_ids]
    logprobs, top_tokens, top_logprobs = [], [], []
    if tokens:
        found = completion.logprobs
        for start, end in zip(found.start_indices, found.end_indices, strict=True):
            logprobs.append(found.logprobs[start])
            if top:
                top_tokens.append(found.token_ids[start + 1 : end])
                top_logprobs.append(found.logprobs[start + 1 : end])
    return Output(
        number,
        tokens,
        logprobs,
        [],
        _finish(completion.finish_reason) if made.finished else None,
        cached=made.num_cached_tokens or 0 if first else 0,
        queued=_queued(made.metrics) if first else 0.0,
        top_tokens=top_tokens,
        top_logprobs=top_logprobs,
        prompt=scores_of(made.prompt_logprobs) if made.prompt_logprobs else None,
    )


def scores_of(found: Any) -> PromptScores:
    """What vLLM thought of a prompt (its ``FlatLogprobs``): the first place is empty, for nothing predicts it."""
    starts, ends = found.start_indices[1:], found.end_indices[1:]
    top = ends[0] - starts[0] - 1 if starts else 0
    logprobs, ranks = array("f"), array("i")
    top_tokens, top_logprobs = array("i"), array("f")
    for start, end in zip(starts, ends, strict=True):
        logprobs.append(found.logprobs[start])
        ranks.append(found.ranks[start])
        top_tokens.extend(found.token_ids[start + 1 : end])
        top_logprobs.extend(found.logprobs[start + 1 : end])
    return PromptScores(top, *(_little_endian(values) for values in (logprobs, ranks, top_tokens, top_logprobs)))


def _finish(reason: str | None) -> Finish:
    finish = _FINISHES.get(reason or "")
    if finish is None:
        raise Unanswered(f"vLLM ended the request with {reason!r}")
    return finish


def _queued(metrics: Any) -> float:
    """Seconds from when vLLM's engine got the request to its first step."""
    return max(0.0, metrics.scheduled_ts - metrics.queued_ts) if metrics else 0.0


def _little_endian(values: "array[int] | array[float]") -> bytes:
    import sys

    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
