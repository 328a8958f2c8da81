"""What is SiLU-mul? The gated activation of Llama's MLP on the merged gate-up product."""

from typing import Final

import torch

TOLERANCE: Final = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` for gate_up [T, 2 I] -> [T, I]: computed in float32, rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def inputs(rows: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random gate_up [rows, 2 width], some gates far from zero."""
    draw = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(rows, 2 * width, generator=draw)).to(dtype)
