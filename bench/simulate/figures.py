"""What is each idea of our scheduler worth? One worker, real lengths, and every way of scheduling in turn.

For each way the rate of arrivals is raised step by step; its *goodput* is how many requests a second keep both
objectives, of all that came, and its knee is the rate at which that is highest while the worker keeps up. (Beyond that
the queue grows without bound, and who serves only the shortest has the best goodput of all.) Then everybody is given
the rate of the best other's knee, for TTFT and throughput at equal load. The last case is one tenant that sends ten
times its share.

The worker is a simulated GPU (`SimulatedJudge`), or the real engine on this machine's CPU (`MeasuredJudge`).
"""

import datetime
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from bench.load.arrivals import OpenLoop, Stretch, parse_arrivals
from bench.load.lengths import parse_distribution
from bench.load.records import Record
from bench.load.summary import Slo
from bench.load.workload import Load, Outline, Synthetic, Trace
from bench.machine import CpuMeter, describe, version_of
from bench.simulate.fleet import Fleet
from bench.simulate.machines import Machine
from bench.simulate.measure import RealWorker
from bench.simulate.policies import RoundRobin
from bench.simulate.settings import OTHERS, SETTINGS, scheduling
from bench.simulate.worker import Setting
from scheduler.config import SchedulerConfig
from scheduler.steptime import Work

TTFT: Final = 1.0
TPOT: Final = 0.05
SLO: Final = Slo(ttft=TTFT, tpot=TPOT)
_FACTOR: Final = 1.12  # from one rate to the next
_NEARER: Final = (0.94, 0.97, 1.03, 1.06)
_WORSE: Final = 0.85  # of the best goodput: the search stops when two rates in a row are below
_LEFT: Final = 0.1  # of the tokens, that may be unanswered when the last request comes, if the worker keeps up
_FIRST: Final = 0.5  # of the rate at which the machine should be busy all the time
_TOGETHER: Final = 32  # requests that share a step
_TENANTS: Final = 10
_SHARED: Final = 0.8  # of a capacity, that all tenants together may use
_TIMES: Final = 10  # what the greedy tenant sends, in shares
_QUIET: Final = 0.05  # of the machine, that others may take while something is measured
_TRIES: Final = 3

Say = Callable[[str], None]


class Point(NamedTuple):
    """What one way of scheduling made of one rate (requests/s).

    ``tokens``: output tokens/s before the last arrival. ``left``: of all tokens, of prompts and answers, the share of
    requests that were unanswered then.
    """

    rate: float
    goodput: float
    kept: float
    ttft_p50: float
    ttft_p99: float
    tpot_p99: float
    tokens: float
    hit_rate: float
    preemptions: int
    left: float

    @property
    def keeps_up(self) -> bool:
        """Whether the queue is bounded."""
        return self.left <= _LEFT


class Row(msgspec.Struct, frozen=True):
    """One way of scheduling: every rate tried, the best of them, and the rate that all were given."""

    setting: str
    points: list[Point]
    knee: Point
    equal: Point


class Tenancy(msgspec.Struct, frozen=True):
    """The modest tenants' TTFT p99 (seconds) without and with the greedy one, and what they were served."""

    setting: str
    alone: float
    beside: float
    service_gap: float
    kept: float

    @property
    def ratio(self) -> float:
        return self.beside / self.alone


class Case(msgspec.Struct, frozen=True):
    """One workload's rows."""

    name: str
    requests: int
    rows: list[Row]
    tenancy: list[Tenancy]


class Comparison(msgspec.Struct, frozen=True):
    """All of it; ``date`` is ISO 8601, UTC."""

    date: str
    versions: dict[str, str]
    where: str
    cases: list[Case]


