"""What is each way of placing worth? A fleet of simulated workers, real prompts, and every policy in turn.

A case is a workload and a size of KV cache. Its *knee* is the highest rate of arrivals at which plain predicted TTFT,
the best of the published ideas, still keeps nine of ten requests good: TTFT within 1 s and 0.2 ms a prompt token, TPOT
within 50 ms. Loads are shares of that rate. Ours are compared with the best of what ships, chosen anew for each case,
load and figure; the means over cases are geometric. The hit rate of one endless cache is the ceiling of all.

Our constants were tuned on other seeds than those reported, and others' parameters are their defaults
(`bench.simulate.others`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Final

import msgspec

from bench.load.arrivals import parse_arrivals
from bench.load.lengths import parse_distribution
from bench.load.records import Record
from bench.load.workload import Conversations, Load, Trace
from bench.simulate.fleet import Fleet
from bench.simulate.gateway import Gateway, placing
from bench.simulate.machines import Machine
from bench.simulate.others import OTHERS
from bench.simulate.prompts import Prompts
from bench.simulate.worker import Setting, SimWorker
from scheduler.config import SchedulerConfig
from scheduler.placement import POLICIES, PlacementConfig, Placer

TTFT: Final = 1.0
TTFT_PER_TOKEN: Final = 2e-4
TPOT: Final = 0.05
BLOCK: Final = 64
CACHES: Final = {"scarce": 200_000, "ample": 900_000}
_GOOD: Final = 0.9
_TURNS: Final = 4
_LOOKS: Final = 7
_EVERYWHERE: Final = ("held", "immediate", "predicted-ttft", "lmetric")
"""Those of ours that are run at every load; the others only at `_ONCE`."""
_ONCE: Final = 0.9

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What all cases have in common; ``workers`` behind a gateway, ``requests`` a run for each eight of them."""

    machine: Machine
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    workers: int = 8
    requests: int = 700
    loads: Sequence[float] = (0.8, 0.9, 1.0)
    seed: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """One run. TTFT in seconds; ``good`` is a share of the requests, ``hits`` of the prompt tokens."""

    policy: str
    ours: bool
    p50: float
    p99: float
    mean: float
    good: float
    hits: float
    busiest: float


class Level(msgspec.Struct, frozen=True):
    """A load, in shares of the knee, and what came of it."""

    load: float
    outcomes: list[Outcome]


class Case(msgspec.Struct, frozen=True):
    """A workload at all loads. ``knee`` in requests/s; ``ceiling``: the hit rate of one endless cache."""

    name: str
    kv_tokens: int
    workers: int
    requests: int
    seed: int
    knee: float
    ceiling: float
    levels: list[Level]


Source = Callable[[float, int, int], Load]
"""Makes a workload of (requests/s, requests, seed)."""


def conversations(rate: float, requests: int, seed: int) -> Load:
    """Chats about long texts: two to six turns, behind one of 64 system prompts of 4,000 tokens."""
    return Conversations(
        requests=requests,
        seed=seed,
        arrivals=parse_arrivals(f"poisson:{rate / _TURNS:.6f}"),
        turns=parse_distribution("uniform:2,6"),
        think=parse_distribution("lognormal:4,0.8,max=20"),
        input=parse_distribution("lognormal:6000,0.8,max=24000"),
        output=parse_distribution("lognormal:250,0.8,max=1500"),
        shared=4000,
        groups=64,
    )


def from_trace(path: Path) -> Source:
    """A trace's lengths and common prefixes, at Poisson arrivals; each seed begins elsewhere in it."""

    def make(rate: float, requests: int, seed: int) -> Load:
        return Trace(
            path=path,
            requests=requests,
            seed=seed,
            start=240.0 * (seed % 8),
            arrivals=parse_arrivals(f"poisson:{rate:.6f}"),
        )

    return make


