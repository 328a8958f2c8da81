"""Random-weight models of odd sizes, made by transformers, one for each thing in which families differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine.config import ModelConfig
from engine.device_runner import DeviceLimits, DeviceRunner
from engine.host_runner import HostRunner
from engine.loader import load_model
from engine.runner import Runner
from kernels.linear import Quantization

VOCABULARY: Final = 331
_BASE: Final[Mapping[str, Any]] = {
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 136,
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def _llama3() -> LlamaConfig:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return LlamaConfig(**_BASE, rope_parameters={"rope_theta": 500.0, **scaling}, attention_bias=True, mlp_bias=True)


def _linear() -> LlamaConfig:
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    return LlamaConfig(**{**_BASE, "num_key_value_heads": 3}, rope_parameters=linear)


def _yarn() -> Qwen2Config:
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10_000.0,
    }
    return Qwen2Config(**_BASE, rope_parameters=yarn)


FAMILIES: Final[Mapping[str, tuple[type[PreTrainedModel], Callable[[], PreTrainedConfig]]]] = {
    "llama": (LlamaForCausalLM, lambda: LlamaConfig(**_BASE)),
    "llama-tied": (LlamaForCausalLM, lambda: LlamaConfig(**_BASE, tie_word_embeddings=True)),
    "llama3-rope-biases": (LlamaForCausalLM, _llama3),
    "linear-rope": (LlamaForCausalLM, _linear),
    "mistral-window": (MistralForCausalLM, lambda: MistralConfig(**_BASE, head_dim=24, sliding_window=7)),
    "qwen2": (Qwen2ForCausalLM, lambda: Qwen2Config(**_BASE)),
    "qwen2-yarn": (Qwen2ForCausalLM, _yarn),
    "qwen2-windows": (
        Qwen2ForCausalLM,
        lambda: Qwen2Config(**_BASE, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(**_BASE, head_dim=24)),
}


# What executes steps: on a CPU; as on a GPU, but on CPU tensors; and on a GPU, where there is one.
Kind = Literal["host", "device", "cuda"]
RUNNERS: Final = [
    "host",
    "device",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


def make_runner(
    folder: Path,
    kind: Kind = "host",
    *,
    num_blocks: int = 40,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    adapter: Path | None = None,
    quantization: Quantization = "none",
    **limits: Any,
) -> Runner:
    """Whatever executes steps of the model in ``folder``."""
    device = torch.device("cuda" if kind == "cuda" else "cpu")
    model = load_model(ModelConfig.load(folder), dtype, device, adapter=adapter, quantization=quantization)
    if kind == "host":
        return HostRunner(model, num_blocks, block_size)
    sizes = {"max_running": 16, "max_batch_tokens": 300, "max_model_len": 256}
    return DeviceRunner(model, num_blocks, block_size, DeviceLimits(**(sizes | limits)))


@dataclass(frozen=True, slots=True)
class Pair:
    """transformers' model, and the folder it was saved to."""

    judge: PreTrainedModel
    folder: Path

    def runner(self, kind: Kind = "host", **options: Any) -> Runner:
        """Ours, over the same weights; see `make_runner`."""
        return make_runner(self.folder, kind, **options)

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The judge's own continuation."""
        with torch.no_grad():
            ids = self.judge.generate(
                torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
        tokens: list[int] = ids[0, len(prompt) :].tolist()
        return tokens

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """The judge's logits after each token, [T, vocabulary]."""
        with torch.no_grad():
            result: torch.Tensor = self.judge(torch.tensor([tokens])).logits[0]
        return result


def save(name: str, folder: Path, *, shard: str = "200KB", dtype: torch.dtype = torch.float32) -> Pair:
    """Make the named model, with norms and biases that are not at their trivial initial values."""
    architecture, config = FAMILIES[name]
    torch.manual_seed(0)
    model = architecture(config()).eval()
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            if "norm" in parameter or parameter.endswith("bias"):
                values += 0.3 * torch.randn_like(values)
    model.to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return Pair(model, folder)


def prompt(seed: int, length: int) -> list[int]:
    """Random token ids."""
    draw = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(1, VOCABULARY, (length,), generator=draw).tolist()
    return tokens
