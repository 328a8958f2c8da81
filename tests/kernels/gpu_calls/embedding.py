"""Embedding: the same code for all widths."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.embedding import triton as embedding


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    token_ids, table = torch.empty(4, dtype=torch.int32), torch.empty(16, 1024, dtype=torch.bfloat16)
    yield "width 1024", 80, partial(embedding.embedding, token_ids, table)
