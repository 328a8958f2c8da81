"""Does the GPU gather the embeddings that the reference defines?"""

import pytest
import torch

from kernels import device
from kernels.embedding import embedding, reference
from kernels.embedding import triton as provider
from tests.kernels.compare import both_dtypes


@both_dtypes
@pytest.mark.parametrize(("rows", "width"), [(1, 6), (5, 42), (3, 123), (2, 431), (3, 1024), (2, 2049), (0, 8)])
def test_it_is_the_reference(dtype: torch.dtype, rows: int, width: int, gpu: torch.device) -> None:
    token_ids, table = reference.inputs(rows, 11, width, dtype, width)
    actual = provider.embedding(token_ids.to(gpu), table.to(gpu))
    assert torch.equal(actual.cpu(), reference.embedding(token_ids, table))


def test_it_is_picked_on_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: torch.device) -> None:
    calls: list[torch.Tensor] = []
    monkeypatch.setattr(device, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(provider, "embedding", lambda token_ids, table: calls.append(table))
    token_ids, table = (tensor.to(gpu) for tensor in reference.inputs(3, 5, 8, torch.bfloat16, 0))
    embedding(token_ids, table)
    assert len(calls) == 1
    embedding(token_ids, table.t().contiguous().t())
    assert len(calls) == 1
