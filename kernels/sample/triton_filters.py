"""Which logits of a row do its filters keep, and what is drawn of them, without a sort?

A threshold is found by bisection on float32's bits in their order, which for bfloat16 logits are 16: at most so many
steps. First on the chunks' largest logits, for a bound that leaves few chunks alive: the k largest of these show where
the k largest tokens must be. Then on the logits of the live chunks, of which the first ``LIVE`` stay in registers.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import Final

import triton
import triton.language as tl

from kernels.sample import triton_rows
from kernels.sample.triton_rows import gumbel, left_of
from kernels.tile import LOG2E

_CHUNKS: Final = triton_rows.CHUNKS
# The key of -inf.
_LOWEST: Final = tl.constexpr(-0x7F800001)


@triton.jit
def _key(x):
    """An int32 in the order of the floats."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _float(key, shift):
    """The float of a key without its last ``shift`` bits, which a bfloat16 doesn't have."""
    key = (key << shift) | tl.where(key < 0, (1 << shift) - 1, 0)
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _middle(low, high):
    """Rounded up; what is between two int32 may be more than one holds."""
    return low + ((high.to(tl.uint32) - low.to(tl.uint32) + 1) >> 1).to(tl.int32)


@triton.jit
def _step(low, high, middle, found, want):
    """The bracket's halves: above the middle if that reaches what is wanted; nothing is closer than an exact hit."""
    reached = found >= want
    return tl.where(reached, middle, low), tl.where(found == want, middle, tl.where(reached, high, middle - 1))


@triton.jit
def _group(view, live, count, group, CHUNK: tl.constexpr, LIVE: tl.constexpr, EDITS: tl.constexpr, MASKS: tl.constexpr):
    """Some of the live chunks: their numbers, logits and the logits' exp(z)."""
    source, dense, allowed, edited, masked, vocabulary, largest, inverse = view
    places = group * LIVE + tl.arange(0, LIVE)
    numbers = tl.load(live + places, places < count, 0)
    ids = numbers[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    inside = (places < count)[:, None] & (ids < vocabulary)
    x = left_of(source, dense, allowed, edited, masked, ids, inside, EDITS, MASKS)
    return numbers, x, tl.exp2((x - largest) * inverse * LOG2E)


@triton.jit
def _highest(
    view,
    live,
    count,
    x,
    weights,
    low,
    high,
    want,
    shift,
    COUNTED: tl.constexpr,
    CHUNK: tl.constexpr,
    LIVE: tl.constexpr,
    EDITS: tl.constexpr,
    MASKS: tl.constexpr,
):
    """The highest key from which on up the live logits are, or weigh, what is wanted. ``x`` are the first group's."""
    while low < high:
        middle = _middle(low, high)
        bar = _float(middle, shift)
        found = tl.sum(tl.where(x >= bar, 1.0 if COUNTED else weights, 0.0))
        for group in range(1, tl.cdiv(count, LIVE)):
            _, more, heavy = _group(view, live, count, group, CHUNK, LIVE, EDITS, MASKS)
            found += tl.sum(tl.where(more >= bar, 1.0 if COUNTED else heavy, 0.0))
        low, high = _step(low, high, middle, found, want)
    return low


@triton.jit
def draw_filtered(
    view,
    live,
    best,
    log_mass,
    k,
    p,
    floor,
    shift,
    seed,
    position,
    CHUNK: tl.constexpr,
    LIVE: tl.constexpr,
    EDITS: tl.constexpr,
    MASKS: tl.constexpr,
):
    """The chunk that is drawn of what the filters keep, its score, and the smallest logit that they keep."""
    largest, inverse = view[6], view[7]
    counted, weighed = k > 0, p < 1
    # As many tokens are above a bar as chunks have their largest there, and they weigh no less.
    least = tl.where(best > float("-inf"), 1.0, 0.0)
    if not counted:
        least = tl.exp2((best - largest) * inverse * LOG2E)
    total = tl.sum(tl.where(best > float("-inf"), tl.exp2((log_mass + (best - largest) * inverse) * LOG2E), 0.0), 0)
    want = tl.where(counted, k.to(tl.float32), p * total)
    low, high = (tl.full((), _LOWEST, tl.int32) >> shift) + 1, _key(largest) >> shift
    top = high
    crowd = best.shape[0]
    while (counted | weighed) & (low < high) & (crowd > LIVE):
        middle = _middle(low, high)
        above = best >= _float(middle, shift)
        low, high = _step(low, high, middle, tl.sum(tl.where(above, least, 0.0), 0), want)
        crowd = tl.where(low == middle, tl.sum(above.to(tl.int32), 0), crowd)
    if not (counted | weighed):
        low = tl.maximum(low, _key(floor) >> shift)
    alive = best >= _float(low, shift)
    ranks = tl.cumsum(alive.to(tl.int32), 0)
    count = tl.sum(alive.to(tl.int32), 0)
    tl.store(live + ranks - 1, tl.arange(0, best.shape[0]), alive)
    tl.debug_barrier()  # other threads than stored them read them
    _, x, weights = _group(view, live, count, 0, CHUNK, LIVE, EDITS, MASKS)
    if counted:
        low = _highest(view, live, count, x, weights, low, top, want, shift, True, CHUNK, LIVE, EDITS, MASKS)
        if weighed:
            total = tl.sum(tl.where(x >= _float(low, shift), weights, 0.0))
            for group in range(1, tl.cdiv(count, LIVE)):
                _, more, heavy = _group(view, live, count, group, CHUNK, LIVE, EDITS, MASKS)
                total += tl.sum(tl.where(more >= _float(low, shift), heavy, 0.0))
    if weighed:
        low = _highest(view, live, count, x, weights, low, top, p * total, shift, False, CHUNK, LIVE, EDITS, MASKS)
    threshold = tl.maximum(_float(low, shift), floor)
    drawn, score = tl.full((), 0, tl.int32), tl.full((), float("-inf"), tl.float32)
    for group in range(0, tl.cdiv(count, LIVE)):
        numbers, x, weights = _group(view, live, count, group, CHUNK, LIVE, EDITS, MASKS)
        mass = tl.sum(tl.where(x >= threshold, weights, 0.0), 1)
        scores = tl.log(tl.maximum(mass, 1e-37)) + gumbel(seed, position, _CHUNKS, numbers)
        own, place = tl.max(tl.where(mass > 0, scores, float("-inf")), 0, return_indices=True)
        number = tl.sum(tl.where(tl.arange(0, LIVE) == place, numbers, 0), 0)
        drawn, score = tl.where(own > score, number, drawn), tl.maximum(own, score)
    return drawn, score, threshold
