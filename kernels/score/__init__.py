"""What the model thought of given tokens: which provider?"""

import torch

from kernels import device, simd
from kernels.score import numba, reference
from kernels.score.reference import Scores

__all__ = ["Scores", "score"]


def score(logits: torch.Tensor, targets: torch.Tensor, top: int) -> Scores:
    """`reference.score` by the fastest provider for the logits' device and dtype."""
    if device.on_gpu(logits):
        from kernels.score import triton

        return triton.score(logits, targets, top)
    provider = numba.score if simd.supported(logits) and logits.is_contiguous() else reference.score
    return provider(logits, targets, top)
