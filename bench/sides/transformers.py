"""How fast is transformers' ``generate`` on a padded batch?"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from bench.sides import main


class Transformers:
    """All prompts of a workload in one batch; they have one length, so nothing is lost to padding.

    The variant is a dtype.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self.versions = {"transformers": version("transformers"), "torch": version("torch")}
        model = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        config = model.generation_config
        if config is None:
            raise ValueError(f"{folder}: transformers made no generation config for it")
        config.eos_token_id, config.pad_token_id = None, 0
        # transformers' own annotation of `generate` doesn't accept its own models.
        self._model: Any = model

    def generate(self, prompts: Sequence[Sequence[int]], output: int) -> list[int]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=output, do_sample=False)
        return [len(row) - ids.shape[1] for row in out]


if __name__ == "__main__":
    main(Transformers)
