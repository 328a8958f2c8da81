"""LoRA adapters with random weights, made by PEFT, for models made by `tests.engine.families`."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.engine.families import Pair

EVERYTHING: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Adapted:
    """PEFT's model, which computes the adapter beside the weights, and the folder that it was saved to."""

    judge: PeftModel
    folder: Path

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """The judge's logits after each token, [T, vocabulary]."""
        with torch.no_grad():
            result: torch.Tensor = self.judge(torch.tensor([tokens])).logits[0]
        return result

    def likeliest(self, prompt: list[int], answer: list[int]) -> list[int]:
        """What the judge would say, greedily, at each place of the answer: the answer itself, if that was greedy."""
        tokens: list[int] = self.logits(prompt + answer)[len(prompt) - 1 : -1].argmax(-1).tolist()
        return tokens

    def merged(self) -> PreTrainedModel:
        """The model with the adapter in its weights, by PEFT; the judge is of no use afterwards."""
        result: PreTrainedModel = self.judge.merge_and_unload()
        return result


def adapt(model: PreTrainedModel | Pair, folder: Path, **fields: Any) -> Adapted:
    """Give ``model`` an adapter with PEFT's ``fields`` and save it to ``folder``. Nothing in it is zero, or small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' deprecations, and of tied embeddings that are adapted apart
        usual = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "target_modules": EVERYTHING}
        config = LoraConfig(**(usual | fields))
        judge = get_peft_model(model.judge if isinstance(model, Pair) else model, config).eval()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for values in judge.parameters():
                if values.requires_grad:
                    values += 0.2 * torch.randn(values.shape, generator=draw).to(values.dtype)
        judge.save_pretrained(folder)
    return Adapted(judge, folder)
