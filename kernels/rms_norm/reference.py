"""What is RMSNorm? (Zhang and Sennrich 2019, as Llama uses it: computed in float32, rounded once.)"""

from typing import Final

import torch

TOLERANCE: Final = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """``x / rms(x) * weight`` over the last dimension of x [T, H].

    With a ``residual`` [T, H]: it becomes ``residual + x`` in place, rounded to its dtype, and that is normalised.
    """
    if residual is not None:
        x = residual.copy_(residual.float() + x.float())
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def inputs(rows: int, width: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random (x, weight, residual) of width ``width``."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=draw).to(dtype)
    weight = (1 + 0.2 * torch.randn(width, generator=draw)).to(dtype)
    return x, weight, torch.randn(rows, width, generator=draw).to(dtype)
