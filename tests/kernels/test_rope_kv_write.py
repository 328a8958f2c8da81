"""Do all providers of QK-norm, RoPE and KV write do what the reference defines?"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kernels.rope_kv_write import numba, reference, rope_kv_write
from tests.kernels.compare import assert_close, both_dtypes


def check(inputs: tuple[reference.Inputs, reference.Inputs], heads: int, dtype: torch.dtype) -> None:
    ours, judge = inputs
    numba.rope_kv_write(ours.qkv, ours.positions, ours.slots, ours.table, ours.cache, ours.norm)
    reference.rope_kv_write(judge.qkv, judge.positions, judge.slots, judge.table, judge.cache, judge.norm)
    width, tolerance = heads * judge.cache.head_dim, reference.TOLERANCE[dtype]
    assert_close(ours.qkv[:, :width], judge.qkv[:, :width], tolerance)
    assert_close(ours.cache.key, judge.cache.key, tolerance)
    assert torch.equal(ours.cache.value, judge.cache.value)


@both_dtypes
@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 40),
    seed=st.integers(0, 99),
    norm=st.booleans(),
)
def test_numba_is_the_reference(
    dtype: torch.dtype, tokens: int, kv_heads: int, group: int, half: int, seed: int, norm: bool
) -> None:
    heads = kv_heads * group

    def draw() -> reference.Inputs:
        return reference.inputs(tokens, heads, kv_heads, 2 * half, dtype, seed, norm=norm)

    check((draw(), draw()), heads, dtype)


@both_dtypes
def test_the_parallel_variant(dtype: torch.dtype) -> None:
    def draw() -> reference.Inputs:
        return reference.inputs(120, 6, 3, 24, dtype, 4, norm=True)

    assert draw().qkv.numel() >= numba.PARALLEL
    check((draw(), draw()), 6, dtype)


def test_the_rotation_is_transformers() -> None:
    inputs = reference.inputs(7, 2, 1, 16, torch.float32, 8)
    cos, sin = inputs.table[inputs.positions.long()].chunk(2, dim=-1)
    heads = inputs.qkv.view(7, 4, 16).transpose(0, 1)[None]
    query, key = apply_rotary_pos_emb(heads[:, :2], heads[:, 2:3], cos.repeat(1, 2)[None], sin.repeat(1, 2)[None])
    rope_kv_write(inputs.qkv, inputs.positions, inputs.slots, inputs.table, inputs.cache)
    assert_close(inputs.qkv.view(7, 4, 16)[:, :2], query[0].transpose(0, 1), 1e-6)
    block, offset = inputs.slots // 5, inputs.slots % 5
    assert_close(inputs.cache.key[block, 0, :, offset], key[0, 0], 1e-6)


def test_slots_that_are_not_named_stay_as_they_were() -> None:
    inputs = reference.inputs(3, 2, 1, 8, torch.float32, 2)
    inputs.cache.key.fill_(7.0)
    inputs.cache.value.fill_(7.0)
    numba.rope_kv_write(inputs.qkv, inputs.positions, inputs.slots, inputs.table, inputs.cache)
    assert int((inputs.cache.key != 7.0).sum()) == 3 * 8
    assert int((inputs.cache.value != 7.0).sum()) == 3 * 8
