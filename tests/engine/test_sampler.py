"""Do requests' sampling parameters arrive in their rows?"""

import numpy as np
import torch

from engine.constraints import StepMask
from engine.job import Job
from engine.link import Sampling
from engine.sampler import sampling_batch
from tests.engine.driving import job

UNMASKED = StepMask(np.empty((0, 3), np.int32), np.array([-1, -1, -1], np.int32))


def row(length: int, seed: int, stops: frozenset[int] = frozenset(), **sampling: object) -> Job:
    wish = Sampling(max_tokens=1, **sampling)  # type: ignore[arg-type]
    return job(0, [1] * length, 1, sampling=wish, seed=seed, stop_ids=stops)


def test_rows() -> None:
    jobs = [
        row(17, 2**64 - 1, frozenset({4, 9}), temperature=0.5, top_p=0.9, min_p=0.1, min_tokens=1),
        row(1, 3, top_k=5, top_logprobs=7),
        row(40, 2**63, top_k=-1, logit_bias={7: 2.5}),
    ]
    batch = sampling_batch(jobs, UNMASKED)
    assert batch.temperature.tolist() == [0.5, 1.0, 1.0]
    torch.testing.assert_close(batch.top_p, torch.tensor([0.9, 1.0, 1.0]))
    torch.testing.assert_close(batch.min_p, torch.tensor([0.1, 0.0, 0.0]))
    assert batch.top_k.tolist() == [0, 5, 0]
    assert batch.top.tolist() == [0, 7, 0]
    assert batch.width == 7
    assert batch.seed.tolist() == [-1, 3, -(2**63)]
    assert batch.position.tolist() == [17, 1, 40]
    assert sorted(batch.edited.tolist()[:2]) == [4, 9]
    assert batch.edited.tolist()[2:] == [7]
    assert batch.edit_starts.tolist() == [0, 2, 2, 3]
    assert batch.edit_scale.tolist() == [1.0, 1.0, 1.0]
    assert batch.edit_offset.tolist() == [float("-inf"), float("-inf"), 2.5]
    assert batch.mask_row.tolist() == [-1, -1, -1]
    integers = (batch.top_k, batch.edited, batch.edit_starts, batch.mask, batch.mask_row, batch.top)
    assert {array.dtype for array in integers} == {torch.int32}
    assert (batch.seed.dtype, batch.edit_scale.dtype, batch.edit_offset.dtype) == (
        torch.int64,
        torch.float32,
        torch.float32,
    )


def test_no_edits_at_all() -> None:
    mask = StepMask(np.array([[5, 6, 7]], np.int32), np.array([0], np.int32))
    batch = sampling_batch([row(1, 0)], mask)
    assert batch.edited.dtype == torch.int32
    assert batch.edit_starts.tolist() == [0, 0]
    assert batch.mask.tolist() == [[5, 6, 7]]
    assert batch.mask_row.tolist() == [0]
    assert batch.width == 0


def test_a_top_k_beyond_any_vocabulary_fits() -> None:
    assert sampling_batch([row(1, 0, top_k=2**60)], UNMASKED).top_k.tolist() == [2**31 - 1]
