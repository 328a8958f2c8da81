"""Which questions does the demo model answer from a fact sheet, and what is the right answer to each?

A sheet is drawn for a domain, then asked about. Because the sheet is data before it is text, the answer is known by
construction. Everything is a function of (split, seed): the same arguments give the same items on any machine.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from engine.demo.domains import TRAINED, Domain, Field
from engine.demo.names import Split

UNKNOWN = "The sheet doesn't say."
TASKS: dict[str, int] = {"lookup": 42, "fact": 28, "unknown": 22, "json": 8}
"""The kinds of question on a sheet, and how often each is asked in a hundred."""

_LAYOUTS = ("{thing}: {key} {value}", "{thing} | {key}: {value}", "- {thing} ({key}: {value})")
LOOKUP_WORDINGS = ("What is the {key} of {e}?", "Tell me the {key} of {e}.", "What is {e}'s {key}?", "{e}: {key}?")
FACT_WORDINGS = ("What is the {key}?", "Tell me the {key}.", "Which {key} is given?")
_JSON = ("Give {e} as JSON.", "Write {e} as JSON.", "Show me {e} in JSON.")


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its right answer. ``sheet`` is empty for tasks that need none, ``domain`` is then "general"."""

    domain: str
    task: str
    sheet: str
    question: str
    answer: str
    answerable: bool = True


@dataclass(frozen=True, slots=True)
class Sheet:
    """A fact sheet as data: ``facts`` by key, and ``column``, one value for each thing."""

    domain: Domain
    title: str
    facts: dict[str, str]
    key: str
    column: dict[str, str]
    text: str


class Question(NamedTuple):
    """What is asked of a sheet, and the answer."""

    text: str
    answer: str


def draw_sheet(domain: Domain, split: Split, rng: Random) -> Sheet:
    """A sheet with 3 or 4 facts, and 3 to 6 things with the value of one column."""
    facts = {field.key: field.draw(rng, split) for field in rng.sample(domain.facts, rng.randint(3, 4))}
    field = rng.choice(domain.columns)
    column = {thing: field.draw(rng, split) for thing in domain.things.sample(rng, split, rng.randint(3, 6))}
    title = domain.title.format(domain.places.draw(rng, split))
    layout = rng.choice(_LAYOUTS)
    about = [f"{key}: {value}" for key, value in facts.items()]
    listed = [layout.format(thing=thing, key=field.key, value=value) for thing, value in column.items()]
    lines = [title, *about, *listed] if rng.random() < 0.7 else [title, *listed, *about]
    return Sheet(domain, title, facts, field.key, column, "\n".join(lines))


def ask(sheet: Sheet, task: str, split: Split, rng: Random) -> Question:
    """A question of the kind ``task`` about ``sheet``, worded at random.

    Raises:
        KeyError: ``task`` is none of `TASKS`.
    """
    question = _ASK[task](sheet, split, rng)
    return Question(carelessly(question.text, rng), question.answer)


def carelessly(text: str, rng: Random) -> str:
    """People leave out capitals and question marks now and then."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    return text.rstrip("?.") if rng.random() < 0.12 else text


def refer(thing: str, domain: Domain, rng: Random) -> str:
    """How a question names a thing: "Room 12" is as often as not "room 12"."""
    return thing[0].lower() + thing[1:] if thing.lower().startswith(domain.noun) and rng.random() < 0.5 else thing


def _wording(field: Field, general: Sequence[str], rng: Random) -> str:
    return rng.choice(field.asks) if field.asks and rng.random() < 0.5 else rng.choice(general)


def draw_lookup(sheet: Sheet, thing: str, rng: Random) -> str:
    """A question for what ``sheet`` states about ``thing``."""
    return _lookup(sheet, thing, _field(sheet.domain.columns, sheet.key), rng)


def _lookup(sheet: Sheet, thing: str, field: Field, rng: Random) -> str:
    return _wording(field, LOOKUP_WORDINGS, rng).format(e=refer(thing, sheet.domain, rng), key=field.key)


def _ask_lookup(sheet: Sheet, split: Split, rng: Random) -> Question:
    thing = rng.choice(list(sheet.column))
    return Question(draw_lookup(sheet, thing, rng), sheet.column[thing])


def _ask_fact(sheet: Sheet, split: Split, rng: Random) -> Question:
    key = rng.choice(list(sheet.facts))
    return Question(_wording(_field(sheet.domain.facts, key), FACT_WORDINGS, rng).format(key=key), sheet.facts[key])


def _ask_unknown(sheet: Sheet, split: Split, rng: Random) -> Question:
    """A thing, a fact or a column that the sheet doesn't have."""
    domain = sheet.domain
    kind = rng.choice(("thing", "thing", "thing", "fact", "fact", "column"))
    if kind == "fact":
        field = rng.choice([field for field in domain.facts if field.key not in sheet.facts])
        return Question(_wording(field, FACT_WORDINGS, rng).format(key=field.key), UNKNOWN)
    if kind == "thing":
        field = _field(domain.columns, sheet.key)
        others = iter(lambda: domain.things.draw(rng, split), None)
        thing = next(name for name in others if not domain.things.alike(name, sheet.column))
    else:
        field = rng.choice([field for field in domain.columns if field.key != sheet.key])
        thing = rng.choice(list(sheet.column))
    return Question(_lookup(sheet, thing, field, rng), UNKNOWN)


def _ask_json(sheet: Sheet, split: Split, rng: Random) -> Question:
    thing = rng.choice(list(sheet.column))
    record = {sheet.domain.noun: thing, sheet.key: sheet.column[thing]}
    return Question(rng.choice(_JSON).format(e=refer(thing, sheet.domain, rng)), json.dumps(record))


_ASK = {
    "lookup": _ask_lookup,
    "fact": _ask_fact,
    "unknown": _ask_unknown,
    "json": _ask_json,
}


def _field(fields: Sequence[Field], key: str) -> Field:
    return next(field for field in fields if field.key == key)


def ask_item(sheet: Sheet, task: str, split: Split, rng: Random) -> Item:
    """Like `ask`, as an `Item`."""
    question, answer = ask(sheet, task, split, rng)
    return Item(sheet.domain.name, task, sheet.text, question, answer, answer != UNKNOWN)


def items(
    split: Split, seed: int, *, domains: Sequence[Domain] = TRAINED, tasks: Sequence[str] = tuple(TASKS)
) -> Iterator[Item]:
    """Endless items, each about a sheet of its own; domains and tasks take turns."""
    rng = Random(f"items/{split}/{seed}")
    while True:
        for task in tasks:
            for domain in domains:
                yield ask_item(draw_sheet(domain, split, rng), task, split, rng)
