"""Paged attention at the models' shapes: groups of 2, 4 and 7 query heads to a KV head."""

from collections.abc import Callable, Iterator

import torch

from kernels.kv_cache import token_major
from kernels.paged_attention import AttentionMetadata, triton

_MODELS = {"Phi-2": (32, 32, 80), "Qwen3-0.6B": (16, 8, 128), "Llama-3.1-8B": (32, 8, 128), "Qwen2.5-0.5B": (14, 2, 64)}
_CACHES = {torch.bfloat16: 80, torch.float8_e4m3fn: 90}


def _call(model: str, dtype: torch.dtype, tokens: int, sequences: int, decodes_only: bool) -> Callable[[], object]:
    heads, kv_heads, dim = _MODELS[model]
    batch = AttentionMetadata(
        query_starts=torch.zeros(sequences + 1, dtype=torch.int32),
        context_lengths=torch.zeros(sequences, dtype=torch.int32),
        block_tables=torch.zeros(sequences, 64, dtype=torch.int32),
        decodes_only=decodes_only,
    )
    cache = token_major(1, kv_heads, dim, 16, dtype, torch.device("cpu"))
    query = torch.empty(tokens, (heads + 2 * kv_heads) * dim, dtype=torch.bfloat16)[:, : heads * dim]
    return lambda: triton.paged_attention(query, cache, batch, window=0, scale=dim**-0.5)


def calls() -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Decodes only, mixed batches, and a single prompt."""
    for dtype, arch in _CACHES.items():
        for model in _MODELS:
            yield f"{model}, {dtype}, decodes", arch, _call(model, dtype, 4, 4, True)
            yield f"{model}, {dtype}, mixed", arch, _call(model, dtype, 256, 4, False)
    yield "Llama-3.1-8B, one prompt", 80, _call("Llama-3.1-8B", torch.bfloat16, 256, 1, False)
