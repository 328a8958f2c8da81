"""Is an embedding on a CPU what the reference defines?"""

import torch

from kernels.embedding import embedding, reference
from tests.kernels.compare import both_dtypes


@both_dtypes
def test_rows_of_the_table(dtype: torch.dtype) -> None:
    token_ids, table = reference.inputs(5, 7, 6, dtype, 0)
    assert token_ids.dtype == torch.int32
    assert {0, 6} <= set(token_ids.tolist())
    rows = torch.stack([table[token] for token in token_ids.tolist()])
    assert torch.equal(embedding(token_ids, table), rows)


def test_inputs_of_one_row() -> None:
    assert reference.inputs(1, 7, 6, torch.float32, 0)[0].tolist() == [6]
