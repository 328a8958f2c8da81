"""Scoring at Qwen3's vocabulary and Llama 3's."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.score.triton import score


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    targets = torch.empty(2, dtype=torch.int32)
    for vocabulary in (151936, 128256):
        logits = torch.empty(2, vocabulary, dtype=torch.bfloat16)
        yield f"{vocabulary} tokens", 80, partial(score, logits, targets, 20)
