"""Which sampling parameters go with which row of a step's logits?"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from engine.link import Sampling
from kernels.sample import SamplingBatch


class Draw:
    """What the sampler must know of one request at one step."""

    __slots__ = ("banned", "position", "sampling", "seed")

    def __init__(self, sampling: Sampling, seed: int, position: int, banned: Sequence[int]) -> None:
        self.sampling = sampling
        self.seed = seed
        self.position = position
        self.banned = banned


def sampling_batch(draws: Sequence[Draw], device: torch.device) -> SamplingBatch:
    """The parameters of all rows, as the kernel wants them."""
    floats = np.array([(d.sampling.temperature, d.sampling.top_p, d.sampling.min_p) for d in draws], np.float32)
    temperature, top_p, min_p = np.ascontiguousarray(floats.T)
    starts = list(accumulate((len(d.banned) for d in draws), initial=0))
    seeds = np.array([d.seed & 0xFFFFFFFFFFFFFFFF for d in draws], np.uint64).view(np.int64)

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return SamplingBatch(
        temperature=put(temperature),
        top_k=put(np.array([max(d.sampling.top_k, 0) for d in draws], np.int32)),
        top_p=put(top_p),
        min_p=put(min_p),
        seed=put(seeds),
        position=put(np.array([d.position for d in draws], np.int64)),
        banned=put(np.array([token for d in draws for token in d.banned], np.int32)),
        banned_starts=put(np.array(starts, np.int32)),
    )
