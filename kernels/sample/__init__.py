"""Sampling: which provider?"""

from kernels.sample.reference import Samples, SamplingBatch, sample

__all__ = ["Samples", "SamplingBatch", "sample"]
