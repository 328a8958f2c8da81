"""``penstock serve --engine vllm --adapter`` as a client sees it: ``make test-vllm VLLM_PYTHON=…``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from safetensors.torch import save_file

from tests.serving import REPOSITORY, Serving

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python that has vLLM")]

MODEL, ADAPTER = "penstock-demo", "pirate"
PROMPT = "Once upon a time"


def write_adapter(folder: Path) -> Path:
    """A random LoRA adapter of the demo model, in PEFT's format, on the queries and values of every layer."""
    config = json.loads((REPOSITORY / "engine" / "demo" / "model" / "config.json").read_text())
    hidden, head, rank = config["hidden_size"], config["head_dim"], 8
    rows = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    torch.manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, count in rows.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, hidden) * 0.1
            tensors[f"{key}.lora_B.weight"] = torch.randn(count, rank) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(said | {"target_modules": list(rows)}))
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    adapter = write_adapter(tmp_path_factory.mktemp("adapters") / ADAPTER)
    words = [
        *("--engine", "vllm", "--vllm-python", PYTHON, "--vllm-args", '{"enforce_eager": true}'),
        *("--adapter", f"{ADAPTER}={adapter}", "--failover-timeout", "280"),
        *("--threads", "1", "--dtype", "float32", "--kv-memory", "64MiB", "--block-size", "32"),
    ]
    with Serving(*words, timeout=280) as serving:
        yield serving


@pytest.fixture
def client(served: Serving) -> OpenAI:
    return served.client(timeout=300)


def greedy(client: OpenAI, model: str) -> str:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
    return answer.choices[0].text


def test_an_adapter_is_a_model_of_its_own(client: OpenAI) -> None:
    assert {model.id: model.to_dict().get("parent") for model in client.models.list()} == {
        MODEL: None,
        ADAPTER: MODEL,
    }
    assert greedy(client, MODEL) != greedy(client, ADAPTER)
    assert client.completions.create(model=ADAPTER, prompt=PROMPT, max_tokens=1).model == ADAPTER


def test_a_worker_that_comes_back_has_it_again(served: Serving, client: OpenAI) -> None:
    expected = greedy(client, ADAPTER)
    stream = client.completions.create(
        model=ADAPTER, prompt=PROMPT, max_tokens=300, temperature=0, stream=True, extra_body={"ignore_eos": True},
        stream_options={"include_usage": True},
    )  # fmt: skip
    text, tokens = next(iter(stream)).choices[0].text, 0
    served.worker().kill()
    for chunk in stream:
        text += "".join(choice.text for choice in chunk.choices)
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    assert tokens == 300
    assert text.startswith(expected)
    assert greedy(client, ADAPTER) == expected
