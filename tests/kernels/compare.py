"""What do the tests of all kernels share?"""

from typing import Final

import pytest
import torch

from kernels.sample.reference import LOGPROB_TOLERANCE, Samples

DTYPES: Final = (torch.float32, torch.bfloat16)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=("fp32", "bf16"))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Within ``tolerance`` of the expected, relative to the larger of 1 and its magnitude."""
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


def assert_same_samples(actual: Samples, expected: Samples) -> None:
    """The same tokens, drawn and likeliest, and low margins; the rest within the reference's tolerance."""
    assert actual.tokens.tolist() == expected.tokens.tolist()
    assert actual.low_margins.tolist() == expected.low_margins.tolist()
    assert actual.top_tokens.tolist() == expected.top_tokens.tolist()
    atol = LOGPROB_TOLERANCE
    torch.testing.assert_close(actual.logprobs, expected.logprobs, rtol=1e-5, atol=atol)
    torch.testing.assert_close(actual.entropies, expected.entropies, rtol=1e-4, atol=atol)
    torch.testing.assert_close(actual.top_logprobs, expected.top_logprobs, rtol=1e-5, atol=atol)
