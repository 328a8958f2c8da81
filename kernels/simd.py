"""How does a Numba kernel say which vector instructions it wants?

LLVM doesn't vectorise the loops of a paged attention kernel well, so the kernels here are written in vectors of 16
float32 (a type of their own, `f32x16`) that live in registers: on AVX-512 that is one, on AVX2 two, on NEON four; LLVM
splits them. Memory is addressed by integers (``tensor.data_ptr()``). A ``tag`` says by its *type* what lies in memory:
``np.float32`` for float32, ``np.uint16`` for bfloat16, whose bits are the upper half of a float32's.
"""

from typing import Any, Final

import numpy as np
import torch
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from kernels.compiled import keep_compiled_kernels

# Before the first kernel is declared: Numba asks for the folder then. Every kernel's module imports this one.
keep_compiled_kernels()

FASTMATH: Final = {"nsz", "arcp", "contract", "afn", "reassoc"}  # not nnan, ninf: masks are infinities
LANES: Final = 16
LINE: Final = 64  # bytes that come from memory together
TAGS: Final = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}
SIZES: Final = {torch.float32: 4, torch.bfloat16: 2}

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_V16, _VI32, _VF32 = (ir.VectorType(element, LANES) for element in (_I16, _I32, _F32))
_VBOOL = ir.VectorType(ir.IntType(1), LANES)


class _F32x16(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="f32x16")


f32x16: Final = _F32x16()


@register_model(_F32x16)
class _F32x16Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VF32)


def tag_of(dtype: torch.dtype) -> Any:
    """The tag of what a tensor of this dtype holds."""
    return TAGS[dtype]


def supported(tensor: torch.Tensor) -> bool:
    """Whether the CPU kernels can work on it: its dtype has a tag, and its rows have no gaps."""
    return tensor.device.type == "cpu" and tensor.dtype in TAGS and tensor.stride(-1) == 1


def _constant(value: int | float, kind: ir.VectorType) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _llvm(builder: Any, name: str, result: ir.Type, args: list[Any], **flags: Any) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args, **flags)


def _lanes_below(builder: Any, count: Any) -> Any:
    """The mask of the lanes whose index is below an int64."""
    narrow = builder.trunc(count, _I32)
    lanes = builder.insert_element(ir.Constant(_VI32, ir.Undefined), narrow, ir.Constant(_I32, 0))
    lanes = builder.shuffle_vector(lanes, ir.Constant(_VI32, ir.Undefined), _constant(0, _VI32))
    return builder.icmp_signed("<", ir.Constant(_VI32, list(range(LANES))), lanes)


def _all_lanes(builder: Any, count: Any) -> Any:
    """Whether an int64 is no less than 16. AVX2 has no masks for 16-bit lanes: LLVM goes through them one by one."""
    return builder.icmp_signed(">=", count, ir.Constant(_I64, LANES))


def _widen(builder: Any, raw: Any) -> Any:
    wide = builder.shl(builder.zext(raw, _VI32), _constant(16, _VI32))
    return builder.bitcast(wide, _VF32)


def _narrow(builder: Any, value: Any) -> Any:
    """Round to nearest, ties to even, as torch does."""
    bits = builder.bitcast(value, _VI32)
    odd = builder.and_(builder.lshr(bits, _constant(16, _VI32)), _constant(1, _VI32))
    rounded = builder.add(bits, builder.add(odd, _constant(0x7FFF, _VI32)))
    return builder.trunc(builder.lshr(rounded, _constant(16, _VI32)), _V16)


def _splat_value(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VF32, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(_VF32, ir.Undefined), _constant(0, _VI32))


