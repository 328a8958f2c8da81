"""How are adapters applied on a GPU? Two launches: shrink (x @ a.T) and expand (y += scale * inner @ b.T).

Both go through blocks of rows that have the same adapter (`kernels.lora.LoraBatch`). Bound by memory while a step
decodes: each adapter in the batch is read once for up to 16 rows, 2 * rank * (in + out) bytes (256 KiB at rank 16 of
4,096 x 4,096, beside the 32 MiB of the weight itself), and each row takes 2 * in + 4 * out bytes of x and y. One launch
is mostly its own latency, so shrink's long sums are cut into parts that are read at the same time by several blocks of
threads; the parts are written in float32 and added, in their order, by who reads them: expand.

The inner vectors stay float32 up to the tensor cores, which get them as a sum of two bfloat16s (16 bits of mantissa;
the second product is free, as b is waited for). y is rounded once.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl

from kernels import device, tile
from kernels.lora import LoraBatch
from kernels.lora.reference import Adapters

_STEP: Final = 128
_OUTPUTS: Final = 128
_STEPS_A_SPLIT: Final = 2


class Plan(NamedTuple):
    """In how many parts shrink sums the inputs, the ranks of its tiles and of expand's, and expand's warps."""

    splits: int
    shrunk: int
    expanded: int
    warps: int


@triton.jit(do_not_specialize=["rows"])
def _shrink(
    x,
    stride,
    a,
    order,
    blocks,
    parts,
    rows,
    width,
    rank,
    SPLITS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block = blocks + tl.program_id(0) * 3
    split = tl.program_id(1)
    adapter, first, last = tl.load(block).to(tl.int64), tl.load(block + 1), tl.load(block + 2)
    if first < last:
        t = first + tl.arange(0, BLOCK_T)
        r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
        k = tl.arange(0, BLOCK_K)
        row = tl.load(order + tl.minimum(t, last - 1)).to(tl.int64)
        left = x + row[:, None] * stride + k[None, :]
        right = a + (adapter * rank + tl.minimum(r, rank - 1))[:, None] * width + k[None, :]
        steps = tl.cdiv(width, BLOCK_K)
        sums = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
        for step in range(split * steps // SPLITS, (split + 1) * steps // SPLITS):
            at = step * BLOCK_K
            if EVEN:
                sums = tile.dot(tl.load(left + at), tl.load(right + at).T, sums)
            else:
                inside = (at + k < width)[None, :]
                sums = tile.dot(tl.load(left + at, inside, 0.0), tl.load(right + at, inside, 0.0).T, sums)
        target = parts + (split * rows + t).to(tl.int64)[:, None] * rank + r[None, :]
        tl.store(target, sums, (t < last)[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _expand(
    parts,
    b,
    scale,
    order,
    blocks,
    y,
    stride,
    rows,
    outputs,
    rank,
    SPLITS: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    block = blocks + tl.program_id(1) * 3
    adapter, first, last = tl.load(block).to(tl.int64), tl.load(block + 1), tl.load(block + 2)
    if first < last:
        t = first + tl.arange(0, BLOCK_T)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        known, wanted = t < last, n < outputs
        row = tl.load(order + tl.minimum(t, last - 1)).to(tl.int64)
        target = y + row[:, None] * stride + n[None, :]
        mask = known[:, None] & wanted[None, :]
        old = tl.load(target, mask, 0.0).to(tl.float32)
        sums = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        for piece in range(PIECES):
            r = piece * BLOCK_R + tl.arange(0, BLOCK_R)
            inner = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
            for split in tl.static_range(SPLITS):
                part = parts + (split * rows + t).to(tl.int64)[:, None] * rank + r[None, :]
                inner += tl.load(part, known[:, None] & (r < rank)[None, :], 0.0)
            at = b + (adapter * outputs + tl.minimum(n, outputs - 1))[:, None] * rank + r[None, :]
            right = tl.load(at, (r < rank)[None, :], 0.0).T
            if b.dtype.element_ty == tl.float32:
                sums = tile.dot(inner, right, sums)
            else:
                high = inner.to(b.dtype.element_ty)
                low = (inner - high.to(tl.float32)).to(b.dtype.element_ty)
                sums = tile.dot(low, right, tile.dot(high, right, sums))
        tl.store(target, (old + tl.load(scale + adapter) * sums).to(y.dtype.element_ty), mask)


def lora(x: torch.Tensor, y: torch.Tensor, adapters: Adapters, batch: LoraBatch) -> None:
    """`kernels.lora.reference.lora`; x and y have rows without gaps inside, and the dtype of the adapters."""
    (rows, width), (_, outputs, rank) = x.shape, adapters.b.shape
    how = plan(len(batch.blocks), batch.block_rows, width, rank, device.multiprocessors(x.device))
    parts = torch.empty(how.splits, rows, rank, dtype=torch.float32, device=x.device)
    _shrink[len(batch.blocks), how.splits, triton.cdiv(rank, how.shrunk)](
        x,
        x.stride(0),
        adapters.a,
        batch.order,
        batch.blocks,
        parts,
        rows,
        width,
        rank,
        SPLITS=how.splits,
        EVEN=width % _STEP == 0,
        BLOCK_T=batch.block_rows,
        BLOCK_R=how.shrunk,
        BLOCK_K=_STEP,
        num_warps=4,
        num_stages=4,
    )
    _expand[triton.cdiv(outputs, _OUTPUTS), len(batch.blocks)](
        parts,
        adapters.b,
        adapters.scale,
        batch.order,
        batch.blocks,
        y,
        y.stride(0),
        rows,
        outputs,
        rank,
        SPLITS=how.splits,
        PIECES=triton.cdiv(rank, how.expanded),
        BLOCK_T=batch.block_rows,
        BLOCK_R=how.expanded,
        BLOCK_N=_OUTPUTS,
        num_warps=how.warps,
        num_stages=1,
    )


def plan(blocks: int, block_rows: int, width: int, rank: int, multiprocessors: int) -> Plan:
    """How to go through so many blocks of rows."""
    few = block_rows <= 16
    widest = max(16, tile.next_power_of_2(rank))
    # Reading a few rows of x again costs less than leaving processors idle. Larger blocks would spill with more ranks.
    shrunk, expanded = (16, min(64, widest)) if few else (min(64, widest), min(32, widest))
    # Expand holds all parts of its inner vectors in registers at once, so that it waits for them once.
    most = min(16, 512 // expanded, triton.cdiv(width, _STEP) // _STEPS_A_SPLIT) if few else 2
    wanted = multiprocessors // (blocks * triton.cdiv(rank, shrunk))
    splits = 1
    while 2 * splits <= min(most, wanted):
        splits *= 2
    return Plan(splits, shrunk, expanded, 4 if few else 8)
