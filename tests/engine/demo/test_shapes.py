import json
from itertools import islice
from random import Random

import pytest

from engine.demo.shapes import KINDS, draw_shape, shape_chats, shape_items


def test_every_value_is_in_the_sentence_or_on_the_sheet() -> None:
    for item in islice(shape_items("test", 1), 200):
        record = json.loads(item.answer)
        assert record
        assert all(str(value).lower() in f"{item.sheet}{item.question}".lower() for value in record.values())
        assert bool(item.sheet) == (item.task in ("row", "value"))


def test_the_keys_that_are_named_are_those_of_the_answer_in_their_order() -> None:
    rng = Random(3)
    for _ in range(100):
        item = draw_shape("fields", "train", rng)
        keys = list(json.loads(item.answer))
        assert f"{', '.join(keys[:-1])} and {keys[-1]} as JSON" in item.question or ", ".join(keys) in item.question
        item = draw_shape("value", "train", rng)
        (key,) = json.loads(item.answer)
        assert f"JSON with {key}" in item.question


def test_chats_have_their_sheet_first_and_answer_every_question() -> None:
    for chat in islice(shape_chats("train", 1), 100):
        turns = [message for message in chat.messages if message["role"] != "system"]
        assert [message["content"] for message in turns[1::2]] == [item.answer for item in chat.items]
        sheets = {item.sheet for item in chat.items} - {""}
        assert sheets == ({chat.messages[0]["content"]} if chat.messages[0]["role"] == "system" else set())


def test_shapes_are_the_same_for_the_same_seed_and_others_are_refused() -> None:
    assert list(islice(shape_items("test", 5), 20)) == list(islice(shape_items("test", 5), 20))
    assert [item.task for item in islice(shape_items("test", 5), 4)] == list(KINDS)
    with pytest.raises(KeyError, match="xml"):
        draw_shape("xml", "train", Random(1))
