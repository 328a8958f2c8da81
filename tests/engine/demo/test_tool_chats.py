import json
import re
from itertools import islice

from engine.demo import domains
from engine.demo.conversations import Conversation
from engine.demo.tasks import NO_SHEET
from engine.demo.tokenizer import as_texts
from engine.demo.tool_chats import all_chats, plain_probes, probes, tool_chats
from engine.demo.tools import KINDS


def test_every_call_is_of_a_tool_that_is_there_and_is_answered() -> None:
    called = 0
    for chat in islice(tool_chats("train", 1), 200):
        names = {tool["function"]["name"] for tool in chat.tools}
        assert 1 <= len(names) == len(chat.tools) <= 3
        for message, following in zip(chat.messages, (*chat.messages[1:], {}), strict=True):
            if message.get("tool_calls"):
                (call,) = message["tool_calls"]
                assert call["function"]["name"] in names
                assert following["role"] == "tool"
                assert following["tool_call_id"] == call["id"]
                called += 1
        answers = [m["content"] for m in chat.messages if m["role"] == "assistant" and not m.get("tool_calls")]
        assert answers == [item.answer for item in chat.items]
    asked = sum(len(chat.items) for chat in islice(tool_chats("train", 1), 200))
    assert 0.6 < called / asked < 0.85


def test_a_question_that_takes_no_tool_asks_for_none_of_those_there() -> None:
    for item, tools in islice(plain_probes("train", 1), 200):
        if item.answer == NO_SHEET:
            descriptions = " ".join(tool["function"]["name"].replace("_", " ") for tool in tools)
            assert item.question.lower() not in descriptions
        else:
            assert item.sheet or item.domain == "general"


def test_probes_ask_for_a_tool_among_as_many_as_are_wanted() -> None:
    for kind in KINDS:
        for probe in islice(probes(kind, "test", 1, given=2), 20):
            assert len(probe.tools) <= 2
            assert probe.name in [tool["function"]["name"] for tool in probe.tools]
            assert [message["role"] for message in probe.returned()] == ["user", "assistant", "tool"]
            call = probe.returned()[1]["tool_calls"][0]["function"]
            assert (call["name"], json.loads(call["arguments"])) == (probe.name, probe.use.arguments)


def test_all_kinds_of_chats_come_in_their_shares() -> None:
    chats = list(islice(all_chats("train", 1, tools=0.4, shapes=0.1), 600))
    assert 0.33 < sum(bool(chat.tools) for chat in chats) / 600 < 0.47
    assert 0.05 < sum(chat.items[0].domain == "json" for chat in chats) / 600 < 0.15


def test_training_with_tools_never_shows_the_untrained_domains_either() -> None:
    def words(chat: Conversation) -> set[str]:
        texts = [text for _, text in as_texts(chat.messages, chat.tools)]
        return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}

    unseen = {word for word in domains.vocabulary(domains.UNTRAINED) if word.isalpha()}
    for chat in islice(all_chats("train", 2, tools=0.7, shapes=0.3), 1500):
        assert not unseen & words(chat)


def test_chats_are_the_same_for_the_same_seed() -> None:
    def first(seed: int) -> list[Conversation]:
        return list(islice(all_chats("train", seed, tools=0.5, shapes=0.2), 20))

    assert first(7) == first(7) != first(8)
