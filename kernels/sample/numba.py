"""How is a token drawn on a CPU, without a sort?

A row is widened once; one vector pass gives its maximum, one more its normaliser and entropy. A filter's threshold
comes from a histogram of the logits (counts and mass per bucket), and only the bucket in which the threshold lies is
sorted. The Gumbel-max draw is run as a race: the largest ``exp(z) / E`` wins, ``E = -log1p(-v)`` and so at least
``v``; the bound ``exp(z) / v`` costs no logarithm, and only what beats the best so far is computed exactly.
"""

from typing import Any, Final

import numpy as np
import torch
from numba import njit, prange

from kernels import simd
from kernels.sample.reference import Samples, SamplingBatch

BUCKETS: Final = 1024
BUCKETS_PER_NAT: Final = 32.0
CHUNK: Final = 256


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """As the reference's, token for token (unless two choices differ by less than float64 resolves)."""
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    logprobs = torch.empty(rows, dtype=torch.float32)
    entropies = torch.empty(rows, dtype=torch.float32)
    _sample(
        simd.tag_of(logits.dtype),
        simd.SIZES[logits.dtype],
        logits.data_ptr(),
        rows,
        vocabulary,
        batch.temperature.numpy(),
        batch.top_k.numpy(),
        batch.top_p.numpy(),
        batch.min_p.numpy(),
        batch.seed.numpy(),
        batch.position.numpy(),
        batch.banned.numpy(),
        batch.banned_starts.numpy(),
        tokens.numpy(),
        logprobs.numpy(),
        entropies.numpy(),
    )
    return Samples(tokens, logprobs, entropies)


@njit(parallel=True, cache=True)
def _sample(
    tag: Any,
    size: int,
    logits: int,
    rows: int,
    vocabulary: int,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    seed: Any,
    position: Any,
    banned: Any,
    banned_starts: Any,
    tokens: Any,
    logprobs: Any,
    entropies: Any,
) -> None:
    for row in prange(rows):
        padded = (vocabulary + simd.LANES - 1) // simd.LANES * simd.LANES
        values = np.empty(padded, np.float32)
        largest = _widen(tag, size, logits + row * vocabulary * size, vocabulary, simd.address_of(values))
        log_sum, entropies[row] = _log_sum_and_entropy(simd.address_of(values), padded, largest)
        first, last = banned_starts[row], banned_starts[row + 1]
        originals = np.empty(last - first, np.float32)
        for i in range(first, last):
            originals[i - first] = values[banned[i]]
        if last > first:
            for i in range(first, last):
                values[banned[i]] = -np.inf
            largest = values.max()
        if temperature[row] > 0:
            threshold = _threshold(values[:vocabulary], largest, temperature[row], top_k[row], top_p[row], min_p[row])
            token = _race(values[:vocabulary], largest, temperature[row], threshold, seed[row], position[row])
        else:
            token = _first_of(values[:vocabulary], largest)
        own = values[token]
        for i in range(first, last):
            if banned[i] == token:
                own = originals[i - first]
        tokens[row], logprobs[row] = token, own - log_sum


@njit(cache=True)
def _widen(tag: Any, size: int, source: int, count: int, target: int) -> Any:
    """Copy a row as float32, padded with -inf; return its maximum."""
    most = simd.splat(np.float32(-np.inf))
    for i in range(0, count, simd.LANES):
        part = simd.load_part(source + i * size, tag, count - i)
        part = simd.keep_lanes(part, 0, count - i, np.float32(-np.inf))
        most = simd.maximum(most, part)
        simd.store(target + i * 4, part)
    return simd.lanes_max(most)


@njit(cache=True)
def _log_sum_and_entropy(values: int, count: int, largest: Any) -> Any:
    """log(sum(exp)) of a row, and ``log(sum) - sum(p * x)`` in nats, relative to the largest."""
    shift = simd.splat(-largest)
    zero = simd.splat(np.float32(0))
    total, weighted = 0.0, 0.0
    for chunk in range(0, count, 4096):
        sums, moments = zero, zero
        for i in range(chunk, min(count, chunk + 4096), simd.LANES):
            z = simd.add(simd.load(values + i * 4, np.float32(0)), shift)
            weight = simd.exp(z)
            sums = simd.add(sums, weight)
            moments = simd.fma(weight, simd.maximum(z, simd.splat(np.float32(-1e4))), moments)
        total += simd.lanes_sum(sums)
        weighted += simd.lanes_sum(moments)
    return np.float32(largest + np.log(total)), np.float32(max(0.0, np.log(total) - weighted / total))


@njit(cache=True)
def _first_of(values: Any, wanted: Any) -> Any:
    for i in range(values.shape[0]):
        if values[i] == wanted:
            return i
    return 0


