"""How is a matrix product with fixed weights computed on a CPU whose oneDNN has no packed bf16 or int8 product?

Weights lie in panels of 16 outputs, so that a vector load brings one input's weights for 16 outputs, and a tile of up
to `ROWS` rows shares it: nothing is ever summed across lanes. bfloat16 weights come in pairs of inputs, one in each
half of a 32-bit lane: a shift makes the one a float32, a mask the other. int8 weights are multiplied with rows that are
quantised here, one scale a row: 16-bit products of pairs of inputs, summed in 32 bits, which is exact.
"""

from typing import Any, Final

import numpy as np
import torch
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels import simd

ROWS: Final = 4
"""Rows of a tile. Their sums take 8 of AVX2's 16 registers; with 6 rows LLVM spills one, and it takes twice as long."""
BLOCK: Final = 16 * ROWS
"""Rows that are converted at a time and meet all weights: their float32 copy should fit the L2 cache."""
WIDE: Final = 8
"""From this many rows on they are converted by all threads."""
PIECES: Final = 32
"""Into so many runs the panels are cut for the threads, each of which gets neighbouring ones; 1 µs for all of them."""
LANES: Final = simd.LANES

_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VI32, _VF32 = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
_HALVES = ir.VectorType(_I16, 2 * LANES)


def _splat(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(_VI32, [0] * LANES))


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_VF32, [_VF32] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32"), [a, b, c])


def _pairs_product(builder: Any, a: Any, b: Any) -> Any:
    """[32] int16 each -> [16] int32: the sums of the products of neighbours."""
    name, width = _PAIRS
    if not name:
        even, odd = ([ir.Constant(_I32, 2 * i + first) for i in range(LANES)] for first in (0, 1))
        undefined = ir.Constant(_HALVES, ir.Undefined)

        def product(lanes: list[Any]) -> Any:
            mask = ir.Constant(_VI32, lanes)
            left = builder.sext(builder.shuffle_vector(a, undefined, mask), _VI32)
            return builder.mul(left, builder.sext(builder.shuffle_vector(b, undefined, mask), _VI32))

        return builder.add(product(even), product(odd))
    parts, part, result = 32 // width, ir.VectorType(_I16, width), ir.VectorType(_I32, width // 2)
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [part, part]), name)
    done = []
    for i in range(parts):
        mask = ir.Constant(ir.VectorType(_I32, width), [i * width + lane for lane in range(width)])
        undefined = ir.Constant(_HALVES, ir.Undefined)
        done.append(
            builder.call(
                function, [builder.shuffle_vector(a, undefined, mask), builder.shuffle_vector(b, undefined, mask)]
            )
        )
    while len(done) > 1:
        size = done[0].type.count
        mask = ir.Constant(ir.VectorType(_I32, 2 * size), list(range(2 * size)))
        done = [builder.shuffle_vector(x, y, mask) for x, y in zip(done[::2], done[1::2], strict=True)]
    return done[0]


def _pairs_instruction() -> tuple[str, int]:
    """The instruction that multiplies pairs of int16, and how many int16 it takes; LLVM's own choice where none is."""
    features = binding.get_host_cpu_features()
    if features.get("avx512bw"):
        return "llvm.x86.avx512.pmaddw.d.512", 32
    if features.get("avx2"):
        return "llvm.x86.avx2.pmadd.wd", 16
    return "", 0


_PAIRS: Final = _pairs_instruction()


def _bf16_tile(rows: int) -> Any:
    """Multiply ``rows`` rows with one panel. Few rows get more sums each, so that no addition waits for the last."""
    chains = max(1, 4 // rows)

    @intrinsic
    def tile(typing: Any, x: Any, stride: Any, panel: Any, pairs: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, stride, panel, pairs, out = args
            zero = ir.Constant(_VF32, [0.0] * LANES)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(chains)] for _ in range(rows)]
            starts = [builder.add(x, builder.mul(stride, ir.Constant(_I64, row))) for row in range(rows)]

            def pair(index: Any, number: int) -> None:
                words = builder.load(
                    _pointer(builder, builder.add(panel, builder.mul(index, ir.Constant(_I64, 4 * LANES))), _VI32),
                    align=4,
                )
                low = builder.bitcast(builder.shl(words, ir.Constant(_VI32, [16] * LANES)), _VF32)
                high = builder.bitcast(builder.and_(words, ir.Constant(_VI32, [0xFFFF0000] * LANES)), _VF32)
                for half, weights in enumerate((low, high)):
                    for row in range(rows):
                        sum = sums[row][(2 * number + half) % chains]
                        at = builder.add(starts[row], builder.mul(index, ir.Constant(_I64, 8)))
                        at = builder.add(at, ir.Constant(_I64, 4 * half))
                        value = builder.load(_pointer(builder, at, _F32), align=4)
                        builder.store(_fma(builder, _splat(builder, value, _VF32), weights, builder.load(sum)), sum)

            with cgutils.for_range(builder, builder.lshr(pairs, ir.Constant(_I64, 1))) as loop:
                first = builder.shl(loop.index, ir.Constant(_I64, 1))
                pair(first, 0)
                pair(builder.add(first, ir.Constant(_I64, 1)), 1)
            for row in range(rows):
                total = builder.load(sums[row][0])
                for sum in sums[row][1:]:
                    total = builder.fadd(total, builder.load(sum))
                at = builder.add(out, ir.Constant(_I64, 4 * LANES * row))
                builder.store(total, _pointer(builder, at, _VF32), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), codegen

    return tile


