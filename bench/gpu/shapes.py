"""At which shapes are the kernels measured?"""

from typing import Final, NamedTuple

import torch

from bench.gpu.models import MODELS
from engine.config import ModelConfig

BF16: Final = torch.bfloat16
FP8: Final = torch.float8_e4m3fn
# Tokens of a KV block.
BLOCK: Final = 16


class Heads(NamedTuple):
    """A model's attention."""

    name: str
    query: int
    kv: int
    dim: int


class Dense(NamedTuple):
    """The widths of a model, and of what it multiplies."""

    heads: Heads
    hidden: int
    inner: int
    vocabulary: int
    qk_norm: bool


class Sizes(NamedTuple):
    """Which shapes are measured: of two models whose KV heads are the same, and of heads unlike theirs.

    Prompts, products and adapters are the second model's.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    vocabulary: int
    sampled: tuple[int, ...]
    tokens: tuple[int, ...]
    products: tuple[int, ...]
    models: tuple[Dense, Dense]
    odd: Heads


def _of(name: str, config: ModelConfig) -> Dense:
    heads = Heads(name, config.num_heads, config.num_kv_heads, config.head_dim)
    return Dense(heads, config.hidden_size, config.intermediate_size, config.vocab_size, config.qk_norm)


QWEN3: Final = _of("Qwen3-0.6B", MODELS["qwen3-0.6b"])
LLAMA: Final = _of("Llama-8B", MODELS["llama-3.1-8b"])
_TOY: Final = Heads("toy", 4, 2, 16)
FULL: Final = Sizes(
    batches=(1, 16, 64, 256),
    contexts=(1024, 8192, 32_768),
    prompts=(1024, 4096, 16_384, 32_768),
    vocabulary=151_936,
    sampled=(1, 64, 256),
    tokens=(1, 256, 8192),
    products=(1, 16, 64, 256, 4096),
    models=(QWEN3, LLAMA),
    odd=_of("Qwen2.5-0.5B", MODELS["qwen2.5-0.5b"]).heads,
)
QUICK: Final = Sizes(
    batches=(1, 3),
    contexts=(48,),
    prompts=(40,),
    vocabulary=300,
    sampled=(1, 3),
    tokens=(1, 5),
    products=(1, 4),
    models=(Dense(_TOY, 64, 96, 300, True), Dense(_TOY._replace(name="other toy", query=6), 64, 96, 300, False)),
    odd=Heads("odd toy", 7, 1, 8),
)


def products(model: Dense) -> list[tuple[str, int, int]]:
    """A layer's products: a name, how many outputs, how many inputs."""
    heads = model.heads
    query = heads.query * heads.dim
    return [
        ("query-key-value", query + 2 * heads.kv * heads.dim, model.hidden),
        ("output", model.hidden, query),
        ("gate-up", 2 * model.inner, model.hidden),
        ("down", model.hidden, model.inner),
    ]
