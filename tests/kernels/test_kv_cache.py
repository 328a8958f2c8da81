"""Is the memory of a KV block what `bytes_per_block` says?"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.kv_cache import LANES, allocate, bytes_per_block


@given(blocks=st.integers(1, 5), heads=st.integers(1, 4), dim=st.integers(1, 80), size=st.integers(1, 40))
def test_a_block_takes_what_is_said(blocks: int, heads: int, dim: int, size: int) -> None:
    cache = allocate(blocks, heads, dim, size, torch.bfloat16, torch.device("cpu"))
    assert blocks * bytes_per_block(heads, dim, size, torch.bfloat16) == cache.key.nbytes + cache.value.nbytes
    assert cache.kv_heads == heads
    assert cache.key.shape[-1] % LANES == cache.value.shape[-1] % LANES == 0


def test_usual_sizes_need_no_padding() -> None:
    assert bytes_per_block(2, 64, 16, torch.bfloat16) == 2 * 16 * 2 * 64 * 2
