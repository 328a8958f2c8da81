"""What happens to query, key and value between their projection and attention?

Qwen3's RMSNorm per head (where the model has it), rotary embedding of query and key (Su et al. 2021, in the
half-split order of Llama), and the write of key and value into the cache. float32 inside, rounded once.
"""

from dataclasses import dataclass
from typing import Final

import torch

from kernels.kv_cache import LayerCache, allocate, token_major

TOLERANCE: Final = {torch.float32: 4e-6, torch.bfloat16: 3.2e-2}


@dataclass(frozen=True, slots=True)
class QkNorm:
    """Weights [head_dim] of the norms of each query and each key head."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _cached(x: torch.Tensor, computed: torch.dtype, cached: torch.dtype) -> torch.Tensor:
    """Rounded as a query is, and again where the cache's dtype is narrower; float8 saturates in every torch."""
    x = x.to(computed)
    limit = torch.finfo(cached).max
    return x.clamp(-limit, limit).to(cached) if cached.itemsize == 1 else x.to(cached)


def rope_kv_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor,
    cache: LayerCache,
    norm: QkNorm | None = None,
) -> None:
    """Rotate the queries of qkv [T, (heads + 2 KV heads) head_dim] in place; write keys and values to their slots.

    positions [T] int32 are rows of ``table`` [positions, head_dim] float32: cosines, then sines, of half a head
    each. slots [T] int64. The key part of ``qkv`` is left undefined.
    """
    tokens, kv, dim = qkv.shape[0], cache.kv_heads, cache.head_dim
    heads = qkv.view(tokens, -1, dim)
    query, key, value = heads.float().split([heads.shape[1] - 2 * kv, kv, kv], dim=1)
    if norm is not None:
        query, key = _norm(query, norm.query, norm.eps), _norm(key, norm.key, norm.eps)
    cos, sin = table[positions.long()].unsqueeze(1).chunk(2, dim=-1)
    heads[:, : query.shape[1]] = _rotate(query, cos, sin).to(qkv.dtype)
    block, offset = slots // cache.block_size, slots % cache.block_size
    cache.key[block, :, :, offset] = _cached(_rotate(key, cos, sin), qkv.dtype, cache.key.dtype)
    cache.value[block, :, offset, :dim] = _cached(value, qkv.dtype, cache.value.dtype)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Arguments of `rope_kv_write`."""

    qkv: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    table: torch.Tensor
    cache: LayerCache
    norm: QkNorm | None


def inputs(
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    seed: int,
    *,
    norm: bool = False,
    cache_dtype: torch.dtype | None = None,
) -> Inputs:
    """Random inputs: distinct slots in blocks of 5 tokens, positions up to 50.

    With a ``cache_dtype``, which may be float8, the cache lies as on a GPU.
    """
    draw = torch.Generator().manual_seed(seed)
    make = token_major if cache_dtype else allocate
    cache = make(tokens + 2, kv_heads, head_dim, 5, cache_dtype or dtype, torch.device("cpu"))
    angles = torch.rand(50, head_dim // 2, generator=draw) * 6
    weights = 1 + 0.2 * torch.randn(2, head_dim, generator=draw)
    return Inputs(
        qkv=torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, generator=draw).to(dtype),
        positions=torch.randint(50, (tokens,), generator=draw, dtype=torch.int32),
        slots=torch.randperm(5 * (tokens + 2), generator=draw)[:tokens],
        table=torch.cat((angles.cos(), angles.sin()), dim=-1),
        cache=cache,
        norm=QkNorm(weights[0].to(dtype), weights[1].to(dtype), 1e-6) if norm else None,
    )
