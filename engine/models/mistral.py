"""What sets Mistral apart? A sliding window in every layer."""

from collections.abc import Mapping
from typing import Any

from engine.models.traits import DEFAULT_WINDOW, Traits, num_layers


def traits(raw: Mapping[str, Any]) -> Traits:
    """Traits of ``MistralForCausalLM``."""
    window = raw.get("sliding_window", DEFAULT_WINDOW) or 0
    return Traits(windows=(window,) * num_layers(raw))
