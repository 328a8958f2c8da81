"""How often does the demo model answer rightly? Exact match on held-out sheets, tasks and tools.

Run ``python -m engine.demo.evaluate``. Every sheet is one that training can't have seen (its names are held out), and
every question is the first of its chat. The two untrained domains are reported apart: the model has never met them.
With tools, the call is judged, name and arguments, and then the answer to what the right call has returned.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.demo import MODEL_FOLDER, shapes, sheets, tasks, tools
from engine.demo.card import write_card
from engine.demo.conversations import Message, Tool, prompt
from engine.demo.domains import TRAINED, UNTRAINED, Domain
from engine.demo.scores import TOOLS, UNFAMILIAR_TOOLS, report, score, table
from engine.demo.shapes import shape_items
from engine.demo.sheets import Item
from engine.demo.tokenizer import call_text
from engine.demo.tool_chats import Probe, plain_probes, probes


@dataclass(frozen=True, slots=True)
class Asked:
    """``item`` as a chat that ends where its answer is due."""

    item: Item
    messages: Sequence[Message]
    tools: Sequence[Tool] = ()


class Answerer:
    """A model folder as a function from prompts to answers, decoded greedily with transformers.

    Raises:
        OSError: ``folder`` holds no model.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answer(self, items: Sequence[Item], *, in_system: bool = True, batch: int = 32, longest: int = 96) -> list[str]:
        """The answer to each of ``items``, asked alone; at most ``longest`` tokens each."""
        chats = [Asked(item, prompt(item, in_system=in_system)) for item in items]
        return self.answer_chats(chats, batch=batch, longest=longest)

    def answer_chats(self, chats: Sequence[Asked], *, batch: int = 32, longest: int = 96) -> list[str]:
        """What follows each of ``chats``; at most ``longest`` tokens each."""
        rendered = [self._render(chat) for chat in chats]
        order = sorted(range(len(chats)), key=lambda index: len(rendered[index]))
        answers = [""] * len(chats)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            inputs = self._tokenizer(
                [rendered[i] for i in chosen], return_tensors="pt", padding=True, add_special_tokens=False
            )
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                output = self._model.generate(**inputs, max_new_tokens=longest, do_sample=False)
            texts = self._tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
        return answers

    def _render(self, chat: Asked) -> str:
        text: str = self._tokenizer.apply_chat_template(
            chat.messages, tools=list(chat.tools) or None, tokenize=False, add_generation_prompt=True
        )
        return text


def held_out(count: int, seed: int, domains: Iterable[Domain] = (*TRAINED, *UNTRAINED)) -> list[Item]:
    """``count`` held-out items for every task, and for tasks on sheets for every one of ``domains``."""
    on_sheets = [
        item
        for domain in domains
        for item in islice(sheets.items("test", seed, domains=[domain]), count * len(sheets.TASKS))
    ]
    return [*on_sheets, *islice(tasks.tasks("test", seed), count * len(tasks.TASKS))]


def held_out_tools(count: int, seed: int) -> list[Asked]:
    """``count`` questions for each kind of held-out tool, first for the call, then for the answer; others for none."""
    chats: list[Asked] = []
    for kind in tools.KINDS:
        chats += _calls_and_answers(TOOLS, kind, islice(probes(kind, "test", seed), count))
    # Sums have no names that could be held out, nor do actions of a domain: its lookups are what is unfamiliar.
    chats += _calls_and_answers(
        UNFAMILIAR_TOOLS, "lookup", islice(probes("lookup", "test", seed, domains=UNTRAINED), count)
    )
    for item, given in islice(plain_probes("test", seed), count):
        chats.append(Asked(replace(item, domain=TOOLS, task="no tool needed"), prompt(item), given))
    return chats


def _calls_and_answers(domain: str, kind: str, asked: Iterable[Probe]) -> list[Asked]:
    listed = list(asked)
    calls = [
        Asked(
            Item(domain, f"{kind}: call", "", probe.use.question, call_text(probe.name, probe.use.arguments)),
            probe.question(),
            probe.tools,
        )
        for probe in listed
    ]
    answers = [
        Asked(Item(domain, f"{kind}: answer", "", probe.use.question, probe.use.answer), probe.returned(), probe.tools)
        for probe in listed
    ]
    return [*calls, *answers]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.demo.evaluate", description="Exact match on held-out sheets."
    )
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="model folder (default: the shipped model's)")
    parser.add_argument("--count", type=int, default=40, help="questions for each task in each domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sheet-in", choices=("system", "user"), default="system", help="which message holds the sheet"
    )
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    parser.add_argument("--card", action="store_true", help="also write the figures into the model's card")
    parser.add_argument("--wrong", action="store_true", help="also print every wrong answer")
    options = parser.parse_args()
    items = [
        *held_out(options.count, options.seed),
        *islice(shape_items("test", options.seed), options.count * len(shapes.KINDS)),
    ]
    chats = [Asked(item, prompt(item, in_system=options.sheet_in == "system")) for item in items]
    chats += held_out_tools(options.count, options.seed)
    items = [chat.item for chat in chats]
    answers = Answerer(options.model).answer_chats(chats)
    cells = score(items, answers)
    if options.wrong:
        for item, answer in zip(items, answers, strict=True):
            if answer != item.answer:
                print(f"{item.domain} {item.task}: {item.question!r} -> {answer!r}, right is {item.answer!r}")
    print(table(cells))
    summary = report(cells, options.count, options.seed)
    print(f"\ntrained domains and tasks {100 * summary['trained']:.1f} %")
    print(f"untrained domains {100 * summary['untrained']:.1f} %")
    print(f"tools {100 * summary['tools']:.1f} %, JSON {100 * summary['json']:.1f} %")
    if options.card:
        write_card(options.model, summary)
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
