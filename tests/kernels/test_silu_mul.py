"""Do all providers of SiLU-mul compute what the reference defines?"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.silu_mul import numba, reference, silu_mul
from tests.kernels.compare import assert_close, both_dtypes


@both_dtypes
@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 9), width=st.integers(1, 600), seed=st.integers(0, 99))
def test_numba_is_the_reference(dtype: torch.dtype, rows: int, width: int, seed: int) -> None:
    gate_up = reference.inputs(rows, width, dtype, seed)
    assert_close(numba.silu_mul(gate_up), reference.silu_mul(gate_up), reference.TOLERANCE[dtype])


@both_dtypes
def test_the_parallel_variant_is_the_same(dtype: torch.dtype) -> None:
    rows, width = 23, 1111
    assert rows * width >= numba.PARALLEL
    gate_up = reference.inputs(rows, width, dtype, 1)
    single = torch.cat([numba.silu_mul(gate_up[i : i + 1]) for i in range(rows)])
    assert torch.equal(numba.silu_mul(gate_up), single)


def test_gates_far_from_zero_overflow_nothing() -> None:
    gate_up = torch.tensor([[-1e4, -100.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 100.0, 1e4]])
    torch.testing.assert_close(silu_mul(gate_up), expected, rtol=0, atol=1e-30)


def test_what_numba_cannot_take_goes_to_the_reference() -> None:
    gate_up = reference.inputs(3, 8, torch.float64, 5)
    assert silu_mul(gate_up).dtype == torch.float64
