"""Does the GPU's RMSNorm compute what the reference defines?"""

import pytest
import torch

from kernels import device
from kernels.rms_norm import reference, rms_norm
from kernels.rms_norm import triton as provider
from tests.kernels.compare import assert_close, both_dtypes


@both_dtypes
@pytest.mark.parametrize("add", [False, True], ids=("alone", "added"))
@pytest.mark.parametrize(("rows", "width"), [(1, 4096), (3, 6), (2, 42), (4, 123), (2, 431), (1, 1), (0, 8)])
def test_it_is_the_reference(dtype: torch.dtype, rows: int, width: int, add: bool, gpu: torch.device) -> None:
    x, weight, residual = reference.inputs(rows, width, dtype, width)
    mine = residual.to(gpu, copy=True) if add else None
    actual = provider.rms_norm(x.to(gpu), weight.to(gpu), 1e-6, mine)
    expected = reference.rms_norm(x, weight, 1e-6, residual if add else None)
    assert_close(actual.cpu(), expected, reference.TOLERANCE[dtype])
    if mine is not None:
        assert torch.equal(mine.cpu(), residual)


def test_what_was_rounded_is_normalised(gpu: torch.device) -> None:
    x, weight, residual = reference.inputs(3, 431, torch.bfloat16, 7)
    actual = provider.rms_norm(x.to(gpu), weight.to(gpu), 1e-6, residual.to(gpu, copy=True)).cpu()
    unrounded = reference.rms_norm(x.float() + residual.float(), weight.float(), 1e-6).bfloat16()
    expected = reference.rms_norm(x, weight, 1e-6, residual)
    assert (unrounded != expected).float().mean() > 0.1
    assert (actual != expected).float().mean() < 0.01


def test_the_epsilon_counts(gpu: torch.device) -> None:
    x = torch.full((1, 4), 1e-3, device=gpu)
    actual = provider.rms_norm(x, torch.ones(4, device=gpu), 3e-6, None)
    torch.testing.assert_close(actual.cpu(), torch.full((1, 4), 0.5))


def test_it_is_picked_on_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    calls: list[torch.Tensor] = []
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(provider, "rms_norm", lambda x, *rest: calls.append(x))
    x, weight, _ = (tensor.to(gpu) for tensor in reference.inputs(3, 8, torch.bfloat16, 0))
    rms_norm(x, weight, 1e-6)
    assert len(calls) == 1
    rms_norm(x.t().contiguous().t(), weight, 1e-6)
    assert len(calls) == 1
