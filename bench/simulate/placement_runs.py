"""Which runs does a comparison of placements need, and what came of those that are done?

A *case* is a workload in front of a fleet: so many workers, with KV caches of a size, that schedule in some way. Its
*knee* is the highest rate of arrivals at which the policy `immediate`, the best that sends requests on at once,
still gives 99 of 100 requests their first token in time (1 s and 0.2 ms a prompt token). Loads are shares of that
rate. A run is a policy at a load, on a seed.

Each knee and each run is a line of JSON as soon as it is known. What is there is not run again, so that a comparison of
many hours can be made in pieces, by several commands, and stopped at any time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Final

import msgspec

from bench.load.arrivals import parse_arrivals
from bench.load.lengths import parse_distribution
from bench.load.records import Record
from bench.load.workload import Conversations, Load, Synthetic, Trace
from bench.simulate.fleet import Fleet
from bench.simulate.gateway import Gateway, placing
from bench.simulate.machines import Machine
from bench.simulate.others import OTHERS
from bench.simulate.prompts import Prompts
from bench.simulate.settings import scheduling
from bench.simulate.worker import Setting, SimWorker
from scheduler.placement import POLICIES, PlacementConfig, Placer

TTFT: Final = 1.0
TTFT_PER_TOKEN: Final = 2e-4
TPOT: Final = 0.05
BLOCK: Final = 64
_GOOD: Final = 0.99
_TURNS: Final = 4
_WARM_UP: Final = 3
_LOOKS: Final = 5
_LOWEST, _HIGHEST = 0.4, 3.2
"""Where a knee is looked for first: times the rate at which fleets without caches would do nothing but prefill."""
_WIDER: Final = 3
"""In so many ranges, each as wide as the first, if fleets with caches keep up with all of those before."""

Say = Callable[[str], None]
Source = Callable[[float, int, int], Load]
"""Makes a workload of (requests/s, requests, seed)."""
Maker = Callable[[Sequence[SimWorker]], Gateway]


class Case(msgspec.Struct, frozen=True):
    """A workload in front of a fleet; ``kv_tokens`` is what each worker's cache holds."""

    workload: str
    kv_tokens: int
    scheduling: str
    workers: int
    requests: int

    @property
    def name(self) -> str:
        """What it is, in a few words."""
        return f"{self.workload}, {self.kv_tokens // 1000}k tokens of KV, {self.workers} workers ({self.scheduling})"


class Knee(msgspec.Struct, frozen=True, tag="knee"):
    """A case's knee in requests/s, and the hit rate of one endless cache: the ceiling of all policies.

    Each seed has its own: some parts of a trace are heavier than others.
    """

    case: Case
    seed: int
    rate: float
    ceiling: float


class Outcome(msgspec.Struct, frozen=True):
    """What came of a run. TTFT in seconds; ``good`` and ``timely`` are shares of the requests, ``hits`` of the prompt
    tokens; ``busiest`` is the busiest worker's work over the mean's."""

    p50: float
    p99: float
    mean: float
    good: float
    timely: float
    hits: float
    busiest: float


