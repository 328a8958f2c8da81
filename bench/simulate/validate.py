"""Does the simulator say what a real worker does? Both serve the same workloads on this machine, side by side.

Three workloads with little in common: a burst of prompts, a closed loop of short chats, and an open loop with common
prefixes. The first two calibrate the step-time model; the third has no part in it. Then four settings of the scheduler
serve the third under more load, and are to come out in the same order.

A machine isn't as fast in one minute as in the next. So everything is measured in several rounds, one thing after the
other in each, and what counts is the median; beside each error stands how far the rounds lie apart. Others' use of the
machine slows the real worker only: what they disturbed is measured again, and counts only if nothing else is there.
"""

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Final

import msgspec
import numpy as np

from bench.load.arrivals import parse_arrivals
from bench.load.lengths import parse_distribution
from bench.load.records import Record
from bench.load.workload import Load, Synthetic
from bench.machine import CpuMeter, describe, version_of
from bench.machine import Machine as Host
from bench.simulate.calibrate import Step, fit
from bench.simulate.fleet import Fleet
from bench.simulate.machines import Machine
from bench.simulate.measure import Measured, RealWorker
from bench.simulate.policies import RoundRobin
from bench.simulate.worker import Setting
from scheduler.config import SchedulerConfig

TARGETS: Final = {"throughput": 0.05, "latency": 0.10, "ttft_p90": 0.25}
"""How far the simulator may be off, by the fields of `Figures`."""

RANKED: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "no prefix cache": {"prefix_cache": False},
    "4 at a time": {"max_running": 4},
    "16 tokens a step": {"time_budget": False, "token_budget": 16, "min_prefill_tokens": 16},
}
"""What an operator may get wrong, one at a time: no cache where prompts have much in common, a batch limit that is too
low, and a fixed token budget that is. Each makes another term of a step's time count: prompt tokens, the number of
steps, and small prefills."""

PROBES: Final[dict[str, dict[str, Any]]] = {
    "3 at a time": {"max_running": 3},
    **{
        f"{budget} tokens a step": {"time_budget": False, "token_budget": budget, "min_prefill_tokens": budget}
        for budget in (32, 64, 128, 256)
    },
}
"""How the first workload is served besides, for its steps only. A prompt that is read whole attends to itself and to
nothing else: context and pairs follow from its tokens, and no fit can tell them apart. (A fit without these takes the
third workload's steps, with short prompts behind long cached prefixes, for 11 to 28 % longer than they are.) In slices
of one size it attends to little at first and to much at last."""

ROUNDS: Final = 5
_LOAD: Final = 0.7  # of the rate that a burst of the third workload is served at
_MORE: Final = 1.1
_WARM_UP: Final = 8.0  # seconds of load before anything counts: the first run after a start is slower
_QUIET: Final = 0.05  # of the machine, that others may take
_TRIES: Final = 2

Say = Callable[[str], None]


class Figures(msgspec.Struct, frozen=True):
    """Output tokens/s from the first request to the last end; means and a quantile in seconds."""

    throughput: float
    latency: float
    ttft: float
    ttft_p90: float


class Round(msgspec.Struct, frozen=True):
    """What was measured in one round; ``foreign_cpu`` is others' share of the machine meanwhile."""

    figures: Figures
    foreign_cpu: float

    @property
    def quiet(self) -> bool:
        """Whether others left the machine alone."""
        return self.foreign_cpu <= _QUIET


class Line(msgspec.Struct, frozen=True):
    """One workload, or setting, as it was predicted and measured."""

    workload: str
    held_out: bool
    predicted: Figures
    rounds: list[Round]

    @property
    def counted(self) -> list[Round]:
        """The rounds that others didn't disturb; all if there is none."""
        return [one for one in self.rounds if one.quiet] or self.rounds

    @property
    def measured(self) -> Figures:
        """The median of each figure."""
        return median_of([one.figures for one in self.counted])

    @property
    def foreign_cpu(self) -> float:
        """Others' share of the machine in the round that they disturbed most, of those that count."""
        return max(one.foreign_cpu for one in self.counted)

    def error(self, figure: str) -> float:
        """Of the prediction, relative to the median."""
        return float(getattr(self.predicted, figure) / getattr(self.measured, figure)) - 1

    def range(self, figure: str) -> tuple[float, float]:
        """The lowest and the highest of the rounds that count."""
        values = [getattr(one.figures, figure) for one in self.counted]
        return min(values), max(values)


class Validation(msgspec.Struct, frozen=True):
    """All of it. ``ranking`` has each setting's figures on the third workload under more load; ``date`` is ISO 8601,
    UTC."""

    date: str
    host: Host
    versions: dict[str, str]
    machine: Machine
    fit: str
    lines: list[Line]
    ranking: list[Line]

    @property
    def ranked_alike(self) -> bool:
        """Whether both put the settings in the same order, by mean time to the first token.

        Two that the measurement doesn't tell apart have no order.
        """
        return all(
            tied(one, other) or (one.predicted.ttft < other.predicted.ttft) == (one.measured.ttft < other.measured.ttft)
            for one, other in combinations(self.ranking, 2)
        )


