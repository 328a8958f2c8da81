"""Adapters of several ranks: one row and a mixed step of Llama-3.1-8B, a prompt, and Qwen3-0.6B."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.lora import Adapters, group
from kernels.lora.triton import lora

# (what, rows, outputs, inputs, rank, adapters)
SHAPES = (
    ("8B output", 1, 4096, 4096, 16, 1),
    ("8B gate", 64, 14336, 4096, 64, 8),
    ("8B down", 40, 4096, 14336, 128, 4),
    ("8B down, a prompt", 512, 4096, 14336, 64, 4),
    ("0.6B key", 16, 1024, 1024, 8, 2),
    ("0.6B down, a prompt", 300, 1024, 3072, 16, 1),
)


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    for name, rows, outputs, inputs, rank, adapters in SHAPES:
        half = torch.bfloat16
        stacked = Adapters(
            torch.empty(adapters, rank, inputs, dtype=half),
            torch.empty(adapters, outputs, rank, dtype=half),
            torch.empty(adapters),
        )
        batch = group(torch.zeros(rows, dtype=torch.int32), adapters)
        x, y = torch.empty(rows, inputs, dtype=half), torch.empty(rows, outputs, dtype=half)
        yield f"{name}, rank {rank}, {rows} rows", 80, partial(lora, x, y, stacked, batch)
