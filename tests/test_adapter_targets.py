"""A native target with a LoRA adapter: what clients see, and what they get."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from transformers import LlamaForCausalLM

from tests.engine.adapters import Adapted, adapt
from tests.models import llama_folder
from tests.serving import Serving

FILE = """
models:
  legal: {target: lawyer}
targets:
  lawyer: {engine: native, model: ./model, adapter: ./adapters/12, dtype: float32, kv_memory: 4MiB, threads: 1}
"""
PROMPT = [5, 17, 3, 99, 42, 8, 250, 7, 31]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("legal")
    llama_folder(folder / "model", tokenizer=True)
    (folder / "penstock.yaml").write_text(FILE.replace("./", f"{folder}/"))
    return folder


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Adapted:
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    return adapt(model, folder / "adapters" / "12", target_modules=["q_proj", "v_proj", "down_proj"])


@pytest.fixture(scope="module")
def client(folder: Path, adapted: Adapted) -> Iterator[OpenAI]:
    with Serving("--config", str(folder / "penstock.yaml")) as serving:
        yield serving.client()


def test_answers_are_those_of_the_model_with_its_adapter(client: OpenAI, adapted: Adapted) -> None:
    answer = client.completions.create(
        model="legal", prompt=PROMPT, max_tokens=16, temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )  # fmt: skip
    assert answer.model == "legal"
    tokens: list[int] = answer.choices[0].model_dump()["token_ids"]
    assert len(tokens) == 16
    assert tokens == adapted.likeliest(PROMPT, tokens)
    with adapted.judge.disable_adapter():
        assert tokens != adapted.likeliest(PROMPT, tokens)


def test_the_model_that_it_is_an_adapter_of_is_told(client: OpenAI, folder: Path) -> None:
    assert {model.id: model.to_dict().get("parent") for model in client.models.list()} == {
        "legal": str(folder / "model"),
    }
