"""Sampling at Qwen3's vocabulary: plain rows, as CUDA graphs have them, and with edits, masks and both."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.sample import SamplingBatch
from kernels.sample.triton import sample

_VOCABULARY = 151936


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    logits = torch.empty(2, _VOCABULARY, dtype=torch.bfloat16)
    for edits in (0, 3):
        for masks in (0, 1):
            yield f"{edits} edits, {masks} masks", 80, partial(sample, logits, _batch(edits, masks))


def _batch(edits: int, masks: int) -> SamplingBatch:
    def int32(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32)

    return SamplingBatch(
        temperature=torch.empty(2),
        top_k=int32(2),
        top_p=torch.empty(2),
        min_p=torch.empty(2),
        seed=torch.empty(2, dtype=torch.int64),
        position=torch.empty(2, dtype=torch.int64),
        edited=int32(edits),
        edit_starts=int32(3),
        edit_scale=torch.empty(edits),
        edit_offset=torch.empty(edits),
        mask=int32(masks, -(-_VOCABULARY // 32)),
        mask_row=int32(2),
        top=int32(2),
        width=20,
    )
