"""Which architecture families does the native engine run?

A family's file says what sets it apart: a function from its ``config.json`` to `Traits`. The transformer itself is
`engine.models.decoder`, one for all of them. To add a family, write its file and enter it in `FAMILIES`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.models import llama, mistral, qwen2, qwen3
from engine.models.traits import Traits

FAMILIES: Final[Mapping[str, Callable[[Mapping[str, Any]], Traits]]] = {
    "LlamaForCausalLM": llama.traits,
    "MistralForCausalLM": mistral.traits,
    "Qwen2ForCausalLM": qwen2.traits,
    "Qwen3ForCausalLM": qwen3.traits,
}