@njit(cache=True)
def _bucket(z: float) -> int:
    place = -z * BUCKETS_PER_NAT
    # In this form a NaN has a bucket too: nothing else keeps it from writing outside of the histogram.
    return int(place) if place < BUCKETS - 1 else BUCKETS - 1


@njit(cache=True)
def _members(values: Any, largest: float, temperature: float, bucket: int, count: int) -> Any:
    """The ``z`` of one bucket, descending."""
    found = np.empty(count, np.float64)
    n = 0
    for value in values:
        z = (np.float64(value) - largest) / temperature
        if _bucket(z) == bucket:
            found[n] = z
            n += 1
    found.sort()
    return found[::-1]


@njit(cache=True)
def _threshold(values: Any, largest32: Any, temperature32: Any, top_k: Any, top_p: Any, min_p: Any) -> float:
    """The smallest ``z`` that all filters keep."""
    largest, temperature = np.float64(largest32), np.float64(temperature32)
    threshold = -np.inf
    limited = 0 < top_k < values.shape[0]
    if limited or top_p < 1:
        counts = np.zeros(BUCKETS, np.int64)
        mass = np.zeros(BUCKETS, np.float64)
        for value in values:
            z = (np.float64(value) - largest) / temperature
            bucket = _bucket(z)
            counts[bucket] += 1
            mass[bucket] += np.exp(z)
        kept = mass.sum()
        if limited:
            bucket, above, seen = 0, 0.0, 0
            while seen + counts[bucket] < top_k:
                seen += counts[bucket]
                above += mass[bucket]
                bucket += 1
            members = _members(values, largest, temperature, bucket, counts[bucket])
            threshold = members[top_k - seen - 1]
            kept = above
            for z in members:
                if z >= threshold:
                    kept += np.exp(z)
        if top_p < 1:
            threshold = max(threshold, _nucleus(values, largest, temperature, counts, mass, top_p * kept))
    if min_p > 0:
        # The reference compares exp(z) with min_p; so does this, for the one value where rounding could tell.
        bound = np.log(np.float64(min_p))
        slack = 1e-12
        for value in values:
            z = (np.float64(value) - largest) / temperature
            if abs(z - bound) < slack and np.exp(z) >= min_p:
                bound = min(bound, z)
        threshold = max(threshold, bound)
    return threshold


@njit(cache=True)
def _nucleus(values: Any, largest: float, temperature: float, counts: Any, mass: Any, wanted: float) -> float:
    """The smallest ``z`` for which what is above it weighs less than ``wanted``."""
    bucket, above = 0, 0.0
    while bucket < BUCKETS - 1 and above + mass[bucket] < wanted:
        above += mass[bucket]
        bucket += 1
    while counts[bucket] == 0:  # rounding can carry the search past the last filled bucket
        bucket -= 1
    members = _members(values, largest, temperature, bucket, counts[bucket])
    threshold = members[0]
    for z in members:
        if above >= wanted and z < threshold:
            break
        threshold = z
        above += np.exp(z)
    return float(threshold)


@njit(cache=True)
def _mix(x: Any) -> Any:
    x = np.uint32(x ^ (x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(cache=True)
def _race(values: Any, largest32: Any, temperature32: Any, threshold: float, seed: Any, position: Any) -> int:
    """The Gumbel-max draw among what reaches the threshold."""
    largest, temperature = np.float64(largest32), np.float64(temperature32)
    key = _mix(np.uint32(seed & 0xFFFFFFFF))
    key = _mix(np.uint32(key ^ np.uint32((seed >> 32) & 0xFFFFFFFF)))
    key = _mix(np.uint32(key ^ np.uint32(position & 0xFFFFFFFF)))
    second = _mix(np.uint32(key + np.uint32(0x9E3779B9)))
    bits = np.empty(CHUNK, np.uint32)
    best, token = -np.inf, 0
    for chunk in range(0, values.shape[0], CHUNK):
        count = min(CHUNK, values.shape[0] - chunk)
        for i in range(count):
            inner = np.uint32(np.uint32(chunk + i) + key)
            bits[i] = _mix(np.uint32(_mix(inner) ^ second))
        for i in range(count):
            z = (np.float64(values[chunk + i]) - largest) / temperature
            # No noise exceeds -log(v) <= 22.88: most of a peaked distribution ends here, without a logarithm.
            if z < threshold or z + 22.9 <= best:
                continue
            uniform = (np.float64(bits[i]) + 0.5) * 2.0**-32
            if best > -np.inf and np.exp(z - best) < uniform * (1 - 1e-9):
                continue
            score = z - np.log(-np.log1p(-uniform))
            if score > best:
                best, token = score, chunk + i
    return token