@dataclass(frozen=True)
class Source:
    """Where lengths and common prefixes come from: a trace, or without ``path`` a small imitation of a chat's."""

    name: str
    path: Path | None
    requests: int
    first_rate: float
    most_input: int | None = None
    most_output: int | None = None

    def load(self, rate: float, seed: int) -> Load:
        """Its requests as a Poisson process (requests/s)."""
        arrivals = parse_arrivals(f"poisson:{rate:.6g}")
        if self.path is not None:
            return Trace(
                seed=seed,
                requests=self.requests,
                arrivals=arrivals,
                path=self.path,
                most_input=self.most_input,
                most_output=self.most_output,
            )
        return Synthetic(
            seed=seed,
            requests=self.requests,
            arrivals=arrivals,
            input=parse_distribution("lognormal:1000,0.9,max=8192"),
            output=parse_distribution("lognormal:210,0.8,max=1024"),
            shared=512,
            groups=16,
        )


@dataclass(frozen=True, kw_only=True)
class Crowd(Load):
    """The requests of ``base`` as those of several tenants, who come with their own ``rates`` (requests/s)."""

    base: Load
    rates: tuple[float, ...]
    seconds: float
    arrivals: None = None

    @property
    def title(self) -> str:
        return f"{self.base.title}, {len(self.rates)} tenants"

    def outlines(self) -> Iterator[Outline]:
        arrivals = (_arrivals(tenant, rate, self) for tenant, rate in enumerate(self.rates) if rate)
        for index, ((at, tenant), one) in enumerate(zip(merge(*arrivals), self.base.outlines(), strict=False)):
            yield msgspec.structs.replace(one, index=index, at=at, group=f"tenant {tenant}")


def _arrivals(tenant: int, rate: float, crowd: Crowd) -> Iterator[tuple[float, int]]:
    times = OpenLoop("", (Stretch(rate, rate),)).times(crowd.seed + 1000 * tenant, duration=crowd.seconds)
    return ((at, tenant) for at in times)


class Served(NamedTuple):
    """What became of a workload. ``service_gap``: see `bench.simulate.gaps`; 0 where it isn't known."""

    records: list[Record]
    preemptions: int
    service_gap: float


@dataclass(frozen=True, kw_only=True)
class Judge(ABC):
    """Tries ways of scheduling on one worker."""

    seed: int = 0
    config: SchedulerConfig = SchedulerConfig(ttft=TTFT, tpot=TPOT)  # noqa: RUF009 (it is frozen)
    factor: float = _FACTOR
    nearer: tuple[float, ...] = _NEARER

    @property
    @abstractmethod
    def where(self) -> str:
        """What worker it is."""

    @abstractmethod
    def serve(self, name: str, load: Load, fair: bool) -> Served:
        """A workload under the settings ``name``; ``fair``: its groups are tenants."""

    def point(self, name: str, load: Load, rate: float) -> Point:
        """One rate."""
        served = self.serve(name, load, fair=False)
        return point_of(served.records, served.preemptions, rate)

    def row(self, name: str, source: Source) -> list[Point]:
        """One rate after the other, until goodput has fallen or the worker no longer keeps up."""
        points: list[Point] = []
        rate = source.first_rate
        best = 0.0
        while len(points) < 24:
            points.append(self.point(name, source.load(rate, self.seed), rate))
            best = max(best, points[-1].goodput)
            last = points[-2:]
            if len(points) > 2 and all(point.goodput < _WORSE * best or not point.keeps_up for point in last):
                break
            rate *= self.factor
        best_rate = _knee(points).rate
        points += [
            self.point(name, source.load(rate, self.seed), rate) for rate in (best_rate * f for f in self.nearer)
        ]
        return sorted(points)

    def tenancy(self, name: str, source: Source, capacity: float) -> Tenancy:
        """One tenant sends ten times its share of `_SHARED` of ``capacity`` (requests/s)."""
        share = _SHARED * capacity / _TENANTS
        modest = (share,) * (_TENANTS - 1)
        seconds = source.requests / capacity
        base = source.load(1.0, self.seed)
        base = replace(base, requests=None)
        p99s, gap, kept = [], 0.0, 0.0
        for rates in ((0.0, *modest), (_TIMES * share, *modest)):
            crowd = Crowd(seed=self.seed, base=base, rates=rates, seconds=seconds)
            served = self.serve(name, crowd, fair=True)
            others = [record for record in served.records if record.group != "tenant 0"]
            p99s.append(float(np.percentile([record.ttft for record in others if record.ttft is not None], 99)))
            gap = served.service_gap
            kept = sum(map(SLO.met, others)) / len(others)
        return Tenancy(name, p99s[0], p99s[1], gap, kept)


