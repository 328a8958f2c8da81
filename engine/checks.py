"""Which requests can't be taken, and why?

A gateway checks what clients send, and says it better. This is so that no gateway, whatever its version or its bugs,
can bring down a worker and with it everybody else's requests.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from engine.link import FailureCode, Sampling, Submit

Fault = tuple[FailureCode, str]

MOST_TOP: Final = 128  # likeliest tokens that are reported in one place
_MOST_SCORES: Final = 32 * 1024 * 1024  # bytes of prompt scores, which go out in one frame
_LONGEST_GRAMMAR: Final = 4 * 1024 * 1024  # as in gateways, which also bound what makes compilation slow
_MOST_BAD_WORD_TOKENS: Final = 65_536
# Far beyond any use, and far within what float32 holds once logits are multiplied by it.
_FARTHEST: Final = 1e6


def fault_of(message: Submit, *, vocab_size: int, max_model_len: int) -> Fault | None:
    """Why a model of this vocabulary and context can't take a request, or None."""
    count, rest = divmod(len(message.tokens), 4)
    if rest or not count:
        return "invalid_request", f"a prompt of {len(message.tokens)} bytes is no list of int32 token ids"
    if not 0 <= message.answered < min(count, max(message.sampling.max_tokens, 1)):
        return "invalid_request", f"{message.answered} of {count} tokens can't be an answer that is to go on"
    if message.embed:
        if count > max_model_len:
            return "context_length_exceeded", f"the prompt has {count} tokens, but may have {max_model_len}"
    elif count >= max_model_len:
        return (
            "context_length_exceeded",
            f"the prompt has {count} tokens, but prompt and answer may have {max_model_len}",
        )
    tokens = np.frombuffer(message.tokens, dtype="<i4")
    found = _outside(int(tokens.min()), int(tokens.max()), vocab_size)
    if found is not None:
        return "invalid_request", f"token id {found} is outside the vocabulary of {vocab_size}"
    said = next(_time_faults(message), None)
    if said is None and not message.embed:
        said = next(_sampling_faults(message.sampling, count, vocab_size), None)
    return None if said is None else ("invalid_request", said)


def _time_faults(message: Submit) -> Iterator[str]:
    times = {"age": message.age}
    if message.slo:
        times |= {"ttft": message.slo.ttft, "tpot": message.slo.tpot}
    for name, value in times.items():
        if not 0 <= value < math.inf:
            yield f"{name} must be a number of seconds, not {value}"


def _sampling_faults(sampling: Sampling, prompt: int, vocab_size: int) -> Iterator[str]:
    """What is wrong with a request's sampling, whose prompt has ``prompt`` tokens."""
    if sampling.max_tokens < 1:
        yield f"max_tokens must be at least 1, not {sampling.max_tokens}"
    yield from _number_faults(sampling)
    for name, top, least in (
        ("top_logprobs", sampling.top_logprobs, 0),
        ("prompt_logprobs", sampling.prompt_logprobs, -1),
    ):
        if not least <= top <= MOST_TOP:
            yield f"{name} must be between {least} and {MOST_TOP}, not {top}"
    if (sampling.prompt_logprobs + 1) * prompt * 8 > _MOST_SCORES:
        yield f"{sampling.prompt_logprobs} prompt_logprobs are too many for a prompt of {prompt} tokens"
    for name, tokens in (
        ("logit_bias", sampling.logit_bias),
        ("allowed_token_ids", sampling.allowed_token_ids),
        ("bad_words", [token for word in sampling.bad_words for token in word]),
    ):
        found = _outside(min(tokens, default=0), max(tokens, default=0), vocab_size)
        if found is not None:
            yield f"{name}: token id {found} is outside the vocabulary of {vocab_size}"
    if not all(sampling.bad_words):
        yield "bad_words: a word has no tokens"
    if sum(map(len, sampling.bad_words)) > _MOST_BAD_WORD_TOKENS:
        yield f"bad_words: more than {_MOST_BAD_WORD_TOKENS} tokens in all"
    if len(sampling.grammar) > _LONGEST_GRAMMAR:
        yield f"a grammar may have {_LONGEST_GRAMMAR} characters, not {len(sampling.grammar)}"


def _number_faults(sampling: Sampling) -> Iterator[str]:
    for name, value, least, most in (
        ("temperature", sampling.temperature, 0.0, _FARTHEST),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("presence_penalty", sampling.presence_penalty, -_FARTHEST, _FARTHEST),
        ("frequency_penalty", sampling.frequency_penalty, -_FARTHEST, _FARTHEST),
        ("repetition_penalty", sampling.repetition_penalty, 1 / _FARTHEST, _FARTHEST),
        *(("logit_bias", bias, -_FARTHEST, _FARTHEST) for bias in sampling.logit_bias.values()),
    ):
        if not least <= value <= most:  # NaN is neither
            yield f"{name} must be between {least:g} and {most:g}, not {value}"


def _outside(low: int, high: int, vocab_size: int) -> int | None:
    """Of the least and the greatest of some ids, the one that no token has, or None."""
    if low >= 0 and high < vocab_size:
        return None
    return low if low < 0 else high
