"""Does the GPU's SiLU-mul compute what the reference defines?"""

import pytest
import torch

from kernels import device
from kernels.silu_mul import reference, silu_mul
from kernels.silu_mul import triton as provider
from tests.kernels.compare import assert_close, both_dtypes


@both_dtypes
@pytest.mark.parametrize(("rows", "width"), [(1, 6), (3, 42), (2, 123), (2, 431), (1, 1024), (2, 2049), (0, 8)])
def test_it_is_the_reference(dtype: torch.dtype, rows: int, width: int, gpu: torch.device) -> None:
    gate_up = reference.inputs(rows, width, dtype, width)
    actual = provider.silu_mul(gate_up.to(gpu))
    assert actual.shape == (rows, width) and actual.dtype == dtype
    assert_close(actual.cpu(), reference.silu_mul(gate_up), reference.TOLERANCE[dtype])


def test_gates_far_from_zero_overflow_nothing(gpu: torch.device) -> None:
    gate_up = torch.tensor([[-80.0, 80.0, 1e4, 1.0, 1.0, 1.0]], device=gpu)
    expected = torch.tensor([[0.0, 80.0, 1e4]])
    torch.testing.assert_close(provider.silu_mul(gate_up).cpu(), expected, rtol=0, atol=1e-30)


def test_it_is_picked_on_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    calls: list[torch.Tensor] = []
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(provider, "silu_mul", calls.append)
    gate_up = reference.inputs(3, 8, torch.bfloat16, 0).to(gpu)
    silu_mul(gate_up)
    assert len(calls) == 1
    silu_mul(gate_up.t().contiguous().t())
    assert len(calls) == 1
