"""Is a model folder's configuration read as transformers reads it, and refused when it can't be run?"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.config import ModelConfig, ModelFault, Rope, UnsupportedModel, resolve_model
from engine.models import rope
from tests.engine.families import FAMILIES

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 100,
    "vocab_size": 50,
    "max_position_embeddings": 128,
}


def load(folder: Path, changes: dict[str, Any] | None = None, generation: dict[str, Any] | None = None) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps({**LLAMA, **(changes or {})}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.load(folder)


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)
    assert (config.qkv_bias, config.qk_norm, config.tied, config.windows) == (False, False, False, (0, 0, 0))
    assert config.rope == Rope("default", 10_000.0, original_max_position=128)
    assert (config.eos_token_ids, dict(config.defaults)) == ((), {})


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"]}, (4096, 4096, 4096)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, (0, 0, 0)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 7}, (7, 7, 7)),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 9, "use_sliding_window": False}, (0, 0, 0)),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            (0, 0, 9),
        ),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (9, 0, 9),
        ),
    ],
)
def test_windows(tmp_path: Path, changes: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert load(tmp_path, changes).windows == windows


def test_head_dim_of_qwen3_is_its_own(tmp_path: Path) -> None:
    assert load(tmp_path, {"architectures": ["Qwen3ForCausalLM"]}).head_dim == 128
    assert load(tmp_path, {"architectures": ["Qwen3ForCausalLM"], "head_dim": 24}).head_dim == 24


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_theta": 5e5, "rope_type": "default"},
        {"rope_theta": 1e4, "rope_type": "linear", "factor": 3.0},
        {
            "rope_theta": 5e5,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        {"rope_theta": 1e6, **YARN},
        {"rope_theta": 1e4, **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {"rope_theta": 1e4, **YARN, "mscale": 0.7, "mscale_all_dim": 1.0},
        {"rope_theta": 1e4, **YARN, "attention_factor": 1.5},
    ],
    ids=lambda parameters: "-".join(map(str, parameters.values())),
)
def test_rope_is_transformers_in_both_spellings(tmp_path: Path, parameters: dict[str, Any]) -> None:
    new = load(tmp_path, {"rope_parameters": parameters}).rope
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    scaling["type"] = scaling.pop("rope_type")
    old = load(tmp_path, {"rope_theta": parameters["rope_theta"], "rope_scaling": scaling}).rope
    assert new == old
    judge = FAMILIES["llama"][1]()
    judge.update({**LLAMA, "head_dim": 16, "rope_parameters": dict(parameters)})
    if parameters["rope_type"] == "default":
        expected, factor = 1.0 / 5e5 ** (torch.arange(0, 16, 2) / 16), 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](judge, torch.device("cpu"))
    torch.testing.assert_close(rope.inverse_frequencies(new, 16), expected)
    assert rope.attention_factor(new) == pytest.approx(factor)


def test_eos_ids_of_both_files(tmp_path: Path) -> None:
    assert load(tmp_path, {"eos_token_id": 2}, {"eos_token_id": [7, 2]}).eos_token_ids == (2, 7)
    assert load(tmp_path, {"eos_token_id": None}, {}).eos_token_ids == ()


def test_sampling_defaults(tmp_path: Path) -> None:
    generation = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": None, "repetition_penalty": 1.1}
    assert load(tmp_path, {}, generation).defaults == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert load(tmp_path, {}, {"do_sample": False, "temperature": 0.6}).defaults == {"temperature": 0.0}
    assert load(tmp_path, {}, {"do_sample": True}).defaults == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_saves_is_read(name: str, tmp_path: Path) -> None:
    config: PreTrainedConfig = FAMILIES[name][1]()
    config.architectures = [FAMILIES[name][0].__name__]
    config.save_pretrained(tmp_path)
    read = ModelConfig.load(tmp_path)
    assert read.num_kv_heads == config.num_key_value_heads
    assert read.tied == config.tie_word_embeddings
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * 3
    window = getattr(config, "sliding_window", None) or 0
    assert read.windows == tuple(window if kind == "sliding_attention" else 0 for kind in types)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": []}, "no architecture"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_way_out(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedModel) as refusal:
        load(tmp_path, changes)
    message = str(refusal.value)
    assert what in message
    assert "config.json" in message
    assert "Qwen3ForCausalLM" in message
    assert "--engine vllm" in message


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'"),
        ({"num_key_value_heads": 3}, "4 attention heads"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"eos_token_id": ["two"]}, "eos_token_id"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": "linear"}, "expected an object"),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]},
            "layer_types has 1 entries for 3 layers",
        ),
    ],
)
def test_faults_name_the_field(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelFault, match=what) as fault:
        load(tmp_path, changes)
    assert "config.json" in str(fault.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFault, match=r"has no config\.json"):
        ModelConfig.load(tmp_path)
    for content in ("{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelFault, match=r"config\.json"):
            ModelConfig.load(tmp_path)


def test_resolving_a_folder(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path.resolve()
    for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere"):
        with pytest.raises(ModelFault, match="no folder"):
            resolve_model(name)


def test_resolving_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        if name == "known/model":
            return str(tmp_path)
        raise OSError("We couldn't connect\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_model("known/model") == tmp_path
    assert "*.safetensors" in asked
    with pytest.raises(ModelFault, match=r"unknown/model is no folder here.*couldn't connect$"):
        resolve_model("unknown/model")
