"""SiLU-mul: the same code for all widths."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.silu_mul import triton as silu_mul


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    yield "width 3072", 80, partial(silu_mul.silu_mul, torch.empty(4, 2 * 3072, dtype=torch.bfloat16))
