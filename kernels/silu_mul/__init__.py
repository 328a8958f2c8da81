"""SiLU-mul: which provider?"""

import torch

from kernels import device, simd
from kernels.silu_mul import numba, reference

__all__ = ["silu_mul"]


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`reference.silu_mul` by the fastest provider for the device and dtype."""
    if device.on_gpu(gate_up) and gate_up.is_contiguous():
        from kernels.silu_mul import triton

        return triton.silu_mul(gate_up)
    provider = numba.silu_mul if simd.supported(gate_up) and gate_up.is_contiguous() else reference.silu_mul
    return provider(gate_up)
