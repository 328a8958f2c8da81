"""How is a token drawn on a GPU, in one read of the logits?

`_scan` reads them: a program a tile of 32 chunks leaves each chunk's largest logit and mass, 8 bytes for 256 in
bfloat16, and of the tile what the normaliser and the entropy need. `_finish`, a program a row, draws a chunk by these
and a token by re-reading that chunk. Three launches where rows have edits: `_edit` then writes such rows as float32.

Memory bounds the scan, and just so. Per clock and multiprocessor of an H200 (4.3 TB/s, 132 of them at 1.75 GHz) 9.3
bfloat16 logits arrive. An exponential each is 9 of 16 that the hardware has; 12.6 instructions each (sm_90, Triton 3.9,
all that a thread does over its 64 logits) are 118 of 128. Only a row whose temperature isn't 1 needs a second
exponential, and none where top_k will leave little to weigh: 15.7 instructions, 1.15 times what there is. With the
chunks' 8 bytes, reading 152k logits takes 0.07 us for 1 row, 4.7 us for 64 and 19 us for 256. `_finish` waits rather
than computes: four or five loads and reductions that depend on each other, some 3 us as long as there are no more than
two rows a multiprocessor. So 256 rows should take 1.2 to 1.4 reads; 64 rows about two, and 1 row is nothing but
launches and latency.

A filter adds some 20 steps of a bisection (`kernels.sample.triton_filters`), 0.2 us each; a flat row that top_p alone
cuts has all its chunks alive, and reads itself from the cache at each step, 10 us for 152k logits.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from kernels.sample import reference, triton_rows
from kernels.sample.reference import Samples, SamplingBatch
from kernels.sample.triton_filters import draw_filtered
from kernels.sample.triton_rows import (
    changes_of,
    finite,
    gumbel,
    inverse_of,
    keep_stats,
    left_of,
    likeliest,
    low_margin,
    measure,
    normaliser,
    octaves_of,
    tile_ids,
)
from kernels.tile import next_power_of_2

CHUNK: Final = reference.CHUNK
# Chunks to a tile: 64 logits a thread of two warps, so that what a program does besides is little, and the 8 KiB of 8
# programs are under way on each multiprocessor.
GROUP: Final = 32
# Live chunks held at a time: 16 logits a thread, so that two rows fit a multiprocessor.
LIVE: Final = 32
_TOKENS, _CHUNKS, _STATS = triton_rows.TOKENS, triton_rows.CHUNKS, triton_rows.STATS
_EDIT_BLOCK: Final = 4096


@triton.jit
def _edit(logits, edited, starts, scale, offset, dense, vocabulary, BLOCK: tl.constexpr, EDITS: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    if first < last:
        source, target = logits + row * vocabulary, dense + row * vocabulary
        ids = tile * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + ids, tl.load(source + ids, ids < vocabulary).to(tl.float32), ids < vocabulary)
        tl.debug_barrier()  # other threads than copied a logit may edit it
        for start in range(first, last, EDITS):
            places = start + tl.arange(0, EDITS)
            token = tl.load(edited + places, places < last, -1)
            here = (token >= tile * BLOCK) & (token < (tile + 1) * BLOCK)
            old = tl.load(source + token, here, 0.0).to(tl.float32)
            factor = tl.load(scale + places, here, 1.0)
            change = tl.load(offset + places, here, 0.0)
            new = tl.where(old > 0, tl.div_rn(old, factor), old * factor) + change
            tl.store(target + token, tl.where(change == float("-inf"), change, new), here)


@triton.jit
def _scan(
    logits,
    dense,
    edit_starts,
    mask,
    mask_row,
    temperature,
    top_k,
    raw_best,
    best,
    log_mass,
    stats,
    vocabulary,
    words,
    chunks,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    EDITS: tl.constexpr,
    MASKS: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    numbers = tile * GROUP + tl.arange(0, GROUP)
    ids = tile_ids(tile, CHUNK, GROUP)
    source = logits + row * vocabulary
    raw = tl.load(source + ids, ids < vocabulary, float("-inf")).to(tl.float32)
    heat, k = tl.load(temperature + row), tl.load(top_k + row)
    tops, top, octaves, slip, masses, moment = measure(raw)
    keep_stats(stats + (row * tl.num_programs(0) + tile) * _STATS, top, tl.sum(masses, 0), moment, 0.0)
    changed = heat != 1
    if EDITS or MASKS:
        tl.store(raw_best + row * chunks + numbers, tops, numbers < chunks)
        edited, masked, allowed = changes_of(edit_starts, mask, mask_row, row, words, EDITS, MASKS)
        if edited | masked:
            target = dense + row * vocabulary
            left = left_of(source, target, allowed, edited, masked, ids, ids < vocabulary, EDITS, MASKS)
            tops = tl.max(tl.max(left, 0), 1)
            top = tl.max(tops, 0)
            octaves, slip = octaves_of(left, top)
            changed = True
    inverse = inverse_of(heat)
    if changed & (heat > 0) & ((k <= 0) | (k >= vocabulary)):
        masses = tl.sum(tl.sum(tl.exp2(octaves * inverse - slip * inverse), 0), 1)
    # Relative to the chunk's own largest, lest a low temperature make a number whose fraction float32 can't hold.
    lead = (finite(top) - finite(tops)) * inverse
    found = tl.where(masses > 0, tl.log(tl.maximum(masses, 1e-37)) + lead, float("-inf"))
    tl.store(best + row * chunks + numbers, tops, numbers < chunks)
    tl.store(log_mass + row * chunks + numbers, found, numbers < chunks)


@triton.jit(do_not_specialize=["width"])
def _finish(
    logits,
    dense,
    edit_starts,
    mask,
    mask_row,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    wanted,
    raw_best,
    best,
    log_mass,
    stats,
    live,
    tokens,
    logprobs,
    entropies,
    low_margins,
    top_tokens,
    top_logprobs,
    vocabulary,
    words,
    chunks,
    tiles,
    width,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILES: tl.constexpr,
    LIVE: tl.constexpr,
    EDITS: tl.constexpr,
    MASKS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source = logits + row * vocabulary
    numbers = tl.arange(0, CHUNKS)
    inside = numbers < chunks
    peaks = tl.load(best + row * chunks + numbers, inside, float("-inf"))
    masses = tl.load(log_mass + row * chunks + numbers, inside, float("-inf"))
    heat, k = tl.load(temperature + row), tl.load(top_k + row)
    p, least = tl.load(top_p + row), tl.load(min_p + row)
    k = tl.where(k < vocabulary, k, 0)
    seed, position = tl.load(seeds + row), tl.load(positions + row)
    top, log_sum, entropy = normaliser(stats + row * tiles * _STATS, tiles, TILES)
    tl.store(entropies + row, entropy)
    edited, masked, allowed = changes_of(edit_starts, mask, mask_row, row, words, EDITS, MASKS)
    target = dense + row * vocabulary
    largest, first = tl.max(peaks, 0, return_indices=True)
    token, logprob = tl.full((), -1, tl.int32), tl.full((), float("-inf"), tl.float32)
    if largest > float("-inf"):
        inverse = inverse_of(heat)
        greedy = (heat <= 0) | (largest == float("inf"))
        threshold = tl.full((), float("-inf"), tl.float32)
        if ((k > 0) | (p < 1) | (least > 0)) & (greedy == 0):
            floor = tl.where(least > 0, largest + tl.log(tl.maximum(least, 1e-37)) / inverse, float("-inf"))
            shift = tl.full((), 0, tl.int32)
            if source.dtype.element_ty == tl.bfloat16:
                shift = tl.where(edited, shift, 16)
            view = (source, target, allowed, edited, masked, vocabulary, largest, inverse)
            chunk, score, threshold = draw_filtered(
                view, live + row * chunks, peaks, masses, k, p, floor, shift, seed, position, CHUNK, LIVE, EDITS, MASKS
            )
        else:
            scores = masses + (peaks - largest) * inverse + gumbel(seed, position, _CHUNKS, numbers)
            score, chunk = tl.max(tl.where(masses > float("-inf"), scores, float("-inf")), 0, return_indices=True)
        # Broken logits can leave nothing that weighs anything.
        greedy |= (score > float("-inf")) == 0
        chunk = tl.where(greedy, first, chunk)
        ids = chunk * CHUNK + tl.arange(0, CHUNK)
        x = left_of(source, target, allowed, edited, masked, ids, ids < vocabulary, EDITS, MASKS)
        noisy = (x - largest) * inverse + gumbel(seed, position, _TOKENS, ids)
        noisy = tl.where(x >= threshold, noisy, float("-inf"))
        _, index = tl.max(tl.where(greedy, x, noisy), 0, return_indices=True)
        token = chunk * CHUNK + index
        logprob = tl.load(source + token).to(tl.float32) - top - log_sum
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, logprob)
    raw_best += row * chunks
    tl.store(low_margins + row, low_margin(source, raw_best, top, log_sum, chunks, vocabulary, CHUNK, CHUNKS))
    count = tl.minimum(tl.load(wanted + row), width)
    if width > 0:
        peaks = tl.load(raw_best + numbers, inside, float("-inf"))
        top_tokens += row * width
        likeliest(source, peaks, top, log_sum, count, width, top_tokens, top_logprobs + row * width, vocabulary, CHUNK)


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """`kernels.sample.reference.sample` for logits in float32 or bfloat16; doesn't synchronise.

    A batch with edits needs another ``[R, V]`` of float32 meanwhile.
    """
    logits = logits.contiguous()
    (rows, vocabulary), device = logits.shape, logits.device
    chunks = triton.cdiv(vocabulary, CHUNK)
    tiles = triton.cdiv(chunks, GROUP)
    edits, masks = batch.edited.numel() > 0, len(batch.mask) > 0

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    best, log_mass, stats = new(rows, chunks), new(rows, chunks), new(rows, tiles, _STATS.value)
    raw_best = new(rows, chunks) if edits or masks else best
    live = new(rows, chunks, dtype=torch.int32)
    dense = new(rows, vocabulary) if edits else stats
    tokens, logprobs, entropies = new(rows, dtype=torch.int64), new(rows), new(rows)
    low_margins = new(rows, dtype=torch.int32)
    top_tokens, top_logprobs = new(rows, batch.width, dtype=torch.int32), new(rows, batch.width)
    if edits:
        _edit[triton.cdiv(vocabulary, _EDIT_BLOCK), rows](
            logits,
            batch.edited,
            batch.edit_starts,
            batch.edit_scale,
            batch.edit_offset,
            dense,
            vocabulary,
            BLOCK=_EDIT_BLOCK,
            EDITS=256,
            num_warps=4,
        )
    left = (logits, dense, batch.edit_starts, batch.mask, batch.mask_row)
    words = batch.mask.shape[1]
    _scan[tiles, rows](
        *left,
        batch.temperature,
        batch.top_k,
        raw_best,
        best,
        log_mass,
        stats,
        vocabulary,
        words,
        chunks,
        CHUNK=CHUNK,
        GROUP=GROUP,
        EDITS=edits,
        MASKS=masks,
        num_warps=2,
    )
    _finish[rows,](
        *left,
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.min_p,
        batch.seed,
        batch.position,
        batch.top,
        raw_best,
        best,
        log_mass,
        stats,
        live,
        tokens,
        logprobs,
        entropies,
        low_margins,
        top_tokens,
        top_logprobs,
        vocabulary,
        words,
        chunks,
        tiles,
        batch.width,
        CHUNK=CHUNK,
        CHUNKS=next_power_of_2(chunks),
        TILES=next_power_of_2(tiles),
        LIVE=LIVE,
        EDITS=edits,
        MASKS=masks,
        num_warps=16 if masks else 8,  # masks take registers, of which Ampere has too few for 8
    )
    return Samples(tokens, logprobs, entropies, low_margins, top_tokens, top_logprobs)