def tied(one: Line, other: Line) -> bool:
    """Whether the machine's own noise is as large as what lies between them: their rounds overlap in TTFT."""
    (low, high), (others_low, others_high) = one.range("ttft"), other.range("ttft")
    return low <= others_high and others_low <= high


def median_of(runs: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return Figures(*(float(np.median([getattr(run, name) for run in runs])) for name in Figures.__struct_fields__))


def figures_of(records: Sequence[Record]) -> Figures:
    """The figures of one run."""
    seconds = max(record.end for record in records) - min(record.at for record in records)
    ttfts = [record.ttft or 0.0 for record in records]
    return Figures(
        throughput=sum(record.output_tokens for record in records) / seconds,
        latency=float(np.mean([record.latency for record in records])),
        ttft=float(np.mean(ttfts)),
        ttft_p90=float(np.quantile(ttfts, 0.9)),
    )


def workloads(scale: float, seed: int, rate: float = 1.0) -> list[Load]:
    """The three; ``scale`` is how long they are, and ``rate`` that of the open loop (requests/s)."""

    def load(arrivals: str, requests: int, input: str, output: str, shared: int = 0) -> Load:
        return Synthetic(
            seed=seed,
            requests=max(8, round(requests * scale)),
            arrivals=parse_arrivals(arrivals),
            input=parse_distribution(input),
            output=parse_distribution(output),
            shared=shared,
            groups=4,
        )

    return [
        load("constant:100000", 64, "uniform:64,512", "uniform:16,64"),
        load("closed:12", 150, "lognormal:96,0.8,max=512", "lognormal:64,0.7,max=256"),
        load(f"poisson:{rate:.6g}", 200, "lognormal:64,0.8,max=512", "lognormal:48,0.8,max=256", shared=256),
    ]


class _Case(msgspec.Struct, frozen=True):
    """What is served in each round, and how."""

    name: str
    load: Load
    config: SchedulerConfig


class _Bench:
    """A real worker that serves cases round by round."""

    def __init__(self, worker: RealWorker, say: Say) -> None:
        self._worker = worker
        self._say = say
        self.rounds: dict[str, list[Round]] = {}
        self._steps: dict[str, list[list[Step]]] = {}

    def capacity(self, load: Load, config: SchedulerConfig, seconds: float) -> float:
        """Requests/s of a burst, served again and again for so many seconds, which warms everything up.

        The fastest run's: the others were disturbed, or cold.
        """
        best = taken = 0.0
        while taken < seconds:
            records = self._worker.run(load, config).records
            ended = max(record.end for record in records)
            best = max(best, len(records) / ended)
            taken += ended
        return best

    def serve(self, case: _Case) -> None:
        """One round of a case; again while others disturb it, and the quietest counts."""
        measured, foreign = self._timed(case)
        for _ in range(_TRIES - 1):
            if foreign <= _QUIET:
                break
            again, others = self._timed(case)
            if others < foreign:
                measured, foreign = again, others
        figures = figures_of(measured.records)
        self.rounds.setdefault(case.name, []).append(Round(figures, foreign))
        self._steps.setdefault(case.name, []).append(measured.steps)
        self._say(
            f"{case.name}: {figures.throughput:,.0f} tok/s, TTFT {1e3 * figures.ttft:,.0f} ms, {len(measured.steps)} "
            f"steps; others' CPU {foreign:.0%}"
        )

    def steps(self, case: _Case) -> list[Step]:
        """Those of the rounds that count."""
        served = list(zip(self.rounds[case.name], self._steps[case.name], strict=True))
        counted = [steps for round, steps in served if round.quiet] or [steps for _, steps in served]
        return [step for steps in counted for step in steps]

    def _timed(self, case: _Case) -> tuple[Measured, float]:
        meter = CpuMeter()
        measured = self._worker.run(case.load, case.config)
        return measured, meter.read().foreign

    def line(self, case: _Case, machine: Machine, *, held_out: bool) -> Line:
        """The case beside what is simulated: as many runs as there were rounds, each with its own jitter."""
        count = len(self.rounds[case.name])
        predicted = median_of([_simulate(machine, self._worker, case, seed) for seed in range(count)])
        return Line(case.name, held_out, predicted, self.rounds[case.name])


def validate(worker: RealWorker, say: Say, *, scale: float = 1.0, seed: int = 0, rounds: int = ROUNDS) -> Validation:
    """Run everything; about half a minute a round on two cores with ``scale`` 1."""
    config = SchedulerConfig(max_running=128)
    bench = _Bench(worker, say)
    capacity = bench.capacity(workloads(scale, seed, 1e5)[2], config, scale * _WARM_UP)
    say(f"warm; a burst is served at {capacity:.1f} requests/s")
    *known, held_out = [_Case(load.title, load, config) for load in workloads(scale, seed, _LOAD * capacity)]
    probes = [_Case(name, known[0].load, replace(config, **changes)) for name, changes in PROBES.items()]
    crowded = workloads(scale, seed, _MORE * capacity)[2]
    ranked = [_Case(name, crowded, replace(config, **changes)) for name, changes in RANKED.items()]
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for case in (*known, held_out, *probes, *ranked):
            bench.serve(case)
    steps = [step for case in (*known, *probes) for step in bench.steps(case)]
    found = fit(steps, "this worker", worker.kv_tokens)
    say(str(found))
    machine = found.machine
    return Validation(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        host=describe(),
        versions={"Python": platform.python_version()}
        | {name: version_of(name) for name in ("penstock", "torch", "numba", "scipy")},
        machine=machine,
        fit=str(found),
        lines=[bench.line(case, machine, held_out=case is held_out) for case in (*known, held_out)],
        ranking=[bench.line(case, machine, held_out=True) for case in ranked],
    )


def page(result: Validation) -> str:
    """The tables, in Markdown."""
    every = [*result.lines, *result.ranking]
    rounds = max(len(line.rounds) for line in every)
    fewest = min(len(line.counted) for line in every)
    lines = [
        "# The simulator beside a real worker",
        "",
        f"Predicted / measured; both are medians of {rounds} rounds, without those in which others took more than "
        f"{_QUIET:.0%} of the machine (at least {fewest} are left). After each error, in brackets, how far the single "
        "rounds that were measured lie from their median: a prediction can't be better than that.",
        "",
        "| workload | output tok/s | error | mean end to end, ms | error | TTFT p90, ms | error | within targets "
        "| others' CPU, worst |",
        "|" + " --- |" * 9,
    ]
    for line in result.lines:
        good = all(abs(line.error(figure)) <= target for figure, target in TARGETS.items())
        name = f"{line.workload} (held out)" if line.held_out else line.workload
        lines.append(
            f"| {name} | {_both(line, 'throughput', 1)} | {_both(line, 'latency', 1e3)} "
            f"| {_both(line, 'ttft_p90', 1e3)} | {'yes' if good else 'no'} | {line.foreign_cpu:.0%} |"
        )
    throughput, latency, ttft = (f"{TARGETS[name]:.0%}" for name in ("throughput", "latency", "ttft_p90"))
    order = "the same order" if result.ranked_alike else "another order"
    lines += [
        "",
        f"Targets: throughput {throughput}, mean end to end {latency}, TTFT p90 {ttft}.",
        "",
        f"Four settings under more load, by mean TTFT: {order}. Two count as tied, and have no order, if their rounds "
        "overlap.",
        "",
        "| setting | predicted, ms | measured, ms (lowest to highest) | tied with | others' CPU, worst |",
        "|" + " --- |" * 5,
    ]
    for line in sorted(result.ranking, key=lambda line: line.predicted.ttft):
        low, high = line.range("ttft")
        equals = [other.workload for other in result.ranking if other is not line and tied(line, other)]
        lines.append(
            f"| {line.workload} | {1e3 * line.predicted.ttft:,.0f} | {1e3 * line.measured.ttft:,.0f} "
            f"({1e3 * low:,.0f} to {1e3 * high:,.0f}) | {', '.join(equals) or 'none'} | {line.foreign_cpu:.0%} |"
        )
    host = result.host
    lines += [
        "",
        f"- Step-time model, fitted to the first two workloads: {result.fit}",
        f"- Measured {result.date}; {', '.join(f'{name} {text}' for name, text in result.versions.items())}",
        f"- {host.cpu}, {host.cores} cores ({', '.join(host.flags)}), {host.memory / 2**30:.0f} GiB",
    ]
    return "\n".join(lines) + "\n"


def _both(line: Line, figure: str, unit: float) -> str:
    """Two cells: the figure as it was predicted and measured, and the error with the rounds' spread."""
    predicted, measured = getattr(line.predicted, figure), getattr(line.measured, figure)
    low, high = (value / measured - 1 for value in line.range(figure))
    return f"{unit * predicted:,.0f} / {unit * measured:,.0f} | {line.error(figure):+.1%} ({low:+.0%} to {high:+.0%})"


def _simulate(machine: Machine, worker: RealWorker, case: _Case, seed: int) -> Figures:
    setting = Setting(
        machine=machine, config=case.config, block_size=worker.block_size, max_len=worker.max_len, seed=seed
    )
    records: list[Record] = []
    Fleet(setting, 1, RoundRobin()).run(case.load, records.append)
    return figures_of(records)
