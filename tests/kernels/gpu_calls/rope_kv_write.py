"""QK-norm, RoPE and KV write of Qwen3-0.6B, Qwen2.5-0.5B and Llama-3.1-8B; float8 needs Hopper."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.kv_cache import token_major
from kernels.rope_kv_write import triton as rope_kv_write
from kernels.rope_kv_write.reference import QkNorm

_MODELS = {"Qwen3-0.6B": (16, 8, 128, True), "Qwen2.5-0.5B": (14, 2, 64, False), "Llama-3.1-8B": (32, 8, 128, False)}


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    for model, (heads, kv_heads, dim, norm) in _MODELS.items():
        for cache_dtype, oldest in ((torch.bfloat16, 80), (torch.float8_e4m3fn, 90)):
            weight = torch.empty(dim, dtype=torch.bfloat16)
            yield (
                f"{model}, {str(cache_dtype).removeprefix('torch.')} cache",
                oldest,
                partial(
                    rope_kv_write.rope_kv_write,
                    torch.empty(4, (heads + 2 * kv_heads) * dim, dtype=torch.bfloat16),
                    torch.empty(4, dtype=torch.int32),
                    torch.empty(4, dtype=torch.int64),
                    torch.empty(64, dim, dtype=torch.float32),
                    token_major(4, kv_heads, dim, 16, cache_dtype, torch.device("cpu")),
                    QkNorm(weight, weight, 1e-6) if norm else None,
                ),
            )
