"""Paged attention: which provider?"""

from collections.abc import Iterable

import torch

from kernels import device, simd
from kernels.kv_cache import LayerCache
from kernels.paged_attention import numba, reference
from kernels.paged_attention.reference import AttentionMetadata

__all__ = ["AttentionMetadata", "paged_attention", "plan"]


def paged_attention(
    query: torch.Tensor, cache: LayerCache, batch: AttentionMetadata, *, window: int, scale: float
) -> torch.Tensor:
    """`reference.paged_attention` by the fastest provider for the query's device and dtype."""
    if device.on_gpu(query):
        from kernels.paged_attention import triton

        return triton.paged_attention(query, cache, batch, window=window, scale=scale)
    provider = numba.paged_attention if simd.supported(query) else reference.paged_attention
    return provider(query, cache, batch, window=window, scale=scale)


def plan(batch: AttentionMetadata, windows: Iterable[int]) -> AttentionMetadata:
    """The batch with what depends on it and on a layer's window only, worked out once for all layers of a step.

    Without it `paged_attention` does the same in every layer, and on a CPU there is nothing to work out.
    """
    if device.on_gpu(batch.query_starts):
        from kernels.paged_attention import triton

        return triton.plan(batch, windows)
    return batch
