"""What do low-rank adapters add to a product, when each row of a step may have another one?

LoRA (Hu et al. 2021) puts ``scale * B @ A`` beside a weight, with a few rows in A and as many columns in B. The rows of
a step that have the same adapter are multiplied together (Chen et al. 2023, Punica; Sheng et al. 2023, S-LoRA).
"""

from typing import Final, NamedTuple

import torch

# Relative to the larger of 1 and the expected value: that of the order of sums, and of rounding y.
TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}


class Adapters(NamedTuple):
    """The adapters of one weight [out, in], stacked; those of a smaller rank are padded with zeros.

    ``a`` [adapters, rank, in] and ``b`` [adapters, out, rank] in the model's dtype, ``scale`` [adapters] float32.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor


class Inputs(NamedTuple):
    """x [T, in], y [T, out], its adapters, and which one each row has: ``adapter_of`` [T] int32, -1 for none."""

    x: torch.Tensor
    y: torch.Tensor
    adapters: Adapters
    adapter_of: torch.Tensor


def lora(x: torch.Tensor, y: torch.Tensor, adapters: Adapters, adapter_of: torch.Tensor) -> None:
    """Add ``scale * (x @ a.T) @ b.T`` to the rows of y that have an adapter: in float32, rounded once.

    y may be some columns of a wider tensor, as those of a query in a merged product.
    """
    for index in range(len(adapters.a)):
        rows = (adapter_of == index).nonzero()[:, 0]
        inner = x[rows].float() @ adapters.a[index].float().T
        added = adapters.scale[index] * (inner @ adapters.b[index].float().T)
        y[rows] = (y[rows].float() + added).to(y.dtype)


def inputs(
    rows: int, width: int, outputs: int, rank: int, adapters: int, dtype: torch.dtype, seed: int, *, none: float = 0.3
) -> Inputs:
    """Random ones; a share ``none`` of the rows has no adapter."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    stacked = Adapters(
        a=(normal(adapters, rank, width) / width**0.5).to(dtype),
        b=(normal(adapters, outputs, rank) / rank**0.5).to(dtype),
        scale=torch.rand(adapters, generator=random) + 0.5,
    )
    adapter_of = torch.randint(adapters, (rows,), generator=random, dtype=torch.int32)
    adapter_of[torch.rand(rows, generator=random) < none] = -1
    return Inputs(normal(rows, width).to(dtype), normal(rows, outputs).to(dtype), stacked, adapter_of)