@intrinsic
def load(typing: Any, address: Any, tag: Any) -> Any:
    """16 elements from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = signature.args[1] == types.uint16
        pointer = builder.inttoptr(args[0], (_V16 if half else _VF32).as_pointer())
        raw = builder.load(pointer, align=2 if half else 4)
        return _widen(builder, raw) if half else raw

    return f32x16(types.int64, tag), codegen


@intrinsic
def load_part(typing: Any, address: Any, tag: Any, count: Any) -> Any:
    """The first ``count`` of 16 elements from an address; the other lanes are 0 and their memory is not touched."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = signature.args[1] == types.uint16
        kind = _V16 if half else _VF32
        pointer = builder.inttoptr(args[0], kind.as_pointer())
        align = ir.Constant(_I32, 2 if half else 4)
        name = f"llvm.masked.load.v16{'i16' if half else 'f32'}.p0"
        with builder.if_else(_all_lanes(builder, args[2])) as (whole, part):
            with whole:
                all_of = builder.load(pointer, align=2 if half else 4)
                from_whole = builder.block
            with part:
                call_args = [pointer, align, _lanes_below(builder, args[2]), ir.Constant(kind, [0] * LANES)]
                some_of = _llvm(builder, name, kind, call_args)
                from_part = builder.block
        raw = builder.phi(kind)
        raw.add_incoming(all_of, from_whole)
        raw.add_incoming(some_of, from_part)
        return _widen(builder, raw) if half else raw

    return f32x16(types.int64, tag, types.int64), codegen


@intrinsic
def store_part(typing: Any, address: Any, value: Any, tag: Any, count: Any) -> Any:
    """Store the first ``count`` of 16 lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = signature.args[2] == types.uint16
        kind = _V16 if half else _VF32
        pointer = builder.inttoptr(args[0], kind.as_pointer())
        align = ir.Constant(_I32, 2 if half else 4)
        data = _narrow(builder, args[1]) if half else args[1]
        name = f"llvm.masked.store.v16{'i16' if half else 'f32'}.p0"
        with builder.if_else(_all_lanes(builder, args[3])) as (whole, part):
            with whole:
                builder.store(data, pointer, align=2 if half else 4)
            with part:
                _llvm(builder, name, ir.VoidType(), [data, pointer, align, _lanes_below(builder, args[3])])
        return context.get_dummy_value()

    return types.void(types.int64, f32x16, tag, types.int64), codegen


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Any:
    """Store 16 lanes as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _VF32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, f32x16), codegen


@intrinsic
def store_rounded(typing: Any, address: Any, value: Any, count: Any) -> Any:
    """Store the first ``count`` of 16 lanes as int16, rounded to nearest; they must lie in its range."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.fptosi(_llvm(builder, "llvm.rint.v16f32", _VF32, [args[1]]), _VI32)
        pointer = builder.inttoptr(args[0], _V16.as_pointer())
        narrow = builder.trunc(whole, _V16)
        with builder.if_else(_all_lanes(builder, args[2])) as (all_of, part):
            with all_of:
                builder.store(narrow, pointer, align=2)
            with part:
                data = [narrow, pointer, ir.Constant(_I32, 2), _lanes_below(builder, args[2])]
                _llvm(builder, "llvm.masked.store.v16i16.p0", ir.VoidType(), data)
        return context.get_dummy_value()

    return types.void(types.int64, f32x16, types.int64), codegen


@intrinsic
def get(typing: Any, address: Any) -> Any:
    """One float32 from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _F32.as_pointer()), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def element(typing: Any, address: Any, tag: Any) -> Any:
    """One element from an address, as float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.args[1] != types.uint16:
            return builder.load(builder.inttoptr(args[0], _F32.as_pointer()), align=4)
        raw = builder.load(builder.inttoptr(args[0], _I16.as_pointer()), align=2)
        return builder.bitcast(builder.shl(builder.zext(raw, _I32), ir.Constant(_I32, 16)), _F32)

    return types.float32(types.int64, tag), codegen


@intrinsic
def get_i32(typing: Any, address: Any) -> Any:
    """One int32 from an address, as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sext(builder.load(builder.inttoptr(args[0], _I32.as_pointer()), align=4), _I64)

    return types.int64(types.int64), codegen


