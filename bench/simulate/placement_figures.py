"""What is each way of placing worth, as a page? Runs of `bench.simulate.placement_runs`, put side by side.

Ours are compared with the best of what ships, chosen anew for each case, seed, load and figure; the means over these
are geometric. Our constants were tuned on other seeds than those reported; others' parameters are their defaults
(`bench.simulate.others`).
"""

from collections.abc import Callable, Iterable, Sequence
from math import exp, log
from typing import Final, NamedTuple

from bench.simulate.placement_runs import Case, Kept, Outcome
from scheduler.placement import POLICIES

_TOLERANCE: Final = 1.1
"""So many times the best of what ships counts as worse."""
_CALM: Final = 0.8
"""Up to this load nothing should be worse."""
_LEAST_GOOD: Final = 1e-3

Point = tuple[Case, int, float]
"""A case, a seed and a load: what runs have in common that are compared."""


class Ratios(NamedTuple):
    """To the best of what ships: below 1 is better for TTFT, above 1 for shares of requests."""

    p99: float
    mean: float
    good: float
    timely: float


_FIGURES: Final[tuple[Callable[[Outcome], float], ...]] = (
    lambda one: one.p99,
    lambda one: one.mean,
    lambda one: max(one.good, _LEAST_GOOD),
    lambda one: max(one.timely, _LEAST_GOOD),
)


def points(kept: Kept) -> dict[Point, dict[str, Outcome]]:
    """What every policy made of each point."""
    found: dict[Point, dict[str, Outcome]] = {}
    for run in kept.runs.values():
        found.setdefault((run.case, run.seed, run.load), {})[run.policy] = run.outcome
    return found


def ratios(outcomes: dict[str, Outcome], policy: str) -> Ratios:
    """A policy's figures over the best of what ships, at one point."""
    others = [one for name, one in outcomes.items() if name not in POLICIES]
    p99, mean, good, timely = (
        figure(outcomes[policy]) / best(map(figure, others))
        for figure, best in zip(_FIGURES, (min, min, max, max), strict=True)
    )
    return Ratios(p99, mean, good, timely)


def geometric(found: Sequence[Ratios]) -> Ratios:
    """The geometric means."""
    return Ratios(*(exp(sum(map(log, figures)) / len(found)) for figures in zip(*found, strict=True)))


def worse(kept: Kept, policy: str = "held") -> list[tuple[Point, str, float]]:
    """Where a policy is more than a tenth worse than the best of what ships at a calm load: where, in what, how many
    times the best (of shares of requests: the best's over its)."""
    found: list[tuple[Point, str, float]] = []
    for point, outcomes in points(kept).items():
        if point[2] > _CALM or not _comparable(outcomes, policy):
            continue
        one = ratios(outcomes, policy)
        for name, times in (("p99 TTFT", one.p99), ("mean TTFT", one.mean), ("good", 1 / one.good)):
            if times > _TOLERANCE:
                found.append((point, name, times))
    return found


def page(kept: Kept, machine: str, notes: str = "") -> str:
    """The tables, as Markdown."""
    found = points(kept)
    requests = sorted({case.requests for case, _, _ in found})
    seeds = sorted({seed for _, seed, _ in found})
    text = [
        "# Placement\n",
        f"Simulated workers ({machine}), {' or '.join(f'{one:,}' for one in requests)} requests a run, of which the "
        f"first third only fills the caches; seeds {', '.join(map(str, seeds))}. KV events arrive 0.1 s late, load "
        "reports every 0.05 s and 0.01 s late. *Good*: TTFT within 1 s + 0.2 ms a prompt token, TPOT within 50 ms; "
        "*timely*: TTFT alone. Load 1.0 is the highest rate at which `immediate` keeps 99 of 100 requests "
        "timely, for each case and seed anew. Workers schedule as ours do (`ours`: deadlines, the shortest prompt "
        "first) or as vLLM does by default (`fcfs-8192`). Made by `penstock bench simulate --placement-figures`.\n",
        *([notes.strip() + "\n"] if notes else []),
        "## Against the best of what ships\n",
        "The best is chosen anew for each case, seed, load and figure; geometric means, and in brackets the lowest and "
        "the highest of single points. Below 1 is better for TTFT, above 1 for requests.\n",
        "| workers | policy | load | points | p99 TTFT | mean TTFT | good | timely |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *_summary(found),
        "",
        f"## Not more than a tenth worse, up to a load of {_CALM}\n",
        *_exceptions(kept),
    ]
    for case in sorted({case for case, _, _ in found}, key=lambda case: case.name):
        text += ["", *_single(kept, found, case)]
    return "\n".join([*text, ""])


def _summary(found: dict[Point, dict[str, Outcome]]) -> Iterable[str]:
    fleets = sorted({(case.scheduling, case.workers) for case, _, _ in found})
    for scheduling, workers in fleets:
        for policy in POLICIES:
            for load in sorted({load for _, _, load in found}):
                here = [
                    ratios(outcomes, policy)
                    for (case, _, at), outcomes in found.items()
                    if (case.scheduling, case.workers, at) == (scheduling, workers, load)
                    and _comparable(outcomes, policy)
                ]
                if here:
                    cells = [
                        f"{mean:.2f} ({min(all_):.2f}-{max(all_):.2f})"
                        for mean, all_ in zip(geometric(here), zip(*here, strict=True), strict=True)
                    ]
                    row = [f"{workers} {scheduling}", policy, f"{load:g}", str(len(here)), *cells]
                    yield f"| {' | '.join(row)} |"


def _comparable(outcomes: dict[str, Outcome], policy: str) -> bool:
    return policy in outcomes and any(name not in POLICIES for name in outcomes)


def _exceptions(kept: Kept) -> list[str]:
    calm = sum(load <= _CALM and _comparable(outcomes, "held") for (_, _, load), outcomes in points(kept).items())
    found = worse(kept)
    if not found:
        return [f"`held` is nowhere worse than that, in {calm} comparisons." if calm else "Nothing was run there."]
    return [
        f"- {case.name}, seed {seed}, load {load:g}: {name} {times:.2f} times the best's"
        for (case, seed, load), name, times in sorted(found, key=lambda one: -one[2])
    ]


def _single(kept: Kept, found: dict[Point, dict[str, Outcome]], case: Case) -> list[str]:
    """A case's runs: a policy a row."""
    seeds = sorted({seed for one, seed, _ in found if one == case})
    text = [f"## {case.name}"]
    for seed in seeds:
        loads = sorted({load for one, at, load in found if (one, at) == (case, seed)})
        knee = kept.knees.get((case, seed))
        if knee is not None:
            text += [
                "",
                f"Seed {seed}: the knee is at {knee.rate:.2f} requests/s; one endless cache would have "
                f"{knee.ceiling:.1%} of the prompt tokens.",
            ]
        text += [
            "",
            "| policy | load | TTFT p50 s | p99 s | mean s | good | timely | hits | busiest |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for load in loads:
            outcomes = found[case, seed, load]
            for policy in sorted(outcomes, key=lambda name: (name not in POLICIES, name)):
                text.append(_row(policy, load, outcomes[policy]))
    return text


def _row(policy: str, load: float, one: Outcome) -> str:
    name = f"**{policy}**" if policy in POLICIES else policy
    return (
        f"| {name} | {load:g} | {one.p50:.2f} | {one.p99:.2f} | {one.mean:.2f} | {one.good:.1%} | {one.timely:.1%} | "
        f"{one.hits:.1%} | {one.busiest:.2f} |"
    )
