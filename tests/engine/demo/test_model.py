"""The shipped folder: is it small, whole, what its card says, and does it answer?"""

import json
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.demo import MODEL_FOLDER
from engine.demo.domains import TRAINED
from engine.demo.evaluate import Answerer, held_out
from engine.demo.scores import accuracy, score, trained
from engine.demo.sheets import Item
from engine.demo.tasks import EXAMPLE, OFF_TOPIC


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(MODEL_FOLDER)


def test_the_folder_is_whole_and_small() -> None:
    names = {path.name for path in MODEL_FOLDER.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert sum(path.stat().st_size for path in MODEL_FOLDER.iterdir()) < 15_000_000


def test_transformers_loads_it_as_a_llama_model_of_three_to_eight_million_parameters() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert 3_000_000 <= model.num_parameters() <= 8_000_000
    assert model.generation_config.do_sample is False
    assert len(AutoTokenizer.from_pretrained(MODEL_FOLDER)) == model.config.vocab_size


def test_it_answers_held_out_questions_of_its_domains(answerer: Answerer) -> None:
    items = held_out(1, seed=77, domains=TRAINED)
    cells = trained(score(items, answerer.answer(items)))
    assert sum(cell.asked for cell in cells) == 6 * 4 + 6
    assert accuracy(cells) >= 0.9


def test_it_answers_a_newcomer(answerer: Answerer) -> None:
    def ask(text: str) -> str:
        return answerer.answer([Item("general", "chat", "", text, "")])[0]

    assert ask("hello").startswith("Hello!")
    assert "Penstock demo model" in ask("Who are you?")
    assert ask("What is the capital of France?") == OFF_TOPIC
    assert ask(EXAMPLE) == "80 euros"


def test_the_card_states_what_was_measured() -> None:
    card = (MODEL_FOLDER / "README.md").read_text()
    training = json.loads((MODEL_FOLDER / "training.json").read_text())
    assert f"seed {training['seed']}" in card
    assert f"{training['chats']['loss']:.4f}" in card
    assert "license: apache-2.0" in card
    assert "**observatory and vineyard**" in card
