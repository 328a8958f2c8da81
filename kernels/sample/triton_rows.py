"""What do the GPU kernels that read rows of logits share: what a tile leaves, what rows make of it, noise, edits?"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import Final

import triton
import triton.language as tl

from kernels.sample import reference
from kernels.tile import LN2, LOG2E

# What a tile leaves: its largest logit, sum(2 ** z) and sum(2 ** z * z) of the octaves z above it, and a count.
STATS: Final = tl.constexpr(4)
# The two levels of a draw.
TOKENS: Final = tl.constexpr(reference.TOKENS)
CHUNKS: Final = tl.constexpr(reference.CHUNKS)
LOW_MARGIN: Final = tl.constexpr(reference.LOW_MARGIN)
# What is likelier than this leaves too little for all others together.
_SURE: Final = tl.constexpr((1 + reference.LOW_MARGIN) / 2)


@triton.jit
def _mix(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def gumbel(seed, position, level, index):
    """`reference.gumbel` in float32, without loss where it is large: at small ``v``."""
    key = _mix((seed & 0xFFFFFFFF).to(tl.uint32))
    key = _mix(key ^ (seed >> 32).to(tl.uint32))
    key = _mix(key ^ position.to(tl.uint32))
    key = _mix(key ^ level)
    bits = _mix(_mix(index.to(tl.uint32) + key) ^ _mix(key + 0x9E3779B9))
    v = (bits.to(tl.float32) + 0.5) * (1 / 4294967296)
    rest = ((bits ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * (1 / 4294967296)  # 1 - v
    series = v * (1 + v * (0.5 + v * (0.33333333 + v * (0.25 + v * 0.2))))
    return -tl.log(tl.where(v < 0.0625, series, -tl.log(rest)))


@triton.jit
def finite(top):
    """What logits are taken relative to: 0 where they are all -inf, as -inf - -inf is a NaN, or a padding like it."""
    return tl.where(top > -1e30, top, 0.0)


@triton.jit
def tile_ids(tile, CHUNK: tl.constexpr, GROUP: tl.constexpr):
    """A tile's ids, [CHUNK / 32, GROUP, 32]: 4 threads share a chunk, so that its sum takes 2 shuffles and not 16.

    These load 64 bytes of it at a time, two sectors.
    """
    chunks = tile * GROUP + tl.arange(0, GROUP)
    parts, places = tl.arange(0, CHUNK // 32), tl.arange(0, 32)
    return chunks[None, :, None] * CHUNK + parts[:, None, None] * 32 + places[None, None, :]


@triton.jit
def octaves_of(x, top):
    """How many octaves each logit is above the largest of a tile, plus a slip, that is the largest's own.

    One operation a logit; the slip is what rounding the subtrahend makes of it.
    """
    pivot = finite(top) * LOG2E
    return tl.fma(x, LOG2E, -pivot), tl.fma(finite(top), LOG2E, -pivot)


@triton.jit
def measure(raw):
    """Of a tile of chunks: each chunk's largest, the tile's, `octaves_of`, sums, moment."""
    tops = tl.max(tl.max(raw, 0), 1)
    tops = tl.where(tops == tops, tops, float("-inf"))
    top = tl.max(tops, 0)
    octaves, slip = octaves_of(raw, top)
    weights = tl.exp2(octaves)
    sums = tl.sum(tl.sum(weights, 0), 1) * tl.exp2(-slip)
    moment = tl.sum(weights * tl.maximum(octaves, -1e4)) * tl.exp2(-slip) - slip * tl.sum(sums, 0)
    return tops, top, octaves, slip, sums, moment


@triton.jit
def keep_stats(stats, top, total, moment, count):
    """A tile's, for `normaliser`."""
    tl.store(stats, top)
    tl.store(stats + 1, total)
    tl.store(stats + 2, moment)
    tl.store(stats + 3, count)


