import json
import re
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.demo import tasks
from engine.demo.names import Split
from engine.demo.sheets import Item
from engine.demo.tasks import set_task

ANY_SPLIT = st.sampled_from(["train", "test"])
RANDOMS = st.randoms(use_true_random=False)


@settings(max_examples=100, deadline=None)
@given(RANDOMS, ANY_SPLIT)
def test_sums_are_right_and_never_negative(rng: Random, split: Split) -> None:
    item = set_task("arithmetic", split, rng)
    found = re.search(r"(\d+) ?([+-]) ?(\d+)", item.question)
    assert found is not None
    a, b = int(found[1]), int(found[3])
    assert int(item.answer) == (a + b if found[2] == "+" else a - b) >= 0


@settings(max_examples=20, deadline=None)
@given(RANDOMS, ANY_SPLIT)
def test_sorting_keeps_the_numbers_and_orders_them(rng: Random, split: Split) -> None:
    item = set_task("sort", split, rng)
    given_numbers = [int(text) for text in re.findall(r"\d+", item.question)]
    assert item.answer == ", ".join(map(str, sorted(given_numbers)))


@settings(max_examples=50, deadline=None)
@given(RANDOMS, ANY_SPLIT)
def test_copies_and_extractions_come_from_the_question(rng: Random, split: Split) -> None:
    copy = set_task("copy", split, rng)
    assert copy.question.endswith(f": {copy.answer}")
    extract = set_task("extract", split, rng)
    assert all(str(value) in extract.question for value in json.loads(extract.answer).values())


def test_what_can_not_be_answered_says_so() -> None:
    items = list(islice(tasks.tasks("train", 0), 600))
    refused = {item.answer for item in items if not item.answerable}
    assert refused == {tasks.NO_SHEET, tasks.OFF_TOPIC}
    assert all(item.sheet == "" and item.domain == "general" for item in items)
    with pytest.raises(KeyError, match="dance"):
        set_task("dance", "train", Random(1))


def test_held_out_sets_of_digits_are_never_trained_on() -> None:
    def asked(split: Split) -> set[str]:
        found = [re.findall(r"\d", item.question) for item in islice(tasks.tasks(split, 0, kinds=["sort"]), 2000)]
        return {" ".join(sorted(digits)) for digits in found}

    assert not asked("train") & asked("test")


def test_tasks_are_the_same_for_the_same_seed() -> None:
    def first(seed: int) -> list[Item]:
        return list(islice(tasks.tasks("test", seed), 60))

    assert first(5) == first(5) != first(6)