def _int8_tile(rows: int) -> Any:
    """As `_bf16_tile`, of int16 rows with an int8 panel, to sums in int32."""
    chains = max(1, 2 // rows)

    @intrinsic
    def tile(typing: Any, x: Any, stride: Any, panel: Any, pairs: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, stride, panel, pairs, out = args
            zero = ir.Constant(_VI32, [0] * LANES)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(chains)] for _ in range(rows)]
            starts = [builder.add(x, builder.mul(stride, ir.Constant(_I64, row))) for row in range(rows)]
            bytes_ = ir.VectorType(_I8, 2 * LANES)

            def pair(index: Any, number: int) -> None:
                at = builder.add(panel, builder.mul(index, ir.Constant(_I64, 2 * LANES)))
                weights = builder.sext(builder.load(_pointer(builder, at, bytes_), align=1), _HALVES)
                for row in range(rows):
                    sum = sums[row][number % chains]
                    at = builder.add(starts[row], builder.mul(index, ir.Constant(_I64, 4)))
                    value = _splat(builder, builder.load(_pointer(builder, at, _I32), align=4), _VI32)
                    product = _pairs_product(builder, weights, builder.bitcast(value, _HALVES))
                    builder.store(builder.add(builder.load(sum), product), sum)

            with cgutils.for_range(builder, builder.lshr(pairs, ir.Constant(_I64, 1))) as loop:
                first = builder.shl(loop.index, ir.Constant(_I64, 1))
                pair(first, 0)
                pair(builder.add(first, ir.Constant(_I64, 1)), 1)
            for row in range(rows):
                total = builder.load(sums[row][0])
                for sum in sums[row][1:]:
                    total = builder.add(total, builder.load(sum))
                at = builder.add(out, ir.Constant(_I64, 4 * LANES * row))
                builder.store(builder.sitofp(total, _VF32), _pointer(builder, at, _VF32), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), codegen

    return tile


_bf16_1, _bf16_2, _bf16_3, _bf16_4 = (_bf16_tile(rows) for rows in range(1, ROWS + 1))
_int8_1, _int8_2, _int8_3, _int8_4 = (_int8_tile(rows) for rows in range(1, ROWS + 1))


@njit(cache=True, fastmath=simd.FASTMATH)
def _multiply_bf16(rows: int, x: int, stride: int, panel: int, pairs: int, out: int) -> None:
    if rows == ROWS:
        _bf16_4(x, stride, panel, pairs, out)
    elif rows == 3:
        _bf16_3(x, stride, panel, pairs, out)
    elif rows == 2:
        _bf16_2(x, stride, panel, pairs, out)
    else:
        _bf16_1(x, stride, panel, pairs, out)


@njit(cache=True, fastmath=simd.FASTMATH)
def _multiply_int8(rows: int, x: int, stride: int, panel: int, pairs: int, out: int) -> None:
    if rows == ROWS:
        _int8_4(x, stride, panel, pairs, out)
    elif rows == 3:
        _int8_3(x, stride, panel, pairs, out)
    elif rows == 2:
        _int8_2(x, stride, panel, pairs, out)
    else:
        _int8_1(x, stride, panel, pairs, out)


@njit(cache=True, fastmath=simd.FASTMATH)
def _widen_row(tag: Any, size: int, x: int, inputs: int, padded: int, target: int) -> None:
    """A row as float32, with zeros behind it."""
    for i in range(0, padded, LANES):
        simd.store_part(target + i * 4, simd.load_part(x + i * size, tag, inputs - i), np.float32(0), padded - i)


@njit(cache=True, fastmath=simd.FASTMATH)
def _quantise_row(tag: Any, size: int, x: int, inputs: int, padded: int, target: int) -> Any:
    """A row as int16 from -127 to 127, with zeros behind it; returns what one step of them is worth."""
    largest = simd.splat(np.float32(0))
    for i in range(0, inputs, LANES):
        part = simd.load_part(x + i * size, tag, inputs - i)
        largest = simd.maximum(largest, simd.maximum(part, simd.mul(part, simd.splat(np.float32(-1)))))
    top = simd.lanes_max(largest)
    factor = simd.splat(np.float32(127) / top if top > 0 else np.float32(0))
    for i in range(0, padded, LANES):
        part = simd.load_part(x + i * size, tag, inputs - i)
        simd.store_rounded(target + i * 2, simd.mul(part, factor), padded - i)
    return top / np.float32(127)


