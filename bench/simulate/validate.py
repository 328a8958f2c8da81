"""Does the simulator say what a real worker does? Both serve the same workloads on this machine, side by side.

Three workloads with little in common: a burst of prompts, a closed loop of short chats, and an open loop with common
prefixes. The first two calibrate the step-time model; the third has no part in it. Then four settings of the scheduler
serve the third under more load, and are to come out in the same order.

A busy machine spoils this: its other users slow the real worker only, and not evenly.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from bench.load.arrivals import parse_arrivals
from bench.load.lengths import parse_distribution
from bench.load.records import Record
from bench.load.workload import Load, Synthetic
from bench.machine import CpuMeter
from bench.simulate.calibrate import Fit, fit
from bench.simulate.fleet import Fleet
from bench.simulate.machines import Machine
from bench.simulate.measure import Measured, RealWorker
from bench.simulate.policies import RoundRobin
from bench.simulate.worker import Setting
from scheduler.config import SchedulerConfig

TARGETS: Final = {"throughput": 0.05, "end to end": 0.10, "TTFT p90": 0.25}
"""How far the simulator may be off."""

RANKED: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "no prefix cache": {"prefix_cache": False},
    "4 at a time": {"max_running": 4},
    "16 tokens a step": {"time_budget": False, "token_budget": 16, "min_prefill_tokens": 16},
}
_LOAD: Final = 0.7  # of the rate that a simulated burst is served at
_MORE: Final = 1.1

Say = Callable[[str], None]


class Figures(msgspec.Struct, frozen=True):
    """Output tokens/s from the first request to the last end; means and a quantile in seconds."""

    throughput: float
    latency: float
    ttft: float
    ttft_p90: float


class Line(msgspec.Struct, frozen=True):
    """One workload, predicted and measured; ``foreign_cpu`` is others' share of the machine meanwhile."""

    workload: str
    held_out: bool
    predicted: Figures
    measured: Figures
    foreign_cpu: float

    @property
    def errors(self) -> dict[str, float]:
        """Relative, as in `TARGETS`."""
        return {
            "throughput": self.predicted.throughput / self.measured.throughput - 1,
            "end to end": self.predicted.latency / self.measured.latency - 1,
            "TTFT p90": self.predicted.ttft_p90 / self.measured.ttft_p90 - 1,
        }


class Validation(msgspec.Struct, frozen=True):
    """All of it. ``ranking`` has each setting's figures on the third workload under more load."""

    machine: Machine
    fit: str
    lines: list[Line]
    ranking: list[Line]

    @property
    def ranked_alike(self) -> bool:
        """Whether both put the settings in the same order, by mean time to the first token."""
        predicted = sorted(self.ranking, key=lambda line: line.predicted.ttft)
        return predicted == sorted(self.ranking, key=lambda line: line.measured.ttft)


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


def validate(worker: RealWorker, say: Say, *, scale: float = 1.0, seed: int = 0) -> Validation:
    """Run everything; a minute or two on two cores with ``scale`` 1."""
    config = SchedulerConfig(max_running=128)
    worker.run(workloads(0.2, seed + 1)[0], config)
    lines: list[Line] = []
    measured, steps = [], []
    loads = workloads(scale, seed)
    for load in loads[:2]:
        run, foreign = _timed(worker, load, config)
        measured.append((load, figures_of(run.records), foreign))
        steps += run.steps
        say(f"measured {load.title}: {len(run.steps)} steps")
    found = fit(steps, "this worker", worker.kv_tokens)
    say(str(found))
    rate = _LOAD * _capacity(found, worker, seed)
    open_loop = workloads(scale, seed, rate)[2]
    run, foreign = _timed(worker, open_loop, config)
    measured.append((open_loop, figures_of(run.records), foreign))
    for load, figures, foreign in measured:
        predicted = _simulate(found.machine, worker, load, config)
        lines.append(Line(load.title, load is open_loop, predicted, figures, foreign))
    ranking = []
    crowded = workloads(scale, seed, _MORE * rate / _LOAD)[2]
    for name, changes in RANKED.items():
        changed = replace(config, **changes)
        run, foreign = _timed(worker, crowded, changed)
        predicted = _simulate(found.machine, worker, crowded, changed)
        ranking.append(Line(name, True, predicted, figures_of(run.records), foreign))
        say(f"ranked {name}")
    return Validation(found.machine, str(found), lines, ranking)


def page(result: Validation) -> str:
    """The tables, in Markdown."""
    lines = ["# The simulator beside a real worker", "", f"Step-time model: {result.fit}.", ""]
    lines += [
        "| workload | output tok/s: predicted / measured | error | mean end to end, ms | error | TTFT p90, ms | error "
        "| within targets | others' CPU |",
        "|" + " --- |" * 9,
    ]
    for line in result.lines:
        predicted, measured, errors = line.predicted, line.measured, line.errors
        good = all(abs(errors[name]) <= target for name, target in TARGETS.items())
        name = f"{line.workload} (held out)" if line.held_out else line.workload
        lines.append(
            f"| {name} | {predicted.throughput:,.0f} / {measured.throughput:,.0f} | {errors['throughput']:+.1%} "
            f"| {1e3 * predicted.latency:,.0f} / {1e3 * measured.latency:,.0f} | {errors['end to end']:+.1%} "
            f"| {1e3 * predicted.ttft_p90:,.0f} / {1e3 * measured.ttft_p90:,.0f} | {errors['TTFT p90']:+.1%} "
            f"| {'yes' if good else 'no'} | {line.foreign_cpu:.0%} |"
        )
    targets = ", ".join(f"{name} {target:.0%}" for name, target in TARGETS.items())
    order = "the same order" if result.ranked_alike else "another order"
    lines += ["", f"Targets: {targets}.", "", f"Four settings under more load, by mean TTFT: {order}.", ""]
    lines += ["| setting | predicted, ms | measured, ms | others' CPU |", "| --- | --- | --- | --- |"]
    for line in sorted(result.ranking, key=lambda line: line.predicted.ttft):
        lines.append(
            f"| {line.workload} | {1e3 * line.predicted.ttft:,.0f} | {1e3 * line.measured.ttft:,.0f} "
            f"| {line.foreign_cpu:.0%} |"
        )
    return "\n".join(lines) + "\n"


def run(folder: Path, say: Say, scale: float, seed: int) -> Validation:
    """`validate` with the model of a folder."""
    return validate(RealWorker(folder), say, scale=scale, seed=seed)


def _timed(worker: RealWorker, load: Load, config: SchedulerConfig) -> tuple[Measured, float]:
    """A real run, and others' share of the machine meanwhile."""
    meter = CpuMeter()
    measured = worker.run(load, config)
    return measured, meter.read().foreign


def _simulate(machine: Machine, worker: RealWorker, load: Load, config: SchedulerConfig) -> Figures:
    setting = Setting(machine=machine, config=config, block_size=worker.block_size, max_len=worker.max_len)
    records: list[Record] = []
    Fleet(setting, 1, RoundRobin()).run(load, records.append)
    return figures_of(records)


def _capacity(found: Fit, worker: RealWorker, seed: int) -> float:
    """Requests/s at which the third workload is served when all of it comes at once."""
    load = workloads(1.0, seed, 1e5)[2]
    config = SchedulerConfig(max_running=128)
    setting = Setting(machine=found.machine, config=config, block_size=worker.block_size, max_len=worker.max_len)
    records: list[Record] = []
    Fleet(setting, 1, RoundRobin()).run(load, records.append)
    return len(records) / max(record.end for record in records)
