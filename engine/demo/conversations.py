"""How do questions become chats? Several turns on one sheet, or several tasks without one, as role and content."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from engine.demo import sheets, tasks
from engine.demo.domains import TRAINED, Domain
from engine.demo.names import Split
from engine.demo.sheets import Item

Message = dict[str, Any]
Tool = dict[str, Any]
"""A message and a tool as OpenAI's client sends them."""

SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful, concise assistant.",
    "Answer from the sheet.",
    "Answer the user's questions.",
    "Be brief.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """``messages`` in the order of the chat; ``items`` are its questions, one for each answer of the assistant."""

    messages: tuple[Message, ...]
    items: tuple[Item, ...]
    tools: tuple[Tool, ...] = ()


def prompt(item: Item, *, in_system: bool = True) -> list[Message]:
    """``item`` as the first question of a chat, its sheet as the system message or in front of the question."""
    if not item.sheet:
        return [_message("user", item.question)]
    if in_system:
        return [_message("system", item.sheet), _message("user", item.question)]
    return [_message("user", f"{item.sheet}\n\n{item.question}")]


def conversations(
    split: Split, seed: int, *, domains: Sequence[Domain] = TRAINED, sheet_share: float = 0.7
) -> Iterator[Conversation]:
    """Endless chats: ``sheet_share`` of them about a sheet of one of ``domains``, the others without a sheet.

    A chat about a sheet has six questions, now and then up to forty; one question in ten is not about the sheet.
    """
    rng = Random(f"conversations/{split}/{seed}")
    while True:
        if rng.random() < sheet_share:
            yield _about_sheet(rng.choice(domains), split, rng)
        else:
            yield _without_sheet(split, rng)


def _about_sheet(domain: Domain, split: Split, rng: Random) -> Conversation:
    sheet = sheets.draw_sheet(domain, split, rng)
    turns = rng.randint(10, 40) if rng.random() < 0.04 else 6
    asked: list[Item] = []
    for _ in range(turns):
        if rng.random() < 0.1:
            asked.append(tasks.set_task(_weighted({**tasks.TASKS, "no_sheet": 0}, rng), split, rng))
        else:
            asked.append(sheets.ask_item(sheet, _weighted(sheets.TASKS, rng), split, rng))
    place = rng.random()
    if place < 0.5:
        return Conversation((_message("system", sheet.text), *_turns(asked)), tuple(asked))
    before = [tasks.set_task("chat", split, rng)] if place < 0.6 else []
    given = [_message("user", f"{sheet.text}\n\n{asked[0].question}"), *_turns(asked)[1:]]
    return Conversation((*_opening(rng), *_turns(before), *given), (*before, *asked))


def _without_sheet(split: Split, rng: Random) -> Conversation:
    asked = [tasks.set_task(_weighted(tasks.TASKS, rng), split, rng) for _ in range(rng.randint(4, 12))]
    return Conversation((*_opening(rng), *_turns(asked)), tuple(asked))


def _opening(rng: Random) -> list[Message]:
    return [_message("system", rng.choice(SYSTEM))] if rng.random() < 0.4 else []


def _turns(asked: Sequence[Item]) -> list[Message]:
    return [_message(*pair) for item in asked for pair in (("user", item.question), ("assistant", item.answer))]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _weighted(weights: dict[str, int], rng: Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]
