"""How is a product with fp8 weights computed on a GPU? Rows are rounded in one launch, and multiplied in a second.

Rounding passes the rows once, 3 bytes an element in bfloat16. The product of up to `FEW` rows is bound by the weight,
of which each byte is read once: 4,096 x 4,096 is 3.9 µs at the 4.3 TB/s of an H200. With a latency of a microsecond
that takes 4.3 MB in flight: 40 to 48 KiB of weights a block of threads, one or two blocks on each multiprocessor.

- The weight is on the left. Hopper's instruction for fp8 (``wgmma``) takes 64 rows on the left but as few as 8 columns
  on the right; a tile of 16 rows of x on the left would be widened to float16 in registers (seen in the code that
  Triton 3.6 and 3.9 make for sm_90), here it's ``wgmma.m64n16k32.e4m3``. Ada's (``mma.m16n8k32.e4m3``) doesn't mind.
- Hopper sums fp8 products in about 14 bits (DeepSeek-V3, 2024, section 3.3.2), so the sums move on to float32
  registers after every `_STEP` inputs. That costs nothing where memory is waited for.
- Tiles have 64 outputs; 128 for more than 32 rows, else reading x again for each tile would be as many bytes as the
  weight. Where the tiles don't fill the GPU the inputs are split: the blocks that share a tile write their sums in
  float32, and the last one to arrive adds them, always in the same order. So a result doesn't depend on who is last,
  and no third launch is needed. ``arrivals`` counts; it's 0 again afterwards, so that a CUDA graph can be replayed.

More rows are cuBLAS's, with its fast sums (what other servers take); ours, with larger tiles, where it refuses. All fit
Ada's 99 KB of shared memory.
"""

import math
from functools import lru_cache
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl

from kernels import device, tile
from kernels.linear.reference import FP8_MAX, FP8_TINY, Quantised

FEW: Final = 64
"""Up to so many rows the product is bound by reading the weight, and ours."""
_STEP: Final = 128
_STEPS_A_SPLIT: Final = 4
"""A split has at least so many steps: fewer wouldn't pay for writing its sums."""
_OUTPUTS: Final = 64
_PER_WARP: Final = 16 * 32
_IMPRECISE: Final = tl.constexpr(_STEP)
_MAX: Final = tl.constexpr(FP8_MAX)
_TINY: Final = tl.constexpr(FP8_TINY)


class Plan(NamedTuple):
    """The tile that a block of threads computes, in how many parts of the inputs, and with what."""

    rows: int
    outputs: int
    splits: int
    warps: int
    stages: int


@triton.jit
def _quantise(x, stride, values, scale, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    wide = tl.load(x + row * stride + columns, inside, 0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(wide), 0), _TINY)
    rounded = (wide * tl.div_rn(_MAX, largest)).to(tl.float8e4nv)  # to the nearest; never so far beyond as to saturate
    tl.store(values + row * width + columns, rounded, inside)
    tl.store(scale + row, tl.div_rn(largest, _MAX))


@triton.jit
def _dot(weight, x, sums):
    if tile.INTERPRETED:
        return tl.dot(weight.to(tl.float32), x.to(tl.float32), sums)
    return tl.dot(weight, x, sums, max_num_imprecise_acc=_IMPRECISE)


@triton.jit
def _finish(sums, scale, x_scale, bias, out, m, n, rows, outputs, BIAS: tl.constexpr):
    known, wanted = m < rows, n < outputs
    steps = tl.load(scale + n, wanted, 0.0)[:, None] * tl.load(x_scale + m, known, 0.0)[None, :]
    result = sums * steps
    if BIAS:
        result += tl.load(bias + n, wanted, 0.0).to(tl.float32)[:, None]
    target = out + m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(target, tl.trans(result).to(out.dtype.element_ty), known[:, None] & wanted[None, :])


