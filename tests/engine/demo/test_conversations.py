from itertools import islice

from engine.demo import domains
from engine.demo.conversations import conversations, prompt
from engine.demo.sheets import Item


def test_answers_alternate_with_questions_and_belong_to_their_items() -> None:
    for chat in islice(conversations("train", 1), 300):
        turns = [message for message in chat.messages if message["role"] != "system"]
        assert [message["role"] for message in turns] == ["user", "assistant"] * len(chat.items)
        for item, question, answer in zip(chat.items, turns[::2], turns[1::2], strict=True):
            assert answer["content"] == item.answer
            assert question["content"].endswith(item.question)
        assert all(message["content"] == message["content"].strip() for message in chat.messages)


def test_a_chat_has_one_sheet_given_before_it_is_asked_about() -> None:
    for chat in islice(conversations("test", 2, sheet_share=1.0), 200):
        (sheet,) = {item.sheet for item in chat.items} - {""}
        where = next(i for i, message in enumerate(chat.messages) if sheet in message["content"])
        first = next(item for item in chat.items if item.sheet)
        asked = next(i for i, message in enumerate(chat.messages) if message["content"].endswith(first.question))
        assert where <= asked


def test_chats_can_be_had_of_the_untrained_domains_too() -> None:
    chats = list(islice(conversations("train", 1, domains=domains.UNTRAINED, sheet_share=1.0), 40))
    assert {item.domain for chat in chats for item in chat.items} == {"observatory", "vineyard", "general"}


def test_the_same_seed_gives_the_same_chats() -> None:
    assert list(islice(conversations("train", 7), 20)) == list(islice(conversations("train", 7), 20))


def test_a_prompt_puts_the_sheet_where_it_is_told_to() -> None:
    item = Item("hotel", "fact", "Hotel Alder\nwifi: x", "What is the wifi?", "x")
    assert [message["role"] for message in prompt(item)] == ["system", "user"]
    assert prompt(item, in_system=False) == [{"role": "user", "content": "Hotel Alder\nwifi: x\n\nWhat is the wifi?"}]
    assert prompt(Item("general", "arithmetic", "", "1+1", "2")) == [{"role": "user", "content": "1+1"}]
