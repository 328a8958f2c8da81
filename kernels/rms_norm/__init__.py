"""RMSNorm, with the residual addition before it: which provider?"""

import torch

from kernels import device, simd
from kernels.rms_norm import numba, reference

__all__ = ["rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """`reference.rms_norm` by the fastest provider for x's device and dtype."""
    if device.on_gpu(x) and x.is_contiguous():
        from kernels.rms_norm import triton

        return triton.rms_norm(x, weight, eps, residual)
    provider = numba.rms_norm if simd.supported(x) and x.is_contiguous() else reference.rms_norm
    return provider(x, weight, eps, residual)
