"""How are answers counted? Exact match, by domain and task, with the untrained domains apart."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.demo import sheets
from engine.demo.domains import UNTRAINED
from engine.demo.sheets import Item

TOOLS, UNFAMILIAR_TOOLS, JSON = "tools", "unfamiliar tools", "json"
"""What stands in place of a domain for questions with tools, with tools of the untrained domains, and for JSON."""

_UNTRAINED = {domain.name for domain in UNTRAINED}
_BESIDE = {TOOLS, UNFAMILIAR_TOOLS, JSON}


@dataclass(frozen=True, slots=True)
class Cell:
    """``right`` of ``asked`` questions of one task in one domain were answered with exactly the right text."""

    domain: str
    task: str
    right: int
    asked: int


def score(items: Sequence[Item], answers: Sequence[str]) -> list[Cell]:
    """Exact matches, counted for each domain and task in order of appearance."""
    counts: dict[tuple[str, str], list[int]] = {}
    for item, answer in zip(items, answers, strict=True):
        cell = counts.setdefault((item.domain, item.task), [0, 0])
        cell[0] += answer == item.answer
        cell[1] += 1
    return [Cell(domain, task, right, asked) for (domain, task), (right, asked) in counts.items()]


def accuracy(cells: Iterable[Cell]) -> float:
    """The share of right answers over ``cells``; NaN where nothing was asked."""
    listed = list(cells)
    asked = sum(cell.asked for cell in listed)
    return sum(cell.right for cell in listed) / asked if asked else float("nan")


def trained(cells: Iterable[Cell]) -> list[Cell]:
    """Those of ``cells`` on sheets of trained domains and on tasks without a sheet, tools and JSON left aside."""
    return [cell for cell in cells if cell.domain not in _UNTRAINED | _BESIDE]


def table(cells: Sequence[Cell]) -> str:
    """Accuracy in percent as Markdown: domains by tasks on sheets, tasks without a sheet, tools, JSON."""
    names = list(sheets.TASKS)
    lines = [f"| domain | {' | '.join(names)} | all |", "| --- |" + " --- |" * (len(names) + 1)]
    for domain in dict.fromkeys(cell.domain for cell in cells if cell.domain not in {"general", *_BESIDE}):
        own = [cell for cell in cells if cell.domain == domain]
        shown = [f"{100 * accuracy(c for c in own if c.task == task):.1f}" for task in names]
        label = f"{domain} (untrained)" if domain in _UNTRAINED else domain
        lines.append(f"| {label} | {' | '.join(shown)} | {100 * accuracy(own):.1f} |")
    lines += ["", "| without a sheet | exact match |", "| --- | --- |"]
    lines += [f"| {cell.task} | {100 * accuracy([cell]):.1f} |" for cell in cells if cell.domain == "general"]
    for heading, domain in (
        ("with tools", TOOLS),
        ("tools of the untrained domains", UNFAMILIAR_TOOLS),
        ("JSON", JSON),
    ):
        rows = [f"| {cell.task} | {100 * accuracy([cell]):.1f} |" for cell in cells if cell.domain == domain]
        lines += ["", f"| {heading} | exact match |", "| --- | --- |", *rows] if rows else []
    return "\n".join(lines)


def report(cells: Sequence[Cell], count: int, seed: int) -> dict[str, Any]:
    """Everything that `main` writes with ``--json``."""
    return {
        "count": count,
        "seed": seed,
        "trained": accuracy(trained(cells)),
        "untrained": accuracy(cell for cell in cells if cell.domain in _UNTRAINED),
        "tools": accuracy(cell for cell in cells if cell.domain == TOOLS),
        "json": accuracy(cell for cell in cells if cell.domain == JSON),
        "cells": [asdict(cell) for cell in cells],
    }
