import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from engine.demo.conversations import conversations
from engine.demo.tokenizer import BEGIN, END, ROLES, SPECIAL, ChatEncoder, save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    chats = islice(conversations("train", 1), 200)
    return train_tokenizer((message["content"] for chat in chats for message in chat.messages), 600)


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
    for chat in islice(conversations("test", 3), 20):
        ids, answers = encoder.encode(chat.messages)
        assert loaded.apply_chat_template(list(chat.messages), tokenize=True, return_dict=False) == ids
        wanted = "".join(item.answer + END for item in chat.items)
        assert (
            tokenizer.decode([i for i, a in zip(ids, answers, strict=True) if a], skip_special_tokens=False) == wanted
        )
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
    with pytest.raises(Exception, match="knows the roles system, user and assistant, not tool"):
        render("tool", "x")
