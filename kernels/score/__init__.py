"""What the model thought of given tokens: which provider?"""

import torch

from kernels import simd
from kernels.score import numba, reference
from kernels.score.reference import Scores

__all__ = ["Scores", "score"]


def score(logits: torch.Tensor, targets: torch.Tensor, top: int) -> Scores:
    """`reference.score` by the fastest provider for the logits' device and dtype."""
    provider = numba.score if simd.supported(logits) and logits.is_contiguous() else reference.score
    return provider(logits, targets, top)
