"""Do all providers of RMSNorm compute what the reference defines, and the reference what transformers does?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kernels.rms_norm import numba, reference, rms_norm
from tests.kernels.compare import DTYPES, assert_close, both_dtypes


@both_dtypes
@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 9), width=st.integers(1, 431), seed=st.integers(0, 99), add=st.booleans())
def test_numba_is_the_reference(dtype: torch.dtype, rows: int, width: int, seed: int, add: bool) -> None:
    x, weight, residual = reference.inputs(rows, width, dtype, seed)
    mine, theirs = (residual.clone(), residual.clone()) if add else (None, None)
    actual = numba.rms_norm(x, weight, 1e-6, mine)
    assert_close(actual, reference.rms_norm(x, weight, 1e-6, theirs), reference.TOLERANCE[dtype])
    if mine is not None and theirs is not None:
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_parallel_variant_is_the_same(dtype: torch.dtype) -> None:
    rows, width = 160, 431
    assert rows * width >= numba.PARALLEL
    x, weight, residual = reference.inputs(rows, width, dtype, 1)
    whole = numba.rms_norm(x, weight, 1e-6, residual.clone())
    single = torch.cat([numba.rms_norm(x[i : i + 1], weight, 1e-6, residual[i : i + 1].clone()) for i in range(rows)])
    assert_close(whole, single, reference.TOLERANCE[dtype])


def test_the_reference_is_transformers() -> None:
    x, weight, _ = reference.inputs(5, 42, torch.float32, 3)
    judge = LlamaRMSNorm(42, eps=1e-5)
    judge.weight.data.copy_(weight)
    assert_close(reference.rms_norm(x, weight, 1e-5), judge(x).detach(), 1e-6)


def test_what_numba_cannot_take_goes_to_the_reference() -> None:
    x, weight, _ = reference.inputs(4, 12, torch.float32, 5)
    half = rms_norm(x.half(), weight.half(), 1e-6)
    assert half.dtype == torch.float16
    strided = rms_norm(x.t().contiguous().t(), weight, 1e-6)
    assert_close(strided, reference.rms_norm(x, weight, 1e-6), 1e-6)
    assert_close(half, reference.rms_norm(x, weight, 1e-6), 1e-2)
