"""QK-norm, RoPE and KV write: which provider?"""

import torch

from kernels import device, simd
from kernels.kv_cache import LayerCache
from kernels.rope_kv_write import numba, reference
from kernels.rope_kv_write.reference import QkNorm

__all__ = ["QkNorm", "rope_kv_write"]


def rope_kv_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor,
    cache: LayerCache,
    norm: QkNorm | None = None,
) -> None:
    """`reference.rope_kv_write` by the fastest provider for qkv's device and dtype."""
    if device.on_gpu(qkv) and qkv.is_contiguous():
        from kernels.rope_kv_write import triton

        return triton.rope_kv_write(qkv, positions, slots, table, cache, norm)
    provider = numba.rope_kv_write if simd.supported(qkv) and qkv.is_contiguous() else reference.rope_kv_write
    provider(qkv, positions, slots, table, cache, norm)
