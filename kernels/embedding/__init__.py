"""Embedding, the rows of a table: which provider?"""

import torch

from kernels import device
from kernels.embedding import reference

__all__ = ["embedding"]


def embedding(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`reference.embedding` by the fastest provider for the table's device; on a CPU that is torch's own."""
    if device.on_gpu(table) and table.is_contiguous():
        from kernels.embedding import triton

        return triton.embedding(token_ids, table)
    return reference.embedding(token_ids, table)
