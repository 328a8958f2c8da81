"""Paged attention: which provider?"""

import torch

from kernels import simd
from kernels.kv_cache import LayerCache
from kernels.paged_attention import numba, reference
from kernels.paged_attention.reference import AttentionMetadata

__all__ = ["AttentionMetadata", "paged_attention"]


def paged_attention(
    query: torch.Tensor, cache: LayerCache, batch: AttentionMetadata, *, window: int, scale: float
) -> torch.Tensor:
    """`reference.paged_attention` by the fastest provider for the query's device and dtype."""
    provider = numba.paged_attention if simd.supported(query) else reference.paged_attention
    return provider(query, cache, batch, window=window, scale=scale)
