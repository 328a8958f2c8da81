"""What sets Qwen2 and Qwen2.5 apart? Biases on query, key and value; sliding windows in some layers."""

from collections.abc import Mapping
from typing import Any

from engine.models.traits import Traits, layer_windows


def traits(raw: Mapping[str, Any]) -> Traits:
    """Traits of ``Qwen2ForCausalLM``: the biases are there whatever ``config.json`` says."""
    return Traits(windows=layer_windows(raw), qkv_bias=True)
