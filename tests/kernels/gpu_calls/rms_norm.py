"""RMSNorm at the widths of hidden states: 896 and 1,024, 4,096, 16,384 (the widest that is made for)."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.rms_norm import triton as rms_norm


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    for width in (1024, 4096, 16384):
        x, residual = torch.empty(2, 4, width, dtype=torch.bfloat16)
        weight = torch.empty(width, dtype=torch.bfloat16)
        yield f"width {width}", 80, partial(rms_norm.rms_norm, x, weight, 1e-6)
        yield f"width {width}, residual", 80, partial(rms_norm.rms_norm, x, weight, 1e-6, residual)
