"""Low-rank adapters, a different one for each row if need be: how are rows grouped, and which provider?"""

from dataclasses import dataclass
from typing import Final

import torch

from kernels import device
from kernels.lora import reference
from kernels.lora.reference import Adapters

__all__ = ["Adapters", "LoraBatch", "group", "lora"]

# Up to so many rows a step is taken for one that decodes: few rows of each adapter.
_FEW: Final = 256


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """Which rows of a step have which adapter; made once for all layers.

    ``order`` [T] int32: the rows by adapter. ``blocks`` [N, 3] int32: an adapter, and the first and the end of up to
    ``block_rows`` rows of its own in ``order``; those that aren't needed are empty. N depends on T and on how many
    adapters there are, nothing else.
    """

    adapter_of: torch.Tensor
    order: torch.Tensor
    blocks: torch.Tensor
    block_rows: int


def group(adapter_of: torch.Tensor, adapters: int) -> LoraBatch:
    """The batch for ``adapter_of`` [T] int32, from -1 (none) to ``adapters - 1``. Never waits for the device."""
    rows, place = len(adapter_of), adapter_of.device
    size = 16 if rows <= _FEW else 64
    by_adapter, order = torch.sort(adapter_of, stable=True)
    starts = torch.searchsorted(by_adapter, torch.arange(adapters + 1, dtype=torch.int32, device=place))
    needed = (starts.diff() + (size - 1)) // size
    ends = needed.cumsum(0)
    # Every block has a row, and every adapter at most one block that isn't full.
    index = torch.arange(min(rows, -(-rows // size) + adapters), device=place)
    owner = torch.searchsorted(ends, index, right=True).clamp(max=adapters - 1)
    first = starts[owner] + (index - (ends - needed)[owner]) * size
    last = torch.minimum(first + size, starts[owner + 1])  # not above the first of one that isn't needed
    blocks = torch.stack([owner, first, last], 1).int()
    return LoraBatch(adapter_of, order.int(), blocks, size)


def lora(x: torch.Tensor, y: torch.Tensor, adapters: Adapters, batch: LoraBatch) -> None:
    """`reference.lora` by the fastest provider for x's device; x and y have rows without gaps inside."""
    if device.on_gpu(x):
        from kernels.lora import triton

        triton.lora(x, y, adapters, batch)
    else:
        reference.lora(x, y, adapters, batch.adapter_of)
