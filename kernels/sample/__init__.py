"""Sampling: which provider?"""

import torch

from kernels.sample import reference
from kernels.sample.reference import Samples, SamplingBatch

__all__ = ["Samples", "SamplingBatch", "sample"]


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """`reference.sample` by the fastest provider for the logits' device and dtype."""
    return reference.sample(logits, batch)
