"""How is SiLU-mul computed on a CPU? One pass over the merged gate-up product.

2,048 x 2,048 bf16 on two cores with AVX2: 1.2 ms, 10 GB/s; its exponentials take half as long again as the memory.
"""

from typing import Any, Final

import numpy as np
import torch
from numba import njit, prange

from kernels import simd

# Below this many elements one thread is faster than waking the others.
PARALLEL: Final = 1 << 14


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """As the reference's, of a contiguous gate_up."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype)
    activate(
        simd.tag_of(gate_up.dtype),
        simd.SIZES[gate_up.dtype],
        gate_up.data_ptr(),
        out.data_ptr(),
        rows,
        width,
    )
    return out


@njit(cache=True, fastmath=simd.FASTMATH)
def _part(tag: Any, size: int, gate: int, up: int, out: int, width: int) -> None:
    one = simd.splat(np.float32(1))
    minus = simd.splat(np.float32(-1))
    for i in range(0, width, simd.LANES):
        x = simd.load_part(gate + i * size, tag, width - i)
        y = simd.load_part(up + i * size, tag, width - i)
        result = simd.div(simd.mul(x, y), simd.add(one, simd.exp(simd.mul(x, minus))))
        simd.store_part(out + i * size, result, tag, width - i)


@njit(cache=True, fastmath=simd.FASTMATH)
def _rows(tag: Any, size: int, gate_up: int, out: int, rows: int, width: int) -> None:
    for row in range(rows):
        gate = gate_up + 2 * row * width * size
        _part(tag, size, gate, gate + width * size, out + row * width * size, width)


@njit(parallel=True, cache=True, fastmath=simd.FASTMATH)
def _rows_parallel(tag: Any, size: int, gate_up: int, out: int, rows: int, width: int) -> None:
    pieces = (width + 511) // 512
    for item in prange(rows * pieces):
        row, first = item // pieces, item % pieces * 512
        gate = gate_up + (2 * row * width + first) * size
        target = out + (row * width + first) * size
        _part(tag, size, gate, gate + width * size, target, min(512, width - first))


@njit(cache=True, fastmath=simd.FASTMATH)
def activate(tag: Any, size: int, gate_up: int, out: int, rows: int, width: int) -> None:
    """As `silu_mul`, by addresses."""
    if rows * width >= PARALLEL:
        _rows_parallel(tag, size, gate_up, out, rows, width)
    else:
        _rows(tag, size, gate_up, out, rows, width)
