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
TASKS: dict[str, int] = {"lookup": 38, "fact": 14, "unknown": 20, "reverse": 10, "count": 4, "list": 6, "json": 8}
"""The kinds of question on a sheet, and how often each is asked in a hundred."""

_LAYOUTS = (("{}: ", "{} {}", ", ", ""), ("{}; ", "{}: {}", "; ", ""), ("- {}, ", "{} = {}", ", ", ""))
LOOKUP_WORDINGS = ("What is the {key} of {e}?", "Tell me the {key} of {e}.", "What is {e}'s {key}?", "{e}: {key}?")
FACT_WORDINGS = ("What is the {key}?", "Tell me the {key}.", "Which {key} is given?")
REVERSE_WORDINGS = ("Which {noun} has {key} {value}?", "Which {noun} has the {key} {value}?")
_COUNT = ("How many {noun}s are there?", "How many {noun}s are on the sheet?", "Count the {noun}s.")
_LIST = ("List the {noun}s.", "Which {noun}s are there?", "Name all the {noun}s.")
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
    """A fact sheet as data: ``facts`` by key, ``rows`` by thing, each a value by column key (some are left out)."""

    domain: Domain
    title: str
    facts: dict[str, str]
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]
    text: str


class Question(NamedTuple):
    """What is asked of a sheet, and the answer."""

    text: str
    answer: str


def draw_sheet(domain: Domain, split: Split, rng: Random) -> Sheet:
    """A sheet with 2 to 4 facts and 3 to 7 things of 2 to 4 columns; one cell in twelve is left out."""
    facts = {field.key: field.draw(rng, split) for field in rng.sample(domain.facts, rng.randint(2, 4))}
    columns = rng.sample(domain.columns, rng.randint(2, 4))
    rows: dict[str, dict[str, str]] = {}
    for thing in domain.things.sample(rng, split, rng.randint(3, 7)):
        cells = {field.key: field.draw(rng, split) for field in columns}
        if rng.random() < len(columns) / 12:
            del cells[rng.choice(list(cells))]
        rows[thing] = cells
    title = domain.title.format(domain.places.draw(rng, split))
    text = _write(title, facts, rows, rng)
    return Sheet(domain, title, facts, tuple(field.key for field in columns), rows, text)


def _write(title: str, facts: dict[str, str], rows: dict[str, dict[str, str]], rng: Random) -> str:
    start, cell, comma, end = rng.choice(_LAYOUTS)
    about = [f"{key}: {value}" for key, value in facts.items()]
    listed = [
        start.format(name) + comma.join(cell.format(*pair) for pair in cells.items()) + end
        for name, cells in rows.items()
    ]
    return "\n".join([title, *about, *listed] if rng.random() < 0.7 else [title, *listed, *about])


def ask(sheet: Sheet, task: str, split: Split, rng: Random) -> Question:
    """A question of the kind ``task`` about ``sheet``, worded at random.

    Raises:
        KeyError: ``task`` is none of `TASKS`.
    """
    question = _ASK[task](sheet, split, rng)
    return Question(_carelessly(question.text, rng), question.answer)