@njit(cache=True, fastmath=simd.FASTMATH)
def _prepare_row(tag: Any, size: int, x: int, inputs: int, padded: int, scale: int, target: int) -> Any:
    """A row as the tiles want it, and what one step of it is worth; ``scale`` 0: the weights are bfloat16."""
    if scale == 0:
        _widen_row(tag, size, x, inputs, padded, target)
        return np.float32(1)
    return _quantise_row(tag, size, x, inputs, padded, target)


@njit(cache=True, fastmath=simd.FASTMATH)
def _panels(
    tag: Any,
    size: int,
    rows: int,
    x: int,
    stride: int,
    factors: int,
    first: int,
    last: int,
    weight: int,
    scale: int,
    padded: int,
    bias: int,
    outputs: int,
    out: int,
) -> None:
    """Panels ``first`` to ``last - 1`` for prepared rows; ``scale`` 0: the weights are bfloat16."""
    sums = np.empty((ROWS, LANES), np.float32)
    tile = simd.address_of(sums)
    bytes_ = (2 if scale == 0 else 1) * LANES * padded
    for panel in range(first, last):
        own = weight + panel * bytes_
        column = panel * LANES
        left = outputs - column
        for row in range(0, rows, ROWS):
            count = min(ROWS, rows - row)
            if rows > ROWS:  # the next panel comes in while this one is used; one row reads ahead as it is
                simd.prefetch(own + bytes_ + bytes_ * row // rows, own + bytes_ + bytes_ * (row + count) // rows)
            if scale == 0:
                _multiply_bf16(count, x + row * stride, stride, own, padded // 2, tile)
            else:
                _multiply_int8(count, x + row * stride, stride, own, padded // 2, tile)
            for r in range(count):
                value = simd.load(tile + r * LANES * 4, np.float32(0))
                if scale != 0:
                    factor = simd.splat(simd.get(factors + (row + r) * 4))
                    value = simd.mul(value, simd.mul(factor, simd.load(scale + column * 4, np.float32(0))))
                if bias != 0:
                    value = simd.add(value, simd.load_part(bias + column * size, tag, left))
                simd.store_part(out + ((row + r) * outputs + column) * size, value, tag, left)
    simd.keep(sums)


@njit(parallel=True, cache=True, fastmath=simd.FASTMATH)
def product(
    tag: Any,
    size: int,
    x: int,
    stride: int,
    rows: int,
    inputs: int,
    weight: int,
    scale: int,
    bias: int,
    outputs: int,
    out: int,
) -> None:
    """``x @ weight.T + bias`` by addresses. ``stride`` is from row to row of x, in elements."""
    padded = (inputs + 3) // 4 * 4
    panels = (outputs + LANES - 1) // LANES
    width = padded * (4 if scale == 0 else 2)
    space = np.empty(min(rows, BLOCK) * width, np.uint8)
    steps = np.empty(min(rows, BLOCK), np.float32)
    prepared, factors = simd.address_of(space), simd.address_of(steps)
    pieces = min(panels, PIECES)
    for block in range(0, rows, BLOCK):
        count = min(BLOCK, rows - block)
        first = x + block * stride * size
        if count < WIDE:
            for row in range(count):
                at = first + row * stride * size
                steps[row] = _prepare_row(tag, size, at, inputs, padded, scale, prepared + row * width)
        else:
            for row in prange(count):
                at = first + row * stride * size
                steps[row] = _prepare_row(tag, size, at, inputs, padded, scale, prepared + row * width)
        for piece in prange(pieces):
            _panels(
                tag,
                size,
                count,
                prepared,
                width,
                factors,
                piece * panels // pieces,
                (piece + 1) * panels // pieces,
                weight,
                scale,
                padded,
                bias,
                outputs,
                out + block * outputs * size,
            )
    simd.keep(space)
    simd.keep(steps)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [out, in] of two-byte or one-byte elements, as panels [out / 16, in / 2, 16, 2], padded with zeros."""
    outputs, inputs = weight.shape
    panels, pairs = -(-outputs // LANES), -(-inputs // 4) * 2
    packed = torch.zeros(panels, pairs, LANES, 2, dtype=weight.dtype)
    for panel in range(panels):  # one after the other: a copy of the whole would cost its memory again
        rows = weight[panel * LANES : (panel + 1) * LANES]
        padded = torch.zeros(LANES, 2 * pairs, dtype=weight.dtype)
        padded[: len(rows), :inputs] = rows
        packed[panel] = padded.view(LANES, pairs, 2).permute(1, 0, 2)
    return packed


def linear(
    x: torch.Tensor, panels: torch.Tensor, outputs: int, scale: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """``x @ weight.T + bias`` for x [T, in] with rows without gaps -> [T, out]."""
    rows, inputs = x.shape
    out = torch.empty(rows, outputs, dtype=x.dtype)
    product(
        simd.tag_of(x.dtype),
        simd.SIZES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        rows,
        inputs,
        panels.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        outputs,
        out.data_ptr(),
    )
    return out
