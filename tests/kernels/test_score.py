"""Do all providers score tokens as the reference defines it, and the reference as torch does?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.sample.reference import likeliest
from kernels.score import Scores, numba, reference, score
from tests.kernels.compare import both_dtypes


def assert_same(actual: Scores, expected: Scores) -> None:
    assert actual.ranks.tolist() == expected.ranks.tolist()
    assert actual.top_tokens.tolist() == expected.top_tokens.tolist()
    atol = reference.LOGPROB_TOLERANCE
    torch.testing.assert_close(actual.logprobs, expected.logprobs, rtol=1e-5, atol=atol)
    torch.testing.assert_close(actual.top_logprobs, expected.top_logprobs, rtol=1e-5, atol=atol)


@both_dtypes
@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 9),
    vocabulary=st.sampled_from((1, 6, 32, 42, 431, 2000)),
    top=st.sampled_from((0, 1, 2, 5, 50)),
    seed=st.integers(0, 9999),
)
def test_numba_is_the_reference(dtype: torch.dtype, count: int, vocabulary: int, top: int, seed: int) -> None:
    logits, targets = reference.inputs(count, vocabulary, dtype, seed)
    before = logits.clone()
    assert_same(numba.score(logits, targets, top), reference.score(logits, targets, top))
    assert torch.equal(logits, before)


@both_dtypes
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("vocabulary", [6, 42, 431, 32001])
def test_odd_sizes(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    logits, targets = reference.inputs(rows, vocabulary, dtype, rows)
    assert_same(score(logits, targets, 7), reference.score(logits, targets, 7))


def test_the_reference_is_torch() -> None:
    logits, targets = reference.inputs(17, 431, torch.float32, 1)
    scores = reference.score(logits, targets, 3)
    own = logits.log_softmax(-1)
    torch.testing.assert_close(scores.logprobs, own.gather(1, targets.long()[:, None])[:, 0])
    torch.testing.assert_close(scores.top_logprobs, own.topk(3).values)
    assert scores.top_tokens.tolist() == own.topk(3).indices.tolist()
    places = own.argsort(descending=True).argsort() + 1
    assert scores.ranks.tolist() == places.gather(1, targets.long()[:, None])[:, 0].tolist()


def test_equal_logits_share_a_rank_and_come_by_their_ids() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 1.0]] * 3)
    scores = score(logits, torch.tensor([4, 3, 5], dtype=torch.int32), 5)
    assert scores.ranks.tolist() == [1, 4, 5]
    assert scores.top_tokens.tolist() == [[1, 2, 4, 3, 0]] * 3


def test_where_there_are_no_more_tokens_the_likeliest_end() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0]])
    scores = score(logits, torch.tensor([1], dtype=torch.int32), 4)
    assert scores.top_tokens.tolist() == [[2, 0, -1, -1]]
    assert scores.top_logprobs[0, 2:].tolist() == [float("-inf")] * 2
    assert (scores.logprobs.item(), scores.ranks.item()) == (float("-inf"), 3)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=300), count=st.integers(0, 310))
def test_the_likeliest_are_a_sorted_row(values: list[int], count: int) -> None:
    row = torch.tensor(values, dtype=torch.float32)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    expected = order + [-1] * (count - len(order))
    assert likeliest(row, count)[0].tolist() == expected
    target = torch.zeros(1, dtype=torch.int32)
    assert numba.score(row[None], target, count).top_tokens[0].tolist() == expected


def test_what_numba_cannot_take_goes_to_the_reference() -> None:
    logits, targets = reference.inputs(3, 12, torch.float32, 5)
    strided = logits.t().contiguous().t()
    assert_same(score(strided, targets, 2), reference.score(logits, targets, 2))
    assert score(logits.double(), targets, 2).ranks.tolist() == score(logits, targets, 2).ranks.tolist()
