"""What do the CPU kernels that read rows of logits share: a row widened, its normaliser, its likeliest tokens?

A row is copied once, as float32 and padded with -inf to whole words of a bitmask; the passes that follow are over that
copy, which the caches hold. Everywhere below, ``values`` is its address and ``padded`` its length.
"""

from typing import Any, Final

import numpy as np
from numba import njit

from kernels import simd

# A multiple of 32, a bitmask's word, and so of `simd.LANES` too; a draw's chunk, `kernels.sample.reference.CHUNK`.
BLOCK: Final = 128


@njit(cache=True, inline="always")
def padded_to_words(vocabulary: int) -> int:
    """How long a row's copy must be."""
    return (vocabulary + 31) // 32 * 32


@njit(cache=True)
def widen(tag: Any, size: int, source: int, count: int, values: int, padded: int) -> Any:
    """Copy a row of ``count`` logits; return the largest."""
    most = simd.splat(np.float32(-np.inf))
    for i in range(0, padded, simd.LANES):
        part = simd.load_part(source + i * size, tag, count - i)
        part = simd.keep_lanes(part, 0, count - i, np.float32(-np.inf))
        most = simd.maximum(most, part)
        simd.store(values + i * 4, part)
    return simd.lanes_max(most)


@njit(cache=True)
def largest_of(values: int, padded: int) -> Any:
    """The largest of a row; a NaN counts for nothing."""
    most = simd.splat(np.float32(-np.inf))
    for i in range(0, padded, simd.LANES):
        most = simd.maximum(most, simd.load(values + i * 4, np.float32(0)))
    return simd.lanes_max(most)


@njit(cache=True)
def number_above(values: int, padded: int, bound: Any) -> int:
    """How many exceed the bound: exact, for float32 counts to 2**24 and no vocabulary is that large."""
    counts, bounds = simd.splat(np.float32(0)), simd.splat(bound)
    for i in range(0, padded, simd.LANES):
        counts = simd.add(counts, simd.exceeds(simd.load(values + i * 4, np.float32(0)), bounds))
    return int(simd.lanes_sum(counts))


@njit(cache=True)
def log_sum_and_entropy(values: int, padded: int, largest: Any, masses: Any) -> Any:
    """log(sum(exp)) of a row, and ``log(sum) - sum(p * x)`` in nats, relative to the largest.

    ``masses``, unless it is empty, gets the sum of each `BLOCK`, relative to the largest too.
    """
    step = BLOCK if len(masses) else 4096
    shift = simd.splat(-largest)
    zero = simd.splat(np.float32(0))
    total, weighted = 0.0, 0.0
    for part in range(0, padded, 4096):
        moments = zero
        for block in range(part, min(padded, part + 4096), step):
            sums = zero
            for i in range(block, min(padded, block + step), simd.LANES):
                z = simd.add(simd.load(values + i * 4, np.float32(0)), shift)
                weight = simd.exp(z)
                sums = simd.add(sums, weight)
                moments = simd.fma(weight, simd.maximum(z, simd.splat(np.float32(-1e4))), moments)
            mass = simd.lanes_sum(sums)
            total += mass
            if len(masses):
                masses[block // BLOCK] = mass
        weighted += simd.lanes_sum(moments)
    return np.float32(largest + np.log(total)), np.float32(max(0.0, np.log(total) - weighted / total))


@njit(cache=True)
def likeliest(values: int, padded: int, log_sum: Any, count: int, tokens: Any, logprobs: Any) -> None:
    """As `kernels.sample.reference.likeliest`, into rows that may be longer: what is past ``count`` is -1 and -inf.

    The best so far are kept in order, and a block whose maximum doesn't exceed the last of them is passed over.
    """
    tokens[:] = -1
    logprobs[:] = -np.inf
    if count == 0:
        return
    bound = np.float32(-np.inf)
    for block in range(0, padded, BLOCK):
        end = min(padded, block + BLOCK)
        if largest_of(values + block * 4, end - block) <= bound:
            continue
        for i in range(block, end):
            value = simd.get(values + i * 4)
            if value > bound:
                place = count - 1
                while place > 0 and logprobs[place - 1] < value:
                    tokens[place], logprobs[place] = tokens[place - 1], logprobs[place - 1]
                    place -= 1
                tokens[place], logprobs[place] = i, value
                bound = logprobs[count - 1]
    for place in range(count):
        logprobs[place] -= log_sum
