"""How do tools become chats? Questions that take one of them, with the call and its result, among others that don't."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from engine.demo import sheets, tasks
from engine.demo.conversations import SYSTEM, Conversation, Message, Tool, conversations
from engine.demo.domains import TRAINED, Domain
from engine.demo.names import Split
from engine.demo.shapes import shape_chats
from engine.demo.sheets import Item, Sheet
from engine.demo.tools import Skill, Use, draw_skill, draw_skills

_PLAIN = {"chat": 30, "arithmetic": 24, "sort": 10, "copy": 8, "extract": 14, "no_sheet": 14}


@dataclass(frozen=True, slots=True)
class Probe:
    """A question for one of ``tools``, of a kind of `engine.demo.tools.KINDS`: its call is judged, then its answer."""

    kind: str
    tools: tuple[Tool, ...]
    name: str
    use: Use

    def question(self) -> list[Message]:
        """The chat up to the question."""
        return [_message("user", self.use.question)]

    def returned(self) -> list[Message]:
        """The chat up to what the tool returned to the right call."""
        return [*self.question(), *_called("call_1", self.name, self.use)]


def probes(
    kind: str, split: Split, seed: int, *, domains: tuple[Domain, ...] = TRAINED, given: int | None = None
) -> Iterator[Probe]:
    """Endless questions for a tool of ``kind``, each with tools of its own: ``given`` of them, or one to three."""
    rng = Random(f"probes/{kind}/{split}/{seed}")
    while True:
        wanted = draw_skill(kind, split, rng, domains=domains)
        others = draw_skills(3, split, rng, domains=domains)
        others = [other for other in others if other.word != wanted.word and other.name != wanted.name]
        skills = [wanted, *others[: (given or rng.choice((1, 2, 2, 3))) - 1]]
        rng.shuffle(skills)
        yield Probe(kind, tuple(skill.tool for skill in skills), wanted.name, wanted.use(rng))


def plain_probes(split: Split, seed: int) -> Iterator[tuple[Item, tuple[Tool, ...]]]:
    """Endless questions that take none of the tools that come with them; every other one is on a sheet."""
    rng = Random(f"plain probes/{split}/{seed}")
    for number in count():
        sheet = sheets.draw_sheet(rng.choice(TRAINED), split, rng) if number % 2 else None
        skills = _skills_beside(sheet, split, rng)
        yield _plain(skills, sheet, split, rng), tuple(skill.tool for skill in skills)


def tool_chats(split: Split, seed: int) -> Iterator[Conversation]:
    """Endless chats with one to three tools, of one to four questions; three in four of them take a tool.

    Few questions a chat, because after the first call of a tool the next can be copied from it.

    One chat in five has a sheet as well, in the system's message; the tools are then for what it doesn't state.
    """
    rng = Random(f"tool chats/{split}/{seed}")
    while True:
        sheet = sheets.draw_sheet(rng.choice(TRAINED), split, rng) if rng.random() < 0.2 else None
        skills = _skills_beside(sheet, split, rng)
        messages = _opening(sheet, rng)
        items: list[Item] = []
        for number in range(rng.choice((1, 1, 2, 2, 3, 4))):
            if rng.random() < (0.5 if sheet else 0.78):
                skill = rng.choice(skills)
                use = skill.use(rng)
                asked = Item("tools", "use", "", use.question, use.answer)
                between = _called(f"call_{number}", skill.name, use)
            else:
                asked = _plain(skills, sheet, split, rng)
                between = []
            items.append(asked)
            messages += [_message("user", asked.question), *between, _message("assistant", asked.answer)]
        yield Conversation(tuple(messages), tuple(items), tuple(skill.tool for skill in skills))


def all_chats(split: Split, seed: int, *, tools: float, shapes: float) -> Iterator[Conversation]:
    """Endless chats: these shares of them with tools and about JSON, the others as in `conversations`."""
    rng = Random(f"all chats/{split}/{seed}")
    plain, with_tools, about_json = conversations(split, seed), tool_chats(split, seed), shape_chats(split, seed)
    while True:
        drawn = rng.random()
        yield next(with_tools if drawn < tools else about_json if drawn < tools + shapes else plain)


def _skills_beside(sheet: Sheet | None, split: Split, rng: Random) -> list[Skill]:
    """One to three tools for other things than ``sheet`` could be asked about."""
    stated = {field.key for field in (*sheet.domain.facts, *sheet.domain.columns)} if sheet else set()
    while True:
        skills = draw_skills(rng.choice((1, 1, 2, 2, 3)), split, rng)
        if not any(skill.word in stated for skill in skills):
            return skills


def _plain(skills: list[Skill], sheet: Sheet | None, split: Split, rng: Random) -> Item:
    """A question that takes none of ``skills``."""
    if sheet is not None and rng.random() < 0.8:
        return sheets.ask_item(sheet, rng.choices(list(sheets.TASKS), list(sheets.TASKS.values()))[0], split, rng)
    words = {skill.word for skill in skills}
    weights = {**_PLAIN, "arithmetic": 0 if "+" in words else _PLAIN["arithmetic"]}
    if sheet is not None:
        weights["no_sheet"] = 0
    while True:
        item = tasks.set_task(rng.choices(list(weights), list(weights.values()))[0], split, rng)
        if item.answer != tasks.NO_SHEET or not any(word in item.question.lower() for word in words):
            return item


def _opening(sheet: Sheet | None, rng: Random) -> list[Message]:
    if sheet is not None:
        return [_message("system", sheet.text)]
    return [_message("system", rng.choice(SYSTEM))] if rng.random() < 0.3 else []


def _called(id: str, name: str, use: Use) -> list[Message]:
    function = {"name": name, "arguments": json.dumps(use.arguments, ensure_ascii=False)}
    call: dict[str, Any] = {"id": id, "type": "function", "function": function}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": id, "content": use.result},
    ]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
