import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from engine.demo.conversations import Message, conversations
from engine.demo.tokenizer import (
    BEGIN,
    CHAT_TEMPLATE,
    END,
    ROLES,
    SPECIAL,
    ChatEncoder,
    as_texts,
    call_text,
    save_tokenizer,
    train_tokenizer,
)
from engine.demo.tool_chats import tool_chats
from gateway.text.dialect import Dialect


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    chats = islice(conversations("train", 1), 200)
    return train_tokenizer((message["content"] for chat in chats for message in chat.messages), 600)


@pytest.fixture(scope="module")
def loaded(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, folder, 512)
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not any(special in text for special in SPECIAL):
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_word_has_the_same_tokens_wherever_it_stands(tokenizer: Tokenizer) -> None:
    alone = tokenizer.encode("garden", add_special_tokens=False).ids
    within = tokenizer.encode("view: garden, floor 3", add_special_tokens=False).ids
    assert any(within[start : start + len(alone)] == alone for start in range(len(within)))


def test_every_number_below_a_thousand_is_one_token() -> None:
    chats = islice(conversations("train", 1), 300)
    large = train_tokenizer((message["content"] for chat in chats for message in chat.messages), 3072)
    assert all(len(large.encode(str(number), add_special_tokens=False).ids) == 1 for number in range(1000))


def test_special_tokens_come_first_and_plain_text_gets_a_beginning(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(text) for text in SPECIAL] == list(range(len(SPECIAL)))
    assert tokenizer.encode("hi").tokens[0] == BEGIN
    assert tokenizer.get_vocab_size() == 600


def test_training_encodes_chats_as_the_template_renders_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, 512)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    encoder = ChatEncoder(tokenizer)
    for chat in (*islice(conversations("test", 3), 20), *islice(tool_chats("test", 3), 40)):
        ids, answers = encoder.encode(chat.messages, chat.tools)
        tools = list(chat.tools) or None
        assert loaded.apply_chat_template(list(chat.messages), tools=tools, tokenize=True, return_dict=False) == ids
        said = [text for role, text in as_texts(chat.messages, chat.tools) if role == "assistant"]
        wanted = "".join(text + END for text in said)
        assert (
            tokenizer.decode([i for i, a in zip(ids, answers, strict=True) if a], skip_special_tokens=False) == wanted
        )
        assert {item.answer for item in chat.items} <= set(said)
    assert loaded.model_max_length == 512
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == END


def test_the_template_asks_for_an_answer_and_takes_content_in_parts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, 512)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    def render(role: str, content: object) -> str:
        messages = [{"role": role, "content": content}]
        return str(loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    assert render("user", "hi ") == f"{BEGIN}{ROLES['user']}hi{END}{ROLES['assistant']}"
    assert render("user", [{"type": "text", "text": "hi"}]) == render("user", "hi")
    assert render("developer", "x").startswith(f"{BEGIN}{ROLES['system']}x")
    with pytest.raises(Exception, match="knows the roles system, user, assistant and tool, not judge"):
        render("judge", "x")


PRICE = {
    "type": "function",
    "function": {
        "name": "get_price",
        "description": "Get the price\nof a room.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "nights": {"type": ["integer", "null"]}},
            "required": ["room"],
        },
    },
}
BARE = {"type": "function", "function": {"name": "ping"}}
ABOUT = (
    'Tools:\nGet the price of a room. {"name": "get_price", "arguments": {"room": "string", "nights": any}}\n'
    '{"name": "ping", "arguments": {}}\n'
    "Call one with <tool_call>, or answer."
)


@pytest.mark.parametrize(
    ("messages", "begins"),
    [
        ([{"role": "user", "content": "hi"}], f"{BEGIN}{ROLES['system']}{ABOUT}{END}{ROLES['user']}hi{END}"),
        ([{"role": "system", "content": "Be brief. "}], f"{BEGIN}{ROLES['system']}Be brief.\n\n{ABOUT}{END}"),
        ([{"role": "developer", "content": ""}], f"{BEGIN}{ROLES['system']}{ABOUT}{END}"),
    ],
)
def test_tools_are_described_in_the_first_message_of_the_system(
    loaded: Any, messages: list[Message], begins: str
) -> None:
    text = loaded.apply_chat_template(messages, tools=[PRICE, BARE], tokenize=False, add_generation_prompt=True)
    assert text == f"{begins}{ROLES['assistant']}"


def test_calls_and_what_they_return_are_written_in_hermes_form(loaded: Any) -> None:
    given = {"room": "Zimmer für <2> & 'mehr'", "nights": 2}
    functions = [{"name": "get_price", "arguments": given}, {"name": "ping", "arguments": json.dumps({"a": [1, None]})}]
    calls = [{"id": f"call_{at}", "type": "function", "function": function} for at, function in enumerate(functions)]
    messages: list[Message] = [
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_0", "content": "80 euros"},
    ]
    assert loaded.apply_chat_template(messages, tokenize=False) == (
        f"{BEGIN}{ROLES['assistant']}Wait.\n{call_text('get_price', given)}\n{call_text('ping', {'a': [1, None]})}{END}"
        f"{ROLES['user']}<tool_response>\n80 euros\n</tool_response>{END}"
    )


@pytest.mark.parametrize(
    ("parameters", "described"),
    [
        (None, '{"name": "f", "arguments": {}}'),
        ({}, '{"name": "f", "arguments": {}}'),
        ({"type": "object", "properties": None}, '{"name": "f", "arguments": {}}'),
        ({"properties": {"a": True, "items": {"$ref": "#/x"}}}, '{"name": "f", "arguments": {"a": any, "items": any}}'),
    ],
)
def test_any_parameters_can_be_described(loaded: Any, parameters: object, described: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    text = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tools=[tool], tokenize=False)
    assert f"Tools:\n{described}\nCall one" in text


def test_the_gateway_finds_hermes_form_in_the_template() -> None:
    assert Dialect.detect(CHAT_TEMPLATE, {}, ()) == Dialect("hermes")