@dataclass(frozen=True, kw_only=True)
class SimulatedJudge(Judge):
    """On a simulated machine. Answers' lengths are hidden from the scheduler, as people's are."""

    machine: Machine
    block_size: int = 32
    max_tokens: int = 2048

    @property
    def where(self) -> str:
        return f"simulated: {self.machine.name} ({self.machine.source})"

    def serve(self, name: str, load: Load, fair: bool) -> Served:
        setting = Setting(
            machine=self.machine,
            config=scheduling(name, self.config),
            block_size=self.block_size,
            max_tokens=self.max_tokens,
            seed=self.seed,
            fair=fair,
        )
        fleet = Fleet(setting, 1, RoundRobin(), tenant_of=lambda outline: outline.group if fair else "")
        records: list[Record] = []
        extras = fleet.run(load, records.append)
        return Served(records, extras.preemptions, extras.service_gap or 0.0)


@dataclass(frozen=True, kw_only=True)
class MeasuredJudge(Judge):
    """On this machine's CPU, in real time, with a model that is here. The scheduler knows how long answers will be.

    A run that others took more than a twentieth of the machine from is repeated, a few times.
    """

    worker: RealWorker
    model: str
    factor: float = 1.25
    nearer: tuple[float, ...] = ()

    @property
    def where(self) -> str:
        return f"measured: {self.model} on {describe().cpu}, {describe().cores} cores"

    def serve(self, name: str, load: Load, fair: bool) -> Served:
        for _ in range(_TRIES):
            meter = CpuMeter()
            measured = self.worker.run(load, scheduling(name, self.config), by_group=fair)
            if meter.read().foreign < _QUIET:
                break
        return Served(measured.records, measured.preemptions, 0.0)


def point_of(records: Sequence[Record], preemptions: int, rate: float) -> Point:
    """The figures of one run."""
    seconds = max(record.at for record in records)
    met = sum(map(SLO.met, records))
    answered = [record for record in records if record.outcome == "ok"]
    ttfts = [record.ttft or 0.0 for record in answered]
    tokens = sum(record.output_tokens for record in records if record.end <= seconds)
    return Point(
        rate=rate,
        goodput=met / seconds,
        kept=met / len(records),
        ttft_p50=float(np.percentile(ttfts, 50)),
        ttft_p99=float(np.percentile(ttfts, 99)),
        tpot_p99=float(np.percentile([record.tpot or 0.0 for record in answered], 99)),
        tokens=tokens / seconds,
        hit_rate=sum(record.cached_tokens or 0 for record in answered)
        / sum(record.prompt_tokens or 1 for record in answered),
        preemptions=preemptions,
        left=sum(map(_tokens, (record for record in records if record.end > seconds))) / sum(map(_tokens, records)),
    )


def _tokens(record: Record) -> int:
    return (record.prompt_tokens or 0) + record.output_tokens


def run_case(judge: Judge, source: Source, say: Say, names: Sequence[str] = tuple(SETTINGS)) -> Case:
    """Every way of scheduling on one workload."""
    tried: dict[str, list[Point]] = {}
    for name in names:
        tried[name] = judge.row(name, source)
        knee = _knee(tried[name])
        say(f"{source.name}: {name}: {knee.goodput:.2f}/s kept at {knee.rate:.2f}/s, TTFT p99 {knee.ttft_p99:.2f} s")
    others = [points for name, points in tried.items() if name in OTHERS] or list(tried.values())
    rate = _knee([_knee(points) for points in others]).rate
    rows = []
    for name, points in tried.items():
        equal = next((point for point in points if point.rate == rate), None)
        rows.append(Row(name, points, _knee(points), equal or judge.point(name, source.load(rate, judge.seed), rate)))
    tenancy = []
    for name in names:
        tenancy.append(judge.tenancy(name, source, rate))
        say(f"{source.name}: {name}: a greedy tenant makes others' TTFT p99 {tenancy[-1].ratio:.2f} times as long")
    return Case(source.name, source.requests, rows, tenancy)


