"""Does the GPU's provider score tokens as the reference defines it?"""

from dataclasses import fields

import pytest
import torch

from kernels import device
from kernels.score import Scores, reference, score
from tests.kernels.compare import both_dtypes
from tests.kernels.test_score import assert_same

provider = pytest.importorskip("kernels.score.triton")


def scores_by(gpu: torch.device, logits: torch.Tensor, targets: torch.Tensor, top: int) -> Scores:
    """What the provider says, back on the CPU."""
    scores = provider.score(logits.to(gpu), targets.to(gpu), top)
    return Scores(**{field.name: getattr(scores, field.name).cpu() for field in fields(Scores)})


@both_dtypes
@pytest.mark.parametrize(("vocabulary", "top"), [(1, 2), (33, 0), (129, 3), (700, 4), (5001, 1)])
def test_triton_is_the_reference(dtype: torch.dtype, vocabulary: int, top: int, gpu: torch.device) -> None:
    logits, targets = reference.inputs(3, vocabulary, dtype, vocabulary)
    before = logits.clone()
    assert_same(scores_by(gpu, logits, targets, top), reference.score(logits, targets, top))
    assert torch.equal(logits, before)


def test_equal_logits_share_a_rank_and_come_by_their_ids(gpu: torch.device) -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0, 1.0]).repeat_interleave(50).repeat(3, 1)
    targets = torch.tensor([4, 3, 5], dtype=torch.int32) * 50
    scores = scores_by(gpu, logits, targets, 3)
    assert_same(scores, reference.score(logits, targets, 3))
    assert scores.ranks.tolist() == [1, 151, 201]
    assert scores.top_tokens.tolist() == [[50, 51, 52]] * 3


def test_the_likeliest_end_where_the_tokens_do(gpu: torch.device) -> None:
    logits, target = torch.tensor([[0.0, float("-inf"), 1.0]]), torch.tensor([1], dtype=torch.int32)
    scores = scores_by(gpu, logits, target, 4)
    assert_same(scores, reference.score(logits, target, 4))
    assert scores.top_tokens.tolist() == [[2, 0, -1, -1]]


def test_strided_logits_are_taken(gpu: torch.device) -> None:
    logits, targets = reference.inputs(3, 12, torch.float32, 5)
    assert_same(scores_by(gpu, logits.t().contiguous().t(), targets, 2), reference.score(logits, targets, 2))


def test_a_gpu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(provider, "score", lambda logits, targets, top: called.append((logits.shape, top)))
    score(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int32), 4)
    assert called == [((2, 5), 4)]
