"""Does the GPU's paged attention compute what the reference defines, however its work is shared out?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import device, kv_cache
from kernels.paged_attention import AttentionMetadata, paged_attention, plan, reference
from kernels.paged_attention import triton as provider
from kernels.paged_attention.reference import Inputs
from tests.kernels.compare import assert_close

FP32, BF16, FP8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
# Float8 caches are multiplied in float16.
TOLERANCE = reference.TOLERANCE | {FP8: 4e-3}
MIXED = [(1, 130), (3, 40), (0, 0), (20, 80), (1, 1)]
DECODES = [(1, 260), (1, 64), (0, 0), (1, 65)]


@pytest.fixture(autouse=True)
def _a_narrow_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs without work take time as well where they are interpreted."""
    monkeypatch.setattr(device, "multiprocessors", lambda device: 2)


def made(
    lengths: list[tuple[int, int]],
    group: int,
    gpu: torch.device,
    *,
    kv_heads: int = 2,
    dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = FP32,
    cache: torch.dtype | None = None,
) -> Inputs:
    """The reference's inputs; what no sequence owns, and a slot past a context, is NaN."""
    one = reference.inputs(lengths, kv_heads * group, kv_heads, dim, block_size, dtype, 3, cache or dtype)
    batch = one.batch
    return Inputs(
        one.query.to(gpu),
        replace(one.cache, key=one.cache.key.to(gpu), value=one.cache.value.to(gpu)),
        AttentionMetadata(batch.query_starts.to(gpu), batch.context_lengths.to(gpu), batch.block_tables.to(gpu)),
    )


def check(one: Inputs, window: int = 0, scale: float = 0.3, tolerance: float | None = None, **fields: Any) -> None:
    batch = replace(one.batch, **fields)
    actual = provider.paged_attention(one.query, one.cache, batch, window=window, scale=scale)
    expected = reference.paged_attention(one.query, one.cache, batch, window=window, scale=scale)
    assert actual.dtype == one.query.dtype
    if tolerance is None:
        tolerance = max(TOLERANCE[one.query.dtype], TOLERANCE[one.cache.key.dtype])
    assert_close(actual, expected, tolerance)