def _carelessly(text: str, rng: Random) -> str:
    """People leave out capitals and question marks now and then."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    return text.rstrip("?.") if rng.random() < 0.12 else text


def _refer(thing: str, domain: Domain, rng: Random) -> str:
    """How a question names a thing: "Room 12" is as often as not "room 12"."""
    return thing[0].lower() + thing[1:] if thing.lower().startswith(domain.noun) and rng.random() < 0.5 else thing


def _wording(field: Field, general: Sequence[str], rng: Random) -> str:
    return rng.choice(field.asks) if field.asks and rng.random() < 0.5 else rng.choice(general)


def _lookup(sheet: Sheet, thing: str, field: Field, rng: Random) -> str:
    return _wording(field, LOOKUP_WORDINGS, rng).format(e=_refer(thing, sheet.domain, rng), key=field.key)


def _ask_lookup(sheet: Sheet, split: Split, rng: Random) -> Question:
    thing = rng.choice(list(sheet.rows))
    key = rng.choice(list(sheet.rows[thing]))
    return Question(_lookup(sheet, thing, _field(sheet.domain.columns, key), rng), sheet.rows[thing][key])


def _ask_fact(sheet: Sheet, split: Split, rng: Random) -> Question:
    key = rng.choice(list(sheet.facts))
    return Question(_wording(_field(sheet.domain.facts, key), FACT_WORDINGS, rng).format(key=key), sheet.facts[key])


def _ask_unknown(sheet: Sheet, split: Split, rng: Random) -> Question:
    """A thing, a column, a fact or a value that the sheet doesn't have, or a cell that was left out."""
    domain = sheet.domain
    gaps = [(thing, key) for thing, cells in sheet.rows.items() for key in sheet.columns if key not in cells]
    kinds = ["thing", "thing", "column", "fact", "value"] + ["cell"] * (2 if gaps else 0)
    kind = rng.choice(kinds)
    if kind == "cell":
        thing, key = rng.choice(gaps)
        text = _lookup(sheet, thing, _field(domain.columns, key), rng)
    elif kind == "thing":
        thing = domain.things.draw(rng, split)
        while domain.things.alike(thing, sheet.rows):
            thing = domain.things.draw(rng, split)
        text = _lookup(sheet, thing, _field(domain.columns, rng.choice(sheet.columns)), rng)
    elif kind == "column":
        field = rng.choice([field for field in domain.columns if field.key not in sheet.columns])
        text = _lookup(sheet, rng.choice(list(sheet.rows)), field, rng)
    elif kind == "fact":
        field = rng.choice([field for field in domain.facts if field.key not in sheet.facts])
        text = _wording(field, FACT_WORDINGS, rng).format(key=field.key)
    else:
        field = _field(domain.columns, rng.choice(sheet.columns))
        taken = {cells.get(field.key) for cells in sheet.rows.values()}
        free = [value for value in (field.draw(rng, split) for _ in range(50)) if value not in taken]
        if not free:
            return _ask_unknown(sheet, split, rng)
        text = rng.choice(REVERSE_WORDINGS).format(noun=domain.noun, key=field.key, value=free[0])
    return Question(text, UNKNOWN)


def _ask_reverse(sheet: Sheet, split: Split, rng: Random) -> Question:
    """Which thing has this value? Only for a value that one row alone has; a lookup where there is none."""
    owners: dict[tuple[str, str], list[str]] = {}
    for thing, cells in sheet.rows.items():
        for pair in cells.items():
            owners.setdefault(pair, []).append(thing)
    single = [pair for pair, things in owners.items() if len(things) == 1]
    if not single:
        return _ask_lookup(sheet, split, rng)
    key, value = rng.choice(single)
    text = rng.choice(REVERSE_WORDINGS).format(noun=sheet.domain.noun, key=key, value=value)
    return Question(text, owners[key, value][0])


def _ask_count(sheet: Sheet, split: Split, rng: Random) -> Question:
    return Question(rng.choice(_COUNT).format(noun=sheet.domain.noun), str(len(sheet.rows)))


def _ask_list(sheet: Sheet, split: Split, rng: Random) -> Question:
    return Question(rng.choice(_LIST).format(noun=sheet.domain.noun), ", ".join(sheet.rows))


def _ask_json(sheet: Sheet, split: Split, rng: Random) -> Question:
    thing = rng.choice(list(sheet.rows))
    record = {sheet.domain.noun: thing, **sheet.rows[thing]}
    return Question(rng.choice(_JSON).format(e=_refer(thing, sheet.domain, rng)), json.dumps(record))


_ASK = {
    "lookup": _ask_lookup,
    "fact": _ask_fact,
    "unknown": _ask_unknown,
    "reverse": _ask_reverse,
    "count": _ask_count,
    "list": _ask_list,
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
