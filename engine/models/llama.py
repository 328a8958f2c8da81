"""What sets Llama apart? Nothing: it is the plain decoder, with optional biases."""

from collections.abc import Mapping
from typing import Any

from engine.models.traits import Traits, num_layers


def traits(raw: Mapping[str, Any]) -> Traits:
    """Traits of ``LlamaForCausalLM``: ``attention_bias`` covers the output projection too."""
    bias = bool(raw.get("attention_bias", False))
    return Traits(
        windows=(0,) * num_layers(raw),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )
