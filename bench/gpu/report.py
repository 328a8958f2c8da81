"""What is a figure of the GPU benchmark, what else does a run leave, and how is it written down?"""

import datetime
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple, TypeAlias

import torch

JSON_FILE: Final = "gpu.json"
PAGE_FILE: Final = "gpu.md"
# What became of a case; the other outcomes begin with "failed: ", "skipped: " or "not measured: " and say why.
UNDER_WAY: Final = "under way"
DONE: Final = "done"
# How the table is to be read.
_NOTES: Final = """\
Bytes are those that an operation must move at least, reads and writes together, each once; so are the copy's. *Of the
limit* is the share of what the copy and the matrix product, measured in the same run, allow. *Spread* is the difference
between two measurements of the same, each a median of its own."""


@dataclass(frozen=True)
class Figure:
    """Something measured: ``values`` are repeated measurements of the same, each a median of its own.

    ``limit`` is what the chip allows (by the ceilings measured in the same run), ``target`` what is asked for, both in
    the figure's unit. ``lower``: less is better. ``jitter``: how far single measurements lie from each other, their
    quartiles' distance as a share of the median.
    """

    name: str
    unit: str
    values: Sequence[float]
    limit: float | None = None
    target: float | None = None
    lower: bool = False
    jitter: float | None = None

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> float:
        """The difference between the largest and the smallest, as a share of the median."""
        return (max(self.values) - min(self.values)) / self.value if self.value else 0.0

    @property
    def share(self) -> float | None:
        """Of the limit; 1 is all that can be had."""
        if not self.limit or not self.value:
            return None
        return self.limit / self.value if self.lower else self.value / self.limit

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.lower else self.value >= self.target


@dataclass(frozen=True)
class Check:
    """How far something on the card is from its reference at worst, and how far it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


Result: TypeAlias = Figure | Check


class Case(NamedTuple):
    """A piece of the benchmark that fails, or is left out, on its own; ``seconds`` is what it may take."""

    part: str
    title: str
    seconds: float
    run: Callable[[], Iterable[Result]]


class Skipped(Exception):
    """A case can't be had here; the message says why."""


@dataclass
class Record:
    """All that a run has brought so far; ``cases`` says of each what became of it."""

    figures: dict[str, Figure] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def add(self, result: Result) -> None:
        """Take in a result, in place of an earlier one of that name."""
        if isinstance(result, Figure):
            self.figures[result.name] = result
        else:
            self.checks[result.name] = result

    def document(self) -> dict[str, Any]:
        """What is written as JSON: the results, and where and with what they were measured."""
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": self.machine,
            "versions": {name: _version(name) for name in ("penstock", "torch", "triton")},
            "figures": [asdict(figure) for figure in self.figures.values()],
            "checks": [
                {**asdict(check), "error": check.error if math.isfinite(check.error) else None, "ok": check.ok}
                for check in self.checks.values()
            ],
            "cases": self.cases,
        }

    def page(self) -> str:
        """The table, and what is not in it, for people."""
        content = self.document()
        where = self.machine.get("gpu") or "no GPU: these figures mean nothing"
        versions = ", ".join(f"{name} {found}" for name, found in content["versions"].items())
        lines = [f"# On a GPU\n\n{content['date'][:10]}, {where}, {versions}. Made by `python -m bench.gpu`.\n"]
        lines += [_NOTES, "", table(list(self.figures.values())), ""]
        wrong = [check for check in self.checks.values() if not check.ok]
        if self.checks:
            lines += [f"{len(self.checks) - len(wrong)} of {len(self.checks)} comparisons with references hold.", ""]
            lines += [f"- {check.name}: off by {check.error:.3g}, allowed {check.tolerance:.3g}" for check in wrong]
            lines += [""] * bool(wrong)
        missing = {title: outcome for title, outcome in self.cases.items() if outcome != DONE}
        if missing:
            lines += ["Without a result:", "", *(f"- {title}: {outcome}" for title, outcome in missing.items()), ""]
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Both files, each whole at any time."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((JSON_FILE, json.dumps(self.document(), indent=1) + "\n"), (PAGE_FILE, self.page())):
            scratch = folder / f"{name}.new"
            scratch.write_text(text)
            scratch.replace(folder / name)

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """What `write` wrote."""
        content = json.loads((folder / JSON_FILE).read_text())
        checks = [
            Check(one["name"], math.inf if one["error"] is None else one["error"], one["tolerance"])
            for one in content["checks"]
        ]
        return cls(
            figures={one["name"]: Figure(**one) for one in content["figures"]},
            checks={check.name: check for check in checks},
            cases=content["cases"],
            machine=content["machine"],
        )


def table(figures: Sequence[Figure]) -> str:
    """All figures as a Markdown table."""
    lines = ["| what | figure | spread | of the limit | target |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        share = "" if figure.share is None else f"{figure.share:.0%}"
        target = ""
        if figure.target is not None:
            sign = "≤" if figure.lower else "≥"
            target = f"{sign} {number(figure.target)}: {'yes' if figure.reached else 'no'}"
        value = f"{number(figure.value)} {figure.unit}"
        lines.append(f"| {figure.name} | {value} | {figure.spread:.1%} | {share} | {target} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits, or more of a large number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine(device: str) -> dict[str, Any]:
    """The GPU, or that it is none."""
    if device != "cuda":
        return {"gpu": None}
    found = torch.cuda.get_device_properties(0)
    return {
        "gpu": found.name,
        "memory": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "l2": getattr(found, "L2_cache_size", None),
        "cuda": torch.version.cuda,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
