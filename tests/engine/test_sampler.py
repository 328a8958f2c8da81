"""Do requests' sampling parameters arrive in their rows?"""

import torch

from engine.link import Sampling
from engine.sampler import Draw, sampling_batch


def test_rows() -> None:
    draws = [
        Draw(Sampling(max_tokens=1, temperature=0.5, top_p=0.9, min_p=0.1), 2**64 - 1, 17, (4, 9)),
        Draw(Sampling(max_tokens=1, top_k=5), 3, 0, ()),
        Draw(Sampling(max_tokens=1, top_k=-1), 2**63, 2**40, (7,)),
    ]
    batch = sampling_batch(draws, torch.device("cpu"))
    assert batch.temperature.tolist() == [0.5, 1.0, 1.0]
    torch.testing.assert_close(batch.top_p, torch.tensor([0.9, 1.0, 1.0]))
    torch.testing.assert_close(batch.min_p, torch.tensor([0.1, 0.0, 0.0]))
    assert batch.top_k.tolist() == [0, 5, 0]
    assert batch.seed.tolist() == [-1, 3, -(2**63)]
    assert batch.position.tolist() == [17, 0, 2**40]
    assert batch.banned.tolist() == [4, 9, 7]
    assert batch.banned_starts.tolist() == [0, 2, 2, 3]
    assert (batch.top_k.dtype, batch.seed.dtype, batch.banned.dtype) == (torch.int32, torch.int64, torch.int32)


def test_no_bans_at_all() -> None:
    batch = sampling_batch([Draw(Sampling(max_tokens=1), 0, 0, ())], torch.device("cpu"))
    assert batch.banned.dtype == torch.int32
    assert batch.banned_starts.tolist() == [0, 0]
