"""Does the GPU's QK-norm, RoPE and KV write do what the reference defines?"""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from kernels import device
from kernels.rope_kv_write import reference, rope_kv_write
from kernels.rope_kv_write import triton as provider
from tests.kernels.compare import assert_close, both_dtypes

FP8 = torch.float8_e4m3fn


def moved(thing: Any, to: torch.device) -> Any:
    """A copy of the inputs, tensors in dataclasses, on another device, with their strides."""
    if isinstance(thing, torch.Tensor):
        return thing.to(to, copy=True)
    if not hasattr(thing, "__dataclass_fields__"):
        return thing
    return replace(thing, **{field.name: moved(getattr(thing, field.name), to) for field in fields(thing)})


def run(rope: Any, inputs: reference.Inputs) -> reference.Inputs:
    rope(inputs.qkv, inputs.positions, inputs.slots, inputs.table, inputs.cache, inputs.norm)
    return inputs


def check(inputs: reference.Inputs, gpu: torch.device) -> None:
    cache, dtype = inputs.cache, inputs.qkv.dtype
    actual = moved(run(provider.rope_kv_write, moved(inputs, gpu)), torch.device("cpu"))
    expected = run(reference.rope_kv_write, moved(inputs, torch.device("cpu")))
    assert actual.cache.key.stride() == cache.key.stride()
    query = inputs.qkv.shape[1] - 2 * cache.kv_heads * cache.head_dim
    assert_close(actual.qkv[:, :query], expected.qkv[:, :query], reference.TOLERANCE[dtype])
    assert torch.equal(actual.cache.value.float(), expected.cache.value.float())
    key, judge = actual.cache.key.float(), expected.cache.key.float()
    if cache.key.dtype == FP8:
        # Where float32 differs by a bit, float8 may differ by a step, an eighth, but not often.
        assert (key != judge).float().mean() < 0.01
        assert_close(key, judge, 1 / 8)
    else:
        assert_close(key, judge, reference.TOLERANCE[dtype])


# One head and seven; halves that aren't a power of two; tiles that aren't full, and several of each kind.
SHAPES = [(7, 1, 6), (1, 1, 24), (4, 2, 80), (6, 3, 128), (12, 3, 128), (9, 9, 128)]


@both_dtypes
@pytest.mark.parametrize("norm", [False, True], ids=("plain", "norm"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_reference(dtype: torch.dtype, shape: tuple[int, int, int], norm: bool, gpu: torch.device) -> None:
    check(reference.inputs(3, *shape, dtype, 1, norm=norm, cache_dtype=dtype), gpu)


@both_dtypes
@pytest.mark.parametrize("norm", [False, True], ids=("plain", "norm"))
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_a_float8_cache(dtype: torch.dtype, shape: tuple[int, int, int], norm: bool, gpu: torch.device) -> None:
    check(reference.inputs(3, *shape, dtype, 2, norm=norm, cache_dtype=FP8), gpu)


def test_the_layout_of_a_cpu_is_a_matter_of_strides(gpu: torch.device) -> None:
    check(reference.inputs(3, 4, 2, 24, torch.bfloat16, 3, norm=True), gpu)


def test_a_float8_cache_saturates(gpu: torch.device) -> None:
    inputs = reference.inputs(2, 2, 1, 16, torch.bfloat16, 4, cache_dtype=FP8)
    inputs.qkv.mul_(2000)
    check(inputs, gpu)
    cache = run(provider.rope_kv_write, moved(inputs, gpu)).cache
    for part in (cache.key, cache.value):
        assert float(part.float().abs().max()) == 448.0


def test_slots_that_are_not_named_stay_as_they_were(gpu: torch.device) -> None:
    inputs = reference.inputs(3, 5, 3, 6, torch.float32, 5, cache_dtype=torch.float32)
    inputs.cache.key.fill_(7.0)
    inputs.cache.value.fill_(7.0)
    cache = run(provider.rope_kv_write, moved(inputs, gpu)).cache
    assert int((cache.key != 7.0).sum()) == int((cache.value != 7.0).sum()) == 3 * 3 * 6


def test_it_is_picked_on_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    calls: list[torch.Tensor] = []
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(provider, "rope_kv_write", lambda qkv, *rest: calls.append(qkv))
    inputs = moved(reference.inputs(3, 2, 1, 8, torch.bfloat16, 6, cache_dtype=torch.bfloat16), gpu)
    run(rope_kv_write, inputs)
    assert len(calls) == 1
    gaps = torch.zeros(3, 64, dtype=torch.bfloat16, device=gpu)[:, :32]
    run(rope_kv_write, replace(inputs, qkv=gaps))
    assert len(calls) == 1
