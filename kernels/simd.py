"""How does a Numba kernel say which vector instructions it wants?

LLVM doesn't vectorise the loops of a paged attention kernel well, so the kernels here are written in vectors of 16
float32 (a type of their own, `f32x16`) that live in registers: on AVX-512 that is one, on AVX2 two, on NEON four; LLVM
splits them. Memory is addressed by integers (``tensor.data_ptr()``). A ``tag`` says by its *type* what lies in memory:
``np.float32`` for float32, ``np.uint16`` for bfloat16, whose bits are the upper half of a float32's.
"""

from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from kernels.compiled import keep_compiled_kernels

# Before the first kernel is declared: Numba asks for the folder then. Every kernel's module imports this one.
keep_compiled_kernels()

FASTMATH: Final = {"nsz", "arcp", "contract", "afn", "reassoc"}  # not nnan, ninf: masks are infinities
LANES: Final = 16
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
        call_args = [pointer, align, _lanes_below(builder, args[2]), ir.Constant(kind, [0] * LANES)]
        raw = _llvm(builder, name, kind, call_args)
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


@njit(cache=True, inline="always")
def address_of(array: Any) -> Any:
    """The address of a NumPy array's first element."""
    return array.ctypes.data
