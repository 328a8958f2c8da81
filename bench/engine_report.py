"""What did the engine comparison measure, and how is it shown?"""

from collections.abc import Iterator, Sequence
from statistics import median

import msgspec

from bench.machine import Machine
from bench.sides import Timing
from bench.workloads import DESCRIPTIONS

TITLES = {
    "penstock": "Penstock, bf16",
    "penstock-int8": "Penstock, int8",
    "vllm": "vLLM for CPU, offline, bf16",
    "vllm-fp32": "vLLM for CPU, offline, fp32",
    "llamacpp": "llama.cpp, bf16",
    "llamacpp-q8": "llama.cpp, q8_0",
    "transformers": "transformers `generate`, bf16",
    "transformers-fp32": "transformers `generate`, fp32",
}


class SideRun(msgspec.Struct, frozen=True):
    """What one process of one side brought."""

    model: str
    side: str
    round: int
    versions: dict[str, str]
    timings: list[Timing]


class Comparison(msgspec.Struct, frozen=True):
    """One comparison: where, when and how, and every single measurement. ``date`` is ISO 8601, UTC.

    ``short`` says that the workloads were cut to a few tokens: then the figures mean nothing.
    """

    date: str
    command: str
    revision: str
    python: str
    machine: Machine
    preloaded: list[str]
    short: bool
    runs: list[SideRun]


class Figure(msgspec.Struct, frozen=True):
    """Output tokens/s over all rounds, and the worst share of the machine that others took meanwhile."""

    middle: float
    low: float
    high: float
    foreign: float

    def __str__(self) -> str:
        return f"{self.middle:,.0f} ({self.low:,.0f}–{self.high:,.0f}); {self.foreign:.0%}"  # noqa: RUF001


def figure(timings: Sequence[Timing]) -> Figure:
    """Sum up the rounds of one side, model and workload."""
    speeds = [timing.output_tokens / timing.seconds for timing in timings]
    foreign = max(timing.foreign_cpu for timing in timings)
    return Figure(median(speeds), min(speeds), max(speeds), foreign)


def figures(comparison: Comparison, model: str) -> dict[str, dict[str, Figure]]:
    """By side, then by workload."""
    timings: dict[str, dict[str, list[Timing]]] = {}
    for run in comparison.runs:
        if run.model == model:
            for timing in run.timings:
                timings.setdefault(run.side, {}).setdefault(timing.workload, []).append(timing)
    return {
        side: {workload: figure(found) for workload, found in by_workload.items()}
        for side, by_workload in timings.items()
    }


def table(comparison: Comparison) -> str:
    """The comparison as one Markdown table."""
    workloads = sorted({timing.workload for run in comparison.runs for timing in run.timings})
    models = dict.fromkeys(run.model for run in comparison.runs)
    lines = [
        "| model | engine | " + " | ".join(workloads) + " |",
        "| --- | --- |" + " --- |" * len(workloads),
    ]
    for model in models:
        for side, by_workload in figures(comparison, model).items():
            cells = [str(by_workload[name]) if name in by_workload else "" for name in workloads]
            lines.append(f"| `{model}` | {TITLES[side]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(comparison: Comparison) -> str:
    """The page that goes beside the JSON file."""
    return "\n".join(_page(comparison)) + "\n"


def _page(comparison: Comparison) -> Iterator[str]:
    machine = comparison.machine
    rounds = 1 + max(run.round for run in comparison.runs)
    versions = {name: text for run in comparison.runs for name, text in run.versions.items()}
    workloads = dict.fromkeys(timing.workload for run in comparison.runs for timing in run.timings)
    yield "# Engines side by side"
    yield ""
    yield "Output tokens/s: median (lowest to highest); then the largest share of the machine's CPU that other"
    yield f"processes took while it was measured. {rounds} round{'s' if rounds > 1 else ''}, in each of which every"
    yield "engine ran alone, in a process of its own. Greedy, random weights; every answer had its full length."
    yield ""
    if comparison.short:
        yield "**A short run, only to see that every side works: these figures mean nothing.**"
        yield ""
    yield table(comparison)
    yield ""
    for name in workloads:
        yield f"- **{name}**: {DESCRIPTIONS[name]}"
    yield ""
    yield f"- Measured {comparison.date} at revision {comparison.revision}, Python {comparison.python}"
    yield f"- {machine.cpu}, {machine.cores} cores ({', '.join(machine.flags)}), {machine.memory / 2**30:.0f} GiB"
    yield f"- {', '.join(f'{name} {text}' for name, text in versions.items())}"
    if comparison.preloaded:
        yield f"- Preloaded for vLLM: {', '.join(comparison.preloaded)}"
    yield f"- `{comparison.command}`"
