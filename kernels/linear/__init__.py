"""A matrix product with fixed weights: which form do the weights take on this device, and what multiplies them?

torch's ``F.linear`` on the plain weight is the definition, and what runs on a GPU and in float32. On a CPU:

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

import torch

from kernels import simd
from kernels.linear import numba
from kernels.linear.reference import quantise


class Form(Enum):
    """How a weight lies in memory."""

    PLAIN = auto()
    ONEDNN = auto()
    PANELS = auto()


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of a linear layer of ``outputs``, in one of the forms; int8 has its ``scale`` [out], padded."""

    tensor: torch.Tensor
    form: Form
    outputs: int
    scale: torch.Tensor | None = None


def pack(weight: torch.Tensor, *, int8: bool = False) -> Weight:
    """Take over ``weight`` [out, in]. The caller drops it, so that at most one weight exists twice at a time."""
    outputs = weight.shape[0]
    if weight.device.type != "cpu":
        return Weight(weight, Form.PLAIN, outputs)
    if int8:
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
    return torch.nn.functional.linear(x, weight.tensor, bias)


def native_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    found = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
