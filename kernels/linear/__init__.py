"""A matrix product with fixed weights: which form do the weights take on this device, and what multiplies them?

torch's ``F.linear`` on the plain weight is the definition, and what runs on a GPU and in float32. With fp8 (e4m3),
which is for GPUs, the weight is rounded when it is taken over, and `kernels.linear.triton` multiplies. On a CPU:

- bfloat16 where oneDNN multiplies it natively (AVX-512 with bf16, AMX): oneDNN's product on weights that it packed
  once. 2048 x 768 on two cores with AMX, 1 / 8 / 64 rows: 0.045 / 0.046 / 0.10 ms, against 0.095 / 0.11 / 0.18 ms of
  ``F.linear``. The operators are torch's private ones (its own compiler uses them), and may be missing or refuse.
- bfloat16 elsewhere, and int8 everywhere: our own kernel on panels (`kernels.linear.numba`). The same product on two
  cores with AVX2, bfloat16 / int8: 0.051 / 0.031, 0.21 / 0.15 and 1.4 / 1.0 ms, against 0.20, 1.4 and 11.4 ms of
  ``F.linear`` in bfloat16. That is all of what memory gives for one row (60 GB/s from the L3 cache, 18 to 21 from
  DRAM), and 145 GFLOP/s of the 190 that two such cores have.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

import torch

from kernels import device, simd
from kernels.linear import numba
from kernels.linear.reference import Quantised, linear_fp8, quantise, quantise_fp8

Quantization = Literal["none", "int8", "fp8"]
_FIRST_WITH_FP8: Final = (8, 9)


class Form(Enum):
    """How a weight lies in memory."""

    PLAIN = auto()
    ONEDNN = auto()
    PANELS = auto()
    FP8 = auto()


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of a linear layer of ``outputs``, in one of the forms.

    int8 and fp8 have their ``scale`` [out] (int8's is padded), fp8 on a GPU what its kernel counts in: ``arrivals``.
    """

    tensor: torch.Tensor
    form: Form
    outputs: int
    scale: torch.Tensor | None = None
    arrivals: torch.Tensor | None = None


def quantization_fault(quantization: Quantization, place: torch.device) -> str | None:
    """Why weights can't be rounded like this on this device, in words that begin with the name; None: they can."""
    if quantization == "int8" and place.type != "cpu":
        return "int8 is for CPUs: take fp8, leave it out, or choose --device cpu"
    if quantization == "fp8" and place.type != "cuda":
        return "fp8 is for GPUs: take int8 on a CPU, or leave it out"
    if quantization == "fp8" and (found := torch.cuda.get_device_capability(place)) < _FIRST_WITH_FP8:
        needed, own = (".".join(map(str, version)) for version in (_FIRST_WITH_FP8, found))
        return f"fp8 needs a GPU of compute capability {needed} or higher, and this one has {own}: leave it out"
    return None


def pack(weight: torch.Tensor, quantization: Quantization = "none") -> Weight:
    """Take over ``weight`` [out, in]. The caller drops it, so that at most one weight exists twice at a time."""
    outputs = weight.shape[0]
    if quantization == "fp8":
        return _pack_fp8(weight)
    if weight.device.type != "cpu":
        return Weight(weight, Form.PLAIN, outputs)
    if quantization == "int8":
        values, scale = quantise(weight)
        padded = torch.zeros(-(-outputs // simd.LANES) * simd.LANES)
        padded[:outputs] = scale
        return Weight(numba.pack(values), Form.PANELS, outputs, padded)
    if weight.dtype != torch.bfloat16:
        return Weight(weight, Form.PLAIN, outputs)
    if native_bf16():
        try:
            return Weight(torch.ops.mkldnn._reorder_linear_weight(weight, 1), Form.ONEDNN, outputs)
        except (AttributeError, RuntimeError):
            pass
    return Weight(numba.pack(weight), Form.PANELS, outputs)


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` for x [T, in] -> [T, out]."""
    if weight.form is Form.PANELS:
        return numba.linear(x, weight.tensor, weight.outputs, weight.scale, bias)
    if weight.form is Form.ONEDNN:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.tensor, bias, "none", [], "")
        return result
    if weight.form is Form.FP8:
        return _linear_fp8(x, weight, bias)
    return torch.nn.functional.linear(x, weight.tensor, bias)


def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    found = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _pack_fp8(weight: torch.Tensor) -> Weight:
    if device.on_gpu(weight):
        from kernels.linear import triton

        values, scale = triton.quantise(weight)
        return Weight(values, Form.FP8, len(weight), scale, triton.new_arrivals(len(weight), weight.device))
    values, scale = quantise_fp8(weight)
    return Weight(values, Form.FP8, len(weight), scale)


def _linear_fp8(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
    assert weight.scale is not None
    rounded = Quantised(weight.tensor, weight.scale)
    if weight.arrivals is None:
        return linear_fp8(x, rounded, bias)
    from kernels.linear import triton

    return triton.linear_fp8(x, rounded, weight.arrivals, bias)
