import json
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.demo import domains, sheets
from engine.demo.domains import Domain
from engine.demo.names import Split, belongs
from engine.demo.sheets import UNKNOWN, Item, Sheet, ask, draw_sheet

ANY_DOMAIN = st.sampled_from((*domains.TRAINED, *domains.UNTRAINED))
ANY_SPLIT = st.sampled_from(["train", "test"])
SEEDS = st.integers(0, 2**32)


def line_of(sheet: Sheet, thing: str) -> str:
    """The one line of the text that is about ``thing``."""
    (line,) = [
        line for line in sheet.text.splitlines() if line.removeprefix("- ").startswith((f"{thing}:", f"{thing} "))
    ]
    return line


@settings(max_examples=60, deadline=None)
@given(ANY_DOMAIN, ANY_SPLIT, SEEDS)
def test_the_text_states_every_fact_and_every_value(domain: Domain, split: Split, seed: int) -> None:
    sheet = draw_sheet(domain, split, Random(seed))
    assert sheet.text.splitlines()[0] == sheet.title
    assert all(f"{key}: {value}" in sheet.text.splitlines() for key, value in sheet.facts.items())
    for thing, value in sheet.column.items():
        assert belongs(thing, split)
        assert f"{sheet.key} {value}" in line_of(sheet, thing).replace(": ", " ")


@settings(max_examples=40, deadline=None)
@given(ANY_DOMAIN, ANY_SPLIT, SEEDS)
def test_json_answers_parse_and_hold_the_whole_row(domain: Domain, split: Split, seed: int) -> None:
    rng = Random(seed)
    sheet = draw_sheet(domain, split, rng)
    question, answer = ask(sheet, "json", split, rng)
    record = json.loads(answer)
    thing = record.pop(domain.noun)
    assert thing.lower() in question.lower()
    assert record == {sheet.key: sheet.column[thing]}


def answerable(sheet: Sheet) -> dict[str, set[str]]:
    """Every question that the sheet answers, in every wording, normalised as `plain` does, with its answers."""
    questions: dict[str, set[str]] = {}
    for field in sheet.domain.facts:
        if field.key in sheet.facts:
            for wording in (*sheets.FACT_WORDINGS, *field.asks):
                questions.setdefault(plain(wording.format(key=field.key)), set()).add(sheet.facts[field.key])
    (field,) = [field for field in sheet.domain.columns if field.key == sheet.key]
    for thing, value in sheet.column.items():
        for wording in (*sheets.LOOKUP_WORDINGS, *field.asks):
            questions.setdefault(plain(wording.format(key=field.key, e=thing)), set()).add(value)
    return questions


def plain(question: str) -> str:
    return question.lower().rstrip("?.")


@settings(max_examples=150, deadline=None)
@given(ANY_DOMAIN, ANY_SPLIT, SEEDS)
def test_unknown_questions_have_no_answer_on_the_sheet(domain: Domain, split: Split, seed: int) -> None:
    rng = Random(seed)
    sheet = draw_sheet(domain, split, rng)
    question, answer = ask(sheet, "unknown", split, rng)
    assert answer == UNKNOWN
    assert plain(question) not in answerable(sheet)


@settings(max_examples=100, deadline=None)
@given(ANY_DOMAIN, ANY_SPLIT, SEEDS, st.sampled_from(["lookup", "fact"]))
def test_what_is_asked_has_one_answer_and_it_is_the_right_one(
    domain: Domain, split: Split, seed: int, task: str
) -> None:
    rng = Random(seed)
    sheet = draw_sheet(domain, split, rng)
    question, answer = ask(sheet, task, split, rng)
    assert answerable(sheet)[plain(question)] == {answer}


def test_every_kind_of_question_is_known_and_others_are_refused() -> None:
    sheet = draw_sheet(domains.HOTEL, "train", Random(1))
    assert sum(sheets.TASKS.values()) == 100
    with pytest.raises(KeyError, match="sing"):
        ask(sheet, "sing", "train", Random(1))


def test_items_are_the_same_for_the_same_seed_and_only_for_it() -> None:
    def first(split: Split, seed: int) -> list[Item]:
        return list(islice(sheets.items(split, seed), 84))

    assert first("test", 3) == first("test", 3)
    assert not set(first("test", 3)) & set(first("test", 4))
    assert {(item.domain, item.task) for item in first("test", 3)} == {
        (domain.name, task) for domain in domains.TRAINED for task in sheets.TASKS
    }
    assert all(item.answerable == (item.task != "unknown") for item in first("test", 3))


def test_no_held_out_sheet_is_trained_on() -> None:
    def titles_and_things(split: Split) -> tuple[set[str], set[str]]:
        texts = [item.sheet for item in islice(sheets.items(split, 0), 1500)]
        return set(texts), {text.splitlines()[0] for text in texts}

    train, test = titles_and_things("train"), titles_and_things("test")
    assert not train[0] & test[0]
    assert not train[1] & test[1]
