"""Which models does the GPU benchmark run? Shapes of real ones, random weights: speed doesn't ask what they say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from engine.config import ModelConfig, Rope
from engine.models.decoder import Decoder
from kernels.linear import Quantization

_PLAIN: Final[Mapping[str, Any]] = {
    "folder": Path(),
    "architecture": "",
    "rms_norm_eps": 1e-6,
    "rope": Rope("default", 1e6),
    "max_position_embeddings": 40_960,
    "qkv_bias": False,
    "output_bias": False,
    "mlp_bias": False,
    "qk_norm": False,
    "tied": True,
    "dtype": "bfloat16",
    "eos_token_ids": (),
    "defaults": {},
}


def _shape(
    layers: int, hidden: int, inner: int, heads: int, kv_heads: int, dim: int, vocabulary: int, **other: Any
) -> ModelConfig:
    given: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": dim,
        "vocab_size": vocabulary,
        "windows": (0,) * layers,
    }
    return ModelConfig(**(dict(_PLAIN) | given | other))


MODELS: Final[Mapping[str, ModelConfig]] = {
    "qwen3-0.6b": _shape(28, 1024, 3072, 16, 8, 128, 151_936, qk_norm=True),
    "qwen2.5-0.5b": _shape(24, 896, 4864, 14, 2, 64, 151_936, qkv_bias=True),
    "llama-3.1-8b": _shape(32, 4096, 14_336, 32, 8, 128, 128_256, tied=False),
    # Too small to say how fast anything is: to try the program itself.
    "toy": _shape(2, 64, 96, 4, 2, 16, 300),
}


def random_decoder(config: ModelConfig, device: torch.device, quantization: Quantization = "none") -> Decoder:
    """The model with random weights in bfloat16, of such sizes that activations stay as they are in trained ones."""
    draw = torch.Generator(device).manual_seed(0)

    def source(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16, device=device)
        values = torch.randn(shape, generator=draw, device=device, dtype=torch.bfloat16)
        return values.mul_(shape[-1] ** -0.5)

    return Decoder(config, source, torch.bfloat16, device, quantization=quantization)


def weight_bytes(config: ModelConfig) -> int:
    """What one decode step reads of the weights, in bytes of bfloat16: all but the embedding table."""
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layer = config.hidden_size * (width + config.num_heads * config.head_dim + 3 * config.intermediate_size)
    return 2 * (config.num_layers * layer + config.vocab_size * config.hidden_size)
