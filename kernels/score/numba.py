"""How are given tokens scored on a CPU? A row per iteration, in passes over one float32 copy of it."""

from typing import Any

import numpy as np
import torch
from numba import njit, prange

from kernels import simd
from kernels.logits import likeliest, log_sum_and_entropy, number_above, padded_to_words, widen
from kernels.score.reference import Scores


def score(logits: torch.Tensor, targets: torch.Tensor, top: int) -> Scores:
    """As the reference's; the logits are contiguous."""
    rows, vocabulary = logits.shape
    logprobs = torch.empty(rows, dtype=torch.float32)
    ranks = torch.empty(rows, dtype=torch.int32)
    top_tokens = torch.empty(rows, top, dtype=torch.int32)
    top_logprobs = torch.empty(rows, top, dtype=torch.float32)
    _score(
        simd.tag_of(logits.dtype),
        simd.SIZES[logits.dtype],
        logits.data_ptr(),
        rows,
        vocabulary,
        targets.numpy(),
        top,
        logprobs.numpy(),
        ranks.numpy(),
        top_tokens.numpy(),
        top_logprobs.numpy(),
    )
    return Scores(logprobs, ranks, top_tokens, top_logprobs)


@njit(parallel=True, cache=True)
def _score(
    tag: Any,
    size: int,
    logits: int,
    rows: int,
    vocabulary: int,
    targets: Any,
    top: int,
    logprobs: Any,
    ranks: Any,
    top_tokens: Any,
    top_logprobs: Any,
) -> None:
    for row in prange(rows):
        padded = padded_to_words(vocabulary)
        copy = np.empty(padded, np.float32)
        values = simd.address_of(copy)
        largest = widen(tag, size, logits + row * vocabulary * size, vocabulary, values, padded)
        log_sum, _ = log_sum_and_entropy(values, padded, largest, np.empty(0, np.float32))
        own = copy[targets[row]]
        logprobs[row] = own - log_sum
        ranks[row] = 1 + number_above(values, padded, own)
        likeliest(values, padded, log_sum, top, top_tokens[row], top_logprobs[row])
        simd.keep(copy)
