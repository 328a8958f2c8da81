"""Sampling: which provider?"""

import torch

from kernels import simd
from kernels.sample import numba, reference
from kernels.sample.reference import Samples, SamplingBatch

__all__ = ["Samples", "SamplingBatch", "sample"]


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """`reference.sample` by the fastest provider for the logits' device and dtype."""
    provider = numba.sample if simd.supported(logits) and logits.is_contiguous() else reference.sample
    return provider(logits, batch)
