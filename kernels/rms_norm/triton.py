"""How is RMSNorm computed on a GPU? A row per block of threads, which holds it in registers: memory is passed once.

Bound by memory where there are many rows: with a residual 8 bytes an element in bfloat16, two read and two written.
Bound by latency where there are few: one trip to memory and one sum over the block, so a row gets enough warps that no
thread loads more than two 16-byte pieces of each operand (up to a width of 8,192; four at 16,384), and the weight is
fetched together with the row, not after the sum.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from kernels import tile

# Elements of a row to each thread of 32 a warp: two loads of 16 bytes in bfloat16.
_PER_WARP: Final = 16 * 32
_MOST_WARPS: Final = 16


@triton.jit
def _rms_norm(x, weight, residual, out, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row + columns, inside, 0.0)
    if ADD:
        sums = values.to(tl.float32) + tl.load(residual + row + columns, inside, 0.0).to(tl.float32)
        values = sums.to(residual.dtype.element_ty)
    scale = tl.load(weight + columns, inside, 0.0)
    if ADD:
        tl.store(residual + row + columns, values, inside)
    wide = values.to(tl.float32)  # what was rounded is normalised, as the next layer will read it
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    tl.store(out + row + columns, (wide * factor * scale.to(tl.float32)).to(out.dtype.element_ty), inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> torch.Tensor:
    """As the reference's; x and the residual are contiguous."""
    rows, width = x.shape
    out = torch.empty_like(x)
    block = tile.next_power_of_2(width)
    warps = min(_MOST_WARPS, max(1, block // _PER_WARP))
    add = residual is not None
    _rms_norm[(rows,)](x, weight, residual if add else x, out, width, eps, ADD=add, BLOCK=block, num_warps=warps)
    return out