@triton.jit
def normaliser(stats, tiles, TILES: tl.constexpr):
    """A row's largest logit, log(sum(exp)) relative to it, and entropy, by its tiles' stats."""
    places = tl.arange(0, TILES)
    inside = places < tiles
    tops = tl.load(stats + places * STATS, inside, float("-inf"))
    sums = tl.load(stats + places * STATS + 1, inside, 0.0)
    moments = tl.load(stats + places * STATS + 2, inside, 0.0)
    top = finite(tl.max(tops, 0))
    lag = (tl.where(tops > -1e30, tops, top) - top) * LOG2E
    scale = tl.exp2(lag)
    total = tl.sum(sums * scale, 0)
    log_total = tl.log2(tl.where(total <= 0, 1e-37, total))
    entropy = log_total - tl.sum((moments + lag * sums) * scale, 0) / total
    return top, log_total * LN2, tl.maximum(entropy * LN2, 0.0)


@triton.jit
def low_margin(source, best, top, log_sum, chunks, vocabulary, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """1 where a token beside the likeliest is closer to it than `LOW_MARGIN`: mostly its own probability tells."""
    first = tl.exp(-log_sum)
    low = (first < LOW_MARGIN).to(tl.int32)
    if (first >= LOW_MARGIN) & (first <= _SURE):
        bar = top + log_sum + tl.log(tl.maximum(first - LOW_MARGIN, 1e-37))
        numbers = tl.arange(0, CHUNKS)
        peaks = tl.load(best + numbers, numbers < chunks, float("-inf"))
        _, chunk = tl.max(peaks, 0, return_indices=True)
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(source + ids, ids < vocabulary, float("-inf")).to(tl.float32)
        others = tl.sum((peaks > bar).to(tl.int32), 0) + tl.sum((x > bar).to(tl.int32), 0)
        low = (others > 2).to(tl.int32)  # the likeliest itself is in both
    return low


@triton.jit
def likeliest(source, best, top, log_sum, wanted, width, tokens, logprobs, vocabulary, CHUNK: tl.constexpr):
    """`reference.likeliest` by the chunks' largest logits: each place re-reads the chunk that has it."""
    numbers = tl.arange(0, best.shape[0])
    last = float("inf")
    last_token = -1
    for place in range(wanted):
        value, chunk = tl.max(best, 0, return_indices=True)
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(source + ids, ids < vocabulary, float("-inf")).to(tl.float32)
        left = (x < last) | ((x == last) & (ids > last_token))
        _, index = tl.max(tl.where(left & (x == x), x, float("-inf")), 0, return_indices=True)
        last = value
        last_token = chunk * CHUNK + index
        left = (x < last) | ((x == last) & (ids > last_token))
        best = tl.where(numbers == chunk, tl.max(tl.where(left & (x == x), x, float("-inf")), 0), best)
        tl.store(tokens + place, tl.where(value > float("-inf"), last_token, -1))
        tl.store(logprobs + place, tl.where(value > float("-inf"), value - top - log_sum, float("-inf")))
    for place in range(wanted, width):
        tl.store(tokens + place, -1)
        tl.store(logprobs + place, float("-inf"))


@triton.jit
def changes_of(edit_starts, mask, mask_row, row, words, EDITS: tl.constexpr, MASKS: tl.constexpr):
    """Whether a row has edits, whether it has a mask, and where that lies."""
    edited, masked = tl.full((), 0, tl.int1), tl.full((), 0, tl.int1)
    if EDITS:
        edited = tl.load(edit_starts + row) < tl.load(edit_starts + row + 1)
    if MASKS:
        place = tl.load(mask_row + row)
        masked = place >= 0
        mask += tl.maximum(place, 0).to(tl.int64) * words
    return edited, masked, mask


@triton.jit
def left_of(source, dense, allowed, edited, masked, ids, inside, EDITS: tl.constexpr, MASKS: tl.constexpr):
    """What edits and mask leave of a row's logits, in float32. A NaN is -inf."""
    if EDITS:
        if edited:
            x = tl.load(dense + ids, inside, float("-inf"))
        else:
            x = tl.load(source + ids, inside, float("-inf")).to(tl.float32)
    else:
        x = tl.load(source + ids, inside, float("-inf")).to(tl.float32)
    if MASKS:  # noqa: SIM102 (this one is settled when the kernel is compiled)
        if masked:
            words = tl.load(allowed + ids // 32, inside, 0)
            x = tl.where((words >> (ids % 32)) & 1 != 0, x, float("-inf"))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def inverse_of(temperature):
    """1 / temperature, not above what a slip may be multiplied by."""
    return tl.minimum(1 / tl.where(temperature > 0, tl.maximum(temperature, 1e-10), 1.0), 1e10)