class Run(msgspec.Struct, frozen=True, tag="run"):
    """A policy at a load."""

    case: Case
    seed: int
    load: float
    policy: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be compared. ``requests`` are for each run of up to eight workers; more workers get more."""

    machine: Machine
    sources: dict[str, Source]
    caches: Sequence[int]
    policies: Sequence[str]
    loads: Sequence[float] = (0.5, 0.8, 0.9, 1.0)
    scheduling: str = "ours"
    workers: int = 8
    requests: int = 3000
    seed: int = 1

    def cases(self) -> Iterator[tuple[Case, Source]]:
        """The cases, with what makes their workload."""
        requests = max(self.requests, self.requests * self.workers // 8)
        for name, source in self.sources.items():
            for kv_tokens in self.caches:
                yield Case(name, kv_tokens, self.scheduling, self.workers, requests), source

    def setting(self, case: Case) -> Setting:
        """A worker of a case."""
        machine = msgspec.structs.replace(self.machine, kv_tokens=case.kv_tokens)
        return Setting(machine=machine, config=scheduling(case.scheduling), block_size=BLOCK)


class Kept:
    """Knees and runs that are known, in memory and as lines of a file."""

    def __init__(self, path: Path | None = None) -> None:
        """Those of the file, if there is one.

        Raises:
            ValueError: it has a line that is neither a knee nor a run.
        """
        self.knees: dict[tuple[Case, int], Knee] = {}
        self.runs: dict[tuple[Case, int, float, str], Run] = {}
        self._path = path
        if path is not None and path.exists():
            decoder = msgspec.json.Decoder(Knee | Run)
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                try:
                    self._add(decoder.decode(line))
                except msgspec.MsgspecError as error:
                    raise ValueError(f"{path}, line {number}: neither a knee nor a run: {error}") from error

    def keep(self, one: Knee | Run) -> None:
        """One more, on disk at once."""
        self._add(one)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(one) + b"\n")

    def _add(self, one: Knee | Run) -> None:
        if isinstance(one, Knee):
            self.knees[one.case, one.seed] = one
        else:
            self.runs[one.case, one.seed, one.load, one.policy] = one


def fill(wanted: Wanted, kept: Kept, say: Say, seconds: float | None = None) -> bool:
    """Make what is wanted and not kept yet; nothing new is begun after so many seconds. Whether all is there."""
    began = time.monotonic()

    def late() -> bool:
        return seconds is not None and time.monotonic() - began > seconds

    for case, source in wanted.cases():
        setting = wanted.setting(case)
        if (case, wanted.seed) not in kept.knees:
            if late():
                return False
            rate = find_knee(case, source, setting, wanted.seed)
            limit = ceiling(source(rate, case.requests, wanted.seed))
            kept.keep(Knee(case, wanted.seed, round(rate, 4), round(limit, 4)))
            say(f"{case.name}: the knee is at {rate:.2f} requests/s")
        for load in wanted.loads:
            for policy in wanted.policies:
                if (case, wanted.seed, load, policy) in kept.runs:
                    continue
                if late():
                    return False
                made = source(load * kept.knees[case, wanted.seed].rate, case.requests, wanted.seed)
                found = outcome(setting, case.workers, gateway_of(policy), made)
                kept.keep(Run(case, wanted.seed, load, policy, found))
                say(f"{case.name}, load {load:g}, {policy}: {line(found)}")
    return True


def gateway_of(policy: str) -> Maker:
    """What makes a policy's gateway: ours by its name, or another's by its.

    Raises:
        ValueError: there is no such policy; it says which there are.
    """
    if policy in POLICIES:
        return placing(lambda: Placer(PlacementConfig(policy=policy), fast=True))
    if policy not in OTHERS:
        raise ValueError(f"{policy!r} is none of {', '.join([*POLICIES, *OTHERS])}")
    other = OTHERS[policy]
    return placing(lambda: Placer(policy=other.policy, fast=True), other.news)


def find_knee(case: Case, source: Source, setting: Setting, seed: int) -> float:
    """By bisection over rates, to within 7 %; the highest that was looked at, if none is too much."""
    gateway = gateway_of("immediate")
    prompts = [one.input_tokens for one in source(1.0, case.requests, seed).outlines()]
    machine = setting.machine
    token = machine.bends[-1][1] if machine.bends else machine.token
    work = sum(token * tokens + 0.5 * machine.pair * tokens * tokens for tokens in prompts) / len(prompts)
    low = _LOWEST * case.workers / work
    for wider in range(1, 1 + _WIDER):
        highest = high = _LOWEST * (_HIGHEST / _LOWEST) ** wider * case.workers / work
        for _ in range(_LOOKS):
            rate = exp((log(low) + log(high)) / 2)
            kept_up = keeps_up(setting, case, gateway, source(rate, case.requests, seed))
            low, high = (rate, high) if kept_up else (low, rate)
        if high < highest:
            break
    return low


class _TooLateError(Exception):
    """It is known before a run's end that too many were late."""


