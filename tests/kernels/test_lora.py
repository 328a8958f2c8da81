"""Does each row get what its own adapter adds, and are rows grouped so that every one is in exactly one block?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lora import Adapters, group, lora, reference
from tests.kernels.compare import assert_close, both_dtypes


@both_dtypes
def test_is_what_merged_weights_would_give(dtype: torch.dtype) -> None:
    x, y, adapters, adapter_of = reference.inputs(12, 24, 20, 8, 3, dtype, 0)
    before = y.clone()
    lora(x, y, adapters, group(adapter_of, 3))
    for row, index in enumerate(adapter_of.tolist()):
        if index < 0:
            assert torch.equal(y[row], before[row])
            continue
        merged = adapters.scale[index] * (adapters.b[index].float() @ adapters.a[index].float())
        expected = before[row].float() + merged @ x[row].float()
        assert_close(y[row], expected.to(dtype), reference.TOLERANCE[dtype])
        assert not torch.equal(y[row], before[row])


def test_zeros_of_a_larger_rank_add_nothing() -> None:
    x, y, adapters, adapter_of = reference.inputs(5, 24, 20, 8, 2, torch.float32, 0)
    padded = Adapters(
        torch.nn.functional.pad(adapters.a, (0, 0, 0, 8)), torch.nn.functional.pad(adapters.b, (0, 8)), adapters.scale
    )
    other = y.clone()
    lora(x, y, adapters, group(adapter_of, 2))
    lora(x, other, padded, group(adapter_of, 2))
    assert_close(other, y, 1e-6)


def test_some_columns_of_a_wider_tensor() -> None:
    x, y, adapters, adapter_of = reference.inputs(5, 24, 20, 8, 2, torch.float32, 0)
    wide = torch.ones(5, 50)
    wide[:, 10:30] = y
    lora(x, wide[:, 10:30], adapters, group(adapter_of, 2))
    lora(x, y, adapters, group(adapter_of, 2))
    assert torch.equal(wide[:, 10:30], y)
    assert wide[:, :10].eq(1).all()
    assert wide[:, 30:].eq(1).all()


@settings(deadline=None, max_examples=60)
@given(
    adapter_of=st.lists(st.integers(-1, 4), min_size=1, max_size=400),
    spare=st.integers(0, 3),
)
def test_blocks_cover_the_rows_with_an_adapter_once(adapter_of: list[int], spare: int) -> None:
    batch = group(torch.tensor(adapter_of, dtype=torch.int32), 5 + spare)
    found = []
    for adapter, first, last in batch.blocks.tolist():
        rows = batch.order[first:last].tolist() if first < last else []
        assert len(rows) <= batch.block_rows
        assert all(adapter_of[row] == adapter for row in rows)
        found += rows
    assert sorted(found) == [row for row, adapter in enumerate(adapter_of) if adapter >= 0]


@pytest.mark.parametrize("rows", [1, 16, 17, 257, 1000])
def test_how_many_blocks_there_are_depends_on_sizes_alone(rows: int) -> None:
    some = torch.randint(-1, 6, (rows,), dtype=torch.int32, generator=torch.Generator().manual_seed(rows))
    cases = (some, torch.zeros_like(some), torch.full_like(some, -1))
    assert len({group(case, 6).blocks.shape for case in cases}) == 1