def sources(traces: Iterable[Path]) -> dict[str, Source]:
    """The workloads by name: each trace, and the chats."""
    return {**{path.stem: from_trace(path) for path in traces}, "chats": conversations}


def run_case(judge: Judge, name: str, source: Source, cache: str, say: Say) -> Case:
    """All policies at all loads, for one workload and size of cache."""
    requests = judge.requests * judge.workers // 8
    setting = Setting(
        machine=msgspec.structs.replace(judge.machine, kv_tokens=CACHES[cache]), config=judge.config, block_size=BLOCK
    )
    knee = find_knee(judge, source, setting, requests)
    say(f"{name}, {cache}: the knee is at {knee:.2f} requests/s")
    levels = []
    for load in judge.loads:
        made = source(load * knee, requests, judge.seed)
        outcomes = []
        for policy, gateway in gateways(load).items():
            outcomes.append(outcome(policy, setting, judge.workers, gateway, made))
            say(f"{name}, {cache}, load {load}: {line(outcomes[-1])}")
        levels.append(Level(load, outcomes))
    limit = ceiling(source(knee, requests, judge.seed))
    return Case(f"{name}, {cache} KV", CACHES[cache], judge.workers, requests, judge.seed, knee, limit, levels)


def gateways(load: float) -> dict[str, Callable[[Sequence[SimWorker]], Gateway]]:
    """What makes each policy's gateway, by name: ours, then others'."""
    ours = [name for name in POLICIES if name in _EVERYWHERE or load == _ONCE]
    made = {name: placing(lambda name=name: Placer(PlacementConfig(policy=name))) for name in ours}  # type: ignore[misc]
    for name, other in OTHERS.items():
        made[name] = placing(lambda other=other: Placer(policy=other.policy), other.news)  # type: ignore[misc]
    return made


def find_knee(judge: Judge, source: Source, setting: Setting, requests: int) -> float:
    """By bisection over rates, to within 4 %; on another seed than the runs that are reported."""
    gateway = placing(lambda: Placer(PlacementConfig(policy="predicted-ttft")))
    low, high = 0.25 * judge.workers, 32.0 * judge.workers
    for _ in range(_LOOKS):
        rate = exp((log(low) + log(high)) / 2)
        made = source(rate, requests, judge.seed + 1000)
        good = outcome("", setting, judge.workers, gateway, made).good >= _GOOD
        low, high = (rate, high) if good else (low, rate)
    return low


