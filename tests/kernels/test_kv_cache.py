"""Is the memory of a KV block what `bytes_per_block` says?"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.kv_cache import LANES, allocate, bytes_per_block, token_major

CPU = torch.device("cpu")
GPU = torch.device("cuda")


@given(blocks=st.integers(1, 5), heads=st.integers(1, 4), dim=st.integers(1, 80), size=st.integers(1, 40))
def test_a_block_takes_what_is_said(blocks: int, heads: int, dim: int, size: int) -> None:
    cache = allocate(blocks, heads, dim, size, torch.bfloat16, CPU)
    assert blocks * bytes_per_block(heads, dim, size, torch.bfloat16, CPU) == cache.key.nbytes + cache.value.nbytes
    assert cache.kv_heads == heads
    assert cache.key.shape[-1] % LANES == cache.value.shape[-1] % LANES == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@given(blocks=st.integers(1, 5), heads=st.integers(1, 4), dim=st.integers(1, 80), size=st.integers(1, 40))
def test_a_block_on_a_gpu_takes_what_is_said(dtype: torch.dtype, blocks: int, heads: int, dim: int, size: int) -> None:
    cache = token_major(blocks, heads, dim, size, dtype, CPU)
    assert blocks * bytes_per_block(heads, dim, size, dtype, GPU) == cache.key.nbytes + cache.value.nbytes
    assert cache.key.shape == (blocks, heads, dim, size) and cache.value.shape == (blocks, heads, size, dim)
    assert cache.kv_heads == heads


def test_on_a_gpu_what_a_block_holds_of_a_head_lies_in_one_piece() -> None:
    cache = allocate(3, 2, 8, 5, torch.bfloat16, torch.device("meta"))
    assert cache.value.stride() == (2 * 5 * 8, 5 * 8, 8, 1)
    assert cache.key.stride() == (2 * 5 * 8, 5 * 8, 1, 8)


def test_usual_sizes_need_no_padding() -> None:
    for device in (CPU, GPU):
        assert bytes_per_block(2, 64, 16, torch.bfloat16, device) == 2 * 16 * 2 * 64 * 2
