"""Does an interpreted kernel round as a GPU does?

Triton's interpreter cuts float32 off where it should round it to bfloat16, and drops the carry of a rounded float8
(0.498 becomes 0.25; Triton 3.6 to 3.9). Torch's conversions, which round to nearest, ties to even, take their place, so
that an interpreted kernel may be held to the last bit.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def rounded_to_nearest() -> Iterator[None]:
    """Replaces the interpreter's conversion between floating-point types, where kernels are interpreted."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    import triton.language as tl

    types = {
        tl.float64: torch.float64,
        tl.float32: torch.float32,
        tl.float16: torch.float16,
        tl.bfloat16: torch.bfloat16,
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float8e5: torch.float8_e5m2,
    }
    original = interpreter._convert_float

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if source not in types or target not in types or mode == interpreter._ir.ROUNDING_MODE.RTZ:
            return original(data, source, target, mode)
        bits = torch.from_numpy(np.array(data).reshape(-1).view(np.uint8))
        result = bits.view(types[source]).to(types[target]).view(torch.uint8).numpy()
        return result.view(f"uint{target.primitive_bitwidth}").reshape(data.shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert)
        yield


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """Where Triton kernels run: on a CPU where they are interpreted."""
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
