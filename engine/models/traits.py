"""In what may one dense decoder family differ from another?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# transformers assumes this where config.json has no sliding_window at all; null means no window.
DEFAULT_WINDOW: Final = 4096


@dataclass(frozen=True, slots=True)
class Traits:
    """What an architecture adds to the plain decoder.

    ``windows`` has one entry per layer (0: attends to everything). ``default_head_dim`` is what the family assumes
    where its ``config.json`` states no ``head_dim``; 0 means hidden size / heads.
    """

    windows: tuple[int, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    default_head_dim: int = 0


def num_layers(raw: Mapping[str, Any]) -> int:
    """The number of layers, 0 where the field is missing or no integer (the config reader then refuses it)."""
    value = raw.get("num_hidden_layers")
    return value if isinstance(value, int) else 0


def layer_windows(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """The sliding window of each layer as the Qwen families state it.

    ``layer_types`` where it is given; before transformers 4.53, ``use_sliding_window`` from layer
    ``max_window_layers`` on.
    """
    window = (raw.get("sliding_window", DEFAULT_WINDOW) or 0) if raw.get("use_sliding_window") else 0
    types = raw.get("layer_types")
    if types is None:
        first = raw.get("max_window_layers", 28)
        return tuple(window if layer >= first else 0 for layer in range(num_layers(raw)))
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)
