"""Do all providers of paged attention compute what the reference defines, and the reference what SDPA does?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.paged_attention import numba, paged_attention, reference
from tests.kernels.compare import assert_close, both_dtypes

sequences = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 70)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    min_size=1,
    max_size=5,
)


@both_dtypes
@settings(deadline=None, max_examples=40)
@given(
    lengths=sequences,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 7),
    half=st.integers(1, 24),
    block_size=st.sampled_from((1, 3, 4, 16, 17, 32)),
    window=st.sampled_from((0, 1, 7, 33)),
    seed=st.integers(0, 99),
)
def test_numba_is_the_reference(
    dtype: torch.dtype,
    lengths: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    half: int,
    block_size: int,
    window: int,
    seed: int,
) -> None:
    """Blocks that a sequence doesn't own are NaN here: one read too far and the result shows it."""
    made = reference.inputs(lengths, kv_heads * group, kv_heads, 2 * half, block_size, dtype, seed)
    actual = numba.paged_attention(made.query, made.cache, made.batch, window=window, scale=0.3)
    expected = reference.paged_attention(made.query, made.cache, made.batch, window=window, scale=0.3)
    assert_close(actual, expected, reference.TOLERANCE[dtype])


@pytest.mark.parametrize("head_dim", [80, 128])
@both_dtypes
def test_head_sizes_of_real_models(dtype: torch.dtype, head_dim: int) -> None:
    made = reference.inputs([(1, 300), (50, 123), (1, 1)], 8, 2, head_dim, 16, dtype, 3)
    actual = numba.paged_attention(made.query, made.cache, made.batch, window=0, scale=head_dim**-0.5)
    expected = reference.paged_attention(made.query, made.cache, made.batch, window=0, scale=head_dim**-0.5)
    assert_close(actual, expected, reference.TOLERANCE[dtype])


def test_a_sequence_gets_the_same_bits_in_any_batch() -> None:
    made = reference.inputs([(1, 37), (20, 41), (1, 90)], 6, 2, 16, 4, torch.float32, 5)
    whole = paged_attention(made.query, made.cache, made.batch, window=0, scale=0.25)
    for s in range(3):
        begin, end = made.batch.query_starts[s : s + 2].tolist()
        alone = reference.AttentionMetadata(
            query_starts=torch.tensor([0, end - begin], dtype=torch.int32),
            context_lengths=made.batch.context_lengths[s : s + 1],
            block_tables=made.batch.block_tables[s : s + 1],
        )
        single = paged_attention(made.query[begin:end], made.cache, alone, window=0, scale=0.25)
        assert torch.equal(single, whole[begin:end])


@both_dtypes
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7])
def test_a_token_gets_the_same_bits_in_a_prompt_and_decoded(dtype: torch.dtype, group: int) -> None:
    """So an answer that goes on elsewhere, its beginning computed as a prompt, is what it would have been."""
    count = 19
    made = reference.inputs([(count, 37)], 2 * group, 2, 16, 4, dtype, 5)
    whole = numba.paged_attention(made.query, made.cache, made.batch, window=0, scale=0.25)
    for row in range(count):
        alone = reference.AttentionMetadata(
            query_starts=torch.tensor([0, 1], dtype=torch.int32),
            context_lengths=made.batch.context_lengths - count + 1 + row,
            block_tables=made.batch.block_tables,
        )
        one = numba.paged_attention(made.query[row : row + 1], made.cache, alone, window=0, scale=0.25)
        assert torch.equal(one, whole[row : row + 1])


def test_large_scores_do_not_overflow() -> None:
    made = reference.inputs([(3, 50)], 2, 2, 16, 16, torch.float32, 6)
    actual = numba.paged_attention(made.query, made.cache, made.batch, window=0, scale=1e3)
    expected = reference.paged_attention(made.query, made.cache, made.batch, window=0, scale=1e3)
    assert bool(actual.isfinite().all())
    assert_close(actual, expected, 1e-3)


def test_the_reference_is_sdpa() -> None:
    made = reference.inputs([(9, 9)], 4, 2, 16, 4, torch.float32, 7)
    blocks = made.batch.block_tables[0].long()
    key = made.cache.key[blocks, ..., :4].permute(1, 0, 3, 2).reshape(2, -1, 16)[:, :9]
    value = made.cache.value[blocks, ..., :16].permute(1, 0, 2, 3).reshape(2, -1, 16)[:, :9]
    query = made.query.reshape(9, 4, 16).transpose(0, 1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, enable_gqa=True
    )
    actual = reference.paged_attention(made.query, made.cache, made.batch, window=0, scale=0.25)
    assert_close(actual, expected[0].transpose(0, 1).reshape(9, -1), 1e-6)
