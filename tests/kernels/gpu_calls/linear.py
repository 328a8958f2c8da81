"""fp8 products: each size of tile with and without splits, as Llama-3.1-8B and Qwen3-0.6B have them."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.linear.reference import Quantised
from kernels.linear.triton import linear_fp8, new_arrivals, quantise

# (what, rows, outputs, inputs, bias)
SHAPES = (
    ("8B output", 1, 4096, 4096, False),
    ("8B gate and up", 16, 28672, 4096, False),
    ("8B down", 32, 4096, 14336, False),
    ("8B down", 64, 4096, 14336, False),
    ("8B gate and up", 64, 28672, 4096, False),
    ("8B query, key, value", 512, 6144, 4096, False),
    ("0.6B down", 1, 1024, 3072, False),
    ("0.6B query, key, value", 64, 4096, 1024, True),
)


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    for width in (1024, 4096, 14336):
        yield f"rounding rows of {width}", 90, partial(quantise, torch.empty(1, width, dtype=torch.bfloat16))
    for name, rows, outputs, inputs, bias in SHAPES:
        x = torch.empty(rows, inputs, dtype=torch.bfloat16)
        weight = Quantised(torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn), torch.empty(outputs))
        added = torch.empty(outputs, dtype=torch.bfloat16) if bias else None
        arrivals = new_arrivals(outputs, x.device)
        yield f"{name}, {rows} rows", 90, partial(linear_fp8, x, weight, arrivals, added)
