"""What sets Qwen3 apart? RMSNorm on each query and key head before RoPE; head_dim is independent of hidden_size."""

from collections.abc import Mapping
from typing import Any

from engine.models.traits import Traits, layer_windows


def traits(raw: Mapping[str, Any]) -> Traits:
    """Traits of ``Qwen3ForCausalLM``."""
    bias = bool(raw.get("attention_bias", False))
    return Traits(
        windows=layer_windows(raw),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        default_head_dim=128,
    )
