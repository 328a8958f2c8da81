"""RMSNorm, with the residual addition before it: which provider?"""

import torch

from kernels import simd
from kernels.rms_norm import numba, reference

__all__ = ["rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """`reference.rms_norm` by the fastest provider for x's device and dtype."""
    provider = numba.rms_norm if simd.supported(x) and x.is_contiguous() else reference.rms_norm
    return provider(x, weight, eps, residual)
