"""How is paged attention computed on a CPU?

One work item is a KV head and a tile of a sequence's query tokens: all query heads that share the KV head times
`TILE` tokens are rows against the same keys, 16 keys at a time, with the online softmax of FlashAttention (Dao et al.
2022). Scores need no horizontal sums because keys lie with their tokens innermost (`kernels.kv_cache`).

On two cores with AVX2, bf16: decode of 64 sequences of 192 tokens, three query heads to a KV head, at 12 GB/s of the 18
to 21 that DRAM gives; prefill of 512 tokens at 95 GFLOP/s of 190.
"""

from typing import Any, Final

import numpy as np
import torch
from numba import njit, prange

from kernels import simd
from kernels.kv_cache import LayerCache
from kernels.paged_attention.reference import AttentionMetadata

TILE: Final = 16


def paged_attention(
    query: torch.Tensor, cache: LayerCache, batch: AttentionMetadata, *, window: int, scale: float
) -> torch.Tensor:
    """As the reference's."""
    out = torch.empty(query.shape, dtype=query.dtype)
    kv_heads, dim = cache.kv_heads, cache.head_dim
    attend(
        simd.tag_of(query.dtype),
        simd.SIZES[query.dtype],
        query.data_ptr(),
        query.stride(0),
        out.data_ptr(),
        cache.key.data_ptr(),
        cache.value.data_ptr(),
        cache.block_size,
        cache.key.shape[3],
        dim,
        cache.value.shape[3],
        kv_heads,
        query.shape[1] // (kv_heads * dim),
        batch.block_tables.data_ptr(),
        batch.block_tables.shape[1],
        batch.query_starts.data_ptr(),
        batch.context_lengths.data_ptr(),
        batch.context_lengths.shape[0],
        window,
        np.float32(scale),
    )
    return out


@njit(parallel=True, cache=True, fastmath=simd.FASTMATH)
def attend(
    tag: Any,
    size: int,
    query: int,
    query_stride: int,
    out: int,
    key: int,
    value: int,
    block_size: int,
    key_stride: int,
    dim: int,
    value_stride: int,
    kv_heads: int,
    group: int,
    tables: int,
    table_stride: int,
    starts: int,
    contexts: int,
    sequences: int,
    window: int,
    scale: Any,
) -> None:
    """All work items. The strides count elements; ``size`` is that of an element in bytes."""
    tiles = 0
    for s in range(sequences):
        tiles += (simd.get_i32(starts + 4 * (s + 1)) - simd.get_i32(starts + 4 * s) + TILE - 1) // TILE
    owner, first = np.empty(tiles, np.int64), np.empty(tiles, np.int64)
    tile = 0
    for s in range(sequences):
        for row in range(0, simd.get_i32(starts + 4 * (s + 1)) - simd.get_i32(starts + 4 * s), TILE):
            owner[tile], first[tile] = s, row
            tile += 1
    for item in prange(tiles * kv_heads):
        # Threads get consecutive items: pairing light (early) with heavy (late) tiles evens their shares.
        index = item // kv_heads
        index = index // 2 if index % 2 == 0 else tiles - 1 - index // 2
        s, head = owner[index], item % kv_heads
        begin = simd.get_i32(starts + 4 * s)
        count = simd.get_i32(starts + 4 * (s + 1)) - begin
        _attend_tile(
            tag,
            size,
            query + ((begin + first[index]) * query_stride + head * group * dim) * size,
            query_stride,
            out + ((begin + first[index]) * kv_heads + head) * group * dim * size,
            kv_heads * group * dim,
            key + head * dim * key_stride * size,
            value + head * block_size * value_stride * size,
            block_size,
            key_stride,
            dim,
            value_stride,
            kv_heads,
            group,
            tables + 4 * s * table_stride,
            simd.get_i32(contexts + 4 * s) - count + first[index],
            min(TILE, count - first[index]),
            window,
            scale,
        )


