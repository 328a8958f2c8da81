"""How are the runs of all routers shown? Medians over the rounds, one line a router, and what they were taken on."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Final, NamedTuple

import msgspec

from bench.routers.figures import TPOT, TTFT_BASE, TTFT_TOKEN, Run


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What all runs have in common. ``options`` are those of the workers and of the load, as their commands take
    them; ``machine`` is what they ran on."""

    workers: int
    speed: float
    warm_up: float
    worker_options: list[str]
    load_options: list[str]
    workload: str
    machine: str


class Results(msgspec.Struct, kw_only=True):
    """A file of results: runs of one setting."""

    setting: Setting
    runs: list[Run]


class _Column(NamedTuple):
    title: str
    value: Callable[[Run], float]
    form: str


_COLUMNS: Final = (
    _Column("requests/s", lambda run: run.answers.rate, "{:.2f}"),
    _Column("TTFT mean, ms", lambda run: run.answers.ttft_mean * 1e3, "{:,.0f}"),
    _Column("p50", lambda run: run.answers.ttft_p50 * 1e3, "{:,.0f}"),
    _Column("p99", lambda run: run.answers.ttft_p99 * 1e3, "{:,.0f}"),
    _Column("TPOT mean, ms", lambda run: run.answers.tpot_mean * 1e3, "{:.1f}"),
    _Column("p99", lambda run: run.answers.tpot_p99 * 1e3, "{:.1f}"),
    _Column("goodput", lambda run: run.answers.goodput * 100, "{:.1f} %"),
    _Column("cache hits", lambda run: run.answers.hit_rate * 100, "{:.1f} %"),
    _Column("imbalance", lambda run: run.use.imbalance, "{:.2f}"),
    _Column("router CPU, ms/request", lambda run: run.use.router_request * 1e3, "{:.1f}"),
    _Column("MiB", lambda run: run.use.router_memory / 2**20, "{:.0f}"),
    _Column("errors", lambda run: sum(run.answers.errors.values()), "{:.0f}"),
    _Column("machine's CPU", lambda run: run.use.machine * 100, "{:.0f} %"),
    _Column("of it foreign", lambda run: run.use.foreign * 100, "{:.0f} %"),
)


def markdown(results: Results) -> str:
    """The table, with what has to be known to read it."""
    setting, runs = results.setting, results.runs
    titles = ["router", "rounds", *(column.title for column in _COLUMNS)]
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * 2}{' ---: |' * len(_COLUMNS)}"]
    for side in dict.fromkeys(run.side for run in runs):
        mine = [run for run in runs if run.side == side]
        cells = [side, str(len(mine)), *(_cell(column, mine) for column in _COLUMNS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*_heading(setting, runs), *lines, "", *_notes(setting, runs)]) + "\n"


def _cell(column: _Column, runs: Sequence[Run]) -> str:
    """The median, and how far the rounds go where there are several."""
    values = [column.value(run) for run in runs]
    shown = column.form.format(median(values))
    low, high = (column.form.format(edge(values)).removesuffix(" %") for edge in (min, max))
    return shown if low == high else f"{shown} ({low} to {high})"


def _heading(setting: Setting, runs: Sequence[Run]) -> list[str]:
    dates = sorted(run.date for run in runs)
    versions = dict.fromkeys(f"{run.side.split()[0]} {run.version}" for run in runs)
    return [
        "# Routers side by side",
        "",
        f"{setting.workers} simulated workers (`penstock bench worker {' '.join(setting.worker_options)}`), and one "
        f"router at a time in front of them; each run begins with new processes and empty caches. {setting.workload}. "
        f"{setting.machine}; {dates[0]} to {dates[-1]}. {', '.join(versions)}.",
        "",
    ]


def _notes(setting: Setting, runs: Sequence[Run]) -> list[str]:
    share = f"{setting.warm_up:.0%}"
    worst, late = max(run.use.lost for run in runs), max(run.answers.late for run in runs)
    return [
        "Medians over rounds that take turns (lowest to highest). All times are this machine's; the simulated ones are "
        f"{setting.speed:g} times as long. Goodput: of all requests offered, those with a first token within "
        f"({TTFT_BASE:g} s + {TTFT_TOKEN * 1e3:g} ms for each token of the prompt) / {setting.speed:g} and "
        f"{TPOT * 1e3:g} ms / {setting.speed:g} a token after it. Imbalance: the most prompt tokens that a worker "
        f"computed, over the mean. The first {share} of the requests aren't judged. "
        f"The client acknowledges at once (TCP_QUICKACK), for all sides. Workers fell behind their own time for "
        f"{worst:.1%} of it at worst, the client behind its schedule by {late * 1e3:.0f} ms (p99) at worst.",
        "",
        f"Load: `penstock bench run {' '.join(setting.load_options)}`.",
    ]