def compare(judge: Judge, sources: Sequence[Source], say: Say, names: Sequence[str] = tuple(SETTINGS)) -> Comparison:
    """Every way of scheduling on every workload."""
    return Comparison(
        datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        {"Python": platform.python_version(), "penstock": version_of("penstock")},
        judge.where,
        [run_case(judge, source, say, names) for source in sources],
    )


def _knee(points: Sequence[Point]) -> Point:
    return max(points, key=lambda point: (point.keeps_up, point.goodput))


def sources(
    paths: Sequence[Path],
    requests: int | None,
    machine: Machine,
    most_input: int | None = None,
    most_output: int | None = None,
) -> list[Source]:
    """A source for each trace, or the imitation if there is none. Rates begin below what the machine bears."""
    found = [Source(path.stem, path, requests or 4000, 1.0, most_input, most_output) for path in paths]
    found = found or [Source("chat (synthetic)", None, requests or 2000, 1.0)]
    rated = []
    for source in found:
        outlines = list(source.load(1.0, 0).outlines())
        seconds = sum(_seconds_of(one, machine) for one in outlines) / len(outlines)
        rated.append(replace(source, requests=len(outlines), first_rate=round(_FIRST / seconds, 3)))
    return rated


def _seconds_of(one: Outline, machine: Machine) -> float:
    """What a request takes of a busy machine: its prompt in one go, and a share of each step of its answer."""
    length, answer = one.input_tokens, one.output_tokens
    prefill = machine.seconds(Work(length, length, length * length // 2, 1)) - machine.step
    together = min(_TOGETHER, machine.kv_tokens / (length + answer))
    decode = machine.step / together + machine.context * (length + answer / 2)
    return prefill + answer * decode


def page(result: Comparison) -> str:
    """The tables, in Markdown."""
    versions = ", ".join(f"{name} {text}" for name, text in result.versions.items())
    lines = [
        "# Ways of scheduling one worker",
        "",
        f"- The worker, {result.where}",
        f"- Objectives: TTFT {TTFT:g} s, TPOT {1e3 * TPOT:g} ms. Poisson arrivals with a trace's lengths.",
        f"- {result.date}; {versions}",
    ]
    for case in result.cases:
        lines += ["", f"## {case.name}, {case.requests} requests", "", *_rows(case)]
        if case.tenancy:
            lines += ["", *_tenancy(case)]
    return "\n".join(lines) + "\n"


def _rows(case: Case) -> Iterator[str]:
    rate = case.rows[0].equal.rate
    best = max((row.knee.goodput for row in case.rows if row.setting in OTHERS), default=0.0)
    yield "| setting | goodput at the knee, /s | of the best other | at rate | TTFT p99 there, s |" + (
        f" at {rate:.2f}/s: goodput | kept | TTFT p50 / p99, s | TPOT p99, ms | output tok/s | hit rate | preemptions |"
    )
    yield "|" + " --- |" * 12
    for row in case.rows:
        knee, equal = row.knee, row.equal
        yield (
            f"| {row.setting} | {knee.goodput:.2f} | {knee.goodput / best if best else 1:.2f} | {knee.rate:.2f} "
            f"| {knee.ttft_p99:.2f} | {equal.goodput:.2f} | {equal.kept:.1%} "
            f"| {equal.ttft_p50:.2f} / {equal.ttft_p99:.2f} | {1e3 * equal.tpot_p99:.1f} | {equal.tokens:,.0f} "
            f"| {equal.hit_rate:.1%} | {equal.preemptions} |"
        )


def _tenancy(case: Case) -> Iterator[str]:
    yield (
        f"One of {_TENANTS} tenants sends {_TIMES} times its share, which is {_SHARED / _TENANTS:.0%} of that rate. "
        "The others:"
    )
    yield ""
    yield "| setting | TTFT p99 without it, s | with it, s | ratio | kept | largest gap of service, tokens |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for one in case.tenancy:
        yield (
            f"| {one.setting} | {one.alone:.2f} | {one.beside:.2f} | {one.ratio:.2f} | {one.kept:.1%} "
            f"| {one.service_gap:,.0f} |"
        )
