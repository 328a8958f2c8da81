"""How does the demo model learn to write JSON with the keys that somebody wants? Chats in which these are named.

A server that holds answers to a JSON schema forces the keys, not the values: these have to be found under the keys that
are left, in any order.
"""

import json
from collections.abc import Iterator
from random import Random

from engine.demo import sheets, tasks
from engine.demo.conversations import Conversation, Message
from engine.demo.domains import TRAINED
from engine.demo.names import Split
from engine.demo.sheets import Item, Sheet

KINDS: dict[str, int] = {"fields": 40, "sentence": 20, "row": 20, "value": 20}
"""The kinds of request for JSON, and how often each is made in a hundred."""

_FIELDS = ("Extract {keys} as JSON: {text}", "Write {keys} as JSON: {text}", "{text} Extract {keys} as JSON.")
_ROW = ("Answer as JSON.", "As JSON.", "Answer in JSON.", "JSON please.")
_VALUE = ("Answer as JSON with {key}.", "As JSON with {key}.", "Answer in JSON with {key} only.")


def draw_shape(kind: str, split: Split, rng: Random) -> Item:
    """A request for JSON of a kind of `KINDS`: parts of a sentence or all of it, a sheet's row or one value of it.

    Raises:
        KeyError: ``kind`` is none of them.
    """
    sheet = sheets.draw_sheet(rng.choice(TRAINED), split, rng) if kind in ("row", "value") else None
    return _on_sheet(kind, sheet, split, rng) if sheet else {"fields": _fields, "sentence": _sentence}[kind](split, rng)


def shape_items(split: Split, seed: int) -> Iterator[Item]:
    """Endless items; the kinds take turns."""
    rng = Random(f"shapes/{split}/{seed}")
    while True:
        for kind in KINDS:
            yield draw_shape(kind, split, rng)


def shape_chats(split: Split, seed: int) -> Iterator[Conversation]:
    """Endless chats of four requests for JSON: about one sheet, or about sentences."""
    rng = Random(f"shape chats/{split}/{seed}")
    while True:
        kinds = rng.choices(list(KINDS), list(KINDS.values()), k=4)
        sheet = sheets.draw_sheet(rng.choice(TRAINED), split, rng)
        items = [
            _on_sheet(kind, sheet, split, rng) if kind in ("row", "value") else draw_shape(kind, split, rng)
            for kind in kinds
        ]
        messages: list[Message] = []
        if any(item.sheet for item in items):
            messages.append({"role": "system", "content": sheet.text})
        for item in items:
            messages += [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        yield Conversation(tuple(messages), tuple(items))


def _fields(split: Split, rng: Random) -> Item:
    text, record = tasks.draw_sentence(split, rng)
    keys = rng.sample(list(record), rng.randint(1, len(record)))
    named = ", ".join(keys) if rng.random() < 0.5 or len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    question = rng.choice(_FIELDS).format(keys=named, text=text)
    return Item("json", "fields", "", question, json.dumps({key: record[key] for key in keys}))


def _sentence(split: Split, rng: Random) -> Item:
    text, record = tasks.draw_sentence(split, rng)
    wording = rng.choice((*tasks.EXTRACT_WORDINGS, "{}", "{}", "{} Answer as JSON."))
    return Item("json", "sentence", "", wording.format(text), json.dumps(record))


def _on_sheet(kind: str, sheet: Sheet, split: Split, rng: Random) -> Item:
    """A lookup, with its answer as a row or as the one value."""
    thing = rng.choice(list(sheet.column))
    question = sheets.draw_lookup(sheet, thing, rng)
    question = question if question[-1] in "?." else f"{question}."
    if kind == "row":
        asked, record = rng.choice(_ROW), {sheet.domain.noun: thing, sheet.key: sheet.column[thing]}
    else:
        asked, record = rng.choice(_VALUE).format(key=sheet.key), {sheet.key: sheet.column[thing]}
    return Item("json", kind, sheet.text, f"{question} {asked}", json.dumps(record))
