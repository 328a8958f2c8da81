"""Which kernels must be compiled before the first request, and how is that shown?"""

from collections.abc import Callable

import torch

ProgressCallback = Callable[[str, int, int], None]


def warm_up(device: torch.device, dtype: torch.dtype, progress: ProgressCallback) -> None:
    """Nothing yet."""
