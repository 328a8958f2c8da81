"""How are rows of an embedding table gathered on a GPU?

Bound by memory: 4 bytes an element in bfloat16, and rows lie anywhere, but each is a piece of kilobytes. A block of 128
threads copies 1,024 columns of a row, 16 bytes a thread.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from kernels import tile  # noqa: F401  (sets Triton up)

_BLOCK: Final = 1024


@triton.jit
def _embedding(token_ids, table, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    source = tl.load(token_ids + row).to(tl.int64) * width
    tl.store(out + row.to(tl.int64) * width + columns, tl.load(table + source + columns, inside), inside)


def embedding(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """As the reference's, of contiguous arguments; an id outside the vocabulary reads memory that isn't the table's."""
    rows, width = token_ids.shape[0], table.shape[1]
    out = torch.empty(rows, width, dtype=table.dtype, device=table.device)
    _embedding[(rows, triton.cdiv(width, _BLOCK))](token_ids, table, out, width, BLOCK=_BLOCK, num_warps=4)
    return out