@intrinsic
def get_i64(typing: Any, address: Any) -> Any:
    """One int64 from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _I64.as_pointer()), align=8)

    return types.int64(types.int64), codegen


@intrinsic
def copy(typing: Any, target: Any, source: Any, tag: Any) -> Any:
    """Copy one element."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _I16 if signature.args[2] == types.uint16 else _F32
        value = builder.load(builder.inttoptr(args[1], kind.as_pointer()))
        builder.store(value, builder.inttoptr(args[0], kind.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tag), codegen


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """All lanes one value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat_value(builder, args[0])

    return f32x16(types.float32), codegen


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _llvm(builder, "llvm.fma.v16f32", _VF32, list(args))

    return f32x16(f32x16, f32x16, f32x16), codegen


@intrinsic
def mul(typing: Any, a: Any, b: Any) -> Any:
    """``a * b``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(*args)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """``a + b``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of each two lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _llvm(builder, "llvm.maxnum.v16f32", _VF32, list(args))

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def div(typing: Any, a: Any, b: Any) -> Any:
    """``a / b``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fdiv(*args)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def keep_lanes(typing: Any, value: Any, first: Any, last: Any, other: Any) -> Any:
    """Lanes ``first`` to ``last - 1`` of ``value``, ``other`` in the rest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        below = _lanes_below(builder, args[2])
        before = _lanes_below(builder, args[1])
        inside = builder.and_(below, builder.xor(before, ir.Constant(_VBOOL, [1] * LANES)))
        return builder.select(inside, args[0], _splat_value(builder, args[3]))

    return f32x16(f32x16, types.int64, types.int64, types.float32), codegen


@intrinsic
def keep_bits(typing: Any, value: Any, bits: Any, other: Any) -> Any:
    """The lanes of ``value`` whose bit (lane 0's is the lowest) is set, ``other`` in the rest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = builder.bitcast(builder.trunc(args[1], _I16), _VBOOL)
        return builder.select(lanes, args[0], _splat_value(builder, args[2]))

    return f32x16(f32x16, types.int64, types.float32), codegen


@intrinsic
def exceeds(typing: Any, a: Any, b: Any) -> Any:
    """1 in each lane where ``a > b``, 0 in the rest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.uitofp(builder.fcmp_ordered(">", *args), _VF32)

    return f32x16(f32x16, f32x16), codegen


@intrinsic
def lanes_max(typing: Any, value: Any) -> Any:
    """The largest lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _llvm(builder, "llvm.vector.reduce.fmax.v16f32", _F32, list(args))

    return types.float32(f32x16), codegen


@intrinsic
def lanes_sum(typing: Any, value: Any) -> Any:
    """The sum of the lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = ir.Constant(_F32, -0.0)
        name = "llvm.vector.reduce.fadd.v16f32"
        return _llvm(builder, name, _F32, [start, args[0]], fastmath=("reassoc",))

    return types.float32(f32x16), codegen


@intrinsic
def exp(typing: Any, value: Any) -> Any:
    """``e ** value`` to within 2 units in the last place (Cephes' polynomial); 0 below -87, ``e ** 88`` above 88."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = args[0]

        def constant(number: float) -> Any:
            return _constant(number, _VF32)

        def fused(a: Any, b: Any, c: Any) -> Any:
            return _llvm(builder, "llvm.fma.v16f32", _VF32, [a, b, c])

        low = builder.fcmp_ordered("<", x, constant(-87.0))
        clamped = builder.select(low, constant(-87.0), x)
        clamped = builder.select(builder.fcmp_ordered(">", x, constant(88.0)), constant(88.0), clamped)
        scaled = builder.fmul(clamped, constant(1.4426950408889634))
        power = _llvm(builder, "llvm.rint.v16f32", _VF32, [scaled])
        rest = fused(power, constant(-0.693359375), clamped)
        rest = fused(power, constant(2.12194440e-4), rest)
        result = constant(1.9875691500e-4)
        for number in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            result = fused(result, rest, constant(number))
        result = fused(builder.fmul(rest, rest), result, builder.fadd(rest, constant(1.0)))
        exponent = builder.add(builder.fptosi(power, _VI32), _constant(127, _VI32))
        scale = builder.bitcast(builder.shl(exponent, _constant(23, _VI32)), _VF32)
        return builder.select(low, constant(0.0), builder.fmul(result, scale))

    return f32x16(f32x16), codegen


# Each row of `weighted_sums` has so many sums, so that few rows needn't wait for them: as many as fit the registers
# with four rows. Always the same number, because then a row's result is the same to the last bit whatever rows are
# beside it: a token's attention doesn't depend on whether it is computed in a prompt or decoded. Decode of MHA with one
# sum at 14 GB/s, two 25.7, four 26.3; prefill is the same with one and two (one core with AVX-512, bf16).
_CHAINS: Final = 2 if binding.get_host_cpu_features().get("avx512f") else 1


def _sums_of(rows: int) -> Any:
    """An intrinsic for `weighted_sums` of so many rows."""
    chains = _CHAINS

    @intrinsic
    def sums(
        typing: Any, tag: Any, x: Any, stride: Any, vectors: Any, step: Any, count: Any, out: Any, apart: Any, onto: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            half = signature.args[0] == types.uint16
            _, x, stride, vectors, step, count, out, apart, onto = args
            kind = _V16 if half else _VF32
            starts = [builder.add(x, builder.mul(stride, ir.Constant(_I64, row))) for row in range(rows)]
            ends = [builder.add(out, builder.mul(apart, ir.Constant(_I64, row))) for row in range(rows)]
            ends = [builder.inttoptr(end, _VF32.as_pointer()) for end in ends]
            zero = _constant(0.0, _VF32)
            totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(chains)] for _ in range(rows)]
            with builder.if_then(builder.icmp_signed("!=", onto, ir.Constant(_I64, 0))):
                for row in range(rows):
                    builder.store(builder.load(ends[row], align=4), totals[row][0])

            def add(index: Any, chain: int) -> None:
                at = builder.add(vectors, builder.mul(step, index))
                raw = builder.load(builder.inttoptr(at, kind.as_pointer()), align=2 if half else 4)
                vector = _widen(builder, raw) if half else raw
                for row in range(rows):
                    at = builder.add(starts[row], builder.mul(index, ir.Constant(_I64, 4)))
                    value = _splat_value(builder, builder.load(builder.inttoptr(at, _F32.as_pointer()), align=4))
                    total = totals[row][chain]
                    fused = _llvm(builder, "llvm.fma.v16f32", _VF32, [value, vector, builder.load(total)])
                    builder.store(fused, total)

            many = builder.sdiv(count, ir.Constant(_I64, chains))
            with cgutils.for_range(builder, many) as loop:
                first = builder.mul(loop.index, ir.Constant(_I64, chains))
                for chain in range(chains):
                    add(builder.add(first, ir.Constant(_I64, chain)), chain)
            if chains > 1:
                done = builder.mul(many, ir.Constant(_I64, chains))
                with cgutils.for_range(builder, builder.sub(count, done)) as loop:
                    add(builder.add(done, loop.index), 0)
            for row in range(rows):
                total = builder.load(totals[row][0])
                for more in totals[row][1:]:
                    total = builder.fadd(total, builder.load(more))
                builder.store(total, ends[row], align=4)
            return context.get_dummy_value()

        return types.void(tag, *[types.int64] * 8), codegen

    return sums


_sums_1, _sums_2, _sums_3, _sums_4 = (_sums_of(rows) for rows in range(1, 5))


@njit(cache=True)
def weighted_sums(
    tag: Any, rows: int, x: int, stride: int, vectors: int, step: int, count: int, out: int, apart: int, onto: int
) -> None:
    """For each of up to 4 rows: the sum of ``count`` vectors of 16 lanes, each times the row's number for it.

    Rows of float32 numbers lie ``stride`` bytes apart, vectors of ``tag`` ``step`` bytes, the sums (float32) ``apart``
    bytes. With ``onto`` they are added to what is there.
    """
    if rows >= 4:
        _sums_4(tag, x, stride, vectors, step, count, out, apart, onto)
    elif rows == 3:
        _sums_3(tag, x, stride, vectors, step, count, out, apart, onto)
    elif rows == 2:
        _sums_2(tag, x, stride, vectors, step, count, out, apart, onto)
    else:
        _sums_1(tag, x, stride, vectors, step, count, out, apart, onto)


@njit(cache=True, inline="always")
def address_of(array: Any) -> Any:
    """The address of a NumPy array's first element. Numba frees an array after its last use: `keep` it until then."""
    return array.ctypes.data


@intrinsic
def _prefetch(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [pointer, ir.Constant(_I32, 0), ir.Constant(_I32, 2), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(cache=True)
def prefetch(first: int, last: int) -> None:
    """Ask for the memory from one address to another, which will be read soon: any address will do."""
    for address in range(first, last, LINE):
        _prefetch(address)


@intrinsic
def keep(typing: Any, array: Any) -> Any:
    """A last use of an array whose address was in use until here."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), codegen
