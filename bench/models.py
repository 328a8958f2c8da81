"""Which models does the engine comparison run? Llama shapes with random weights: speed doesn't ask what a weight says.

``python -m bench.models NAME FOLDER`` makes one.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

MAX_POSITION = 2048


@dataclass(frozen=True)
class Shape:
    """A Llama architecture with untied embeddings, in bf16."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


SHAPES = {
    "tiny": Shape(hidden=384, intermediate=1024, layers=6, heads=6, kv_heads=2, head_dim=64, vocab=8192),
    "small": Shape(hidden=768, intermediate=2048, layers=12, heads=12, kv_heads=4, head_dim=64, vocab=32_000),
}


def make(name: str, folder: Path) -> None:
    """Write the model ``name`` into ``folder`` in Hugging Face format, the same weights each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=MAX_POSITION,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
