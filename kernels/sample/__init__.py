"""Sampling: which provider?"""

import torch

from kernels import device, simd
from kernels.sample import numba, reference
from kernels.sample.reference import Samples, SamplingBatch

__all__ = ["Samples", "SamplingBatch", "sample"]


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Samples:
    """`reference.sample` by the fastest provider for the logits' device and dtype.

    Raises ValueError where masks don't cover the vocabulary.
    """
    if len(batch.mask) and batch.mask.shape[1] * 32 < logits.shape[1]:
        raise ValueError(f"masks of {batch.mask.shape[1]} words don't cover {logits.shape[1]} tokens")
    if device.on_gpu(logits):
        from kernels.sample import triton

        return triton.sample(logits, batch)
    provider = numba.sample if simd.supported(logits) and logits.is_contiguous() else reference.sample
    return provider(logits, batch)