def outcome(
    policy: str, setting: Setting, workers: int, gateway: Callable[[Sequence[SimWorker]], Gateway], load: Load
) -> Outcome:
    """One run."""
    records: list[Record] = []
    extras = Fleet(setting, workers, gateway).run(load, records.append)
    times = sorted(one.first - one.at for one in records if one.first is not None)
    return Outcome(
        policy=policy,
        ours=policy in POLICIES,
        p50=times[len(times) // 2],
        p99=times[int(0.99 * len(times))],
        mean=sum(times) / len(times),
        good=sum(map(is_good, records)) / len(records),
        hits=extras.hit_rate,
        busiest=extras.busiest,
    )


def is_good(record: Record) -> bool:
    """Whether a request was answered within both bounds."""
    if record.outcome != "ok" or record.first is None or record.last is None:
        return False
    gaps = max(record.output_tokens - 1, 1)
    in_time = record.first - record.at <= TTFT + TTFT_PER_TOKEN * (record.prompt_tokens or 0)
    return in_time and (record.last - record.first) / gaps <= TPOT


def ceiling(load: Load) -> float:
    """The share of the prompt tokens that one cache without end would have had: of blocks seen in an earlier prompt.

    Answers are left out, so a conversation's next turn may find a little more.
    """
    prompts, seen = Prompts(BLOCK), set[bytes]()
    said: dict[int, tuple[int, list[bytes]]] = {}
    found = tokens = 0
    for one in load.outlines():
        before, blocks = said.get(one.session, (0, [])) if one.session is not None else (0, [])
        made = prompts.make(one.index, before + one.input_tokens, one.blocks, one.block_tokens, blocks)
        tokens += len(made.tokens)
        known = next((place for place, block in enumerate(made.hashes) if block not in seen), len(made.hashes))
        found += BLOCK * known
        seen.update(made.hashes)
        if one.session is not None:
            said[one.session] = (len(made.tokens) + one.output_tokens, made.hashes)
    return found / tokens


def line(one: Outcome) -> str:
    """An outcome in a line."""
    return (
        f"{one.policy}: TTFT p50 {one.p50:.2f}, p99 {one.p99:.2f}, mean {one.mean:.2f} s, good {one.good:.1%}, "
        f"hits {one.hits:.1%}, busiest {one.busiest:.2f}"
    )


def ratios(cases: Sequence[Case], load: float, policy: str) -> tuple[float, float, float]:
    """A policy's p99, mean and share of good ones over the best of what ships: geometric means over the cases."""
    logs = [[0.0], [0.0], [0.0]]
    for case in cases:
        level = next(one for one in case.levels if one.load == load)
        mine = next(one for one in level.outcomes if one.policy == policy)
        others = [one for one in level.outcomes if not one.ours]
        logs[0].append(log(mine.p99 / min(one.p99 for one in others)))
        logs[1].append(log(mine.mean / min(one.mean for one in others)))
        logs[2].append(log(max(mine.good, 1e-3) / max(max(one.good for one in others), 1e-3)))
    p99, mean, good = (exp(sum(one) / len(cases)) for one in logs)
    return p99, mean, good


def page(machine: Machine, cases: Sequence[Case], scheduling: str) -> str:
    """The tables, as Markdown."""
    first = cases[0]
    loads = [level.load for level in first.levels]
    text = [
        "# Placement\n",
        f"{first.workers} simulated workers ({machine.name}, scheduling {scheduling}), {first.requests:,} requests a "
        f"run, seed {first.seed}. KV events arrive 0.1 s late, load reports every 0.05 s and 0.01 s late. "
        "Good: TTFT within 1 s + 0.2 ms a prompt token, TPOT within 50 ms. Load 1.0 is the rate at which plain "
        "predicted TTFT keeps nine of ten requests good. Made by `penstock bench simulate --placement-figures`.\n",
        "## Against the best of what ships\n",
        "The best is chosen anew for each case and figure; geometric means over the cases. Below 1 is better for TTFT, "
        "above 1 for good requests.\n",
        "| policy | load | p99 TTFT | mean TTFT | good |",
        "| --- | --- | --- | --- | --- |",
    ]
    for policy in [one for one in _EVERYWHERE if one in POLICIES]:
        for load in loads:
            p99, mean, good = ratios(cases, load, policy)
            text.append(f"| {policy} | {load} | {p99:.2f} | {mean:.2f} | {good:.2f} |")
    for case in cases:
        limits = f"The knee: {case.knee:.2f} requests/s. One endless cache would have {case.ceiling:.1%} of the tokens."
        text += ["", f"## {case.name}\n", limits]
        for level in case.levels:
            text += [
                "",
                f"Load {level.load}:\n",
                "| policy | TTFT p50 s | p99 s | mean s | good | hits | busiest |",
                "| --- | --- | --- | --- | --- | --- | --- |",
            ]
            text += [
                f"| {'**' + one.policy + '**' if one.ours else one.policy} | {one.p50:.2f} | {one.p99:.2f} | "
                f"{one.mean:.2f} | {one.good:.1%} | {one.hits:.1%} | {one.busiest:.2f} |"
                for one in level.outcomes
            ]
    return "\n".join([*text, ""])


def judged(judge: Judge, traces: Iterable[Path], say: Say) -> Iterator[Case]:
    """All cases, one by one."""
    for name, source in sources(traces).items():
        for cache in CACHES:
            yield run_case(judge, name, source, cache, say)