@njit(cache=True, fastmath=simd.FASTMATH)
def _attend_tile(
    tag: Any,
    size: int,
    query: int,
    query_stride: int,
    out: int,
    out_stride: int,
    key: int,
    value: int,
    block_size: int,
    key_stride: int,
    dim: int,
    value_stride: int,
    kv_heads: int,
    group: int,
    table: int,
    position: int,
    tokens: int,
    window: int,
    scale: Any,
) -> None:
    """One tile: ``tokens`` query tokens, the first at ``position``, with the ``group`` heads of one KV head."""
    rows = tokens * group
    queries = np.empty((rows, dim), np.float32)
    sums = np.zeros((rows, value_stride), np.float32)
    weights = np.empty((rows, simd.LANES), np.float32)
    largest = np.full(rows, -np.inf, np.float32)
    total = np.zeros(rows, np.float32)
    q, acc, p = simd.address_of(queries), simd.address_of(sums), simd.address_of(weights)
    for row in range(rows):
        source = query + (row // group * query_stride + row % group * dim) * size
        for d in range(0, dim, simd.LANES):
            part = simd.mul(simd.load_part(source + d * size, tag, dim - d), simd.splat(scale))
            simd.store_part(q + (row * dim + d) * 4, part, np.float32(0), dim - d)

    end = position + tokens
    begin = max(0, position - window + 1) if window > 0 else 0
    key_step, value_step = kv_heads * dim * key_stride * size, kv_heads * block_size * value_stride * size
    blocks = (end + block_size - 1) // block_size
    for block in range(begin // block_size, blocks):
        number = simd.get_i32(table + 4 * block)
        block_key = key + number * key_step
        block_value = value + number * value_step
        if block + 1 < blocks:  # blocks lie anywhere: nothing else could tell which comes next
            number = simd.get_i32(table + 4 * block + 4)
            following = key + number * key_step
            simd.prefetch(following, following + dim * key_stride * size)
            following = value + number * value_step
            simd.prefetch(following, following + block_size * value_stride * size)
        for offset in range(0, block_size, simd.LANES):
            base = block * block_size + offset
            last = min(min(simd.LANES, block_size - offset), end - base)
            start = max(0, begin - base)
            if start < last:
                _scores(tag, size, block_key + offset * size, key_stride, dim, rows, q, p)
                for row in range(rows):
                    own = position + row // group
                    low = max(0, own - window + 1 - base) if window > 0 else 0
                    _soften(p + row * 64, low, min(last, own + 1 - base), row, largest, total, acc, value_stride)
                address = block_value + offset * value_stride * size
                _gather(tag, size, address, value_stride, rows, p, acc, start, last)

    for row in range(rows):
        target = out + (row // group * out_stride + row % group * dim) * size
        inverse = simd.splat(np.float32(1) / total[row])
        for d in range(0, dim, simd.LANES):
            result = simd.mul(simd.load(acc + (row * value_stride + d) * 4, np.float32(0)), inverse)
            simd.store_part(target + d * size, result, tag, dim - d)
    simd.keep(queries)
    simd.keep(sums)
    simd.keep(weights)


@njit(cache=True, fastmath=simd.FASTMATH)
def _scores(tag: Any, size: int, key: int, key_stride: int, dim: int, rows: int, q: int, p: int) -> None:
    """Scores of 16 keys for every row."""
    for row in range(0, rows, 4):
        simd.weighted_sums(
            tag, rows - row, q + row * dim * 4, dim * 4, key, key_stride * size, dim, p + row * 64, 64, 0
        )


@njit(cache=True, fastmath=simd.FASTMATH)
def _soften(p: int, first: int, last: int, row: int, largest: Any, total: Any, acc: int, value_stride: int) -> None:
    """Turn a row's 16 scores into weights relative to the largest score so far; rescale what was summed before."""
    if first >= last:
        simd.store(p, simd.splat(np.float32(0)))
        return
    scores = simd.keep_lanes(simd.load(p, np.float32(0)), first, last, np.float32(-np.inf))
    top = simd.lanes_max(scores)
    if top > largest[row]:
        factor = np.float32(np.exp(largest[row] - top))
        largest[row] = top
        total[row] *= factor
        for d in range(0, value_stride, simd.LANES):
            address = acc + (row * value_stride + d) * 4
            simd.store(address, simd.mul(simd.load(address, np.float32(0)), simd.splat(factor)))
    weights = simd.exp(simd.add(scores, simd.splat(-largest[row])))
    total[row] += simd.lanes_sum(weights)
    simd.store(p, weights)


@njit(cache=True, fastmath=simd.FASTMATH)
def _gather(
    tag: Any, size: int, value: int, value_stride: int, rows: int, p: int, acc: int, first: int, last: int
) -> None:
    """Add the weighted values of keys ``first`` to ``last - 1`` to every row's sums.

    Only those: other slots may hold anything, and 0 x NaN is NaN.
    """
    step = value_stride * size
    for row in range(0, rows, 4):
        for d in range(0, value_stride, simd.LANES):
            simd.weighted_sums(
                tag,
                rows - row,
                p + row * 64 + first * 4,
                64,
                value + first * step + d * size,
                step,
                last - first,
                acc + (row * value_stride + d) * 4,
                value_stride * 4,
                1,
            )