def keeps_up(setting: Setting, case: Case, gateway: Maker, load: Load) -> bool:
    """Whether enough requests get their first token in time, the first ones aside; a run ends when that is known."""
    first = case.requests // _WARM_UP
    most = (1 - _GOOD) * (case.requests - first)
    late = 0

    def look(record: Record) -> None:
        nonlocal late
        late += record.index >= first and not is_timely(record)
        if late > most:
            raise _TooLateError

    try:
        Fleet(setting, case.workers, gateway).run(load, look)
    except _TooLateError:
        return False
    return True


def outcome(setting: Setting, workers: int, gateway: Maker, load: Load) -> Outcome:
    """One run. Its first third only fills the caches: what counts is what came of the others."""
    served: list[Record] = []
    extras = Fleet(setting, workers, gateway).run(load, served.append)
    records = [one for one in served if one.index >= len(served) // _WARM_UP]
    times = sorted(one.first - one.at for one in records if one.first is not None)
    return Outcome(
        p50=round(times[len(times) // 2], 4),
        p99=round(times[int(0.99 * len(times))], 4),
        mean=round(sum(times) / len(times), 4),
        good=round(sum(map(is_good, records)) / len(records), 4),
        timely=round(sum(map(is_timely, records)) / len(records), 4),
        hits=round(extras.hit_rate, 4),
        busiest=round(extras.busiest, 3),
    )


def is_timely(record: Record) -> bool:
    """Whether a request's first token was in time for the length of its prompt."""
    if record.outcome != "ok" or record.first is None:
        return False
    return record.first - record.at <= TTFT + TTFT_PER_TOKEN * (record.prompt_tokens or 0)


def is_good(record: Record) -> bool:
    """Whether a request was answered within both bounds."""
    if not is_timely(record) or record.first is None or record.last is None:
        return False
    return (record.last - record.first) / max(record.output_tokens - 1, 1) <= TPOT


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
        f"TTFT p50 {one.p50:.2f}, p99 {one.p99:.2f}, mean {one.mean:.2f} s, good {one.good:.1%}, "
        f"timely {one.timely:.1%}, hits {one.hits:.1%}, busiest {one.busiest:.2f}"
    )


def conversations(rate: float, requests: int, seed: int) -> Load:
    """Chats about long texts: two to six turns, behind one of 64 system prompts of 4,000 tokens."""
    return Conversations(
        requests=requests,
        seed=seed,
        arrivals=parse_arrivals(f"poisson:{rate / _TURNS:.6f}"),
        turns=parse_distribution("uniform:2,6"),
        think=parse_distribution("lognormal:4,0.8,max=20"),
        input=parse_distribution("lognormal:6000,0.8,max=24000"),
        output=parse_distribution("lognormal:150,0.8,max=1000"),
        shared=4000,
        groups=64,
    )


def documents(rate: float, requests: int, seed: int) -> Load:
    """Questions about one of 240 texts of 15,000 tokens, each of which some others ask about, too."""
    return Synthetic(
        requests=requests,
        seed=seed,
        arrivals=parse_arrivals(f"poisson:{rate:.6f}"),
        input=parse_distribution("lognormal:600,1.2,max=24000"),
        output=parse_distribution("lognormal:80,0.8,max=500"),
        shared=15_000,
        groups=240,
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


def sources(traces: Sequence[Path], only: Sequence[str] = ()) -> dict[str, Source]:
    """The workloads by name: each trace, the chats and the documents; ``only`` some of them.

    Raises:
        ValueError: one of these isn't there.
    """
    found = {**{path.stem: from_trace(path) for path in traces}, "chats": conversations, "documents": documents}
    missing = [name for name in only if name not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)}: none of {', '.join(found)}")
    return {name: found[name] for name in only} if only else found
