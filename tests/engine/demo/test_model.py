"""The shipped folder: is it small, whole, what its card says, and does it answer?"""

import json
from itertools import islice
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.demo import MODEL_FOLDER
from engine.demo.conversations import Message, Tool
from engine.demo.domains import TRAINED
from engine.demo.evaluate import Answerer, Asked, held_out, held_out_tools
from engine.demo.scores import TOOLS, accuracy, score, trained
from engine.demo.shapes import shape_items
from engine.demo.sheets import Item
from engine.demo.tasks import EXAMPLE, OFF_TOPIC
from engine.demo.tokenizer import CHAT_TEMPLATE, call_text


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


def test_it_calls_held_out_tools_and_answers_from_what_they_return(answerer: Answerer) -> None:
    chats = held_out_tools(6, seed=77)
    cells = score([chat.item for chat in chats], answerer.answer_chats(chats))
    tools = [cell for cell in cells if cell.domain == TOOLS]
    assert sum(cell.asked for cell in tools) == 6 * 7
    # Names that training had often take the place of those on the list: the card promises little of its calls.
    assert accuracy(cell for cell in tools if cell.task.endswith("call")) >= 0.2
    assert accuracy(cell for cell in tools if not cell.task.endswith("call")) >= 0.8


def test_it_calls_the_tool_that_is_asked_for_and_says_what_came_of_it(answerer: Answerer) -> None:
    def tool(name: str, description: str, **parameters: str) -> Tool:
        properties = {key: {"type": kind} for key, kind in parameters.items()}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}

    def reply(*messages: Message, tools: tuple[Tool, ...]) -> str:
        return answerer.answer_chats([Asked(Item("tools", "", "", "", ""), messages, tools)])[0]

    tools = (tool("get_price", "Get the price of a room.", room="string"),)
    question = {"role": "user", "content": "What is the price of Room 27?"}
    assert reply(question, tools=tools) == call_text("get_price", {"room": "Room 27"})
    function = {"name": "get_price", "arguments": '{"room": "Room 27"}'}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]}
    for result in ("65 euros", '{"room": "Room 27", "price": "65 euros"}'):
        said = {"role": "tool", "tool_call_id": "a", "content": result}
        assert reply(question, call, said, tools=tools) == "65 euros"
    assert reply({"role": "user", "content": "hello"}, tools=tools).startswith("Hello!")


def test_it_writes_json_where_that_is_asked_for(answerer: Answerer) -> None:
    items = list(islice(shape_items("test", 77), 40))
    cells = score(items, answerer.answer(items))
    assert accuracy(cell for cell in cells if cell.task in ("sentence", "row")) >= 0.8


def test_the_template_is_the_one_of_the_code() -> None:
    assert (MODEL_FOLDER / "chat_template.jinja").read_text() == CHAT_TEMPLATE + "\n"


def test_the_card_states_what_was_measured() -> None:
    card = (MODEL_FOLDER / "README.md").read_text()
    training = json.loads((MODEL_FOLDER / "training.json").read_text())
    assert f"seed {training['seed']}" in card
    assert f"{training['chats']['loss']:.4f}" in card
    assert f"{training['tools']['loss']:.4f}" in card
    assert "license: apache-2.0" in card
    assert "**observatory and vineyard**" in card
