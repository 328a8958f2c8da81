"""What do the Triton kernels share?

`dot` is ``tl.dot``, also where Triton interprets a kernel on a CPU (``TRITON_INTERPRET=1``): there the product of two
bfloat16 tiles is garbage (Triton 3.6 to 3.9), so that it gets them as float32.
"""

import os
from typing import Final

# Multiplications and additions may be fused; Triton 3.9 warns where nobody says so.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
import triton.language as tl

INTERPRETED: Final = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
# exp(x) = exp2(x * LOG2E): the GPU has exp2 in hardware.
LOG2E: Final = tl.constexpr(1.4426950408889634)
LN2: Final = tl.constexpr(0.6931471805599453)
FP8_MAX: Final = tl.constexpr(448.0)


@triton.jit
def dot(a, b, sums):
    """``a @ b + sums``, with ``sums`` in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums)
    return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def to_fp8(x):
    """float32 to e4m3, saturated."""
    return tl.clamp(x, -FP8_MAX, FP8_MAX).to(tl.float8e4nv)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()
