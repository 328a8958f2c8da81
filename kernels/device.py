"""Which providers may a tensor's device run, and how wide is that device?

Triton is an extra that a laptop doesn't have: a folder's ``triton.py`` is imported only where `on_gpu` has said yes.
"""

from functools import lru_cache
from typing import Final

import torch

# Of an H100 or H200; what a grid is sized for where there is no GPU to ask.
_MULTIPROCESSORS: Final = 132


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether the Triton providers run on this tensor."""
    return tensor.is_cuda


def multiprocessors(device: torch.device) -> int:
    """How many streaming multiprocessors the device has."""
    return _count(device.index or 0) if device.type == "cuda" else _MULTIPROCESSORS


@lru_cache
def _count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
