"""Do the GPU's two launches add what the reference adds, however rows, ranks and widths fall into tiles?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import device
from kernels.lora import Adapters, group, lora, reference
from kernels.lora import triton as provider
from tests.kernels.compare import assert_close


def apply(x: torch.Tensor, y: torch.Tensor, adapters: Adapters, adapter_of: torch.Tensor, gpu: torch.device) -> None:
    """`provider.lora` there, of what is here."""
    there = Adapters(*(tensor.to(gpu) for tensor in adapters))
    result = y.to(gpu, copy=True)
    provider.lora(x.to(gpu), result, there, group(adapter_of.to(gpu), len(adapters.a)))
    y.copy_(result)


def check(case: reference.Inputs, gpu: torch.device) -> None:
    x, y, adapters, adapter_of = case
    expected = y.clone()
    reference.lora(x, expected, adapters, adapter_of)
    without = y[adapter_of < 0].clone()
    apply(x, y, adapters, adapter_of, gpu)
    assert_close(y, expected, reference.TOLERANCE[y.dtype])
    assert torch.equal(y[adapter_of < 0], without)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 40),
    width=st.sampled_from([16, 128, 300]),
    outputs=st.integers(1, 70),
    rank=st.sampled_from([3, 8, 16, 64]),
    adapters=st.integers(1, 3),
    none=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_is_the_reference(
    rows: int, width: int, outputs: int, rank: int, adapters: int, none: float, dtype: torch.dtype, gpu: torch.device
) -> None:
    check(reference.inputs(rows, width, outputs, rank, adapters, dtype, rows, none=none), gpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [256, 640, 1050])
def test_inputs_in_parts(width: int, dtype: torch.dtype, gpu: torch.device) -> None:
    case = reference.inputs(5, width, 20, 8, 2, dtype, 0)
    assert provider.plan(3, 16, width, 8, 132).splits == {256: 1, 640: 2, 1050: 4}[width]
    check(case, gpu)


def test_a_rank_in_pieces(gpu: torch.device) -> None:
    check(reference.inputs(3, 40, 30, 100, 2, torch.bfloat16, 0), gpu)


def test_many_rows_take_larger_blocks(gpu: torch.device) -> None:
    case = reference.inputs(257, 40, 130, 8, 2, torch.bfloat16, 0)
    assert group(case.adapter_of, 2).block_rows == 64
    check(case, gpu)


def test_the_inner_vectors_are_not_rounded(gpu: torch.device) -> None:
    """One output is the inner vector's component itself, and y is as fine as float32 would be."""
    x = torch.tensor([[1.0, 2.0**-10]]).bfloat16()
    adapters = Adapters(torch.ones(1, 1, 2).bfloat16(), torch.ones(1, 1, 1).bfloat16(), torch.ones(1))
    y = torch.full((1, 1), -1.0).bfloat16()
    apply(x, y, adapters, torch.zeros(1, dtype=torch.int32), gpu)
    assert y.item() == 2.0**-10


def test_gaps_between_rows(gpu: torch.device) -> None:
    x, y, adapters, adapter_of = reference.inputs(5, 24, 20, 8, 2, torch.bfloat16, 0)
    wide, around = (torch.full((5, width), torch.nan, dtype=torch.bfloat16, device=gpu) for width in (30, 50))
    wide[:, 3:27] = x.to(gpu)
    around[:, 10:30] = y.to(gpu)
    there = Adapters(*(tensor.to(gpu) for tensor in adapters))
    provider.lora(wide[:, 3:27], around[:, 10:30], there, group(adapter_of.to(gpu), 2))
    apply(x, y, adapters, adapter_of, gpu)
    assert torch.equal(around[:, 10:30].cpu(), y)
    assert around[:, :10].isnan().all()
    assert around[:, 30:].isnan().all()


def test_a_gpu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(provider, "lora", lambda *args: called.append(args))
    x, y, adapters, adapter_of = reference.inputs(2, 4, 4, 1, 1, torch.bfloat16, 0)
    lora(x, y, adapters, group(adapter_of, 1))
    assert len(called) == 1


@pytest.mark.parametrize("rank", [8, 64, 100])
@pytest.mark.parametrize(("blocks", "rows"), [(1, 16), (12, 16), (132, 16), (9, 64)])
def test_a_plan_keeps_its_limits(blocks: int, rows: int, rank: int) -> None:
    how = provider.plan(blocks, rows, 4096, rank, 132)
    assert {how.shrunk, how.expanded} <= {16, 32, 64}
    assert how.splits == 1 or how.splits * blocks * -(-rank // how.shrunk) <= 132
    assert how.splits * how.expanded <= 512