def share_among(programs: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(provider, "_programs", lambda query, decodes_only: programs)


@pytest.mark.parametrize(
    ("group", "dim", "block_size", "window", "dtype", "cache", "programs"),
    [
        (2, 16, 16, 0, FP32, FP32, 1),
        (2, 16, 16, 0, FP32, FP32, 2),
        (2, 16, 16, 0, FP32, FP32, 5),
        (2, 16, 16, 0, FP32, FP32, 40),
        (7, 24, 5, 70, FP32, FP32, 4),
        (7, 32, 16, 0, BF16, BF16, 5),
        (4, 24, 1, 0, BF16, FP8, 3),
        (1, 16, 16, 70, FP32, FP8, 7),
    ],
)
def test_decodes_shared_among_any_number_of_programs(
    group: int,
    dim: int,
    block_size: int,
    window: int,
    dtype: torch.dtype,
    cache: torch.dtype,
    programs: int,
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Segments lie in one program, are split, span whole programs; 40 programs are more than there is work for."""
    share_among(programs, monkeypatch)
    one = made(DECODES, group, gpu, dim=dim, block_size=block_size, dtype=dtype, cache=cache)
    check(one, window, decodes_only=True)


@pytest.mark.parametrize(
    ("group", "dim", "block_size", "window", "dtype", "cache", "programs"),
    [
        (2, 16, 5, 0, FP32, FP32, 1),
        (7, 16, 16, 9, FP32, FP32, 3),
        (3, 32, 16, 33, BF16, BF16, 30),
        (4, 24, 1, 0, BF16, FP8, 3),
        (17, 16, 16, 50, FP32, FP8, 3),
    ],
)
def test_a_mixed_batch(
    group: int,
    dim: int,
    block_size: int,
    window: int,
    dtype: torch.dtype,
    cache: torch.dtype,
    programs: int,
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 30 programs there are more of them than tiles, with one there are fewer."""
    share_among(programs, monkeypatch)
    check(made(MIXED, group, gpu, dim=dim, block_size=block_size, dtype=dtype, cache=cache), window)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(
        st.tuples(st.sampled_from((0, 1, 1, 2, 9, 40)), st.integers(0, 140)).map(lambda pair: (pair[0], sum(pair))),
        min_size=1,
        max_size=4,
    ).filter(lambda lengths: any(count for count, _ in lengths)),
    group=st.integers(1, 7),
    half=st.integers(1, 20),
    block_size=st.sampled_from((1, 3, 16, 32)),
    window=st.sampled_from((0, 1, 33)),
    programs=st.integers(1, 9),
)
def test_any_batch(
    lengths: list[tuple[int, int]],
    group: int,
    half: int,
    block_size: int,
    window: int,
    programs: int,
    gpu: torch.device,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        share_among(programs, patch)
        check(made(lengths, group, gpu, kv_heads=1, dim=2 * half, block_size=block_size), window)


@pytest.mark.parametrize("length", [(1, 90), (70, 200), (64, 64)])
@pytest.mark.parametrize("window", [0, 50])
def test_a_single_sequence(length: tuple[int, int], window: int, gpu: torch.device) -> None:
    """None is known to decode: one that does is a tile like any other."""
    check(made([length], 2, gpu), window)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=("fp32", "bf16"))
def test_real_head_sizes(dtype: torch.dtype, gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    share_among(3, monkeypatch)
    for dim in (80, 128):
        check(made([(1, 100), (9, 23)], 2, gpu, kv_heads=1, dim=dim, dtype=dtype), scale=dim**-0.5)


def test_a_head_size_that_leaves_room_for_smaller_tiles_only(gpu: torch.device) -> None:
    check(made([(5, 70), (1, 40)], 1, gpu, kv_heads=1, dim=130, dtype=BF16), scale=0.1)


def test_tiles_for_a_gpu_with_less_shared_memory(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "_shared_memory", lambda: 163 * 1024)
    check(made(MIXED, 2, gpu, dtype=BF16))


def test_more_parts_of_a_sequence_than_are_combined_at_once(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    share_among(40, monkeypatch)
    check(made([(1, 64 * 40)], 1, gpu, kv_heads=1), decodes_only=True)


def test_more_sequences_than_are_searched_at_once(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    share_among(2, monkeypatch)
    lengths = [(0, 0)] * 70 + [(1, 5)] + [(0, 0)] * 70 + [(1, 3), (2, 5)]
    check(made(lengths, 1, gpu, kv_heads=1, block_size=4))


def test_what_no_sequence_owns_is_left_alone(gpu: torch.device) -> None:
    """A graph's padding: query tokens past the last sequence's."""
    one = made([(1, 5), (1, 20), (0, 0)], 2, gpu)
    padded = replace(one, query=torch.cat((one.query, torch.full_like(one.query, float("nan")))))
    batch = replace(one.batch, decodes_only=True)
    actual = provider.paged_attention(padded.query, one.cache, batch, window=0, scale=0.3)
    expected = reference.paged_attention(one.query, one.cache, batch, window=0, scale=0.3)
    assert actual.shape == padded.query.shape
    assert_close(actual[:2], expected, TOLERANCE[FP32])


def test_large_scores_do_not_overflow(gpu: torch.device) -> None:
    check(made([(3, 50), (1, 100)], 2, gpu), scale=1e3, tolerance=1e-3)


def test_the_plan(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of 64 tokens before each sequence that decodes, and how many before it prefill."""
    batch = AttentionMetadata(
        torch.tensor([0, 1, 1, 6, 7, 8, 10], dtype=torch.int32, device=gpu),
        torch.tensor([130, 0, 500, 64, 65, 2], dtype=torch.int32, device=gpu),
        torch.zeros(6, 1, dtype=torch.int32, device=gpu),
    )
    prefills = [0, 0, 0, 1, 1, 1, 2]
    for block in (4, 1024):
        monkeypatch.setattr(provider, "_BLOCK", block)
        plans = provider.plan(batch, (0, 64, 65)).plans
        assert plans[0].tolist() == [[0, 3, 3, 3, 4, 6, 6], prefills]
        # The last 64 tokens of 130 begin at 66, the last 65 of 65 at 0.
        assert plans[64].tolist() == [[0, 2, 2, 2, 3, 5, 5], prefills]
        assert plans[65].tolist() == [[0, 2, 2, 2, 3, 5, 5], prefills]


def test_a_plan_is_made_once(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(DECODES, 2, gpu)
    planned = provider.plan(one.batch, {0, 9})
    monkeypatch.setattr(provider, "_plan", None)
    for window in (0, 9):
        check(one, window, plans=planned.plans, decodes_only=True)
    with pytest.raises(TypeError):
        check(one, 8, plans=planned.plans)


def test_it_is_picked_on_a_gpu(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    one = made([(1, 5)], 2, gpu)
    batch = plan(one.batch, (0,))
    assert set(batch.plans) == {0}
    expected = reference.paged_attention(one.query, one.cache, batch, window=0, scale=0.3)
    monkeypatch.setattr(reference, "paged_attention", None)
    assert_close(paged_attention(one.query, one.cache, batch, window=0, scale=0.3), expected, TOLERANCE[FP32])


def test_a_cpu_plans_nothing() -> None:
    batch = made([(1, 5)], 2, torch.device("cpu")).batch
    assert plan(batch, (0,)) is batch


def test_a_cache_that_lies_otherwise_is_refused(gpu: torch.device) -> None:
    one = made([(1, 5)], 2, gpu)
    cache = kv_cache.allocate(1, 2, 16, 16, FP32, torch.device("cpu"))
    with pytest.raises(ValueError, match="token-major"):
        provider.paged_attention(one.query, cache, one.batch, window=0, scale=0.3)