@triton.jit(do_not_specialize=["rows"])
def _product(
    x,
    x_scale,
    weight,
    scale,
    bias,
    out,
    partials,
    arrivals,
    rows,
    outputs,
    inputs,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    column, split = tl.program_id(1), tl.program_id(2)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # What lies past the last row is that row again, which is cheaper than a mask and is never stored.
    left = weight + tl.minimum(n, outputs - 1).to(tl.int64)[:, None] * inputs + k[None, :]
    right = x + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * inputs + k[None, :]
    steps = tl.cdiv(inputs, BLOCK_K)
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(split * steps // SPLITS, (split + 1) * steps // SPLITS):
        at = step * BLOCK_K
        if EVEN:
            sums = _dot(tl.load(left + at), tl.load(right + at).T, sums)
        else:
            inside = (at + k < inputs)[None, :]
            sums = _dot(tl.load(left + at, inside, 0.0), tl.load(right + at, inside, 0.0).T, sums)
    if SPLITS == 1:
        _finish(sums, scale, x_scale, bias, out, m, n, rows, outputs, BIAS)
    else:
        parts = partials + column * (SPLITS * BLOCK_N * BLOCK_M)
        parts += tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        tl.store(parts + split * (BLOCK_N * BLOCK_M), sums)
        tl.debug_barrier()  # all threads' sums are written before one thread says so
        if tl.atomic_add(arrivals + column, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for part in tl.static_range(SPLITS):
                total += tl.load(parts + part * (BLOCK_N * BLOCK_M), cache_modifier=".cg")
            _finish(total, scale, x_scale, bias, out, m, n, rows, outputs, BIAS)
            tl.store(arrivals + column, 0)


def quantise(x: torch.Tensor) -> Quantised:
    """`kernels.linear.reference.quantise_fp8`, of rows without gaps inside."""
    rows, width = x.shape
    values = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = tile.next_power_of_2(width)
    warps = min(16, max(1, block // _PER_WARP))
    _quantise[(rows,)](x, x.stride(0), values, scale, width, BLOCK=block, num_warps=warps)
    return Quantised(values, scale)


def new_arrivals(outputs: int, place: torch.device) -> torch.Tensor:
    """The counters of one weight: int32 zeros, one for each tile of its ``outputs``."""
    return torch.zeros(triton.cdiv(outputs, _OUTPUTS), dtype=torch.int32, device=place)


def linear_fp8(
    x: torch.Tensor, weight: Quantised, arrivals: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`kernels.linear.reference.linear_fp8`; one call at a time may use these ``arrivals``."""
    left = quantise(x)
    if len(x) > FEW and _cublas_takes(x, weight.values, bias):
        scales = {"scale_a": left.scale[:, None], "scale_b": weight.scale[None, :]}
        result: torch.Tensor = torch._scaled_mm(
            left.values, weight.values.T, **scales, bias=bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return result
    return _multiply(left, weight, arrivals, bias, x.dtype)


def plan(rows: int, outputs: int, inputs: int, multiprocessors: int) -> Plan:
    """How to compute a product of this shape."""
    if rows > FEW:
        return Plan(128, 128, 1, 8, 3)
    if rows > 32:
        tile_rows, tile_outputs, warps, stages, wanted = 64, 128, 8, 4, multiprocessors
    else:
        tile_rows, tile_outputs, warps, stages, wanted = 16 if rows <= 16 else 32, _OUTPUTS, 4, 6, 2 * multiprocessors
    possible = triton.cdiv(inputs, _STEP) // _STEPS_A_SPLIT
    # To a power of two, so that there are few variants to compile.
    splits = 1 << max(0, round(math.log2(wanted / triton.cdiv(outputs, tile_outputs))))
    while splits > max(1, possible):
        splits //= 2
    return Plan(tile_rows, tile_outputs, splits, warps, stages)


def _multiply(
    left: Quantised, weight: Quantised, arrivals: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    (rows, inputs), outputs, place = left.values.shape, len(weight.values), left.values.device
    out = torch.empty(rows, outputs, dtype=dtype, device=place)
    how = plan(rows, outputs, inputs, device.multiprocessors(place))
    grid = triton.cdiv(rows, how.rows), triton.cdiv(outputs, how.outputs), how.splits
    partials = out  # never touched
    if how.splits > 1:
        partials = torch.empty(grid[1], how.splits, how.outputs, how.rows, dtype=torch.float32, device=place)
    _product[grid](
        left.values,
        left.scale,
        weight.values,
        weight.scale,
        out if bias is None else bias,
        out,
        partials,
        arrivals,
        rows,
        outputs,
        inputs,
        BIAS=bias is not None,
        SPLITS=how.splits,
        EVEN=inputs % _STEP == 0,
        BLOCK_M=how.rows,
        BLOCK_N=how.outputs,
        BLOCK_K=_STEP,
        num_warps=how.warps,
        num_stages=how.stages,
    )
    return out


def _cublas_takes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether ``torch._scaled_mm`` has a product with a scale for each row, of these (sm_90; multiples of 16)."""
    if x.dtype != torch.bfloat16 or (bias is not None and bias.dtype != x.dtype):
        return False
    return weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0 and x.is_cuda and _capability(x.device.index)[0] >= 9


@lru_cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
