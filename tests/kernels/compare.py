"""What do the tests of all kernels share?"""

from typing import Final

import pytest
import torch

DTYPES: Final = (torch.float32, torch.bfloat16)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("fp32", "bf16"))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the expected, relative to the larger of 1 and its magnitude."""
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)
