"""Is an adapter's configuration read as PEFT reads it, and refused for what it is where weights can't be merged?"""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from engine.adapter_config import CONFIG_FILE, AdapterConfig
from engine.config import ModelFault

QUERY = "model.layers.12.self_attn.q_proj"
UP = "model.layers.2.mlp.up_proj"


def write(folder: Path, content: Any) -> Path:
    (folder / CONFIG_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_peft_writes_of_its_own_accord_is_understood(tmp_path: Path) -> None:
    LoraConfig(target_modules=["q_proj"], init_lora_weights="gaussian").save_pretrained(str(tmp_path))
    config = AdapterConfig.load(tmp_path)
    assert (config.rank(QUERY), config.scaling(QUERY), config.targets(QUERY), config.targets(UP)) == (
        8,
        1.0,
        True,
        False,
    )


def test_what_it_wrote_years_ago_is_understood_too(tmp_path: Path) -> None:
    old = {
        "base_model_name_or_path": "decapoda-research/llama-7b-hf", "bias": "none", "enable_lora": None,
        "fan_in_fan_out": False, "inference_mode": True, "lora_alpha": 16, "lora_dropout": 0.05, "merge_weights": False,
        "modules_to_save": None, "peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    assert AdapterConfig.load(write(tmp_path, old)).scaling(QUERY) == 1.0


@pytest.mark.parametrize(
    ("fields", "rank", "scaling"),
    [
        ({"r": 4, "lora_alpha": 6}, 4, 1.5),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 4, 3.0),
        ({"r": 4, "rank_pattern": {"q_proj": 2}}, 2, 4.0),
        ({"r": 4, "rank_pattern": {"_proj": 2}}, 4, 2.0),
        ({"r": 4, "rank_pattern": {r"layers\.\d+\.self_attn\..*": 2, "q_proj": 16}}, 2, 4.0),
        ({"r": 4, "alpha_pattern": {"self_attn.q_proj": 1.0}}, 4, 0.25),
        ({"r": 4, "alpha_pattern": {"up_proj": 1}}, 4, 2.0),
    ],
)
def test_ranks_and_scalings(fields: dict[str, Any], rank: int, scaling: float, tmp_path: Path) -> None:
    config = AdapterConfig.load(write(tmp_path, {"peft_type": "LORA", **fields}))
    assert (config.rank(QUERY), config.scaling(QUERY)) == (rank, scaling)


@pytest.mark.parametrize(
    ("fields", "query", "up", "head"),
    [
        ({}, False, False, False),
        ({"target_modules": ["q_proj", "lm_head"]}, True, False, True),
        ({"target_modules": ["proj"]}, False, False, False),
        ({"target_modules": [QUERY]}, True, False, False),
        ({"target_modules": [QUERY, "up_proj"], "layers_to_transform": 3}, True, False, False),
        ({"target_modules": ["q_proj", "up_proj", "lm_head"], "layers_to_transform": [2]}, False, True, True),
        ({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": []}, True, False, True),
        ({"target_modules": ".*(q_proj|up_proj)"}, True, True, False),
        ({"target_modules": "q_proj"}, False, False, False),
        ({"target_modules": "All-Linear"}, True, True, False),
        ({"target_modules": "all-linear", "exclude_modules": ["mlp.up_proj"]}, True, False, False),
        ({"target_modules": "all-linear", "exclude_modules": r".*self_attn.*"}, False, True, False),
        (
            {"target_modules": ["q_proj", "up_proj", "lm_head"], "modules_to_save": ["mlp", "lm_head"]},
            True,
            False,
            False,
        ),
    ],
)
def test_targets(fields: dict[str, Any], query: bool, up: bool, head: bool, tmp_path: Path) -> None:
    config = AdapterConfig.load(write(tmp_path, {"peft_type": "LORA", **fields}))
    found = config.targets(QUERY), config.targets(UP), config.targets("lm_head", output=True)
    assert found == (query, up, head)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LOHA, and the native engine merges LORA"),
        ({"bias": "lora_only"}, "bias is lora_only: biases were trained"),
        ({"use_dora": True}, "use_dora is True: DoRA scales the weight"),
        ({"lora_bias": True}, "lora_bias is True: it adds to biases"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\]: it has the embeddings of single tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa: it belongs to other weights"),
        ({"layer_replication": [[0, 4]]}, "layer_replication is .*: it uses layers several times"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters is"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
        ({"invented_later": 2}, "invented_later is 2: the native engine does not know what that means"),
    ],
)
def test_what_cannot_be_merged(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {"peft_type": "LORA", "target_modules": ["q_proj"], **fields})
    with pytest.raises(ModelFault, match=rf"{CONFIG_FILE}: {said}.*\. PEFT itself may merge it \(merge_and_unload"):
        AdapterConfig.load(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not readable as an adapter's configuration"),
        ([], r"Expected `object`, got `array`"),
        ({}, "missing required field `peft_type`"),
        ({"peft_type": "LORA", "r": 0}, r"Expected `int` >= 1 - at `\$\.r`"),
        ({"peft_type": "LORA", "r": "8"}, r"Expected `int`, got `str` - at `\$\.r`"),
        ({"peft_type": "LORA", "rank_pattern": {"q_proj": 0}}, r"at `\$\.rank_pattern\[\.\.\.\]`"),
        ({"peft_type": "LORA", "target_modules": "("}, r"'\(' is no regular expression"),
        ({"peft_type": "LORA", "alpha_pattern": {"*": 1}}, r"'\*' is no regular expression"),
    ],
)
def test_files_that_are_broken(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFault, match=rf"{CONFIG_FILE}: .*{said}"):
        AdapterConfig.load(write(tmp_path, content))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelFault, match=f"is no adapter in PEFT's format: it has no {CONFIG_FILE}"):
        AdapterConfig.load(tmp_path)
