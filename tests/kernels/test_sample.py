"""Do all providers draw the tokens that the reference defines, and are those what the parameters promise?"""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from kernels.sample import SamplingBatch, numba, reference, sample
from tests.kernels.compare import both_dtypes


def rows(count: int, **changes: torch.Tensor) -> SamplingBatch:
    """``count`` rows that sample at temperature 1 without filters, with seeds of their own."""
    plain = SamplingBatch(
        temperature=torch.ones(count),
        top_k=torch.zeros(count, dtype=torch.int32),
        top_p=torch.ones(count),
        min_p=torch.zeros(count),
        seed=torch.arange(count) * 7919 - 5,
        position=torch.zeros(count, dtype=torch.int64),
        banned=torch.empty(0, dtype=torch.int32),
        banned_starts=torch.zeros(count + 1, dtype=torch.int32),
    )
    return replace(plain, **changes)


def only(batch: SamplingBatch, row: int) -> SamplingBatch:
    begin, end = batch.banned_starts[row : row + 2].tolist()
    values = {field.name: getattr(batch, field.name)[row : row + 1] for field in fields(batch)}
    values["banned"] = batch.banned[begin:end]
    values["banned_starts"] = torch.tensor([0, end - begin], dtype=torch.int32)
    return SamplingBatch(**values)


@both_dtypes
@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 9), vocabulary=st.sampled_from((1, 2, 5, 16, 17, 331, 2000)), seed=st.integers(0, 9999))
def test_numba_draws_the_reference_tokens(dtype: torch.dtype, count: int, vocabulary: int, seed: int) -> None:
    logits, batch = reference.inputs(count, vocabulary, dtype, seed)
    before = logits.clone()
    actual, expected = numba.sample(logits, batch), reference.sample(logits, batch)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    torch.testing.assert_close(actual.logprobs, expected.logprobs, rtol=1e-5, atol=reference.LOGPROB_TOLERANCE)
    torch.testing.assert_close(actual.entropies, expected.entropies, rtol=1e-4, atol=reference.LOGPROB_TOLERANCE)
    assert torch.equal(logits, before)


@settings(deadline=None, max_examples=60)
@given(
    levels=st.lists(st.sampled_from((-3.0, 0.0, 1.0, 1.5)), min_size=2, max_size=40),
    top_k=st.integers(0, 41),
    top_p=st.sampled_from((0.0, 0.1, 0.5, 0.75, 0.999, 1.0)),
    min_p=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
)
def test_ties_are_treated_alike(levels: list[float], top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.tensor([levels] * 8)
    batch = rows(
        8,
        top_k=torch.full((8,), top_k, dtype=torch.int32),
        top_p=torch.full((8,), top_p),
        min_p=torch.full((8,), min_p),
    )
    assert numba.sample(logits, batch).tokens.tolist() == reference.sample(logits, batch).tokens.tolist()


@both_dtypes
def test_a_row_draws_the_same_token_in_any_batch(dtype: torch.dtype) -> None:
    logits, batch = reference.inputs(12, 331, dtype, 77)
    together = sample(logits, batch).tokens.tolist()
    alone = [sample(logits[row : row + 1], only(batch, row)).tokens.item() for row in range(12)]
    assert together == alone


def test_frequencies_are_the_probabilities() -> None:
    count = 40_000
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.0999, 0.0001])
    logits = probabilities.log().repeat(count, 1)
    drawn = torch.bincount(sample(logits, rows(count)).tokens, minlength=5) / count
    # Four standard deviations of the largest share.
    torch.testing.assert_close(drawn, probabilities, rtol=0, atol=4 * (0.25 / count) ** 0.5)


def test_positions_of_one_seed_are_independent() -> None:
    count = 20_000
    logits = torch.zeros(count, 4)
    batch = rows(count, seed=torch.full((count,), 42), position=torch.arange(count))
    tokens = sample(logits, batch).tokens
    pairs = torch.bincount(tokens[:-1] * 4 + tokens[1:], minlength=16) / (count - 1)
    torch.testing.assert_close(pairs, torch.full((16,), 1 / 16), rtol=0, atol=4 * (1 / 16 / count) ** 0.5)


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.1), (9, 0.8, 0.05)])
def test_the_filters_keep_what_transformers_keeps(top_k: int, top_p: float, min_p: float) -> None:
    draw = torch.Generator().manual_seed(9)
    logits = 2 * torch.randn(1, 60, generator=draw)
    kept = TemperatureLogitsWarper(0.7)(torch.zeros(1, 1, dtype=torch.int64), logits)
    if top_k:
        kept = TopKLogitsWarper(top_k)(torch.zeros(1, 1, dtype=torch.int64), kept)
    if top_p < 1:
        kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.int64), kept)
    if min_p:
        kept = MinPLogitsWarper(min_p)(torch.zeros(1, 1, dtype=torch.int64), kept)
    count = 4000
    batch = rows(
        count,
        temperature=torch.full((count,), 0.7),
        top_k=torch.full((count,), top_k, dtype=torch.int32),
        top_p=torch.full((count,), top_p),
        min_p=torch.full((count,), min_p),
    )
    drawn = set(sample(logits.repeat(count, 1), batch).tokens.tolist())
    assert drawn == set(kept[0].isfinite().nonzero().flatten().tolist())


def test_greedy_takes_the_smallest_of_equal_tokens_and_skips_banned_ones() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]] * 3)
    batch = rows(
        3,
        temperature=torch.zeros(3),
        banned=torch.tensor([1, 1, 2], dtype=torch.int32),
        banned_starts=torch.tensor([0, 0, 1, 3], dtype=torch.int32),
    )
    drawn = sample(logits, batch)
    assert drawn.tokens.tolist() == [1, 2, 3]
    # The bans change what is drawn, not what the model thinks of it.
    expected = logits[0].log_softmax(-1)[[1, 2, 3]]
    torch.testing.assert_close(drawn.logprobs, expected)


def test_the_entropy_is_that_of_the_model() -> None:
    batch = rows(2, temperature=torch.tensor([0.0, 0.3]))
    flat = sample(torch.zeros(2, 331), batch)
    torch.testing.assert_close(flat.entropies, torch.full((2,), 331.0).log())
    sure = sample(torch.tensor([[0.0, 200.0, 0.0]] * 2), batch)
    assert sure.entropies.tolist() == [0.0, 0.0]
    assert sure.logprobs.tolist() == [0.0, 0.0]


def test_what_numba_cannot_take_goes_to_the_reference() -> None:
    assert sample(torch.zeros(1, 5, dtype=torch.float64), rows(1)).tokens.shape == (1,)


@pytest.mark.parametrize("changes", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.0}])
def test_broken_logits_stay_inside_the_vocabulary(changes: dict[str, float]) -> None:
    logits = torch.randn(4, 300)
    logits[0] = float("nan")
    logits[1, 7] = float("nan")
    logits[2, 7] = float("inf")
    logits[3] = float("-inf")
    plain = rows(4)
    changed = {name: torch.full_like(getattr(plain, name), value) for name, value in changes.items()}
    drawn = numba.sample(logits, replace(plain, **changed))
    assert ((drawn.tokens >= 0) & (drawn.tokens < 300)).all()
