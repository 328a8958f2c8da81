"""How are QK-norm, RoPE and the KV write computed on a CPU? One pass over the heads of each token.

2,048 tokens of 6 + 2 x 2 heads of 64, bf16, on two cores with AVX2: 0.35 ms, 15 GB/s of the 18 to 21 that DRAM gives:
keys are stored with their tokens innermost, so that each component is a write of its own.
"""

from typing import Any, Final

import numpy as np
import torch
from numba import njit, prange

from kernels import simd
from kernels.kv_cache import LayerCache
from kernels.rope_kv_write.reference import QkNorm

# Below this many elements one thread is faster than waking the others.
PARALLEL: Final = 1 << 15


def rope_kv_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor,
    cache: LayerCache,
    norm: QkNorm | None = None,
) -> None:
    """As the reference's, of a contiguous qkv."""
    write(
        simd.tag_of(qkv.dtype),
        simd.SIZES[qkv.dtype],
        qkv.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        table.data_ptr(),
        cache.key.data_ptr(),
        cache.value.data_ptr(),
        cache.block_size,
        cache.key.shape[3],
        cache.value.shape[3],
        cache.kv_heads,
        qkv.shape[1] // cache.head_dim - 2 * cache.kv_heads,
        cache.head_dim,
        0 if norm is None else norm.query.data_ptr(),
        0 if norm is None else norm.key.data_ptr(),
        np.float32(0 if norm is None else norm.eps),
        qkv.shape[0],
    )


@njit(cache=True, fastmath=simd.FASTMATH)
def _norm_factor(tag: Any, size: int, head: int, dim: int, eps: Any) -> Any:
    squares = simd.splat(np.float32(0))
    for i in range(0, dim, simd.LANES):
        part = simd.load_part(head + i * size, tag, dim - i)
        squares = simd.fma(part, part, squares)
    return np.float32(1) / np.sqrt(simd.lanes_sum(squares) / np.float32(dim) + eps)


@njit(cache=True, fastmath=simd.FASTMATH)
def _head(tag: Any, size: int, head: int, dim: int, turn: int, weight: int, eps: Any) -> None:
    """Normalise (if there is a weight) and rotate one head in place."""
    half = dim // 2
    factor = simd.splat(_norm_factor(tag, size, head, dim, eps) if weight != 0 else np.float32(1))
    minus = simd.splat(np.float32(-1))
    for i in range(0, half, simd.LANES):
        n = half - i
        a = simd.mul(simd.load_part(head + i * size, tag, n), factor)
        b = simd.mul(simd.load_part(head + (half + i) * size, tag, n), factor)
        if weight != 0:
            a = simd.mul(a, simd.load_part(weight + i * size, tag, n))
            b = simd.mul(b, simd.load_part(weight + (half + i) * size, tag, n))
        cos = simd.load_part(turn + i * 4, np.float32(0), n)
        sin = simd.load_part(turn + (half + i) * 4, np.float32(0), n)
        rotated = simd.fma(a, cos, simd.mul(minus, simd.mul(b, sin)))
        simd.store_part(head + (half + i) * size, simd.fma(b, cos, simd.mul(a, sin)), tag, n)
        simd.store_part(head + i * size, rotated, tag, n)


@njit(cache=True, fastmath=simd.FASTMATH)
def _token(
    tag: Any,
    size: int,
    qkv: int,
    turn: int,
    slot: int,
    key: int,
    value: int,
    block_size: int,
    key_stride: int,
    value_stride: int,
    kv_heads: int,
    heads: int,
    dim: int,
    query_weight: int,
    key_weight: int,
    eps: Any,
) -> None:
    block, offset = slot // block_size, slot % block_size
    for h in range(heads):
        _head(tag, size, qkv + h * dim * size, dim, turn, query_weight, eps)
    for h in range(kv_heads):
        source = qkv + (heads + h) * dim * size
        _head(tag, size, source, dim, turn, key_weight, eps)
        target = key + ((block * kv_heads + h) * dim * key_stride + offset) * size
        for d in range(dim):
            simd.copy(target + d * key_stride * size, source + d * size, tag)
        source = qkv + (heads + kv_heads + h) * dim * size
        target = value + ((block * kv_heads + h) * block_size + offset) * value_stride * size
        for d in range(dim):
            simd.copy(target + d * size, source + d * size, tag)


@njit(cache=True, fastmath=simd.FASTMATH)
def _tokens(
    tag: Any,
    size: int,
    qkv: int,
    positions: int,
    slots: int,
    table: int,
    key: int,
    value: int,
    block_size: int,
    key_stride: int,
    value_stride: int,
    kv_heads: int,
    heads: int,
    dim: int,
    query_weight: int,
    key_weight: int,
    eps: Any,
    tokens: int,
) -> None:
    for t in range(tokens):
        _token(
            tag,
            size,
            qkv + t * (heads + 2 * kv_heads) * dim * size,
            table + simd.get_i32(positions + 4 * t) * dim * 4,
            simd.get_i64(slots + 8 * t),
            key,
            value,
            block_size,
            key_stride,
            value_stride,
            kv_heads,
            heads,
            dim,
            query_weight,
            key_weight,
            eps,
        )


@njit(parallel=True, cache=True, fastmath=simd.FASTMATH)
def _tokens_parallel(
    tag: Any,
    size: int,
    qkv: int,
    positions: int,
    slots: int,
    table: int,
    key: int,
    value: int,
    block_size: int,
    key_stride: int,
    value_stride: int,
    kv_heads: int,
    heads: int,
    dim: int,
    query_weight: int,
    key_weight: int,
    eps: Any,
    tokens: int,
) -> None:
    for t in prange(tokens):
        _token(
            tag,
            size,
            qkv + t * (heads + 2 * kv_heads) * dim * size,
            table + simd.get_i32(positions + 4 * t) * dim * 4,
            simd.get_i64(slots + 8 * t),
            key,
            value,
            block_size,
            key_stride,
            value_stride,
            kv_heads,
            heads,
            dim,
            query_weight,
            key_weight,
            eps,
        )


@njit(cache=True, fastmath=simd.FASTMATH)
def write(
    tag: Any,
    size: int,
    qkv: int,
    positions: int,
    slots: int,
    table: int,
    key: int,
    value: int,
    block_size: int,
    key_stride: int,
    value_stride: int,
    kv_heads: int,
    heads: int,
    dim: int,
    query_weight: int,
    key_weight: int,
    eps: Any,
    tokens: int,
) -> None:
    """As `rope_kv_write`, by addresses."""
    if tokens * (heads + 2 * kv_heads) * dim >= PARALLEL:
        _tokens_parallel(
            tag,
            size,
            qkv,
            positions,
            slots,
            table,
            key,
            value,
            block_size,
            key_stride,
            value_stride,
            kv_heads,
            heads,
            dim,
            query_weight,
            key_weight,
            eps,
            tokens,
        )
    else:
        _tokens(
            tag,
            size,
            qkv,
            positions,
            slots,
            table,
            key,
            value,
            block_size,
            key_stride,
            value_stride,
            kv_heads,
            heads,
            dim,
            query_weight,
            key_weight,
            eps,
            tokens,
        )
