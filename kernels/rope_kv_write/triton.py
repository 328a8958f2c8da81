"""How are QK-norm, RoPE and the KV write done on a GPU? In one kernel: each head is read once and written once.

Bound by memory where there are many tokens: 4 bytes an element of qkv in bfloat16, 3 of keys and values where the cache
is float8. The table of angles is a few rows for all heads of a token, which caches hold. Bound by latency where there
are few: the token's position, then its angles; the heads are under way meanwhile.

A block of 64 threads takes a tile [heads, head_dim / 2] of both halves of some heads, 512 pairs, so that each thread
loads 16 bytes of each half and a head's norm is a sum within a warp. The tiles of queries come first in the grid; those
after them take the keys and the values of the same heads: no tile is of two kinds.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from kernels import tile
from kernels.kv_cache import LayerCache
from kernels.rope_kv_write.reference import QkNorm
from kernels.tile import to_fp8

_PAIRS: Final = 512
_WARPS: Final = 2


@triton.jit
def _turned(first, second, cos, sin, weight, columns, inside, eps, DIM: tl.constexpr, NORM: tl.constexpr):
    """Both halves [heads, pairs] of some heads: normalised, if they are to be, rotated, and rounded again."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    if NORM:
        weight_a = tl.load(weight + columns, inside, 0.0).to(tl.float32)[None, :]
        weight_b = tl.load(weight + DIM // 2 + columns, inside, 0.0).to(tl.float32)[None, :]
        factor = tl.rsqrt(tl.sum(a * a + b * b, 1) / DIM + eps)[:, None]
        a, b = a * factor * weight_a, b * factor * weight_b
    return (a * cos - b * sin).to(first.dtype), (b * cos + a * sin).to(first.dtype)


@triton.jit
def _cached(x, FP8: tl.constexpr):
    """As the cache takes it; x has the dtype of qkv."""
    if FP8:
        x = to_fp8(x.to(tl.float32))
    return x


@triton.jit
def _rope_kv_write(
    qkv,
    positions,
    slots,
    table,
    key,
    value,
    query_weight,
    key_weight,
    eps,
    key_block,
    key_head,
    key_component,
    key_token,
    value_block,
    value_head,
    value_token,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NORM: tl.constexpr,
    FP8: tl.constexpr,
    TILE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (HEADS + TILE - 1) // TILE
    columns = tl.arange(0, PAIRS)
    inside = columns < DIM // 2
    turn = table + tl.load(positions + token).to(tl.int64) * DIM + columns
    cos, sin = tl.load(turn, inside, 0.0)[None, :], tl.load(turn + DIM // 2, inside, 0.0)[None, :]
    source = qkv + token * (HEADS + 2 * KV_HEADS) * DIM
    if tl.program_id(1) < tiles:
        heads = tl.program_id(1) * TILE + tl.arange(0, TILE)
        mask = (heads < HEADS)[:, None] & inside[None, :]
        at = source + heads[:, None] * DIM + columns[None, :]
        first, second = tl.load(at, mask, 0.0), tl.load(at + DIM // 2, mask, 0.0)
        first, second = _turned(first, second, cos, sin, query_weight, columns, inside, eps, DIM, NORM)
        tl.store(at, first, mask)
        tl.store(at + DIM // 2, second, mask)
    else:
        heads = (tl.program_id(1) - tiles) * TILE + tl.arange(0, TILE)
        mask = (heads < KV_HEADS)[:, None] & inside[None, :]
        slot = tl.load(slots + token).to(tl.int32)
        block, offset = (slot // BLOCK_SIZE).to(tl.int64), slot % BLOCK_SIZE
        at = source + (HEADS + heads[:, None]) * DIM + columns[None, :]
        first, second = tl.load(at, mask, 0.0), tl.load(at + DIM // 2, mask, 0.0)
        at += KV_HEADS * DIM
        value_first, value_second = tl.load(at, mask, 0.0), tl.load(at + DIM // 2, mask, 0.0)
        first, second = _turned(first, second, cos, sin, key_weight, columns, inside, eps, DIM, NORM)
        to = key + block * key_block + offset * key_token + heads[:, None] * key_head
        to += columns[None, :] * key_component
        tl.store(to, _cached(first, FP8), mask)
        tl.store(to + DIM // 2 * key_component, _cached(second, FP8), mask)
        to = value + block * value_block + offset * value_token + heads[:, None] * value_head + columns[None, :]
        tl.store(to, _cached(value_first, FP8), mask)
        tl.store(to + DIM // 2, _cached(value_second, FP8), mask)


def rope_kv_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor,
    cache: LayerCache,
    norm: QkNorm | None = None,
) -> None:
    """As the reference's, of a contiguous qkv; the cache has qkv's dtype or is float8, and fewer than 2^31 slots."""
    dim, kv_heads = cache.head_dim, cache.kv_heads
    heads = qkv.shape[1] // dim - 2 * kv_heads
    pairs = tile.next_power_of_2(dim // 2)
    rows = min(max(1, _PAIRS // pairs), tile.next_power_of_2(max(heads, kv_heads)))
    tiles = triton.cdiv(heads, rows) + triton.cdiv(kv_heads, rows)
    key_block, key_head, key_component, key_token = cache.key.stride()
    value_block, value_head, value_token, _ = cache.value.stride()
    _rope_kv_write[(qkv.shape[0], tiles)](
        qkv,
        positions,
        slots,
        table,
        cache.key,
        cache.value,
        qkv if norm is None else norm.query,
        qkv if norm is None else norm.key,
        0.0 if norm is None else norm.eps,
        key_block,
        key_head,
        key_component,
        key_token,
        value_block,
        value_head,
        value_token,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        BLOCK_SIZE=cache.block_size,
        NORM=norm is not None,
        FP8=cache.key.dtype == torch.float8_e4m3fn,
        TILE=rows,
        PAIRS=pairs,
        num_warps=_WARPS,
    )
